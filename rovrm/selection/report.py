"""The choice of a selection, and what it is like: per source, distances, norms, duplicates, and a map.

Distances are of POT, between unit features whatever the method's own preprocessing, so that methods compare;
they are to the judges, target rows that took no part in the choice. Sets of unequal size have distances that differ by
their size alone, so the random draw beside the chosen rows is as large.
"""

import html
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from data_selection.choose import Choice, choose
from data_selection.features import Features, prepare
from data_selection.transport import wasserstein
from rovrm.common.files import write_json, write_jsonl
from rovrm.data.example import Example
from rovrm.settings.keys import TrainConfig
from rovrm.settings.phases import Phase

CELLS = 20_000_000  # of the cost matrix of one distance: larger sets are drawn from
DRAWN = 2000  # rows of a set that the map shows, at most
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def choose_and_report(
    config: TrainConfig, phase: Phase, folder: Path, examples: dict[str, list[Example]], found: dict[str, Features]
) -> None:
    """Chooses and writes selected.json, selected.jsonl, scores.npy, report.json and report.html. examples, found: the
    rows and features of the pool, the target and the judges."""
    section, name = config.section(phase), phase.name
    assert section.n is not None
    pool, target = found["pool"], found["target"]
    device = str(PartialState().device)
    choice = choose(pool, target, section.n, section.select, config.selection.preprocess, config.seed, device)
    _write_choice(folder, choice, examples["pool"], examples["target"])
    ready, aims = prepare(pool, target, unit=True, centre=False)
    judges = replace(ready, source=found["judges"].source, rows=found["judges"].rows)
    report = {
        "phase": name,
        "method": choice.method,
        "preprocess": choice.preprocess,
        "pool": len(pool),
        "chosen": len(choice.indices),
        "targets": len(target),
        "near_duplicates": int(choice.duplicates.sum()),
        "sources": _sources(choice, examples["pool"]),
        "wasserstein": _distances(choice, ready, judges, config.seed),
        "gradient_norms": {
            "pool": _norm_quantiles(pool),
            "chosen": _norm_quantiles(replace(pool, rows=choice.indices)),
            "target": _norm_quantiles(target),
        },
    }
    write_json(folder / "report.json", report)
    _write_page(folder / "report.html", report, _map(choice, ready, aims))
    _print(report, folder)


def _write_choice(folder: Path, choice: Choice, pool: list[Example], target: list[Example]) -> None:
    np.save(folder / "scores.npy", choice.scores)
    rows = [
        {
            "id": pool[i].id,
            "source": pool[i].source,
            "location": pool[i].location,
            "score": float(choice.scores[i]),
            "nearest_target": target[j].id,
        }
        for i, j in zip(choice.indices.tolist(), choice.nearest.tolist(), strict=True)
    ]
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
    """Per source: rows in the pool, chosen ones, their share, and the mean score of its rows that have one."""
    names = np.array([example.source for example in pool])
    chosen = np.zeros(len(pool), dtype=bool)
    chosen[choice.indices] = True
    table = []
    for name in sorted(set(names.tolist())):
        here = names == name
        scores = choice.scores[here & np.isfinite(choice.scores)]
        table.append(
            {
                "source": name,
                "pool": int(here.sum()),
                "chosen": int((here & chosen).sum()),
                "share_kept": float((here & chosen).sum() / here.sum()),
                "mean_score": float(scores.mean()) if len(scores) else None,
            }
        )
    return sorted(table, key=lambda row: -row["share_kept"])


