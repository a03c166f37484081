"""How many parameters a run trains and how many bytes it leaves on the disk, before it begins."""

import math
from typing import TYPE_CHECKING, Any

from rovrm.common.disk import missing

if TYPE_CHECKING:
    from rovrm.settings.keys import TrainConfig
    from rovrm.training.phase_data import PhaseData


# ---- what a training leaves ------------------------------------------------------------------------------------------


def parameter_counts(config: "TrainConfig", model_config: Any) -> tuple[int, int]:
    """(all parameters, those that train at most) of the model with its head and adapter; nothing is loaded."""
    import torch

    from rovrm.model.adapters import projector_names
    from rovrm.model.loading import reward_class

    with torch.device("meta"):
        model: Any = reward_class(config.model, model_config)(model_config)
    total = sum(p.numel() for p in model.parameters())
    decoder = model.get_decoder()
    projector = sum(p.numel() for name in projector_names(model) for p in model.get_submodule(name).parameters())
    if config.tuning == "full":
        return total, sum(p.numel() for p in decoder.parameters()) + projector
    linears = [m for m in decoder.modules() if isinstance(m, torch.nn.Linear)]
    return total, sum(config.lora_r * (m.in_features + m.out_features) for m in linears) + projector


def run_bytes(
    config: "TrainConfig", model_config: Any, data: "dict[int, PhaseData]", phases: dict[int, tuple[Any, int]]
) -> float:
    """What phases still add to the run's folder at their fullest, in bytes. phases: (trainer's arguments, optimizer
    steps) of each; data: theirs, and of what is chosen against (as `rovrm.select.read_phases` gives)."""
    from rovrm.settings.keys import by_gradients, section_of
    from rovrm.settings.phases import phase_folder
    from rovrm.training.plan import selection_folder

    total, trained = parameter_counts(config, model_config)
    full, half = config.tuning == "full", config.save_dtype == "bfloat16"
    kept = fullest = 0.0
    for phase in sorted(data):
        if by_gradients(section_of(config, phase)):
            kept += missing(_selection_bytes(config, trained, data, phase), selection_folder(config.out, phase))
    for phase, (arguments, steps) in phases.items():
        weights = 4 * (total if full else trained)
        each = weights + (0 if arguments.save_only_model else 8 * trained)
        saves = _saves(arguments, steps)
        left = min(saves, arguments.save_total_limit or saves) * each
        result = weights
        if phase == max(phases):
            result += 0 if full and not half else total * (2 if half else 4)
        peak = max(min(saves, (arguments.save_total_limit or saves) + 1) * each, left + result)
        there = phase_folder(config.out, phase)
        fullest = max(fullest, kept + missing(peak, there))
        kept += missing(left + result, there)
    return max(fullest, kept)


def _saves(arguments: Any, steps: int) -> int:
    """How often a phase is saved, the end included; what is saved by the clock replaces what is saved by steps."""
    if arguments.save_strategy == "no":
        return 0
    if arguments.save_strategy != "steps":
        return max(1, math.ceil(arguments.num_train_epochs))
    every = arguments.save_steps if arguments.save_steps >= 1 else math.ceil(arguments.save_steps * steps)
    return max(1, math.ceil(steps / max(every, 1)))


def _selection_bytes(config: "TrainConfig", trained: int, data: "dict[int, PhaseData]", phase: int) -> float:
    """Warm-up: its checkpoints, the adapter and Adam's moments; and two bytes for each number of a feature."""
    from rovrm.training.plan import target_phase
    from rovrm.training.setup import trainer_arguments

    wanted, arguments = config.selection, trainer_arguments(config, phase)
    pool, target = len(data[phase].train), len(data[target_phase(config, phase)].train)
    warm = min(wanted.warmup_pool, pool) + min(wanted.warmup_target, target)
    saves = _saves(arguments, math.ceil(wanted.epochs * warm / config.batch_size))
    saves = min(saves, (arguments.save_total_limit or saves) + 1)
    return (12 * saves + 4 + 8) * trained + (pool + target) * (2 * wanted.width + 4)
