"""The choice of a selection, and what it is like: per source, distances, norms, duplicates, and a map.

Distances are those of POT between unit features, whatever the method's own preprocessing, so that methods can be
compared. They are taken to the judges: rows of the target that took no part in the choice. Sets of different size have
different distances for their size alone, so as many rows as were chosen are drawn at random for comparison.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from jinja2 import Environment, FileSystemLoader

from data_selection.choose import Choice, choose
from data_selection.features import Features, prepare
from data_selection.transport import wasserstein
from rovrm.common.files import replacing, write_json, write_jsonl
from rovrm.data.example import Example
from rovrm.settings.keys import TrainConfig
from rovrm.settings.phases import Phase

TEMPLATE = "report.html.jinja"
CELLS = 20_000_000  # of the cost matrix of one distance, at most: of larger sets rows are drawn
DRAWN = 2000  # rows of a set that the map shows, at most
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
LOOKS = (("#bbb", 2), ("#1769aa", 2.5), ("#c62828", 2.5))  # colour and radius of pool, chosen rows and target


def choose_and_report(
    config: TrainConfig, phase: Phase, folder: Path, examples: dict[str, list[Example]], features: dict[str, Features]
) -> None:
    """Chooses rows, and writes selected.json, selected.jsonl, scores.npy, report.json and report.html.

    Args:
        config: the settings of the run.
        phase: the phase whose rows are chosen.
        folder: where to write.
        examples: the rows of the "pool", the "target" and the "judges".
        features: theirs.
    """
    section, selection = config.section(phase), config.selection
    assert section.n is not None
    pool, target = features["pool"], features["target"]
    device = str(PartialState().device)
    choice = choose(
        pool, target, section.n, section.select, selection.preprocess, config.seed, device, selection.side_price
    )
    nearest = [examples["target"][row].id for row in choice.nearest.tolist()]
    _write_choice(folder, choice, examples["pool"], {"nearest_target": nearest})

    unit_pool, unit_target = prepare(pool, target, unit=True, centre=False)
    # Prepared as the pool is: judges and pool differ in their rows alone.
    unit_judges = replace(unit_pool, source=features["judges"].source, rows=features["judges"].rows)
    report = _report(phase, choice, examples) | {
        "wasserstein": _distances(choice, unit_pool, unit_judges, config.seed),
        "gradient_norms": {
            "pool": _norm_quantiles(pool),
            "chosen": _norm_quantiles(replace(pool, rows=choice.indices)),
            "target": _norm_quantiles(target),
        },
    }
    write_json(folder / "report.json", report)
    _write_page(folder / "report.html", report, _map(choice, unit_pool, unit_target))
    _print(report, folder)


def choose_by_margin(
    config: TrainConfig, phase: Phase, folder: Path, examples: dict[str, list[Example]], margins: dict[str, np.ndarray]
) -> None:
    """Chooses the rows whose chosen answer the warmed-up model prefers most, and writes the same files, without what
    only gradients tell.

    Args:
        margins: (rows,) of the "pool" and of the "judges".
    """
    scores, n = margins["pool"].astype(np.float64), config.section(phase).n
    order = np.argsort(-scores, kind="stable")[:n]
    choice = Choice(order, scores, order[:0], np.zeros(len(scores), dtype=bool), "margin", [])
    _write_choice(folder, choice, examples["pool"], {})
    sets = {"pool": scores, "chosen": scores[order], "judges": margins["judges"]}
    report = _report(phase, choice, examples) | {"margins": {name: _quantiles(values) for name, values in sets.items()}}
    write_json(folder / "report.json", report)
    _write_page(folder / "report.html", report, [])
    _print(report, folder)


def _report(phase: Phase, choice: Choice, examples: dict[str, list[Example]]) -> dict[str, Any]:
    """What the report of every method holds."""
    return {
        "phase": phase.name,
        "method": choice.method,
        "preprocess": choice.preprocess,
        "pool": len(choice.scores),
        "chosen": len(choice.indices),
        "targets": len(examples["target"]),
        "near_duplicates": int(choice.duplicates.sum()),
        "sources": _sources(choice, examples["pool"]),
    }


def _write_choice(folder: Path, choice: Choice, pool: list[Example], more: dict[str, list[str]]) -> None:
    """Writes what was chosen: scores.npy, selected.jsonl with the reasons, and selected.json.

    more: further columns of selected.jsonl, a value for each chosen row.
    """
    np.save(folder / "scores.npy", choice.scores)
    rows = []
    for place, row in enumerate(choice.indices.tolist()):
        rows.append(
            {
                "id": pool[row].id,
                "source": pool[row].source,
                "location": pool[row].location,
                "score": float(choice.scores[row]),
            }
            | {name: values[place] for name, values in more.items()}
        )
    write_jsonl(folder / "selected.jsonl", rows)
    record = {
        "indices": choice.indices.tolist(),
        "method": choice.method,
        "k": len(choice.indices),
        "preprocess": choice.preprocess,
        "ids": [row["id"] for row in rows],
    }
    write_json(folder / "selected.json", record)


# ---- what the choice is like -----------------------------------------------------------------------------------------


def _sources(choice: Choice, pool: list[Example]) -> list[dict[str, Any]]:
    """Per source, the one that most is kept of first: its rows in the pool, those chosen, their share, and the mean
    score of its rows that have one."""
    names = np.array([example.source for example in pool])
    chosen = np.zeros(len(pool), dtype=bool)
    chosen[choice.indices] = True
    table = []
    for name in sorted(set(names.tolist())):
        of_source = names == name
        scores = choice.scores[of_source & np.isfinite(choice.scores)]  # dropped duplicates have -inf
        table.append(
            {
                "source": name,
                "pool": int(of_source.sum()),
                "chosen": int((of_source & chosen).sum()),
                "share_kept": float((of_source & chosen).sum() / of_source.sum()),
                "mean_score": float(scores.mean()) if len(scores) else None,
            }
        )
    return sorted(table, key=lambda row: -row["share_kept"])


def _distances(choice: Choice, pool: Features, judges: Features, seed: int) -> dict[str, float]:
    """Wasserstein distances to the judges: of the chosen rows, of as many drawn at random, and of the pool.

    Of the pool, and of the others where they are too many, as many rows are drawn as can be transported.
    """
    rng = np.random.default_rng(seed)
    judges_rows = judges.all()
    most = max(1, CELLS // len(judges_rows))
    size = min(most, len(choice.indices))
    sets = {
        "chosen": rng.permutation(choice.indices)[:size],
        "random": rng.permutation(len(pool))[:size],
        "pool": rng.permutation(len(pool))[:most],
    }
    return {name: wasserstein(pool.take(rows), judges_rows) for name, rows in sets.items()}


def _norm_quantiles(features: Features) -> dict[str, float]:
    """Quantiles of the gradients' norms."""
    assert features.norms is not None
    norms = features.norms.numpy()
    if features.rows is not None:
        norms = norms[features.rows]
    return _quantiles(norms)


