"""What decides a phase: what it starts from, its settings, the phase that its rows are chosen against.

A phase notes all of that in settings.json before it begins. The same command then finds out that the phase is finished,
goes on with it, or refuses to mix its results with those of other settings.
"""

import hashlib
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rovrm.common.notes import as_note, changed_keys, refuse_changes
from rovrm.model.adapters import ADAPTER, base_of, has_adapter
from rovrm.model.loading import weights_mark
from rovrm.settings.keys import TrainConfig
from rovrm.settings.phases import CAPTION, PHASES, TEXT, VISUAL, Phase
from rovrm.training.resume import accept_older_note, read_note

# Settings that do not change a phase's result. Those of the selection count only where a phase chooses rows.
INDIFFERENT = (
    "phase",
    "out",
    "workers",
    "dry_run",
    "save_dtype",
    "init_from",
    "selection",
    "long_rows",
    "first_checkpoint_minutes",
    "checkpoint_minutes",
)


# ---- what a phase starts from ----------------------------------------------------------------------------------------


def start_of(config: TrainConfig, phase: Phase) -> str:
    """What a phase starts from: an adapter folder, a checkpoint or the base model.

    That is the phase asked for before it. The first one asked for starts from `init_from`, else from the base.
    """
    earlier = [other for other in config.phases if other < phase]
    if earlier:
        return _adapter_in(str(earlier[-1].folder(config.out)))
    return _adapter_in(config.init_from) if config.init_from else config.model


def say_start(config: TrainConfig) -> None:
    """Says that the first phase starts from the base, where `out` holds earlier phases that it could have continued."""
    first = config.phases[0]
    earlier = [phase.folder(config.out) for phase in reversed(PHASES) if phase < first]
    finished = [folder for folder in earlier if (folder / "phase.json").is_file()]
    if finished and not config.init_from:
        print(
            f"{first} starts from the base {config.model}, not from {finished[0]}, which is finished but not asked "
            f"for; init_from={finished[0]} would continue it"
        )


def _adapter_in(folder: str) -> str:
    adapter = os.path.join(folder, ADAPTER)
    return adapter if has_adapter(adapter) else folder


# ---- what is chosen against what -------------------------------------------------------------------------------------


def target_phase(config: TrainConfig, phase: Phase) -> Phase:
    """The phase that a phase's rows are chosen against. The paper goes backwards: text rows are chosen against the
    chosen caption rows, caption rows against the visual ones."""
    return CAPTION if phase == TEXT and config.caption.data else VISUAL


def needed_phases(config: TrainConfig, phases: list[Phase]) -> list[Phase]:
    """These phases and those that their rows are chosen against, however indirectly."""
    needed = set(phases)
    for phase in PHASES:  # a target always comes later, so one pass in this order meets it
        if phase in needed and config.section(phase).by_selection:
            needed.add(target_phase(config, phase))
    return sorted(needed)


def selection_folder(out: str, phase: Phase) -> Path:
    """The folder of a phase's selection, `OUT/selection/phase1-text`."""
    return Path(out) / "selection" / phase.folder_name


def selection_settings(config: TrainConfig, phase: Phase) -> dict[str, Any]:
    """What decides which rows a phase takes, beside its own data: the method, and the target's data and selection."""
    section, target = config.section(phase), target_phase(config, phase)
    target_section = asdict(config.section(target))
    for key in ("learning_rate", "epochs", "max_bad_fraction"):
        target_section.pop(key)
    chosen_by = asdict(config.selection.of(section.select))
    settings = {"method": section.select, "n": section.n, **chosen_by, "target": target_section}
    if config.section(target).by_selection:
        settings["target_selection"] = selection_settings(config, target)
    return settings


# ---- the settings of a phase -----------------------------------------------------------------------------------------


def settings_of(config: TrainConfig, phase: Phase) -> dict[str, Any]:
    """What decides a phase's result, as settings.json notes it.

    These are the settings, without those of other phases; what the phase starts from, with a hash of that phase's
    record; and a mark of the weights there.
    """
    settings = asdict(config)
    for key in INDIFFERENT:
        settings.pop(key)
    for other in PHASES:
        if other != phase:
            settings.pop(other.name)
    settings[phase.name].pop("max_bad_fraction")  # which rows are skipped does not depend on it
    if config.section(phase).by_selection:
        settings["selection"] = selection_settings(config, phase)
    start = start_of(config, phase)
    folder = os.path.dirname(start) if os.path.basename(start) == ADAPTER else start
    record = Path(folder) / "phase.json"
    if record.is_file():
        record_mark = hashlib.sha1(record.read_bytes()).hexdigest()[:12]
        settings["start"] = f"{os.path.relpath(folder, config.out)} {record_mark}"
    else:
        settings["start"] = folder
    settings["weights"] = _start_mark(config.model, start)
    return as_note(settings)


def _start_mark(model: str, start: str) -> str:
    """The mark of the weights that a phase starts from: for an adapter, those of its base and its own. Empty where they
    are not there yet, which is so before the phase that makes them has run."""
    if not os.path.isdir(start) and (not start or start != model):
        return ""
    places = [base_of(Path(start)), start] if has_adapter(start) else [start]
    return " ".join(weights_mark(place) for place in places)


def is_finished(config: TrainConfig, phase: Phase, say: bool) -> bool:
    """Whether a phase is done with these very settings. Raises UserError where it was begun with others."""
    folder = phase.folder(config.out)
    if not (folder / "settings.json").is_file():
        return False
    noted, now = read_note(folder), settings_of(config, phase)
    noted.pop("plan", None)  # of its data, which are compared when a checkpoint is gone on from
    noted = accept_older_note(noted, now, folder, say)
    remedy = "; give another out=, or remove that folder to train the phase anew"
    if changed_keys(noted, now):
        remedy = _changed_start(config.out, phase, noted.get("start"), now["start"]) + remedy
    refuse_changes(folder, noted, now, remedy)
    finished = (folder / "phase.json").is_file()
    if finished and say:
        print(f"{phase} is finished in {folder} and is not run again, nor its data read")
    return finished


def _changed_start(out: str, phase: Phase, noted: Any, now: str) -> str:
    """What a phase started from and would now start from, and how to ask for the former again; empty for no change."""
    if noted == now:
        return ""
    for earlier in PHASES:
        if earlier >= phase or str(noted).split(" ")[0] != earlier.folder_name:
            continue
        if os.path.basename(now.split(" ")[0]) == earlier.folder_name:
            return f": {earlier} was trained anew since, or removed"
        return (
            f": it started from {earlier} and would now start from {now}; ask for the phases together (phase=1..3), or "
            f"for init_from={earlier.folder(out)}"
        )
    return f": it started from {noted} and would now start from {now}"
