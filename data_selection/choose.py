"""Chooses k pool rows for a target: checks, preprocessing, duplicates, a score, and what the choice is like.

    choice = choose(pool, target, k=1000, method="capped_ot")       # arrays (n, d), (m, d)
    choice.indices                                                  # (k,), best first

Preprocessing steps: `unit` (each row to length 1: raw gradients are ranked by their norm), `centre` (minus the pool's
mean, and unit again: a shared direction makes generic rows everybody's neighbour) and `dedup` (of near-duplicates only
one counts). By default `unit` and `dedup`; none in `paper`, which is `mean_l2` as published. `centre` is not among them
because gradients have a sign: what a pool's rows share is mostly what they teach, and without it rows that teach the
opposite are harder to tell from those that teach the same (`python -m eval.selection`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_selection.features import BLOCK, Features, prepare, side_price
from data_selection.transport import METHODS, PRICED, distances, nearest

STEPS = ("unit", "centre", "dedup")
DEFAULT = ("unit", "dedup")
DUPLICATE = 0.95  # cosine of prepared rows above which two are one: a guess that separated copies on synthetic mixtures
ONE_WAY = 0.999  # length of the mean of unit rows beyond which they are one row, but for noise
LISTED = 65_536  # rows of the targets' lists that are looked through together
MIN_TARGET = 8  # rows: with fewer, one odd target row decides


class SelectionError(ValueError):
    """A problem with the features or the settings, with its remedy."""


@dataclass(slots=True)
class Choice:
    """What was chosen, of a pool of n rows.

    indices: (k,) rows of the pool, best first.
    scores: (n,) of all rows, higher is better; -inf for dropped duplicates.
    nearest: (k,) the target row nearest to each chosen row.
    duplicates: (n,) true for rows that were dropped.
    method, preprocess: as they were applied.
    """

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
    price: float = 0.0,
) -> Choice:
    """Chooses k rows of a pool for a target.

    Args:
        pool: array or tensor (n, d), or Features of it; it may be memory-mapped.
        target: likewise (m, d).
        method: a name in transport.METHODS, `paper` (`mean_l2` as published), or `all`, which takes every row.
        preprocess: some of STEPS; None for the method's default.
        seed: of the method `random`.
        device: where distances are computed.
        price: of the wrong side: `features.side_price` times this is added to a row's transport costs; for the methods
            in transport.PRICED.

    Raises:
        SelectionError: for features or settings that are wrong.
    """
    if preprocess is None:
        preprocess = () if method == "paper" else DEFAULT
    steps = list(preprocess)
    raw_pool, raw_target = _check("pool", pool), _check("target", target)
    _check_request(raw_pool, raw_target, k, method, steps)
    if price and (method not in PRICED or price < 0):
        raise SelectionError(f"price={price:g} with {method}; give one above 0, with {', '.join(PRICED)}")
    pool, target_features = prepare(raw_pool, raw_target, "unit" in steps, "centre" in steps)
    if pool.mean is not None and "unit" in steps and pool.mean.norm() > ONE_WAY:
        raise SelectionError("the pool's rows all point the same way, and centre leaves nothing of them; leave it out")
    target = target_features.all().to(device)  # (m, d), in memory as a whole; the pool is read in blocks
    n = len(pool)
    duplicates = np.zeros(n, dtype=bool)
    if method == "all":
        scores, order = torch.zeros(n, dtype=torch.float64), np.arange(n)
    else:
        if price:
            pool = replace(pool, price=price * side_price(pool, target))
        if "dedup" in steps:
            duplicates |= near_duplicates(pool, target, k)
        # That look is cheap and does not see every copy. So what would be chosen is looked at again, against the whole
        # pool, until it holds no row twice.
        while True:
            scores = _scores(pool, target, k, method, seed, duplicates)
            order = torch.sort(scores, descending=True, stable=True).indices[:k].numpy()
            copies = _copies(pool, order) if "dedup" in steps else duplicates[:0]
            if not copies.any():
                break
            duplicates |= copies
    closest = distances(pool.take(order), target).argmin(1).numpy()
    return Choice(order, scores.numpy(), closest, duplicates, method, steps)


def _scores(pool: Features, target: Tensor, k: int, method: str, seed: int, duplicates: np.ndarray) -> Tensor:
    """(n,) a method's scores, -inf for duplicates. Raises SelectionError where fewer than k other rows are left."""
    left = len(pool) - int(duplicates.sum())
    if left < k:
        raise SelectionError(
            f"k={k}, but {len(pool) - left} of the pool's {len(pool)} rows are near-duplicates of others; "
            f"give k of at most {left}, or leave dedup out of preprocess"
        )
    score = METHODS["mean_l2" if method == "paper" else method]
    options = {"seed": seed} if method == "random" else {}
    scores = torch.full((len(pool),), -torch.inf, dtype=torch.float64)
    scores[torch.from_numpy(~duplicates)] = score(pool.without(duplicates), target, k, **options)
    return scores


