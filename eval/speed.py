"""Shared prompts against separate rows, and RewardTrainer against TRL's, side by side in one run.

    python -m eval.speed                                               # a small LLaVA with real lengths, CPU
    python -m eval.speed size=7b device=cuda dtype=bfloat16 pairs=64   # LLaVA-1.5-7B shapes, random weights, one GPU
    python -m eval.speed trl=false                                     # rows only
    python -m eval.speed response_length=330 batch_tokens=6000         # answers as long as LLaVA's own

Prints pairs (or responses) per second of both sides and their ratio: the median, lowest and highest of `repeats`
alternated repeats. Both sides have the same model, examples, bucketing, dtype, checkpointing and tokens per batch, and
are first checked to give the same rewards. Images are preprocessed and batches built outside of the clock (not in
the lines about rovrm.bon, which read image files); the vision tower runs inside it. Lengths are those of RLAIF-V with
LLaVA-1.5: 576 image tokens, 48 of prompt, about 110 of response.
"""

import os
import sys

from eval.shared.keys import SpeedConfig
from rovrm.settings.command_line import parse, run


def speed(argv: list[str]) -> None:
    config = parse(SpeedConfig, argv, "python -m eval.speed")
    os.environ |= {"TQDM_DISABLE": "1", "KINETO_LOG_LEVEL": "5"}  # the latter's profiler counts memory

    from eval.speed_rows import compare_rows

    compare_rows(config)
    if config.trl:
        from eval.speed_trl import compare_with_trl

        compare_with_trl(config)


def main(argv: list[str] | None = None) -> int:
    return run(speed, sys.argv[1:] if argv is None else argv, "eval.speed")


if __name__ == "__main__":
    sys.exit(main())
