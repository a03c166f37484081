"""The warm-up: a short training, whose adapter the gradients are taken of.

Gradients of a fresh adapter mean nothing: its B is zero, so that none reaches A. By default it sees the target alone
(`selection.warmup`): a pool's labels may contradict one another, and a model that has learned from both sides says in
its gradients what a row is about, and not which side it is on.
"""

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
from rovrm.common.notes import as_note, refuse_changes
from rovrm.data.example import Example
from rovrm.model.adapters import ADAPTER, add_adapter, set_trainable
from rovrm.model.loading import load_reward_model, numeric_type, weights_mark
from rovrm.selection.layers import chosen_layers
from rovrm.settings.keys import TrainConfig
from rovrm.training.memory import adapt_to_memory
from rovrm.training.resume import accept_older_note, complete_checkpoint, fingerprint, images_mark
from rovrm.training.trainer import RewardConfig, RewardTrainer

MOMENTS = "moments.safetensors"  # Adam's, of the LoRA layers at the end of the warm-up
MODEL_KEYS = ("model", "tuning", "dtype", "seed", "lora_r", "lora_alpha")  # they decide gradients
DROPOUT = 0.05  # inside the adapter, whatever the phases' own: rovrm.train and rovrm.dpo find what rovrm.select chose


def warm_up(
    config: TrainConfig, folder: Path, examples: list[Example], processor: Any, arguments: RewardConfig
) -> Path:
    """Trains a fresh adapter on the base model and returns its folder; goes on where it was stopped, and is not run
    again when it is there. Raises UserError where the folder's was made with other settings or rows."""
    state = PartialState()
    settings = _settings(config, examples, arguments)
    if (folder / "settings.json").is_file():
        _check_settings(folder, settings, state.is_main_process)
    if (folder / ADAPTER).is_dir():
        return folder / ADAPTER
    set_seed(config.seed)
    model = add_adapter(base_model(config), config.model, config.lora_r, config.lora_alpha, DROPOUT)
    set_trainable(model, visual=False, full=False)
    chosen_layers(config.selection.layers or "", model)  # a pattern that fits none ends here, not after the training
    if state.is_main_process:
        write_json(folder / "settings.json", settings)
    checkpoint = complete_checkpoint(folder / "checkpoints", state.is_main_process)
    trainer = RewardTrainer(model, arguments, examples, None, processor)
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise UserError(
            "selection takes whole gradients of whole layers, which FSDP and DeepSpeed split; run python -m "
            "rovrm.select without them first, training then finds what it chose"
        )
    adapt_to_memory(trainer, folder, bool(checkpoint), config.trainer)
    trainer.train(resume_from_checkpoint=checkpoint)
    if state.is_main_process:
        unwrapped: Any = trainer.accelerator.unwrap_model(trainer.model)
        save_file(_moments(unwrapped, trainer.optimizer), folder / MOMENTS)
        with saving(folder) as partial:  # last: the sign that the warm-up is done
            unwrapped.save_pretrained(partial / ADAPTER)
    state.wait_for_everyone()
    return folder / ADAPTER


def _moments(model: Any, optimizer: Any) -> dict[str, torch.Tensor]:
    """Adam's two moments of each LoRA layer, as `LAYER.exp_avg` and `LAYER.exp_avg_sq`."""
    moments = {}
    for name, layer in lora_layers(model).items():
        for key in ("exp_avg", "exp_avg_sq"):
            moments[f"{name}.{key}"] = optimizer.state[layer.weight][key].cpu()
    return moments


def base_model(config: TrainConfig) -> Any:
    """The base with a fresh head, in the arithmetic of the run."""
    dtype = numeric_type(config.dtype, config.on_cpu)
    return load_reward_model(config.model, dtype, config.tuning == "qlora", config.trust_remote_code)


# ---- what a warm-up was made from ------------------------------------------------------------------------------------


def content_marks(model: str, examples: Sequence[Example]) -> dict[str, str]:
    """The contents behind the names: of the examples' images, and of the base's weights."""
    return {"images": images_mark(examples), "weights": weights_mark(model)}


def _settings(config: TrainConfig, examples: Sequence[Example], arguments: RewardConfig) -> dict[str, Any]:
    settings = {key: getattr(config, key) for key in (*MODEL_KEYS, "batch_size", "batch_tokens", "trainer")}
    settings |= {"learning_rate": arguments.learning_rate, "epochs": arguments.num_train_epochs}
    settings |= {"rows": fingerprint(examples)} | content_marks(config.model, examples)
    return as_note(settings)


def _check_settings(folder: Path, now: dict[str, Any], say: bool) -> None:
    noted = accept_older_note(read_json(folder / "settings.json"), now, folder, say)
    remedy = f"; give another out=, or remove {folder.parent} to select anew"
    refuse_changes(folder, noted, now, remedy, begun="made with other settings or rows")
