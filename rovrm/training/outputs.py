"""What a run leaves behind: phase folders, per-pair scores, the merged checkpoint with its model card, summary.json."""

import os
import shutil
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from rovrm.common.files import read_json, saving, write_json, write_jsonl
from rovrm.common.intervals import share_in_words
from rovrm.common.phase_table import print_phases
from rovrm.model.adapters import ADAPTER, adapted_base
from rovrm.model.contract import Contract
from rovrm.model.loading import load_reward_model
from rovrm.model.saving import expected_rewards, merge_alike, note_rewards, quick_start, save_merged
from rovrm.settings.keys import TrainConfig
from rovrm.settings.phases import Phase
from rovrm.training.losses import ranking_metrics
from rovrm.training.sharding import whole_weights
from rovrm.training.trainer import RewardTrainer

FULL = "full.tmp"  # inside a phase folder: the full checkpoint that is being written
EQUAL = 1e-6  # rewards that are spread less than this, of their size, are equal


def write_phase(config: TrainConfig, phase: Phase, trainer: RewardTrainer, record: dict[str, Any], last: bool) -> None:
    """Writes a phase's folder: the processor, scores.jsonl, adapter or full checkpoint; phase.json last, as the sign
    that the phase is done. The last phase of a run also gets the merged checkpoint."""
    folder = phase.folder(config.out)
    trainer.accelerator.wait_for_everyone()
    # Every process takes part where weights are sharded.
    weights = whole_weights(trainer)
    if config.tuning == "full":
        model: Any = trainer.accelerator.unwrap_model(trainer.model)
        note_rewards(model.config, record)
        if weights is None:
            trainer.save_model(str(folder / FULL))
        elif trainer.is_world_process_zero():
            model.save_pretrained(folder / FULL, state_dict=weights)
    if not trainer.is_world_process_zero():
        return
    with saving(folder) as partial:
        trainer.processing_class.save_pretrained(partial)  # type: ignore[union-attr]
    write_scores(folder / "scores.jsonl", trainer)
    card = _card(config, phase, record, trainer.processing_class)
    if config.tuning == "full":
        # Only the last phase's checkpoint is stored in `save_dtype`: the others are what the next phase starts from.
        save_dtype = config.save_dtype if last else "float32"
        rewrite = save_dtype != "float32" or weights is not None
        _write_full(folder, trainer.processing_class, record, card, save_dtype, rewrite, config.trust_remote_code)
    else:
        model, expected = _write_adapter(folder, trainer, weights, config.trust_remote_code)
        if last:
            processor = trainer.processing_class
            merged = merge_alike(model, processor, expected)
            save_merged(merged, processor, folder, config.save_dtype, record, card, expected)
    write_json(folder / "phase.json", record)


def _write_full(
    folder: Path,
    processor: Any,
    record: dict[str, Any],
    card: str,
    save_dtype: str,
    rewrite: bool,
    trust_remote_code: bool,
) -> None:
    """Moves the full checkpoint that all processes have written up into the folder, or writes it again in `save_dtype`
    and with the class's own file; adds the rewards that it gives when it is read back."""
    written = folder / FULL
    model = load_reward_model(str(written), torch.float32, trust_remote_code=trust_remote_code)
    expected = expected_rewards(model, processor)
    if rewrite:
        save_merged(model, processor, folder, save_dtype, record, card, expected)
    else:
        with saving(folder) as partial:
            for file in written.iterdir():
                if file.name != "training_args.bin":
                    os.replace(file, partial / file.name)
            if expected is not None:
                expected.write(partial)
            (partial / "README.md").write_text(card)
    shutil.rmtree(written)


def _write_adapter(
    folder: Path, trainer: RewardTrainer, weights: dict[str, Any] | None, trust_remote_code: bool
) -> tuple[Any, Contract | None]:
    """Writes `adapter/` with its processor and its expected rewards: a copy of that folder alone is read in its own
    chat template, and checked.

    weights: those that were gathered of a sharded model, else None.

    Returns:
        (the adapter on its base in float32, as it is read back; its expected rewards)
    """
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    processor: Any = trainer.processing_class
    base = model.peft_config["default"].base_model_name_or_path
    with saving(folder) as partial:
        model.save_pretrained(partial / ADAPTER, state_dict=weights)
        processor.save_pretrained(partial / ADAPTER)
        adapted = adapted_base(base, str(partial / ADAPTER), trust_remote_code)
        expected = expected_rewards(adapted, processor)
        if expected is not None:
            expected.write(partial / ADAPTER)
    return adapted, expected


