"""What decides a phase: what it starts from, its settings, the phase its rows are chosen against; is it finished?"""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rovrm.common.errors import UserError
from rovrm.model.adapters import ADAPTER, base_of
from rovrm.model.loading import weights_mark
from rovrm.settings.keys import TrainConfig, by_gradients, section_of
from rovrm.settings.phases import PHASES, phase_folder, phase_numbers
from rovrm.training.resume import changed_keys, read_settings

# What does not change a phase's result; of the selection, only what a phase asks for does.
INDIFFERENT = ("phase", "out", "workers", "dry_run", "save_dtype", "init_from", "selection", "long_rows")
INDIFFERENT += ("first_checkpoint_minutes", "checkpoint_minutes")


def start_of(config: TrainConfig, phase: int) -> str:
    """What a phase starts from, an adapter folder, a checkpoint or the base model: the phase asked for before it; for
    the first asked for `init_from`, else the base model."""
    before = [p for p in phase_numbers(config.phase) if p < phase]
    if before:
        return _adapter_in(str(phase_folder(config.out, before[-1])))
    return _adapter_in(config.init_from) if config.init_from else config.model


def say_start(config: TrainConfig) -> None:
    """Says that the first phase starts from the base, where `out` holds earlier phases that it could have continued."""
    first = phase_numbers(config.phase)[0]
    earlier = [phase_folder(config.out, phase) for phase in range(first - 1, 0, -1)]
    finished = [folder for folder in earlier if (folder / "phase.json").is_file()]
    if finished and not config.init_from:
        print(
            f"phase {first} ({PHASES[first - 1]}) starts from the base {config.model}, not from {finished[0]}, which "
            f"is finished but not asked for; init_from={finished[0]} would continue it"
        )


def _adapter_in(folder: str) -> str:
    adapter = os.path.join(folder, ADAPTER)
    return adapter if os.path.isfile(os.path.join(adapter, "adapter_config.json")) else folder


def settings_of(config: TrainConfig, phase: int) -> dict[str, Any]:
    """What decides a phase's result: its own settings, and what it starts from, by the hash of that phase's record and
    a mark of its weights."""
    everything = asdict(config)
    for key in (*INDIFFERENT, *(name for i, name in enumerate(PHASES, 1) if i != phase)):
        everything.pop(key)
    everything[PHASES[phase - 1]].pop("max_bad_fraction")  # which rows are skipped does not depend on it
    if by_gradients(section_of(config, phase)):
        everything["selection"] = selection_settings(config, phase)
    start = start_of(config, phase)
    folder = os.path.dirname(start) if os.path.basename(start) == ADAPTER else start
    record = Path(folder) / "phase.json"
    mark = f" {hashlib.sha1(record.read_bytes()).hexdigest()[:12]}" if record.is_file() else ""
    everything["start"] = os.path.relpath(folder, config.out) + mark if mark else folder
    everything["weights"] = _weights_of(config, start)
    return json.loads(json.dumps(everything))


def _weights_of(config: TrainConfig, start: str) -> str:
    """The mark of what a phase starts from, an adapter's behind its base's; "" where that is not there yet."""
    if not os.path.isdir(start) and (not start or start != config.model):
        return ""
    adapter = os.path.isfile(os.path.join(start, "adapter_config.json"))
    names = [base_of(Path(start)), start] if adapter else [start]
    return " ".join(weights_mark(name) for name in names)


def is_finished(config: TrainConfig, phase: int, say: bool) -> bool:
    """Whether a phase is done with these very settings. Raises UserError where it was begun with others."""
    folder = phase_folder(config.out, phase)
    if not (folder / "settings.json").is_file():
        return False
    before, now = read_settings(folder), settings_of(config, phase)
    before.pop("plan", None)
    changed = changed_keys(before, now, folder)
    if changed:
        key, was, is_now = _difference(changed[0], before.get(changed[0]), now.get(changed[0]))
        start = _other_start(config, phase, before.get("start"), now["start"])
        raise UserError(
            f"{folder} was begun with other settings ({', '.join(changed)}; {key}: {was!r}, now {is_now!r}){start}; "
            "give another out=, or remove that folder to train the phase anew"
        )
    done = (folder / "phase.json").is_file()
    if done and say:
        print(f"phase {phase} ({PHASES[phase - 1]}) is finished in {folder} and is not run again, nor its data read")
    return done


def _other_start(config: TrainConfig, phase: int, before: Any, now: str) -> str:
    """What a phase started from and would now, and how to ask for the former again."""
    if before == now:
        return ""
    number = next((p for p in range(1, phase) if str(before).split(" ")[0] == phase_folder("", p).name), None)
    if number is None:
        return f": it started from {before} and would now start from {now}"
    if os.path.basename(now.split(" ")[0]) == phase_folder("", number).name:
        return f": phase {number} ({PHASES[number - 1]}) was trained anew since, or removed"
    return (
        f": it started from phase {number} ({PHASES[number - 1]}) and would now start from {now}; ask for the phases "
        f"together (phase=1..3), or for init_from={phase_folder(config.out, number)}"
    )


def _difference(key: str, before: Any, now: Any) -> tuple[str, Any, Any]:
    """The first place where two values differ: its key, and both values there."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return key, before, now
    inner = next(name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name))
    return _difference(f"{key}.{inner}", before.get(inner), now.get(inner))


# ---- what is chosen against what -------------------------------------------------------------------------------------


def target_phase(config: TrainConfig, phase: int) -> int:
    """The phase whose rows a phase's are chosen against."""
    return 2 if phase == 1 and config.caption.data else 3


def needed_phases(config: TrainConfig, phases: list[int]) -> list[int]:
    """These phases and those whose rows theirs are chosen against, however indirectly."""
    from rovrm.settings.keys import section_of

    needed = set(phases)
    for phase in (1, 2):  # a phase's rows are chosen against a later one's
        if phase in needed and by_gradients(section_of(config, phase)):
            needed.add(target_phase(config, phase))
    return sorted(needed)


def selection_folder(out: str, phase: int) -> Path:
    return Path(out) / "selection" / f"phase{phase}-{PHASES[phase - 1]}"


def selection_settings(config: TrainConfig, phase: int) -> dict[str, Any]:
    """What decides which rows a phase takes, beside its own data: the method, and the target's data and selection."""
    section = getattr(config, PHASES[phase - 1])
    target = target_phase(config, phase)
    of_target = asdict(getattr(config, PHASES[target - 1]))
    for key in ("learning_rate", "epochs", "max_bad_fraction"):
        of_target.pop(key)
    found = {"method": section.select, "n": section.n, **asdict(config.selection), "target": of_target}
    if of_target["select"] not in ("random", "first"):
        found["target_selection"] = selection_settings(config, target)
    return found
