"""Merges an adapter into a full checkpoint that loads without rovrm.

    python -m rovrm.merge model=runs/mine/phase2-caption out=runs/mine/merged

Merging is done in float32. save_dtype=bfloat16 halves the folder and rounds small updates away; it prints by how much
the rewards of a few fixed examples (short answers, some about drawn pictures) moved, beside their spread.
"""

import sys
from pathlib import Path
from typing import Any

from rovrm.config import MergeConfig, parse, run
from rovrm.errors import UserError

QUESTIONS = (
    "What is in the picture?",
    "How many objects are there?",
    "Is the left half darker?",
    "What is 17 plus 25?",
)
ANSWERS = ("It is a red cup on a table.", "There are two of them.", "Yes.", "No, it is not possible to say.")


def merge(argv: list[str]) -> None:
    config = parse(MergeConfig, argv, "python -m rovrm.merge")
    out = Path(config.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"out={config.out!r} is not an empty folder; give a new one")
    from rovrm.checkpoints import load_processor, merge_adapter
    from rovrm.outputs import save_merged
    from rovrm.scorer import adapter_folder, base_of, phase_record, processor_of

    if not Path(config.model).is_dir():
        raise UserError(f"model={config.model!r} is no folder; give a phase folder of rovrm.train")
    adapter = adapter_folder(config.model)
    base = base_of(adapter)
    model: Any = merge_adapter(base, str(adapter), config.trust_remote_code)
    processor = load_processor(processor_of(adapter, base), "", config.trust_remote_code, model.config)
    rounded = config.save_dtype == "bfloat16"
    before = sample_rewards(model, processor) if rounded else []
    _new_folder(out)
    processor.save_pretrained(out)
    card = f"# Reward model\n\n{base} with the adapter {config.model}, merged by rovrm.\n"
    save_merged(model, out, config.save_dtype, phase_record(adapter.parent), card)
    if rounded:
        _say_change(before, sample_rewards(model, processor))
    print(f"wrote {out}")


def sample_rewards(model: Any, processor: Any) -> list[float]:
    """Rewards of 16 fixed questions and answers, with drawn pictures where the model takes images."""
    from PIL import Image

    from rovrm.scorer import RewardScorer

    pictures = [Image.linear_gradient("L"), Image.radial_gradient("L").crop((0, 0, 256, 160)), None, None]
    if getattr(model.config, "vision_config", None) is None:
        pictures = [None] * len(QUESTIONS)
    rows = [
        {"prompt": question, "responses": ANSWERS, "images": picture}
        for question, picture in zip(QUESTIONS, pictures, strict=True)
    ]
    return [reward for rewards in RewardScorer(model, processor).score_batch(rows) for reward in rewards]


def _say_change(before: list[float], after: list[float]) -> None:
    from statistics import pstdev

    moved = max(abs(a - b) for a, b in zip(before, after, strict=True))
    print(
        f"stored in bfloat16: the rewards of {len(before)} fixed short answers move by up to {moved:.2e} (their "
        f"standard deviation is {pstdev(before):.2e}); save_dtype=float32 keeps them exactly"
    )


def _new_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out={str(out)!r} cannot be made: {error.strerror or error}") from error


def main(argv: list[str] | None = None) -> int:
    return run(merge, sys.argv[1:] if argv is None else argv, "rovrm.merge")


if __name__ == "__main__":
    sys.exit(main())
