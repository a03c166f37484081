"""Chooses k pool rows for a target: checks, preprocessing, duplicates, a score, and what the choice is like.

    choice = choose(pool, target, k=1000, method="capped_ot")       # arrays (n, d), (m, d)
    choice.indices                                                  # (k,), best first

Preprocessing steps: `unit` (each row to length 1: raw gradients are ranked by their norm), `centre` (minus the pool's
mean, and unit again: the shared direction makes generic rows everybody's neighbour) and `dedup` (of near-duplicates
only one counts). All three are on by default, and off in `paper`, which is `mean_l2` as published.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_selection.features import Features, prepare
from data_selection.transport import METHODS, distances, nearest

STEPS = ("unit", "centre", "dedup")
DUPLICATE = 0.95  # cosine of prepared rows above which two are one: a guess that separated copies on synthetic mixtures
MIN_TARGET = 8  # rows: with fewer, one odd target row decides


class SelectionError(ValueError):
    """A problem with what was given, with its remedy."""


@dataclass(slots=True)
class Choice:
    """indices: (k,) rows of the pool, best first. scores: (n,), -inf for dropped duplicates. nearest: (k,) the target
    row nearest to each chosen row. duplicates: (n,) rows that were dropped."""

    indices: np.ndarray
    scores: np.ndarray
    nearest: np.ndarray
    duplicates: np.ndarray
    method: str
    preprocess: list[str]


def choose(
    pool: Any,
    target: Any,
    k: int,
    method: str = "capped_ot",
    preprocess: Sequence[str] | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Choice:
    """pool, target: arrays or tensors (n, d) and (m, d), or Features of them; the pool may be memory-mapped. device:
    where distances are computed. Raises SelectionError."""
    steps = list(STEPS if preprocess is None and method != "paper" else preprocess or ())
    raw, raw_target = _check("pool", pool), _check("target", target)
    _check_request(raw, raw_target, k, method, steps)
    ready, aims = prepare(raw, raw_target, "unit" in steps, "centre" in steps)
    aim, n = aims.all().to(device), len(ready)
    if method == "all":
        scores, duplicates = torch.zeros(n, dtype=torch.float64), np.zeros(n, dtype=bool)
    else:
        duplicates = near_duplicates(ready, aim, k) if "dedup" in steps else np.zeros(n, dtype=bool)
        if n - duplicates.sum() < k:
            raise SelectionError(
                f"k={k}, but {int(duplicates.sum())} of the pool's {n} rows are near-duplicates of others; "
                f"give k of at most {n - int(duplicates.sum())}, or leave dedup out of preprocess"
            )
        kept = ready.without(duplicates)
        score = METHODS["mean_l2" if method == "paper" else method]
        found = score(kept, aim, k, seed=seed) if method == "random" else score(kept, aim, k)
        scores = torch.full((n,), -torch.inf, dtype=torch.float64)
        scores[torch.from_numpy(~duplicates)] = found
    order = torch.sort(scores, descending=True, stable=True).indices[: n if method == "all" else k].numpy()
    closest = distances(ready.take(order), aim).argmin(1).numpy()
    return Choice(order, scores.numpy(), closest, duplicates, method, steps)


def near_duplicates(pool: Features, target: Tensor, k: int) -> np.ndarray:
    """(n,) true for rows that repeat an earlier one. Looked for among the nearest rows of each target row, where a
    row's near-duplicates are too; elsewhere no method chooses them."""
    depth = min(len(pool), max(32, -(-10 * k // len(target))))
    near, _ = nearest(pool, target, depth)
    dropped = np.zeros(len(pool), dtype=bool)
    for part in near.sort(dim=1).values.split(64):  # rows in order, so that the earlier of two stays
        rows, place = np.unique(part.numpy(), return_inverse=True)
        values = torch.nn.functional.normalize(pool.take(rows), dim=1)[place.reshape(part.shape)]
        same = torch.triu(values @ values.mT > DUPLICATE, diagonal=1)  # (targets, earlier, later)
        dropped[part[same.any(dim=1)].numpy()] = True
    return dropped


def representative(rows: Any, count: int, method: str = "kmeans", seed: int = 0) -> np.ndarray:
    """(count,) row numbers, ascending, that stand for all rows (n, d) of a target too large to keep whole: the member
    nearest to each centre of mini-batch k-means on unit rows, or a random draw (`random`)."""
    if not 0 < count <= len(rows):
        raise SelectionError(f"{count} representatives of {len(rows)} rows; give at most as many as there are")
    if method == "random" or count == len(rows):
        return np.sort(np.random.default_rng(seed).permutation(len(rows))[:count])
    from sklearn.cluster import MiniBatchKMeans

    features = Features(rows, unit=True)
    means = MiniBatchKMeans(count, random_state=seed, batch_size=max(1024, 3 * count))
    means.fit(features.all().numpy())
    centres = torch.from_numpy(means.cluster_centers_).float()
    near, _ = nearest(features, centres, min(len(rows), 32))
    taken: dict[int, None] = {}
    for row in near.T.flatten().tolist():  # the nearest of every centre, then the second nearest where two share one
        if len(taken) < count:
            taken.setdefault(row)
    spare = (row for row in range(len(rows)) if row not in taken)
    return np.sort(np.array([*taken, *(next(spare) for _ in range(count - len(taken)))]))


def _check(name: str, given: Any) -> Features:
    """What was given as features. Raises SelectionError for another shape and for a row without a direction."""
    features = given if isinstance(given, Features) else Features(given)
    if len(features.source.shape) != 2 or not len(features):
        raise SelectionError(f"{name} has shape {tuple(features.source.shape)}; features are (rows, width)")
    for start, block in features.blocks():
        sizes = block.norm(dim=1)
        bad = ~torch.isfinite(sizes) | (sizes == 0)
        if bad.any():
            row = int(bad.nonzero()[0])
            what = "all zero" if sizes[row] == 0 else "not finite"
            raise SelectionError(
                f"{name} row {start + row} is {what}: there is no direction to compare; leave the row out"
            )
    return features


def _check_request(pool: Features, target: Features, k: int, method: str, steps: list[str]) -> None:
    if method not in (*METHODS, "paper", "all"):
        raise SelectionError(f"method={method!r}; takes {', '.join(METHODS)}, paper or all")
    unknown = [step for step in steps if step not in STEPS]
    if unknown:
        raise SelectionError(f"preprocess has {unknown[0]!r}; takes {', '.join(STEPS)}")
    if pool.width != target.width:
        raise SelectionError(
            f"the pool's features have width {pool.width}, the target's {target.width}; make both alike"
        )
    if len(target) < MIN_TARGET:
        raise SelectionError(f"the target has {len(target)} rows; give at least {MIN_TARGET}")
    if k < 1 and method != "all":
        raise SelectionError(f"k={k}; give the number of rows to choose, 1 or more")
    if k > len(pool) and method != "all":
        raise SelectionError(f"k={k} of a pool of {len(pool)} rows; give a smaller k, or method=all to take every row")
