"""Shared-prefix rows against separate rows, and RewardTrainer against TRL's, side by side in one run.

    python -m eval.speed                                               # a small LLaVA with real lengths, CPU
    python -m eval.speed size=7b device=cuda dtype=bfloat16 pairs=64   # LLaVA-1.5-7B shapes, random weights, one GPU
    python -m eval.speed trl=false                                     # rows only

Prints pairs (or responses) per second of both sides and their ratio: the median, lowest and highest of `repeats`
alternated repeats. Both sides have the same model, examples, bucketing, dtype, checkpointing and tokens per batch, and
are first checked to give the same rewards. Images are preprocessed and batches built outside of the clock (not in
the lines about rovrm.bon, which read image files); the vision tower runs inside it. Lengths are those of RLAIF-V with
LLaVA-1.5: 576 image tokens, 48 of prompt, about 110 of response.
"""

import os
import sys
from dataclasses import dataclass
from typing import Literal

from rovrm.settings.command_line import parse, run


@dataclass
class SpeedConfig:
    size: Literal["tiny", "7b"] = "tiny"  # a small LLaVA, or the shapes of LLaVA-1.5-7B
    device: str = "cpu"  # device, such as cpu or cuda
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the frozen weights and the arithmetic
    pairs: int = 8  # pairs trained on in one repeat
    responses: int = 8  # responses per prompt when scoring
    batch_tokens: int = 3000  # padded tokens of one forward, at most, on both sides
    checkpointing: bool = False  # gradient checkpointing, on both sides
    repeats: int = 7  # alternated repeats
    trl: bool = True  # also compare with TRL's RewardTrainer on text pairs
    text_steps: int = 12  # optimizer steps of that comparison
    seed: int = 0  # seed of weights and texts


def speed(argv: list[str]) -> None:
    config = parse(SpeedConfig, argv, "python -m eval.speed")
    os.environ["TQDM_DISABLE"] = "1"

    from eval.speed_rows import compare_rows

    compare_rows(config)
    if config.trl:
        from eval.speed_trl import compare_with_trl

        compare_with_trl(config)


def main(argv: list[str] | None = None) -> int:
    return run(speed, sys.argv[1:] if argv is None else argv, "eval.speed")


if __name__ == "__main__":
    sys.exit(main())
