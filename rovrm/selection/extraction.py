"""Gradient features of preference examples: a short training that gives gradients a meaning, then their extraction.

    adapter = warm_up(config, folder, examples, processor, arguments)      # a LoRA adapter on the base model
    model = gradient_model(config, adapter)
    with GradientFeatures(model, chosen_layers("last=0.25", model), 4096) as features:
        extract(collator, examples, store, lambda batch: batch_features(model, batch, features), config)

An example's gradient is that of its objective (`losses.ascents`), over its prompt's row and its answers' rows.
Where the objectives themselves are asked for (`select=margin`), they are a feature of one number (`batch_margins`).
The batches of a shard depend on its examples alone: however often extraction is killed, and on however many processes
it runs, the stored features come from the same forwards.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import load_file
from torch import Tensor
from tqdm.auto import tqdm
from transformers.modeling_layers import GradientCheckpointingLayer

from data_selection.gradients import GradientFeatures, lora_layers
from data_selection.store import Store
from rovrm.common.errors import UserError
from rovrm.data.example import Example
from rovrm.model.adapters import load_adapter
from rovrm.model.batches import batch_loader, fitting_into_memory, plan_batches, split_batch
from rovrm.model.collator import RewardCollator
from rovrm.selection.warm_up import MOMENTS, base_model
from rovrm.settings.keys import TrainConfig
from rovrm.training.losses import ascents, compare
from rovrm.training.resume import fingerprint

BETAS, EPSILON = (0.9, 0.999), 1e-8


# ---- features --------------------------------------------------------------------------------------------------------


def gradient_model(config: TrainConfig, adapter: Path) -> Any:
    """The warmed-up model in eval mode, with nothing to train: GradientFeatures begins the graph at the outputs of the
    lowest layers that count, so nothing below them is run backward, and no gradient is computed for a weight."""
    model = load_adapter(base_model(config), str(adapter), trainable=True)
    if not any(layer.weight.any() for name, layer in lora_layers(model).items() if ".lora_B." in name):
        raise UserError(
            f"{adapter}: every lora_B is zero, so no gradient reaches lora_A; raise "
            "selection.epochs or selection.learning_rate, and give another out= or remove that folder"
        )
    model.requires_grad_(False)
    model.eval().to(PartialState().device)
    # transformers still takes the older name, gradient_checkpointing.
    trainer_keys = {key.replace("gradient_", "activation_"): value for key, value in config.trainer.items()}
    if trainer_keys.get("activation_checkpointing"):
        kwargs = trainer_keys.get("activation_checkpointing_kwargs") or {}
        model.activation_checkpointing_enable(kwargs | {"use_reentrant": False})  # the other kind starts at the inputs
        model.disable_input_require_grads()
        for layer in model.modules():  # transformers checkpoints in training only; dropout, further in, stays off
            if isinstance(layer, GradientCheckpointingLayer):
                layer.training = True
    return model


def made_from(config: TrainConfig, adapter: Path, examples: Sequence[Example]) -> dict[str, Any]:
    """What decides the margins of some examples, for the store; the settings of the selection that decide gradients
    come on top of it."""
    weights = (adapter / "adapter_model.safetensors").read_bytes()
    return {
        "model": config.model,
        "adapter": hashlib.sha256(weights).hexdigest()[:16],
        "examples": fingerprint(examples),
        "dtype": config.dtype,
    }


def extract(
    collator: RewardCollator,
    examples: Sequence[Example],
    store: Store,
    measure: Callable[[dict[str, Tensor]], tuple[Tensor, Tensor]],
    config: TrainConfig,
    name: str = "rows",
) -> None:
    """Writes the store's missing shards, each process its own part of them.

    Args:
        measure: of a batch the features (examples, width), and by what their norms are multiplied.
    """
    state = PartialState()
    missing = store.missing()
    state.wait_for_everyone()  # no process may write before every one has looked
    if state.is_main_process and len(missing) < len(store):
        to_do = sum(len(store.rows(shard)) for shard in missing)
        there = len(examples) - to_do
        print(f"{name}: {there} of {len(examples)} rows have their features from before; {to_do} to do")
    mine = missing[state.process_index :: state.num_processes]
    # One plan for each shard: its batches must not depend on which other shards are missing.
    plans = [
        plan_batches(examples, collator, config.batch_tokens, config.batch_size, None, store.rows(shard))
        for shard in mine
    ]
    joined = [batch for plan in plans for batch in plan]
    batches = iter(batch_loader(examples, joined, collator, config.workers, torch.cuda.is_available()))
    bar = tqdm(
        total=sum(len(store.rows(shard)) for shard in mine),
        desc=name,
        disable=not state.is_main_process or bool(os.environ.get("TQDM_DISABLE")),
    )
    with bar:
        for shard, plan in zip(mine, plans, strict=True):
            start, size = store.rows(shard).start, len(store.rows(shard))
            places, parts, scales = [], [], []
            for _ in plan:
                batch = {key: value.to(state.device) for key, value in next(batches).items()}
                places.append(batch["example_ids"].cpu() - start)
                with fitting_into_memory(len(batch["labels"])):
                    part, scale = measure(batch)
                parts.append(part.cpu())
                scales.append(scale.cpu())
                bar.update(len(part))
            order = torch.cat(places).argsort()
            assert len(order) == size, f"{len(order)} of {size} rows were run"
            store.write(shard, torch.cat(parts)[order], torch.cat(scales)[order])
    state.wait_for_everyone()


def batch_margins(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(examples, 1) objectives of a batch, of a pair its reward difference; and ones, for their scale."""
    with torch.no_grad():
        objective, _ = _objectives(model, *split_batch(batch))
    return objective[:, None], torch.ones_like(objective)


