"""Choosing training data by per-example gradient features and optimal transport.

Nothing is here yet: selection comes in a later version, and until then rovrm draws `n` examples at random or takes the
first `n`. This package will know tensors and modules only and must not import rovrm.
"""
