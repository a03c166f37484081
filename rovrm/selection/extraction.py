"""Gradient features of preference examples: a short training that gives gradients a meaning, then their extraction.

    adapter = warm_up(config, folder, examples, processor, arguments)      # a LoRA adapter on the base model
    model = gradient_model(config, adapter)
    extract(model, collator, examples, store, GradientFeatures(model, chosen_layers("", model), 4096), config)

A shared row holds a whole example, so the gradient of a row's objective (`losses.ascents`) is the example's own.
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
from rovrm.model.batches import batch_loader, plan_batches, split_batch
from rovrm.model.collator import RewardCollator
from rovrm.selection.warm_up import MOMENTS, base_model
from rovrm.settings.keys import TrainConfig
from rovrm.training.losses import ascents, compare
from rovrm.training.resume import fingerprint

BETAS, EPSILON = (0.9, 0.999), 1e-8


# ---- features --------------------------------------------------------------------------------------------------------


def gradient_model(config: TrainConfig, adapter: Path) -> Any:
    """The warmed-up model in eval mode, with nothing to train: gradients flow to the outputs of its layers, because its
    input embeddings ask for them, and none is computed for a weight."""
    model = load_adapter(base_model(config), str(adapter), trainable=True)
    if not any(layer.weight.any() for name, layer in lora_layers(model).items() if ".lora_B." in name):
        raise UserError(f"{adapter}: every lora_B is zero, so no gradient reaches lora_A; warm it up for longer")
    model.requires_grad_(False)
    model.enable_input_require_grads()
    model.eval().to(PartialState().device)
    # transformers still takes the older name, gradient_checkpointing.
    trainer_keys = {key.replace("gradient_", "activation_"): value for key, value in config.trainer.items()}
    if trainer_keys.get("activation_checkpointing"):
        model.activation_checkpointing_enable(trainer_keys.get("activation_checkpointing_kwargs"))
        for layer in model.modules():  # transformers checkpoints in training only; dropout, further in, stays off
            if isinstance(layer, GradientCheckpointingLayer):
                layer.training = True
    return model


def made_from(config: TrainConfig, adapter: Path, examples: Sequence[Example], adam: bool) -> dict[str, Any]:
    """What decides the features of some examples, for the store."""
    weights = (adapter / "adapter_model.safetensors").read_bytes()
    return {
        "model": config.model,
        "adapter": hashlib.sha256(weights).hexdigest()[:16],
        "examples": fingerprint(examples),
        "gradients": "adam" if adam else "plain",
        "layers": config.selection.layers,
        "width": config.selection.width,
        "seed": config.seed,
        "dtype": config.dtype,
    }


def extract(
    model: Any,
    collator: RewardCollator,
    examples: Sequence[Example],
    store: Store,
    features: GradientFeatures,
    config: TrainConfig,
    name: str = "rows",
) -> None:
    """Writes the store's missing shards, each process its own part of them. The norms kept are those of the loss."""
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
        desc=f"gradients of the {name}",
        disable=not state.is_main_process or bool(os.environ.get("TQDM_DISABLE")),
    )
    with features, bar:
        for shard, plan in zip(mine, plans, strict=True):
            rows = store.rows(shard)
            units, slopes = torch.zeros(len(rows), features.width), torch.zeros(len(rows))
            for _ in plan:
                batch = {key: value.to(state.device) for key, value in next(batches).items()}
                places = batch["example_ids"].cpu() - rows.start
                batch_units, batch_slopes = batch_features(model, batch, features)
                units[places], slopes[places] = batch_units.cpu(), batch_slopes.cpu()
                bar.update(len(places))
            store.write(shard, units, slopes)
    state.wait_for_everyone()


def batch_features(model: Any, batch: dict[str, Tensor], features: GradientFeatures) -> tuple[Tensor, Tensor]:
    """(examples, width) gradients, and by what the loss's are smaller."""
    model_inputs, ours = split_batch(batch)
    kind = next(p.dtype for p in model.get_base_model().get_decoder().parameters() if p.is_floating_point())
    with torch.autocast(ours["labels"].device.type, torch.bfloat16, enabled=kind == torch.bfloat16):
        rewards = model(**model_inputs).logits
    objective, slope = ascents(compare(rewards, ours["labels"], ours["list_ids"]), ours["margins"])
    if features.weigh:  # Adam's step depends on the size of the loss's gradient
        objective, slope = objective * slope, torch.ones_like(slope)
    return features(objective, ours["list_ids"]), slope


def adam_weigh(adapter: Path) -> Callable[[str, Tensor], Tensor]:
    """LESS's form of Adam's step (Xia et al. 2024, as in their code), from the moments at the end of the warm-up:
    (0.9 m + 0.1 g) / sqrt(0.999 v + 0.001 g^2 + 1e-8). The rows given are -g."""
    moments = load_file(adapter.parent / MOMENTS)
    first, second = BETAS

    def weigh(name: str, rows: Tensor) -> Tensor:
        m, v = (moments[f"{name}.{key}"].flatten().to(rows) for key in ("exp_avg", "exp_avg_sq"))
        return ((1 - first) * rows - first * m) / (second * v + (1 - second) * rows.square() + EPSILON).sqrt()

    return weigh
