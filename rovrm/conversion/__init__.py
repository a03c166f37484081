"""Reward models of other projects: how they are recognised, read and rebuilt as ours."""
