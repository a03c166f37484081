"""Two or more ways to do the same work, timed in turns, so that a machine that slows down slows all of them."""

import statistics
import time
from collections.abc import Callable


def alternate(
    sides: dict[str, Callable[[], None]], repeats: int, device: str, warm_up: int = 0
) -> dict[str, list[float]]:
    """Seconds of `repeats` runs of each side, taking turns.

    Args:
        sides: what to run, by name.
        repeats: runs of each side that count.
        device: such as cpu or cuda; on cuda a run ends when the GPU is done.
        warm_up: runs of each side before these, which do not count.
    """
    import torch

    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(warm_up + repeats):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            if repeat >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def print_rates(unit: str, count: int, seconds: dict[str, list[float]]) -> None:
    """Prints the rates of two sides, and the ratio of the second's to the first's, repeat by repeat. count: units of
    work in one run."""
    for name, values in seconds.items():
        print(f"  {name:<22}{count / statistics.median(values):>9.2f} {unit}/s")
    first, second = seconds.values()
    ratios = [a / b for a, b in zip(first, second, strict=True)]
    print(
        f"  ratio {statistics.median(ratios):.2f} "
        f"(lowest {min(ratios):.2f}, highest {max(ratios):.2f} of {len(ratios)} repeats)"
    )
