"""Synthetic features whose worth is known: several modes, duplicates, decoys on the mean of the target, noise.

`python tests/mixtures.py` prints the table of data_selection/README.md: means of 5 seeds.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

WIDTH, MODES, OTHERS = 256, 8, 12
TARGET_SHARES = np.array([0.22, 0.18, 0.15, 0.13, 0.11, 0.09, 0.07, 0.05])
SUPPLY = np.array([60, 100, 80, 200, 60, 150, 90, 160])  # on-target pool rows by mode; too few for the first


@dataclass(slots=True)
class Mixture:
    """mode: (n,) of each pool row, 0 to 7 of the target's, -1 a decoy, -2 off target. copy: (n,) group of copies."""

    pool: Tensor
    target: Tensor
    held_out: Tensor
    mode: np.ndarray
    copy: np.ndarray


def mixture(seed: int, noise: float = 1.0) -> Mixture:
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.standard_normal((WIDTH, MODES + OTHERS + 1)))[0].T
    shared, modes, others = directions[0], directions[1 : MODES + 1], directions[MODES + 1 :]

    def around(centres: np.ndarray) -> np.ndarray:
        rows = 0.5 * shared + centres + noise * 0.6 * rng.standard_normal((len(centres), WIDTH)) / WIDTH**0.5
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def target(count: int) -> np.ndarray:
        return around(modes[rng.choice(MODES, count, p=TARGET_SHARES)])

    on = np.repeat(np.arange(MODES), SUPPLY)
    originals = around(modes[[0, 1, 2, 3]])
    copies = np.repeat(originals, 50, axis=0) + 0.01 * rng.standard_normal((200, WIDTH)) / WIDTH**0.5
    mean = (TARGET_SHARES[:, None] * modes).sum(0)
    decoys = around(np.tile(mean / np.linalg.norm(mean), (400, 1)))
    off = around(others[rng.integers(OTHERS, size=2500)])
    pool = np.concatenate([around(modes[on]), copies, decoys, off])
    mode = np.concatenate([on, np.repeat([0, 1, 2, 3], 50), np.full(400, -1), np.full(2500, -2)])
    copy = np.concatenate([np.arange(900), np.repeat(np.arange(900, 904), 50), np.arange(904, 3804)])
    order = rng.permutation(len(pool))
    return Mixture(
        torch.from_numpy(pool[order]).float(),
        torch.from_numpy(target(400)).float(),
        torch.from_numpy(target(1000)).float(),
        mode[order],
        copy[order],
    )


def quality(mix: Mixture, chosen: np.ndarray) -> dict[str, float]:
    """precision: share on target; unique: copies counted once; decoys: share; worst: recall of the worst mode, of what
    it could have had."""
    k, modes = len(chosen), mix.mode[chosen]
    first = np.unique(mix.copy[chosen], return_index=True)[1]
    supply = np.bincount(mix.mode[np.unique(mix.copy, return_index=True)[1]].clip(min=-1) + 1, minlength=MODES + 1)[1:]
    due = np.minimum(TARGET_SHARES * k, supply)
    had = np.bincount(modes[first].clip(min=-1) + 1, minlength=MODES + 1)[1:]
    return {
        "precision": float((modes >= 0).mean()),
        "unique": float((modes[first] >= 0).sum() / k),
        "decoys": float((modes == -1).mean()),
        "worst": float(np.minimum(had / due, 1).min()),
    }


def _table() -> None:
    from data_selection.choose import choose
    from data_selection.transport import wasserstein

    methods = "random paper max_cos gotd round_robin capped_ot capped_sinkhorn knn soft_nn"
    for method in methods.split():
        found = []
        for seed in range(5):
            mix = mixture(seed)
            chosen = choose(mix.pool, mix.target, 400, method, seed=seed).indices
            distance = wasserstein(mix.pool[torch.from_numpy(chosen)], mix.held_out)
            found.append([*quality(mix, chosen).values(), distance])
        print(f"{method:<16}" + "".join(f"{value:>8.3f}" for value in np.mean(found, axis=0)))


if __name__ == "__main__":
    _table()
