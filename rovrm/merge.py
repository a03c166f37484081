"""Merges an adapter into a full checkpoint that loads without rovrm: a reward model, or of rovrm.dpo a language model.

    python -m rovrm.merge model=runs/mine/phase2-caption out=runs/mine/merged

Merging is done in float32. save_dtype=bfloat16 halves the folder and rounds small updates away; it prints by how much
the rewards of expected_rewards.json moved, beside their spread. The adapter
must give the rewards that its expected_rewards.json promises, and so must the merged model before it is rounded.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rovrm.common.errors import UserError
from rovrm.common.files import check_new, new_folder
from rovrm.settings.command_line import parse, run
from rovrm.settings.keys import MergeConfig

if TYPE_CHECKING:
    from rovrm.model.contract import Contract


def merge(argv: list[str]) -> None:
    config = parse(MergeConfig, argv, "python -m rovrm.merge")
    out = Path(config.out)
    check_new(out)

    from rovrm.model.adapters import adapted_base, adapter_folder, base_of, brings_head, phase_record, processor_of
    from rovrm.model.loading import load_processor
    from rovrm.model.saving import expected_rewards, merge_alike, save_merged

    if not Path(config.model).is_dir():
        raise UserError(f"model={config.model!r} is no folder; give a phase folder of rovrm.train")
    # The phase folder leads to its adapter; the adapter's config names the base.
    adapter = adapter_folder(config.model)
    base = base_of(adapter)
    if not brings_head(adapter):
        _merge_policy(config, adapter, base, out)
        return
    model = adapted_base(base, str(adapter), config.trust_remote_code)
    processor = load_processor(processor_of(adapter, base), "", config.trust_remote_code, model.config)
    expected = _checked(model, processor, str(adapter)) if config.verify else None
    merged = merge_alike(model, processor, expected)
    expected = expected if config.verify else expected_rewards(merged, processor)
    card = f"# Reward model\n\n{base} with the adapter {config.model}, merged by rovrm.\n"
    with new_folder(out) as folder:
        processor.save_pretrained(folder)
        save_merged(merged, processor, folder, config.save_dtype, phase_record(adapter.parent), card, expected)
    print(f"wrote {out}")


def _merge_policy(config: MergeConfig, adapter: Path, base: str, out: Path) -> None:
    """Writes the language model that an adapter of rovrm.dpo makes of its base."""
    import torch

    from rovrm.model.adapters import load_adapter, processor_of
    from rovrm.model.likelihood import load_policy_model
    from rovrm.model.loading import load_processor

    model = load_policy_model(base, torch.float32, trust_remote_code=config.trust_remote_code)
    merged = load_adapter(model, str(adapter), trainable=False).merge_and_unload()
    processor = load_processor(processor_of(adapter, base), "", config.trust_remote_code, merged.config)
    with new_folder(out) as folder:
        processor.save_pretrained(folder)
        merged.to(getattr(torch, config.save_dtype)).save_pretrained(folder)
    print(f"wrote {out}, a language model")


def _checked(model: Any, processor: Any, adapter: str) -> "Contract | None":
    """The rewards that the adapter gives before it is merged. Raises UserError where they are not those it promises."""
    from rovrm.model import contract
    from rovrm.model.saving import expected_rewards
    from rovrm.model.scorer import RewardScorer

    promised = contract.read(adapter)
    contract.check(RewardScorer(model, processor, rows="separate"), promised, adapter)
    return promised or expected_rewards(model, processor)


def main(argv: list[str] | None = None) -> int:
    return run(merge, sys.argv[1:] if argv is None else argv, "rovrm.merge")


if __name__ == "__main__":
    sys.exit(main())
