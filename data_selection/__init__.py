"""Choosing training data by per-example gradient features and optimal transport.

Two stages with files between them: gradients.py makes features, transport.py scores a pool's rows against a target's;
choose.py joins checks, preprocessing and a score. This package knows tensors and modules only, and does not import
rovrm.
"""
