"""Choosing training data by per-example gradient features and optimal transport.

Two stages with files between them. First gradients.py makes one feature vector of each example, and store.py keeps
them on disk. Then choose.py takes the features of a pool and of a target, prepares them (features.py), scores every
row of the pool by how much it helps to cover the target (transport.py), and takes the best k.

This package knows tensors and modules only, and does not import rovrm.
"""
