"""Features as the scores read them: block by block, made unit, centred, freed from near-duplicates.

    pool = Features(array)                                  # (n, d): numpy, memory-mapped or torch
    pool, target = prepare(pool, Features(other), unit=True, centre=True)
    for start, rows in pool.blocks(): ...                   # rows (block, d), float32 (float64 stays)

The pool is never held as a whole in float32: a pass converts one block at a time. The order unit -> minus the pool's
mean -> unit matters: centring raw gradients lets the few largest norms set the mean.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

BLOCK = 4096  # rows that are in memory in full precision at a time
SIDES = 8  # directions in which `side_price` looks: 4 to 32 chose alike in the synthetic world


@dataclass(frozen=True, slots=True)
class Features:
    """The rows of a matrix, with the preparation that each gets when it is read.

    source: (n, d) array or tensor that can be sliced.
    norms: (n,) that rows kept as unit vectors are multiplied by; None where rows are as they are.
    rows: which rows of `source` count, in order; None for all.
    unit: whether each row is scaled to length 1.
    mean: (d,) that is subtracted after that, before the row is made unit again; None for none.
    price: (rows that count,) added to what it costs to transport mass from a row; None for none.
    """

    source: Any
    norms: Tensor | None = None
    rows: np.ndarray | None = None
    unit: bool = False
    mean: Tensor | None = None
    price: Tensor | None = None

    def __len__(self) -> int:
        return len(self.source) if self.rows is None else len(self.rows)

    @property
    def width(self) -> int:
        return self.source.shape[1]

    def take(self, rows: np.ndarray) -> Tensor:
        """(len(rows), d): these of the rows that count, prepared."""
        where = rows if self.rows is None else self.rows[rows]
        raw = self.source[where]
        values = torch.as_tensor(np.asarray(raw) if not isinstance(raw, Tensor) else raw)
        values = values if values.dtype == torch.float64 else values.float()
        if self.norms is not None and not self.unit:
            values = values * self.norms[where, None].to(values)
        if self.unit:
            values = _unit(values)
        return values if self.mean is None else _unit(values - self.mean.to(values))

    def blocks(self, size: int = BLOCK) -> Iterator[tuple[int, Tensor]]:
        """(first row, rows) of every block in order."""
        for start in range(0, len(self), size):
            yield start, self.take(np.arange(start, min(start + size, len(self))))

    def all(self) -> Tensor:
        """(n, d): all rows, prepared and in memory."""
        return self.take(np.arange(len(self)))

    def without(self, dropped: np.ndarray) -> "Features":
        """These features but for the rows where `dropped` (n,) is true."""
        kept = np.flatnonzero(~dropped)
        price = None if self.price is None else self.price[torch.from_numpy(kept)]
        return replace(self, rows=kept if self.rows is None else self.rows[kept], price=price)


def prepare(pool: Features, target: Features, unit: bool, centre: bool) -> tuple[Features, Features]:
    """Both sides made unit and, with `centre`, freed from the direction that the whole pool shares."""
    pool, target = replace(pool, unit=unit), replace(target, unit=unit)
    if not centre:
        return pool, target
    total = torch.zeros(pool.width, dtype=torch.float64)
    for _, rows in pool.blocks():
        total += rows.double().sum(0)
    mean = (total / len(pool)).float()
    return replace(pool, mean=mean), replace(target, mean=mean)


def side_price(pool: Features, target: Tensor) -> Tensor:
    """(n,) float64, from 0 to 2: 1 minus the cosine of a row to the mean of the target (m, d), both seen in the pool's
    first SIDES directions (of its uncentred second moment).

    Rows that teach the same and rows that teach the opposite have gradients of opposite sign, which add up in these
    directions; what rows are about is different in each and does not.
    """
    from scipy.sparse.linalg import eigsh

    moment = torch.zeros(pool.width, pool.width)
    for _, rows in pool.blocks():
        moment += rows.float().T @ rows.float()
    count = min(SIDES, pool.width - 1)
    _, directions = eigsh(moment.numpy(), k=count, v0=np.ones(pool.width, dtype=np.float32))
    sides = torch.from_numpy(directions.copy()).double()  # (d, count)
    mean = _unit((target.cpu().double().mean(0) @ sides)[None])[0]
    return torch.cat([1 - _unit(rows.double() @ sides) @ mean for _, rows in pool.blocks()])


def _unit(rows: Tensor) -> Tensor:
    """Rows of length 1; a row of zeros stays one."""
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
