"""Time and memory of choosing rows from ready features by capped transport.

    python -m eval.transport                                                     # 2,000 of 20,000 rows, 2,000 targets
    python -m eval.transport pool=340000 target=5000 n=20000 width=2048          # the paper's sizes: minutes, 3 GB

Features are random: a target of 50 modes, and a pool of which three in ten rows lie near them, in float16 and
memory-mapped as `data_selection.store` keeps them. Prints seconds, without and with the removal of near-duplicates, and
the highest resident memory of the process.
"""

import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rovrm.common.errors import UserError
from rovrm.settings.command_line import parse, run
from rovrm.settings.fields import ABOVE_ZERO, limited

BLOCK = 8192  # rows drawn at once


@dataclass
class TransportConfig:
    pool: int = limited(20_000, ABOVE_ZERO)  # rows to choose from
    target: int = limited(2_000, ABOVE_ZERO)  # rows to come near to
    n: int = limited(2_000, ABOVE_ZERO)  # rows to choose
    width: int = limited(1024, ABOVE_ZERO)  # numbers of a feature
    method: str = "capped_ot"  # method of data_selection
    dedup: bool = True  # also time the choice with near-duplicates removed
    seed: int = 0  # seed of the features


def transport(argv: list[str]) -> None:
    config = parse(TransportConfig, argv, "python -m eval.transport")
    from data_selection.choose import SelectionError, choose

    with tempfile.TemporaryDirectory() as folder:
        pool = _features(config, Path(folder) / "pool.npy", config.pool, share=0.3)
        target = _features(config, Path(folder) / "target.npy", config.target, share=1.0)
        for steps in [["unit"], ["unit", "dedup"]] if config.dedup else [["unit"]]:
            start = time.perf_counter()
            try:
                choose(pool, target, config.n, config.method, steps)
            except SelectionError as error:
                raise UserError(str(error)) from error
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # GB: ru_maxrss is in kB
            seconds = time.perf_counter() - start
            sizes = f"{config.n} of {config.pool} rows against {config.target} targets, width {config.width}"
            print(f"{config.method}, {', '.join(steps)}: {sizes}: {seconds:.1f} s, at most {peak:.1f} GB", flush=True)


def _features(config: TransportConfig, path: Path, rows: int, share: float) -> Any:
    """(rows, width) in float16; `share` of them lie near one of 50 modes, which are the same for pool and target."""
    import numpy as np

    scale = config.width**-0.5
    modes = np.random.default_rng(config.seed).standard_normal((50, config.width)) * scale
    rng = np.random.default_rng([config.seed, rows, int(10 * share)])
    features = np.lib.format.open_memmap(path, "w+", np.float16, (rows, config.width))
    for start in range(0, rows, BLOCK):
        count = min(BLOCK, rows - start)
        near = modes[rng.integers(50, size=count)] * (rng.random((count, 1)) < share)  # zeros for the other rows
        features[start : start + count] = rng.standard_normal((count, config.width)) * scale + near
    return features


def main(argv: list[str] | None = None) -> int:
    return run(transport, sys.argv[1:] if argv is None else argv, "eval.transport")


if __name__ == "__main__":
    sys.exit(main())
