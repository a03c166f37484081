"""Merges an adapter into a full checkpoint that loads without rovrm.

    python -m rovrm.merge model=runs/mine/phase2-caption out=runs/mine/merged

Merging is done in float32. save_dtype=bfloat16 halves the folder and rounds small updates away; it prints by how much
the rewards of a few fixed examples (short answers, some about drawn pictures) moved, beside their spread.
"""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from rovrm.config import MergeConfig, parse, run
from rovrm.errors import UserError
from rovrm.room import PARTIAL


def merge(argv: list[str]) -> None:
    config = parse(MergeConfig, argv, "python -m rovrm.merge")
    out = Path(config.out)
    check_new(out)
    from rovrm.checkpoints import adapter_folder, base_of, load_processor, merge_adapter, phase_record, processor_of
    from rovrm.outputs import save_merged

    if not Path(config.model).is_dir():
        raise UserError(f"model={config.model!r} is no folder; give a phase folder of rovrm.train")
    adapter = adapter_folder(config.model)
    base = base_of(adapter)
    model: Any = merge_adapter(base, str(adapter), config.trust_remote_code)
    processor = load_processor(processor_of(adapter, base), "", config.trust_remote_code, model.config)
    card = f"# Reward model\n\n{base} with the adapter {config.model}, merged by rovrm.\n"
    with new_folder(out) as folder:
        processor.save_pretrained(folder)
        save_merged(model, processor, folder, config.save_dtype, phase_record(adapter.parent), card)
    print(f"wrote {out}")


def check_new(out: Path) -> None:
    """Raises UserError unless there is no `out`, or nothing in it but what a killed command left there."""
    try:
        taken = out.exists() and (not out.is_dir() or any(path.name != PARTIAL for path in out.iterdir()))
    except OSError as error:
        raise UserError(f"out={str(out)!r} cannot be read: {error.strerror or error}; give a new folder") from error
    if taken:
        raise UserError(f"out={str(out)!r} is not an empty folder; give a new one")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, moved up into `out` in the end (`rovrm.checkpoints.saving`); after a failure nothing is
    left, `out` itself only where it was there before. Raises UserError where it cannot be written."""
    from rovrm.checkpoints import saving

    made = not out.exists()
    try:
        with saving(out) as partial:
            yield partial
        made = False
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"out={str(out)!r} cannot be written: {reason}; give another one") from error
    finally:
        if made:
            shutil.rmtree(out, ignore_errors=True)


def main(argv: list[str] | None = None) -> int:
    return run(merge, sys.argv[1:] if argv is None else argv, "rovrm.merge")


if __name__ == "__main__":
    sys.exit(main())
