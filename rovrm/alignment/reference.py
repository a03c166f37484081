"""The reference's log-probabilities of a phase's answers, computed once and kept in its folder.

They are written in shards, so a run that is stopped goes on. Shards note the weights and the examples that they are of;
others are refused.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from rovrm.common.errors import UserError
from rovrm.data.example import Example
from rovrm.model.answer_collator import AnswerCollator
from rovrm.model.batches import batch_loader, collect_rewards, fitting_into_memory, plan_batches, split_batch
from rovrm.model.loading import weights_mark
from rovrm.settings.keys import DpoConfig
from rovrm.settings.phases import Phase
from rovrm.training.plan import settings_of
from rovrm.training.resume import fingerprint, images_mark, template_mark

SHARD = 2048  # examples of a file


def set_reference(examples: Sequence[Example], logps: Sequence[Sequence[float]]) -> None:
    """Notes the reference's log-probabilities of these examples' responses, in their order."""
    for example, of_example in zip(examples, logps, strict=True):
        example.reference_logps = list(of_example)


def answer_logps(
    model: Any,
    collator: AnswerCollator,
    examples: Sequence[Example],
    batch_tokens: int = 16384,
    batch_size: int = 8,
    workers: int = 0,
) -> list[list[float]]:
    """log pi of every response of every measured example, the same on every process.

    Not by the trainer's own evaluation: before training that would leave the model without the wrapper by which
    processes share their gradients.

    Args:
        model: of `likelihood`, or an adapter on one, not wrapped; it runs in eval mode, in its weights' arithmetic.
        batch_tokens, batch_size, workers: as in `rovrm.train`.
    """
    state, found = PartialState(), {}
    device: torch.device = state.device  # type: ignore[assignment]
    plan = plan_batches(examples, collator, batch_tokens, batch_size, None)
    mine = plan[state.process_index :: state.num_processes]
    trains, kind = model.training, next(p.dtype for p in model.get_decoder().parameters() if p.is_floating_point())
    model.eval().to(device)
    for batch in batch_loader(examples, mine, collator, workers, torch.cuda.is_available()):
        model_inputs, ours = split_batch({key: value.to(device) for key, value in batch.items()})
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=kind == torch.bfloat16)
        with torch.no_grad(), autocast, fitting_into_memory(len(ours["labels"])):
            collect_rewards(ours, model(**model_inputs).logps, found)
    model.train(trains)
    merged: dict[int, dict[int, float]] = {}
    for part in gather_object([found]) if state.num_processes > 1 else [found]:
        merged.update(part)
    return [[merged[i][j] for j in range(len(example.responses))] for i, example in enumerate(examples)]


def reference_logps(
    config: DpoConfig, phase: Phase, model: Any, collator: AnswerCollator, examples: Sequence[Example]
) -> list[list[float]]:
    """log pi_ref of every response of every measured example, from the phase's folder or else from the reference.

    Args:
        model: the reference.
        collator: of its batches.

    Raises:
        UserError: the folder holds those of other weights or examples.
    """
    state, folder = PartialState(), phase.folder(config.out) / "reference"
    mark = f"{config.reference} {settings_of(config, phase)['weights']} {weights_mark(config.model)}"
    found: list[list[float]] = []
    for number, start in enumerate(range(0, len(examples), SHARD)):
        part = list(examples[start : start + SHARD])
        note = {
            "weights": mark,
            "data": fingerprint(part),
            "images": images_mark(part),
            "chat template": template_mark(collator.processor),
        }
        path = folder / f"logps-{number:05d}.safetensors"
        values = _read(path, note)
        state.wait_for_everyone()  # no process may write before every one has looked
        if values is None:
            if state.is_main_process and not number:
                print(f"{phase}: the reference's log-probabilities of {len(examples)} examples")
            logps = answer_logps(model, collator, part, config.batch_tokens, config.batch_size, config.workers)
            values = torch.tensor([logp for of_example in logps for logp in of_example], dtype=torch.float32)
            if state.is_main_process:
                folder.mkdir(parents=True, exist_ok=True)
                temporary = path.with_suffix(".tmp")
                save_file({"logps": values}, temporary, note)
                os.replace(temporary, path)
        sizes = [len(example.responses) for example in part]
        found += [of_example.tolist() for of_example in values.split(sizes)]
    state.wait_for_everyone()
    return found


def _read(path: Path, note: dict[str, str]) -> torch.Tensor | None:
    """The values of a shard, None where there is none that is whole. Raises UserError where they are of other weights
    or examples."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            noted = file.metadata() or {}
        values = load_file(path)["logps"]
    except (OSError, SafetensorError, KeyError):
        return None
    for key, value in note.items():
        if noted.get(key) != value:
            raise UserError(
                f"{path.parent} holds log-probabilities of a reference with other {key}; give another out=, or remove "
                "that folder"
            )
    return values
