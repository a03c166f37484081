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


def merge(argv: list[str]) -> None:
    config = parse(MergeConfig, argv, "python -m rovrm.merge")
    out = Path(config.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"out={config.out!r} is not an empty folder; give a new one")
    from rovrm.checkpoints import adapter_folder, base_of, load_processor, merge_adapter, phase_record, processor_of
    from rovrm.outputs import save_merged

    if not Path(config.model).is_dir():
        raise UserError(f"model={config.model!r} is no folder; give a phase folder of rovrm.train")
    adapter = adapter_folder(config.model)
    base = base_of(adapter)
    model: Any = merge_adapter(base, str(adapter), config.trust_remote_code)
    processor = load_processor(processor_of(adapter, base), "", config.trust_remote_code, model.config)
    new_folder(out)
    processor.save_pretrained(out)
    card = f"# Reward model\n\n{base} with the adapter {config.model}, merged by rovrm.\n"
    save_merged(model, processor, out, config.save_dtype, phase_record(adapter.parent), card)
    print(f"wrote {out}")


def new_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out={str(out)!r} cannot be made: {error.strerror or error}") from error


def main(argv: list[str] | None = None) -> int:
    return run(merge, sys.argv[1:] if argv is None else argv, "rovrm.merge")


if __name__ == "__main__":
    sys.exit(main())