def _distances(choice: Choice, ready: Features, judges: Features, seed: int) -> dict[str, float]:
    """Wasserstein distances to the judges of the chosen rows, of as many drawn at random, and of the pool (as much of
    it as can be transported)."""
    rng = np.random.default_rng(seed)
    aims = judges.all()
    most = max(1, CELLS // len(aims))
    size = min(most, len(choice.indices))
    sets = {
        "chosen": rng.permutation(choice.indices)[:size],
        "random": rng.permutation(len(ready))[:size],
        "pool": rng.permutation(len(ready))[:most],
    }
    return {name: wasserstein(ready.take(rows), aims) for name, rows in sets.items()}


def _norm_quantiles(features: Features) -> dict[str, float]:
    assert features.norms is not None
    norms = features.norms.numpy()[slice(None) if features.rows is None else features.rows]
    return {f"{q:g}": float(value) for q, value in zip(QUANTILES, np.quantile(norms, QUANTILES), strict=True)}


def _map(choice: Choice, ready: Features, aims: Features) -> str:
    """An SVG of the first two principal components of pool and target: the pool grey, the chosen rows blue, the target
    red."""
    from sklearn.decomposition import PCA

    rng = np.random.default_rng(0)
    chosen = rng.permutation(choice.indices)[:DRAWN]
    others = np.setdiff1d(rng.permutation(len(ready))[:DRAWN], choice.indices)
    target = rng.permutation(len(aims))[:DRAWN]
    sets = [ready.take(others), ready.take(chosen), aims.take(target)]
    everything = torch.cat(sets).numpy()
    points = PCA(2, svd_solver="randomized", random_state=0).fit_transform(everything)
    low, high = points.min(0), points.max(0)
    points = (points - low) / np.maximum(high - low, 1e-12) * [760, 460] + 20
    marks, start = [], 0
    for rows, colour, radius in zip(sets, ("#bbb", "#1769aa", "#c62828"), (2, 2.5, 2.5), strict=True):
        for x, y in points[start : start + len(rows)]:
            marks.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}" fill-opacity=".55"/>')
        start += len(rows)
    return f'<svg width="800" height="500" role="img">{"".join(marks)}</svg>'


# ---- print and page --------------------------------------------------------------------------------------------------


def _print(report: dict[str, Any], folder: Path) -> None:
    print(f"\n{'source':<28}{'pool':>8}{'chosen':>8}{'kept':>8}{'mean score':>13}")
    for row in report["sources"]:
        kept, score = f"{row['share_kept']:.3f}", _short(row["mean_score"])
        print(f"{row['source'][:27]:<28}{row['pool']:>8}{row['chosen']:>8}{kept:>8}{score:>13}")
    far = report["wasserstein"]
    print(
        f"Wasserstein distance to target rows set aside: chosen {far['chosen']:.4f}, as many at random "
        f"{far['random']:.4f}, pool {far['pool']:.4f}; {report['near_duplicates']} near-duplicates passed over"
    )
    print(f"{folder}: selected.jsonl says what was chosen and why, report.html shows it\n")


def _short(score: float | None) -> str:
    return "-" if score is None else f"{score:.3g}"


def _write_page(path: Path, report: dict[str, Any], picture: str) -> None:
    def table(head: list[str], rows: list[list[Any]]) -> str:
        cells = "".join(f"<th>{html.escape(str(cell))}</th>" for cell in head)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(str(c))}</td>" for c in row) + "</tr>" for row in rows)
        return f"<table><tr>{cells}</tr>{body}</table>"

    sources = [
        [r["source"], r["pool"], r["chosen"], f"{r['share_kept']:.3f}", _short(r["mean_score"])]
        for r in report["sources"]
    ]
    norms = [[name, *(f"{v:.3g}" for v in q.values())] for name, q in report["gradient_norms"].items()]
    distances = [[name, f"{value:.4f}"] for name, value in report["wasserstein"].items()]
    told = f"{report['method']} chose {report['chosen']} of {report['pool']} rows against {report['targets']} targets"
    told += f" (preprocess: {', '.join(report['preprocess']) or 'none'}; {report['near_duplicates']} near-duplicates"
    page = f"""<!doctype html><meta charset="utf-8"><title>Selection: {report["phase"]}</title>
<style>body{{font:15px sans-serif;max-width:820px;margin:2em auto}}td,th{{padding:.2em .8em;text-align:right}}
td:first-child,th:first-child{{text-align:left}}</style>
<h1>What was chosen for the {report["phase"]} phase</h1>
<p>{html.escape(told)} passed over)</p>
<h2>By source</h2>{table(["source", "pool", "chosen", "share kept", "mean score"], sources)}
<h2>Wasserstein distance to target rows that took no part</h2>{table(["rows", "distance"], distances)}
<h2>Gradient norms of the loss</h2>{table(["rows", *(f"{100 * q:g} %" for q in QUANTILES)], norms)}
<h2>Map</h2><p>First two principal components of unit features: pool grey, chosen blue, target red.</p>
{picture}
"""
    path.write_text(page, encoding="utf-8", errors="backslashreplace")  # half an emoji in a text