def batch_features(model: Any, batch: dict[str, Tensor], features: GradientFeatures) -> tuple[Tensor, Tensor]:
    """(examples, width) features of a batch, and the factors that make their norms those of the loss's gradients."""
    model_inputs, ours = split_batch(batch)
    objective, slope = _objectives(model, model_inputs, ours)
    if features.weigh:  # Adam's step depends on the size of the loss's gradient
        objective, slope = objective * slope, torch.ones_like(slope)
    examples_of_rows = [ours["list_ids"]]
    if "owners" in model_inputs:  # the layers run twice: on the prompts, a row for each example, then on the answers
        prompts = torch.arange(len(objective), device=objective.device)
        examples_of_rows = [prompts, *examples_of_rows]
    rows = features(objective, *examples_of_rows)
    return rows, slope * features.lengths / rows.norm(dim=1)


def _objectives(model: Any, model_inputs: dict[str, Tensor], ours: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What `losses.ascents` makes of the rewards of a batch, in the two parts of `split_batch`: the objectives and
    their slopes."""
    kind = next(p.dtype for p in model.get_base_model().get_decoder().parameters() if p.is_floating_point())
    with torch.autocast(ours["labels"].device.type, torch.bfloat16, enabled=kind == torch.bfloat16):
        rewards = model(**model_inputs).logits[:, 0]
    return ascents(compare(rewards, ours["labels"], ours["list_ids"]), ours["margins"])


def adam_weigh(adapter: Path) -> Callable[[str, Tensor], Tensor]:
    """LESS's form of Adam's step (Xia et al. 2024, as in their code), from the moments at the end of the warm-up:
    (0.9 m + 0.1 g) / sqrt(0.999 v + 0.001 g^2 + 1e-8). The rows given are -g."""
    moments = load_file(adapter.parent / MOMENTS)
    first, second = BETAS

    def weigh(name: str, rows: Tensor) -> Tensor:
        m, v = (moments[f"{name}.{key}"].flatten().to(rows) for key in ("exp_avg", "exp_avg_sq"))
        return ((1 - first) * rows - first * m) / (second * v + (1 - second) * rows.square() + EPSILON).sqrt()

    return weigh
