"""How many parameters a run trains and how many bytes it leaves on the disk, before anything is loaded.

The bytes are reckoned from the architecture: checkpoints hold what trains and Adam's two moments, an adapter what
trains, a merged model everything. Tokenizers, logs and scores are small beside these and not counted.
"""

import math
from typing import Any

import torch

from rovrm.common.disk import missing
from rovrm.model.adapters import projector_names
from rovrm.model.loading import reward_class
from rovrm.settings.keys import TrainConfig
from rovrm.settings.phases import Phase
from rovrm.training.phase_data import PhaseData
from rovrm.training.plan import selection_folder, target_phase
from rovrm.training.setup import trainer_arguments
from rovrm.training.trainer import RewardConfig

FLOAT32, BFLOAT16 = 4, 2  # bytes of a number
MOMENTS = 2  # of Adam, numbers for each that trains


def parameter_counts(config: TrainConfig, model_config: Any) -> tuple[int, int]:
    """(all parameters, those that train at most) of the model with its head and adapter; nothing is loaded."""
    with torch.device("meta"):
        model: Any = reward_class(config.model, model_config)(model_config)
    total = sum(p.numel() for p in model.parameters())
    decoder = model.get_decoder()
    projector = sum(p.numel() for name in projector_names(model) for p in model.get_submodule(name).parameters())
    if config.tuning == "full":
        return total, sum(p.numel() for p in decoder.parameters()) + projector
    linears = [module for module in decoder.modules() if isinstance(module, torch.nn.Linear)]
    return total, sum(config.lora_r * (layer.in_features + layer.out_features) for layer in linears) + projector


def run_bytes(
    config: TrainConfig,
    model_config: Any,
    data: dict[Phase, PhaseData],
    arguments: dict[Phase, RewardConfig] | None = None,
    steps: dict[Phase, int] | None = None,
) -> float:
    """What a run still adds to its folder at its fullest, in bytes.

    Args:
        config: the settings of the run.
        model_config: the model's.
        data: of the phases that select or train, and of those that rows are chosen against.
        arguments: the trainer's, for each phase that trains; none where rows are only selected.
        steps: optimizer steps of these phases.
    """
    total, trained = parameter_counts(config, model_config)
    kept = 0.0
    for phase in sorted(data):
        if config.section(phase).by_selection:
            size = _selection_bytes(config, trained, data, phase)
            kept += missing(size, selection_folder(config.out, phase))
    fullest = kept
    for phase, of_phase in (arguments or {}).items():
        folder = phase.folder(config.out)
        last = phase == max(arguments or {})
        peak, left = _phase_bytes(config, total, trained, of_phase, (steps or {})[phase], last)
        fullest = max(fullest, kept + missing(peak, folder))
        kept += missing(left, folder)
    return max(fullest, kept)


def _phase_bytes(
    config: TrainConfig, total: int, trained: int, arguments: RewardConfig, steps: int, last: bool
) -> tuple[float, float]:
    """(at its fullest, in the end) what a phase has in its folder."""
    full, half = config.tuning == "full", config.save_dtype == "bfloat16"
    weights = FLOAT32 * (total if full else trained)
    checkpoint = weights + (0 if arguments.save_only_model else MOMENTS * FLOAT32 * trained)
    saves = _saves(arguments, steps)
    limit = arguments.save_total_limit or saves
    result = weights
    if last and half:
        result += BFLOAT16 * total
    elif last and not full:
        result += FLOAT32 * total
    left = min(saves, limit) * checkpoint + result
    # A new checkpoint is written before the oldest one is removed.
    peak = max(min(saves, limit + 1) * checkpoint, left)
    return peak, left


def _saves(arguments: RewardConfig, steps: int) -> int:
    """How often a phase is saved, the end included; what is saved by the clock replaces what is saved by steps."""
    if arguments.save_strategy == "no":
        return 0
    if arguments.save_strategy != "steps":
        return max(1, math.ceil(arguments.num_train_epochs))
    every = arguments.save_steps if arguments.save_steps >= 1 else math.ceil(arguments.save_steps * steps)
    return max(1, math.ceil(steps / max(every, 1)))


def _selection_bytes(config: TrainConfig, trained: int, data: dict[Phase, PhaseData], phase: Phase) -> float:
    """The warm-up's checkpoints, adapter and moments; and of each row's feature two bytes a number and its norm."""
    section, arguments = config.section(phase), trainer_arguments(config, phase)
    selection = config.selection.of(section.select)
    pool, target = len(data[phase].train), len(data[target_phase(config, phase)].train)
    both = min(selection.warmup_pool, pool) + min(selection.warmup_target, target)
    rows = both if selection.warmup == "pool+target" else min(selection.warmup_target, target)
    seen = both if selection.epochs is None else selection.epochs * rows
    saves = _saves(arguments, math.ceil(seen / config.batch_size))
    checkpoints = min(saves, (arguments.save_total_limit or saves) + 1)
    warm_up = (checkpoints * (1 + MOMENTS) + 1 + MOMENTS) * FLOAT32 * trained
    width = 1 if section.select == "margin" else selection.width
    return warm_up + (pool + target) * (2 * width + FLOAT32)
