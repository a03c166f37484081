"""Room on the disk: asked for before hours are spent, and told of in one line where it runs out all the same.

    with room_for(config.out, run_bytes(...), "the phases asked for"):
        ...                                                  # a full disk in here is a UserError

How much a training leaves is reckoned from the architecture: checkpoints of what trains with Adam's two moments, the
adapter, the merged model. Tokenizers, logs and scores are small beside these and not counted.
"""

import errno
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rovrm.errors import UserError, first_line

if TYPE_CHECKING:
    from rovrm.config import TrainConfig
    from rovrm.phases import PhaseData

PARTIAL = "saving.tmp"  # inside a folder that is being written: what is not whole yet
# How libraries say it that do not raise an OSError: safetensors, and torch.save, which tells no reason.
FULL_WORDS = ("No space left on device", "PytorchStreamWriter", "inline_container")


@contextmanager
def room_for(folder: str | os.PathLike, needed: float, what: str) -> Iterator[None]:
    """Raises UserError where `what` needs more bytes than the folder's disk has, before or while it is written."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder}: {what} need about {in_units(needed)}, and {in_units(free)} are free; make room, or give "
            "another out="
        )
    try:
        yield
    except Exception as error:
        if not is_full(error):
            raise
        free = shutil.disk_usage(folder).free
        raise UserError(
            f"{folder}: no room left ({first_line(error)}); {what} need about {in_units(needed)}, and "
            f"{in_units(free)} are free; make room, and the same command goes on where it was stopped"
        ) from error


def is_full(error: BaseException) -> bool:
    """Whether an error, or one behind it, says that a disk or a quota is full."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    if any(words in str(error) for words in FULL_WORDS):
        return True
    behind = error.__cause__ or error.__context__
    return behind is not None and is_full(behind)


def trouble_in_words(error: BaseException) -> str:
    """What an error of the operating system says, with the file's name, in one line."""
    if isinstance(error, OSError) and error.strerror:
        where = error.filename or ("no room left on a disk" if is_full(error) else "")
        return f"{where}: {error.strerror}" if where else error.strerror
    return first_line(error)


def in_units(size: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{math.ceil(size / 1e3)} kB"


# ---- what a training leaves ------------------------------------------------------------------------------------------


def parameter_counts(config: "TrainConfig", model_config: Any) -> tuple[int, int]:
    """(all parameters, those that train at most) of the model with its head and adapter; nothing is loaded."""
    import torch

    from rovrm.checkpoints import projector_names, reward_class

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
    from rovrm.config import by_gradients
    from rovrm.phases import phase_folder, section_of
    from rovrm.select import selection_folder

    total, trained = parameter_counts(config, model_config)
    full, half = config.tuning == "full", config.save_dtype == "bfloat16"
    kept = fullest = 0.0
    for phase in sorted(data):
        if by_gradients(section_of(config, phase)):
            kept += _missing(_selection_bytes(config, trained, data, phase), selection_folder(config.out, phase))
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
        fullest = max(fullest, kept + _missing(peak, there))
        kept += _missing(left + result, there)
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
    from rovrm.select import target_phase
    from rovrm.train import trainer_arguments

    wanted, arguments = config.selection, trainer_arguments(config, phase)
    pool, target = len(data[phase].train), len(data[target_phase(config, phase)].train)
    warm = min(wanted.warmup_pool, pool) + min(wanted.warmup_target, target)
    saves = _saves(arguments, math.ceil(wanted.epochs * warm / config.batch_size))
    saves = min(saves, (arguments.save_total_limit or saves) + 1)
    return (12 * saves + 4 + 8) * trained + (pool + target) * (2 * wanted.width + 4)


def _missing(needed: float, folder: Path) -> float:
    """What is still to be written of `needed` bytes, a part of which is there."""
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
    return max(0.0, needed - there)
