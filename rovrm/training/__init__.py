"""One phase: what decides it, its data, its trainer and what it leaves."""
