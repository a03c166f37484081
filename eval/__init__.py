"""Benchmarks of reward models, each a command `python -m eval.NAME` run from a clone; the wheel leaves them out.

The folder shares its name with a builtin: write `from eval.NAME import ...`, never `import eval`.
"""
