"""How the shipped tiny base was made: its lessons, its training, and what it can do."""
