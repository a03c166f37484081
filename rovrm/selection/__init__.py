"""Which rows of a phase are trained on: warm-up, features, choice, report."""
