"""The tables of eval.selection: means over seeds, differences and shares of the gap paired by seed."""

from collections.abc import Sequence
from typing import Any

FAMILIES = ("faithful", "complete", "neutral", "conflicting", "exchanged")
Row = dict[str, Any]


def print_tables(choices: Sequence[Row], results: Sequence[Row]) -> None:
    """Prints, for each pool, what every method keeps and what is learned from it."""
    for pool in dict.fromkeys(row["pool"] for row in [*choices, *results]):
        print(f"\n==== pool {pool} ====")
        of_pool = [row for row in choices if row["pool"] == pool]
        if of_pool:
            _print_kept(of_pool, [row for row in results if row["pool"] == pool])
        of_pool = [row for row in results if row["pool"] == pool]
        if of_pool:
            _print_accuracy(of_pool)


def _print_kept(choices: Sequence[Row], results: Sequence[Row]) -> None:
    for by, what in (("families", "caption pool: share of each family's rows that is kept"), ("kinds", "of faithful")):
        _print_shares(f"{what}, by {by}", {name: rows for name, rows in _by_method(choices, "kept", by).items()})
    text = [row | {"kept": row["kept"]["phase1-text"]} for row in results if row["kept"]]
    if text:
        _print_shares("text pool: share of each family's rows that is kept", _by_method(text, "kept", "families"))


def _by_method(rows: Sequence[Row], *path: str) -> dict[str, list[dict[str, float]]]:
    """The records at a path into each row, by method."""
    found: dict[str, list[dict[str, float]]] = {}
    for row in rows:
        record: Any = row
        for key in path:
            record = record[key]
        found.setdefault(row["method"], []).append(record)
    return found


def _print_shares(title: str, by_method: dict[str, list[dict[str, float]]]) -> None:
    names = sorted({name for records in by_method.values() for record in records for name in record}, key=_order)
    print(f"\n{title}; mean of seeds, lowest and highest")
    print(f"{'':<44}{'seeds':>6}" + "".join(f"{name:>18}" for name in names))
    for method, records in by_method.items():
        cells = []
        for name in names:
            values = [record[name] for record in records]
            cells.append(f"{_mean(values):.2f} ({min(values):.2f}-{max(values):.2f})")
        print(f"{method:<44}{len(records):>6}" + "".join(f"{cell:>18}" for cell in cells))


def _order(name: str) -> tuple[int, str]:
    return (FAMILIES.index(name) if name in FAMILIES else len(FAMILIES), name)


def _print_accuracy(results: Sequence[Row]) -> None:
    for pairs in results[0]["accuracy"]:
        accuracies: dict[str, dict[int, float]] = {}  # by method and seed
        for row in results:
            accuracies.setdefault(row["method"], {})[row["seed"]] = row["accuracy"][pairs]["all"]
        print(f"\naccuracy on visual pairs, trained on {pairs} of them")
        print(f"{'':<44}{'seeds':>6}{'mean, 95 %':>18}{'minus random, 95 %':>22}{'share of the gap':>18}")
        for method, by_seed in accuracies.items():
            mean = with_interval(list(by_seed.values()), "")
            print(f"{method:<44}{len(by_seed):>6}{mean:>18}{_differences(accuracies, method)}")
        _print_shares("by kind of question", _by_method(results, "accuracy", pairs))


def _differences(accuracies: dict[str, dict[int, float]], method: str) -> str:
    """The mean difference to random with its t interval, and the share of the gap from random to oracle; each over
    the seeds that all of its methods have."""

    def differences(one: str, other: str, *methods: str) -> list[float]:
        seeds = set.intersection(*(set(accuracies.get(name, {})) for name in (one, other, *methods)))
        return [accuracies[one][seed] - accuracies[other][seed] for seed in sorted(seeds)]

    if method == "random" or not differences(method, "random"):
        return ""
    difference, share = with_interval(differences(method, "random"), "+"), ""
    gap = differences("oracle", "random", method)
    if gap and _mean(gap) > 0:
        share = f"{_mean(differences(method, 'random', 'oracle')) / _mean(gap):.2f}"
    return f"{difference:>22}{share:>18}".rstrip()


def with_interval(values: Sequence[float], sign: str) -> str:
    """The mean, and half of its 95 % interval over the seeds by Student's t, which takes two seeds."""
    from scipy.stats import sem, t

    mean = f"{_mean(values):{sign}.3f}"
    if len(values) < 2:
        return mean
    half = t.ppf(0.975, len(values) - 1) * sem(values)
    return f"{mean} +- {half:.3f}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
