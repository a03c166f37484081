"""Two or more ways to do the same work, timed in turns, so that a machine that slows down slows all of them."""

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any


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


def peak_memory(work: Callable[[], None], device: str) -> float:
    """MiB that work takes at its peak, beyond what is there when it begins."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with torch.profiler.profile(profile_memory=True) as profiler:
        work()
    results: Any = profiler.profiler
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(itertools.accumulate(sizes, initial=0)) / 2**20


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
