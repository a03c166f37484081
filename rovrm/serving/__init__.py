"""Scoring over HTTP: requests, the app, OpenRLHF's form."""
