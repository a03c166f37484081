"""The warm-up: a short training on a sample of pool and target, whose adapter the gradients are taken of."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import save_file
from transformers import set_seed

from data_selection.gradients import lora_layers
from rovrm.common.errors import UserError
from rovrm.common.files import read_json, saving, write_json
from rovrm.data.example import Example
from rovrm.model.adapters import ADAPTER, add_adapter, set_trainable
from rovrm.model.loading import load_reward_model, numeric_type, weights_mark
from rovrm.settings.keys import TrainConfig
from rovrm.training.resume import changed_keys, complete_checkpoint, fingerprint, images_mark
from rovrm.training.trainer import RewardTrainer

MOMENTS = "moments.safetensors"  # Adam's, of the LoRA layers at the end of the warm-up
OF_MODEL = ("model", "tuning", "dtype", "seed", "lora_r", "lora_alpha", "lora_dropout")  # keys that decide gradients


# ---- warm-up ---------------------------------------------------------------------------------------------------------


def warm_up(config: TrainConfig, folder: Path, examples: list[Example], processor: Any, arguments: Any) -> Path:
    """Trains a fresh adapter on the base model and returns its folder; resumes, and is not run again when it is there.
    Raises UserError where the folder's was made with other settings or rows."""
    state = PartialState()
    if (folder / "settings.json").is_file():
        check_settings(folder, _warm_up_settings(config, examples))
    if (folder / ADAPTER).is_dir():
        return folder / ADAPTER
    set_seed(config.seed)
    model = add_adapter(base_model(config), config.model, config.lora_r, config.lora_alpha, config.lora_dropout)
    set_trainable(model, visual=False, full=False)
    chosen_layers(config, model)  # a pattern that fits none ends here, not after the training
    if state.is_main_process:
        write_json(folder / "settings.json", _warm_up_settings(config, examples))
    checkpoint = complete_checkpoint(folder / "checkpoints", state.is_main_process)
    trainer = RewardTrainer(model, arguments, examples, None, processor)
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise UserError(
            "selection takes whole gradients of whole layers, which FSDP and DeepSpeed split; run python -m "
            "rovrm.select without them first, training then finds what it chose"
        )
    trainer.train(resume_from_checkpoint=checkpoint)
    if state.is_main_process:
        unwrapped: Any = trainer.accelerator.unwrap_model(trainer.model)
        optimizer: Any = trainer.optimizer
        moments = {
            f"{name}.{key}": optimizer.state[layer.weight][key].cpu()
            for name, layer in lora_layers(unwrapped).items()
            for key in ("exp_avg", "exp_avg_sq")
        }
        save_file(moments, folder / MOMENTS)
        with saving(folder) as partial:
            unwrapped.save_pretrained(partial / ADAPTER)
    state.wait_for_everyone()
    return folder / ADAPTER


def _warm_up_settings(config: TrainConfig, examples: Sequence[Example]) -> dict[str, Any]:
    settings = {key: getattr(config, key) for key in (*OF_MODEL, "batch_size", "batch_tokens")}
    rates = {"learning_rate": config.selection.learning_rate, "epochs": config.selection.epochs}
    return settings | rates | {"trainer": config.trainer, "rows": fingerprint(examples)} | marks_of(config, examples)


def marks_of(config: TrainConfig, examples: Sequence[Example]) -> dict[str, str]:
    """The contents behind the names: of the examples' images, and of the base's weights."""
    return {"images": images_mark(examples), "weights": weights_mark(config.model)}


def check_settings(folder: Path, now: dict[str, Any]) -> None:
    """Raises UserError where a folder of the selection was begun with other settings or data."""
    before, now = read_json(folder / "settings.json"), json.loads(json.dumps(now))
    changed = changed_keys(before, now, folder)
    if changed:
        key = changed[0]
        raise UserError(
            f"{folder} was made with other settings or rows ({', '.join(changed)}; {key}: {before.get(key)!r}, now "
            f"{now.get(key)!r}); give another out=, or remove {folder.parent} to select anew"
        )


def base_model(config: TrainConfig) -> Any:
    dtype = numeric_type(config.dtype, bool(config.trainer.get("use_cpu", False)))
    return load_reward_model(config.model, dtype, config.tuning == "qlora", config.trust_remote_code)


def chosen_layers(config: TrainConfig, model: Any) -> dict[str, torch.nn.Linear]:
    """The LoRA layers that `selection.layers` names. Raises UserError where it is no pattern or fits none."""
    pattern = config.selection.layers
    layers = lora_layers(model, lambda name: re.search(pattern, name) is not None)
    if not layers:
        names = list(lora_layers(model))
        raise UserError(f"selection.layers={pattern!r} fits none of {len(names)} LoRA layers, such as {names[0]}")
    return layers
