"""What a run leaves behind: phase folders, per-pair scores, the merged checkpoint with its model card, summary.json."""

import json
import os
import shlex
import shutil
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rovrm.common.files import saving, write_json, write_jsonl
from rovrm.common.intervals import share_in_words
from rovrm.common.phase_table import print_phases
from rovrm.model.adapters import ADAPTER, merge_adapter
from rovrm.model.loading import load_reward_model
from rovrm.model.saving import note_rewards, quick_start, save_merged
from rovrm.settings.keys import TrainConfig
from rovrm.settings.phases import PHASES, phase_folder, phase_numbers
from rovrm.training.losses import ranking_metrics

if TYPE_CHECKING:
    from rovrm.training.trainer import RewardTrainer


EQUAL = 1e-6  # rewards that are spread less than this, of their size, are equal


def write_phase(config: TrainConfig, phase: int, trainer: "RewardTrainer", record: dict[str, Any], last: bool) -> None:
    """Writes a phase's folder: adapter or full checkpoint, processor, scores.jsonl; phase.json last, as the sign that
    the phase is done. The last phase of a run also gets the merged checkpoint. Only that phase's full checkpoint is
    stored in `save_dtype`: the others are what the next phase starts from, and stay float32."""
    folder = phase_folder(config.out, phase)
    full = config.tuning == "full"
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    processor: Any = trainer.processing_class
    trainer.accelerator.wait_for_everyone()
    if full:
        temporary = folder / "full.tmp"
        note_rewards(model.config, record)
        trainer.save_model(str(temporary))  # every process takes part where weights are sharded
    if not trainer.is_world_process_zero():
        return
    with saving(folder) as partial:
        processor.save_pretrained(partial)
    write_scores(folder / "scores.jsonl", trainer)
    if full:
        card = _card(config, record, phase, processor)
        if last and config.save_dtype != "float32":
            stored = load_reward_model(str(temporary), torch.float32, trust_remote_code=config.trust_remote_code)
            save_merged(stored, processor, folder, config.save_dtype, record, card)
            shutil.rmtree(temporary)
        else:
            with saving(folder) as partial:
                _move_full(temporary, partial, card)
    else:
        with saving(folder) as partial:  # with its processor: a copy of the adapter alone is read in its own template
            model.save_pretrained(partial / ADAPTER)
            processor.save_pretrained(partial / ADAPTER)
        if last:
            base = model.peft_config["default"].base_model_name_or_path
            merged = merge_adapter(base, str(folder / ADAPTER), config.trust_remote_code)
            card = _card(config, record, phase, processor)
            save_merged(merged, processor, folder, config.save_dtype, record, card)
    write_json(folder / "phase.json", record)


def _move_full(source: Path, path: Path, card: str) -> None:
    for file in source.iterdir():
        if file.name != "training_args.bin":
            os.replace(file, path / file.name)
    (path / "README.md").write_text(card)
    for file in source.iterdir():
        file.unlink()
    source.rmdir()


def write_scores(path: Path, trainer: "RewardTrainer") -> None:
    """Per held-out example: its best and its worst response's reward, and 1, 0 or 0.5 for right, wrong and tie (a
    list counts the share of its comparisons won)."""
    rows = []
    for example, rewards in zip(trainer.eval_examples, trainer.eval_rewards, strict=True):
        best, worst = example.ranks.index(min(example.ranks)), example.ranks.index(max(example.ranks))
        rows.append(
            {
                "id": example.id,
                "scores_chosen": rewards[best],
                "scores_rejected": rewards[worst],
                "results": ranking_metrics([rewards], [example.ranks], [None])["accuracy"],
                "subset": example.source,
            }
        )
    write_jsonl(path, rows)


def summarise(config: TrainConfig, phases: list[int]) -> None:
    """Writes summary.json, of the phases asked for alone, and prints their table and what to do next."""
    folders = [phase_folder(config.out, phase) for phase in phases]
    records = {folder.name: json.loads((folder / "phase.json").read_text()) for folder in folders}
    write_json(Path(config.out) / "summary.json", records)
    print_phases(records)
    print_warnings(records.values())
    final = str(phase_folder(config.out, phases[-1]))
    print(f"\nreward model: {final}")
    print(f"score with it: python -m rovrm.score model={shlex.quote(final)} in=pairs.jsonl out=scores.jsonl")


def doubts(record: dict[str, Any], name: str, rate: float) -> list[str]:
    """What speaks against trusting a trained phase, from its record, each with what to try."""
    low, high = record["accuracy_ci95"]
    accuracy, found = share_in_words(record["accuracy"], record["n_held_out"]), []
    if record["reward_std"] <= EQUAL * max(1.0, abs(record["reward_mean"])):
        found.append(
            f"{name}: all rewards on the held-out examples are equal ({record['reward_mean']:g}): the model tells no "
            f"answer from another. Try a lower {name}.learning_rate (it was {rate:g}), and look for broken weights in "
            "the base model"
        )
    elif low <= 0.5 <= high:
        found.append(
            f"{name}: held-out accuracy {accuracy} cannot be told from chance. Try more data ({record['n_train']} now) "
            f"or epochs, another {name}.learning_rate (it was {rate:g}; adapters want 1e-4 to 3e-4, full tuning 1e-6 "
            "to 2e-5), a larger eval_fraction, and look at the rows that dry_run=true prints: are the answers the "
            "right way round?"
        )
    elif high < 0.5:
        found.append(
            f"{name}: held-out accuracy {accuracy} is below chance: does the held-out data prefer what the training "
            "data reject? Look at scores.jsonl, and exchange chosen and rejected where they are the wrong way round"
        )
    return found


def print_warnings(records: Iterable[dict[str, Any]]) -> None:
    for warning in [text for record in records for text in record.get("warnings", [])]:
        print(f"\nWARNING: {warning}")


def _card(config: TrainConfig, record: dict[str, Any], phase: int, processor: Any) -> str:
    """The model card: what it is, how it was made, and a quick start that runs without rovrm."""
    used = [PHASES[p - 1] for p in phase_numbers(config.phase) if p <= phase]
    trained = "\n".join(f"- {name}: {', '.join(getattr(config, name).data)}" for name in used)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
    return f"""---
library_name: transformers
pipeline_tag: text-classification
base_model: {config.model}
tags: [reward-model, rovrm]
---
# Reward model

One scalar reward for a response to a prompt (about an image); higher is better. Made with rovrm from `{config.model}`
({config.tuning}), last phase: {PHASES[phase - 1]}.

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
