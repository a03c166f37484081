"""Merges an adapter into a full checkpoint that loads without rovrm.

    python -m rovrm.merge model=runs/mine/phase2-caption out=runs/mine/merged

Merging is done in float32. save_dtype=bfloat16 halves the folder and rounds small updates away.
"""

import json
import os
import sys
from pathlib import Path

from rovrm.config import MergeConfig, parse, run
from rovrm.errors import UserError


def merge(argv: list[str]) -> None:
    config = parse(MergeConfig, argv, "python -m rovrm.merge")
    from rovrm.checkpoints import ADAPTER, load_processor, merge_adapter
    from rovrm.outputs import save_merged

    adapter = os.path.join(config.model, ADAPTER)
    settings = os.path.join(adapter, "adapter_config.json")
    if not os.path.isfile(settings):
        raise UserError(
            f"model={config.model!r} holds no {ADAPTER}/adapter_config.json; give a phase folder of rovrm.train"
        )
    out = Path(config.out)
    if out.exists() and any(out.iterdir()):
        raise UserError(f"out={config.out!r} is not empty; give a new folder")
    with open(settings) as file:
        base = json.load(file)["base_model_name_or_path"]
    record_file = Path(config.model) / "phase.json"
    record = json.loads(record_file.read_text()) if record_file.is_file() else {}
    model = merge_adapter(base, adapter, config.trust_remote_code)
    processor = load_processor(config.model, "", config.trust_remote_code, model.config)
    out.mkdir(parents=True, exist_ok=True)
    processor.save_pretrained(out)
    save_merged(
        model,
        out,
        config.save_dtype,
        record,
        f"# Reward model\n\n{base} with the adapter {config.model}, merged by rovrm.\n",
    )
    print(f"wrote {out}")


def main(argv: list[str] | None = None) -> int:
    return run(merge, sys.argv[1:] if argv is None else argv, "rovrm.merge")


if __name__ == "__main__":
    sys.exit(main())
