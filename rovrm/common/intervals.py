"""Intervals of measured shares."""

import math

Z95 = 1.959964


def wilson95(share: float, n: int) -> list[float]:
    """The 95 % interval of a share seen in n independent cases: Wilson's score interval, which holds at small n and at
    shares of 0 and 1."""
    centre = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
    return [max(centre - half, 0.0), min(centre + half, 1.0)]


def share_in_words(share: float, n: int) -> str:
    """`0.897 (0.855 to 0.929, n=303)`"""
    low, high = wilson95(share, n)
    return f"{share:.3f} ({low:.3f} to {high:.3f}, n={n})"