def _quantiles(values: np.ndarray) -> dict[str, float]:
    """Quantiles of some numbers, by `0.05` and so on."""
    return {f"{q:g}": float(value) for q, value in zip(QUANTILES, np.quantile(values, QUANTILES), strict=True)}


class Point(NamedTuple):
    """A row on the map, in pixels."""

    x: float
    y: float
    radius: float
    colour: str


def _map(choice: Choice, pool: Features, target: Features) -> list[Point]:
    """The first two principal components of the pool, of the chosen rows and of the target, in this order, so that the
    few are drawn over the many."""
    from sklearn.decomposition import PCA

    rng = np.random.default_rng(0)
    chosen_rows = rng.permutation(choice.indices)[:DRAWN]
    other_rows = np.setdiff1d(rng.permutation(len(pool))[:DRAWN], choice.indices)
    target_rows = rng.permutation(len(target))[:DRAWN]
    sets = [pool.take(other_rows), pool.take(chosen_rows), target.take(target_rows)]
    places = PCA(2, svd_solver="randomized", random_state=0).fit_transform(torch.cat(sets).numpy())  # (rows, 2)
    low, high = places.min(0), places.max(0)
    places = (places - low) / np.maximum(high - low, 1e-12) * [760, 460] + 20  # a margin of 20 all around

    points = []
    ends = np.cumsum([len(rows) for rows in sets])
    for part, (colour, radius) in zip(np.split(places, ends[:-1]), LOOKS, strict=True):
        points += [Point(x, y, radius, colour) for x, y in part.tolist()]
    return points


# ---- print and page --------------------------------------------------------------------------------------------------


def _print(report: dict[str, Any], folder: Path) -> None:
    print(f"\n{'source':<28}{'pool':>8}{'chosen':>8}{'kept':>8}{'mean score':>13}")
    for row in report["sources"]:
        kept, score = f"{row['share_kept']:.3f}", _short(row["mean_score"])
        print(f"{row['source'][:27]:<28}{row['pool']:>8}{row['chosen']:>8}{kept:>8}{score:>13}")
    if "wasserstein" in report:
        distances = report["wasserstein"]
        print(
            f"Wasserstein distance to target rows set aside: chosen {distances['chosen']:.4f}, as many at random "
            f"{distances['random']:.4f}, pool {distances['pool']:.4f}; "
            f"{report['near_duplicates']} near-duplicates passed over"
        )
    else:
        medians = {name: of["0.5"] for name, of in report["margins"].items()}
        print(
            f"median margin: chosen {medians['chosen']:.3g}, pool {medians['pool']:.3g}, target rows set aside "
            f"{medians['judges']:.3g}"
        )
    print(f"{folder}: selected.jsonl says what was chosen and why, report.html shows it\n")


def _short(score: float | None) -> str:
    return "-" if score is None else f"{score:.3g}"


def _write_page(path: Path, report: dict[str, Any], points: list[Point]) -> None:
    sources = []
    for row in report["sources"]:
        kept, score = f"{row['share_kept']:.3f}", _short(row["mean_score"])
        sources.append([row["source"], row["pool"], row["chosen"], kept, score])
    quantities = report["margins"] if "margins" in report else report["gradient_norms"]
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    text = environment.get_template(TEMPLATE).render(
        report=report,
        sources=sources,
        distances=[[name, f"{distance:.4f}"] for name, distance in report.get("wasserstein", {}).items()],
        quantiles=[f"{100 * q:g} %" for q in QUANTILES],
        quantities=[[name, *(f"{value:.3g}" for value in of.values())] for name, of in quantities.items()],
        points=points,
    )
    with replacing(path) as temporary:
        # A source's name may hold half of a surrogate pair, which UTF-8 cannot hold: it is escaped.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
