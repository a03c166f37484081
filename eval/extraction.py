"""Speed of per-example gradient features: batched extraction, a training step, and a loop over pairs as in LESS.

    python -m eval.extraction                                             # a small LLaVA with real lengths, CPU
    python -m eval.extraction images=false                                # text pairs, as the text phase's pool has
    python -m eval.extraction size=7b device=cuda dtype=bfloat16 pairs=64 batch_tokens=4096 lora_r=64        # one GPU
    python -m eval.extraction size=7b device=cuda dtype=bfloat16 pairs=64 batch_tokens=8192 lora_r=64 checkpointing=true

Alternated `repeats` times in one run, on the same weights (LoRA with a random B, no dropout) and the same pairs:

    extraction   shared rows in batches, one backward for all pairs of a batch down to the lowest layer that counts
                 (`layers`), balanced and sketched to `width`, as a selection does by default
    training     the same batches: forward, loss, backward and a step of AdamW on the adapter, as RewardTrainer takes
    loop         a pair at a time as two separate rows, backward of its loss, every .grad concatenated, and LESS's dense
                 projection, 16 gradients at once, by random signs; all LoRA layers, as LESS takes them
    same layers  the loop on the layers of `layers` alone

The signs (gradients' coordinates x `width`) are drawn once, outside of the clock, and kept. Where they would take more
than `matrix_gb` the loop does not project, and its time is a lower bound: the output says which. Extraction and loop
are first checked, in float32, to give the same gradients of the same layers before the projection. Images are
preprocessed and batches built outside of the clock; the vision tower runs inside it. Prints pairs per second and
ratios, repeat by repeat: the median, lowest and highest. Wanted: extraction at 1.3 times training's speed or more, and
at 2.5 times the loop's.
"""

import sys

from eval.shared.keys import ExtractionConfig
from rovrm.settings.command_line import parse, run


def extraction(argv: list[str]) -> None:
    config = parse(ExtractionConfig, argv, "python -m eval.extraction")

    from eval.extraction_sides import compare_sides

    compare_sides(config)


def main(argv: list[str] | None = None) -> int:
    return run(extraction, sys.argv[1:] if argv is None else argv, "eval.extraction")


if __name__ == "__main__":
    sys.exit(main())