def near_duplicates(pool: Features, target: Tensor, k: int) -> np.ndarray:
    """(n,) true for rows that repeat an earlier one, among the nearest rows of each target row: most of a row's
    near-duplicates are on the same lists. `choose` looks at what it would take once more."""
    depth = min(len(pool), max(32, -(-10 * k // len(target))))  # rounded up
    near, _ = nearest(pool, target, depth)  # (m, depth)
    dropped = np.zeros(len(pool), dtype=bool)
    for part in near.sort(dim=1).values.split(max(1, LISTED // depth)):  # rows in order: the earlier of two stays
        # Every row is read once, though it may stand on the lists of many targets.
        rows, place = np.unique(part.numpy(), return_inverse=True)
        units = torch.nn.functional.normalize(pool.take(rows), dim=1)
        for listed in place.reshape(part.shape):  # (depth,), places in `rows`
            repeats = _repeats(units[torch.from_numpy(listed)])
            dropped[rows[listed[repeats.numpy()]]] = True
    return dropped


def _copies(pool: Features, order: np.ndarray) -> np.ndarray:
    """(n,) true for the near-duplicates, anywhere in the pool, of chosen rows that would be taken more than once; the
    best of them stays. order: (k,) the chosen rows, best first."""
    units = torch.nn.functional.normalize(pool.take(order), dim=1)
    repeats = _repeats(units)
    dropped = np.zeros(len(pool), dtype=bool)
    if repeats.any():
        first = ~repeats & (units @ units[repeats].T > DUPLICATE).any(1)  # the chosen rows that have copies behind them
        for start, rows in pool.blocks():
            same = torch.nn.functional.normalize(rows, dim=1) @ units[first].T > DUPLICATE
            dropped[start : start + len(rows)] = same.any(1).numpy()
        dropped[order] = repeats.numpy()
    return dropped


def _repeats(units: Tensor) -> Tensor:
    """(n,) true for unit rows (n, d) that have a near-duplicate before them."""
    parts = []
    for start in range(0, len(units), BLOCK):
        values = units[start : start + BLOCK] @ units[: start + BLOCK].T > DUPLICATE
        parts.append(torch.tril(values, diagonal=start - 1).any(1))  # left of the diagonal: the rows before each
    return torch.cat(parts)


def representative(rows: Any, count: int, method: str = "kmeans", seed: int = 0) -> np.ndarray:
    """(count,) row numbers, ascending, that stand for all rows (n, d) of a target too large to keep whole.

    method: `kmeans`, the row nearest to each centre of mini-batch k-means on unit rows; or `random`, a draw.
    """
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
    # The nearest of every centre, then the second nearest where two share one, and so on; then any.
    chosen: dict[int, None] = {}
    for row in [*near.T.flatten().tolist(), *range(len(rows))]:
        if len(chosen) == count:
            break
        chosen.setdefault(row)
    return np.sort(np.array([*chosen]))


def _check(name: str, rows: Any) -> Features:
    """The rows as Features. Raises SelectionError for another shape and for a row without a direction."""
    features = rows if isinstance(rows, Features) else Features(rows)
    if len(features.source.shape) != 2 or not len(features):
        raise SelectionError(f"{name} has shape {tuple(features.source.shape)}; features are (rows, width)")
    for start, block in features.blocks():
        sizes = block.norm(dim=1)
        bad = ~torch.isfinite(sizes) | (sizes == 0)
        if bad.any():
            row = int(bad.nonzero()[0])
            what = "all zero" if sizes[row] == 0 else "not finite, or too long for its numeric type"
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
