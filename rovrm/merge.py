"""Merges an adapter into a full checkpoint that loads without rovrm.

    python -m rovrm.merge model=runs/mine/phase2-caption out=runs/mine/merged

Merging is done in float32. save_dtype=bfloat16 halves the folder and rounds small updates away; it prints by how much
the rewards of a few fixed examples (short answers, some about drawn pictures) moved, beside their spread.
"""

import sys
from pathlib import Path
from typing import Any

from rovrm.common.errors import UserError
from rovrm.common.files import check_new, new_folder
from rovrm.settings.command_line import parse, run
from rovrm.settings.keys import MergeConfig


def merge(argv: list[str]) -> None:
    config = parse(MergeConfig, argv, "python -m rovrm.merge")
    out = Path(config.out)
    check_new(out)

    from rovrm.model.adapters import adapter_folder, base_of, merge_adapter, phase_record, processor_of
    from rovrm.model.loading import load_processor
    from rovrm.model.saving import save_merged

    if not Path(config.model).is_dir():
        raise UserError(f"model={config.model!r} is no folder; give a phase folder of rovrm.train")
    # The phase folder leads to its adapter; the adapter's config names the base.
    adapter = adapter_folder(config.model)
    base = base_of(adapter)
    model: Any = merge_adapter(base, str(adapter), config.trust_remote_code)
    processor = load_processor(processor_of(adapter, base), "", config.trust_remote_code, model.config)
    card = f"# Reward model\n\n{base} with the adapter {config.model}, merged by rovrm.\n"
    with new_folder(out) as folder:
        processor.save_pretrained(folder)
        save_merged(model, processor, folder, config.save_dtype, phase_record(adapter.parent), card)
    print(f"wrote {out}")


def main(argv: list[str] | None = None) -> int:
    return run(merge, sys.argv[1:] if argv is None else argv, "rovrm.merge")


if __name__ == "__main__":
    sys.exit(main())