def write_scores(path: Path, trainer: RewardTrainer) -> None:
    """Per held-out example: its best and its worst response's reward, and 1, 0 or 0.5 for right, wrong and tie (a
    list counts the share of its comparisons won)."""
    lines = []
    for example, rewards in zip(trainer.eval_examples, trainer.eval_rewards, strict=True):
        best, worst = example.ranks.index(min(example.ranks)), example.ranks.index(max(example.ranks))
        lines.append(
            {
                "id": example.id,
                "scores_chosen": rewards[best],
                "scores_rejected": rewards[worst],
                "results": ranking_metrics([rewards], [example.ranks], [None])["accuracy"],
                "subset": example.source,
            }
        )
    write_jsonl(path, lines)


def write_summary(out: str, phases: list[Phase], what: str, next_step: Callable[[str], str]) -> None:
    """Writes summary.json, of the phases asked for alone, and prints their table and what to do next.

    Args:
        what: what was trained, in words.
        next_step: of the last phase's folder, what to do with it.
    """
    records = {phase.folder_name: read_json(phase.folder(out) / "phase.json") for phase in phases}
    write_json(Path(out) / "summary.json", records)
    print_phases(records)
    print_warnings(records.values())
    final = str(phases[-1].folder(out))
    print(f"\n{what}: {final}")
    print(next_step(final))


REWARD_RATES = "adapters want 1e-4 to 3e-4, full tuning 1e-6 to 2e-5"
POLICY_RATES = "adapters want 1e-5 to 1e-4, full tuning about 1e-6"


def doubts(record: dict[str, Any], name: str, rate: float) -> list[str]:
    """What speaks against trusting a trained phase, from its record, each with what to try."""
    low, high = record["accuracy_ci95"]
    accuracy = share_in_words(record["accuracy"], record["n_held_out"])
    rates = POLICY_RATES if "logps_chosen" in record else REWARD_RATES
    reasons = []
    if record["reward_std"] <= EQUAL * max(1.0, abs(record["reward_mean"])):
        reasons.append(
            f"{name}: all rewards on the held-out examples are equal ({record['reward_mean']:g}): the model tells no "
            f"answer from another. Try a lower {name}.learning_rate (it was {rate:g}), and look for broken weights in "
            "the base model"
        )
    elif low <= 0.5 <= high:
        reasons.append(
            f"{name}: held-out accuracy {accuracy} cannot be told from chance. Try more data ({record['n_train']} now) "
            f"or epochs, another {name}.learning_rate (it was {rate:g}; {rates}), a larger eval_fraction, and look at "
            "the rows that dry_run=true prints: are the answers the right way round?"
        )
    elif high < 0.5:
        reasons.append(
            f"{name}: held-out accuracy {accuracy} is below chance: does the held-out data prefer what the training "
            "data reject? Look at scores.jsonl, and exchange chosen and rejected where they are the wrong way round"
        )
    return reasons


def print_warnings(records: Iterable[dict[str, Any]]) -> None:
    for record in records:
        for warning in record.get("warnings", []):
            print(f"\nWARNING: {warning}")


def _card(config: TrainConfig, phase: Phase, record: dict[str, Any], processor: Any) -> str:
    """The model card: what it is, how it was made, and a quick start that runs without rovrm."""
    sources = [f"- {used.name}: {', '.join(config.section(used).data)}" for used in config.phases if used <= phase]
    trained = "\n".join(sources)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
    return f"""---
library_name: transformers
pipeline_tag: text-classification
base_model: {config.model}
tags: [reward-model, rovrm]
---
# Reward model

One scalar reward for a response to a prompt (about an image); higher is better. Made with rovrm from `{config.model}`
({config.tuning}), last phase: {phase.name}.

Held-out accuracy {share_in_words(record["accuracy"], record["n_held_out"])} with its 95 % interval, loss
{record["loss"]:.3f}; rewards there: mean {record["reward_mean"]:.3f}, standard deviation {record["reward_std"]:.3f}.

Preference data of the phases trained in this run:
{trained}

```python
{quick_start(processor)}
```
With rovrm: `RewardScorer.from_pretrained(folder).score(prompt, answers, images="photo.jpg")`.

Versions: {versions}.
"""
