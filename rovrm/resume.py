"""Where a run stands: which phases are done, what a phase starts from, whether a checkpoint may be gone on from."""

import fcntl
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rovrm.checkpoints import ADAPTER, base_of, weights_mark
from rovrm.config import PHASES, TrainConfig, by_gradients, phase_numbers
from rovrm.errors import UserError
from rovrm.examples import Example
from rovrm.phases import phase_folder, section_of
from rovrm.select import selection_settings

# What does not change a phase's result; of the selection, only what a phase asks for does.
INDIFFERENT = ("phase", "out", "workers", "dry_run", "save_dtype", "init_from", "selection", "long_rows")
INDIFFERENT += ("first_checkpoint_minutes", "checkpoint_minutes")

# What records say of contents, beside names and settings: those of older versions lack it.
MARKS = {"images": "its images", "weights": "the weights of its base", "max_pixels": "its limit of pixels"}


def lock_folder(out: str) -> Any:
    """Takes the run folder for this process. Raises UserError where another run is writing into it."""
    if not out.isprintable():  # tokenizers and safetensors take no other names, which would show after the training
        raise UserError(f"out={out!r} holds a byte or character that cannot be printed; give another name")
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
        file = open(Path(out) / ".lock", "w")
    except OSError as error:
        raise UserError(f"out={out!r} cannot be written to ({error.strerror}); give another folder") from error
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process alone: a killed run's workers hold nothing
    except OSError as error:
        raise UserError(f"another run is writing into out={out!r}; wait for it, or give another out=") from error
    return file


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


def changed_keys(before: dict[str, Any], now: dict[str, Any], where: Path) -> list[str]:
    """Keys in which a record differs. A mark that an older record lacks counts as unchanged, and that is said."""
    from accelerate import PartialState

    lacking = [key for key in MARKS if key in now and key not in before]
    keys = (before.keys() | now.keys()) - set(lacking)
    changed = sorted(key for key in keys if before.get(key) != now.get(key))
    if lacking and not changed and PartialState().is_main_process:
        what = " and ".join(MARKS[key] for key in lacking)
        print(f"{where} was made by a version that did not note {what}: taken as unchanged")
    return changed


def is_finished(config: TrainConfig, phase: int, say: bool) -> bool:
    """Whether a phase is done with these very settings. Raises UserError where it was begun with others."""
    folder = phase_folder(config.out, phase)
    if not (folder / "settings.json").is_file():
        return False
    before, now = _read_settings(folder), settings_of(config, phase)
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


def _read_settings(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "settings.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'settings.json'} is damaged ({error}); remove that folder") from error


def fingerprint(examples: Iterable[Example]) -> str:
    """A hash of examples and their order: a checkpoint's step means something in the same plan only."""
    digest = hashlib.sha1()
    for example in examples:
        content = (example.id, example.prompt, example.responses, example.ranks, example.margin, example.lengths)
        digest.update(repr(content).encode("utf-8", "backslashreplace"))
    return digest.hexdigest()


def images_mark(examples: Iterable[Example]) -> str:
    """A hash of the images' contents, in the order of the examples; of pictures that captions stand for, nothing."""
    contents = [example.hashes if example.images else [] for example in examples]
    return hashlib.sha1(json.dumps(contents).encode()).hexdigest()


def check_same_plan(folder: Path, now: dict[str, Any]) -> None:
    """Raises UserError where a checkpoint was made from other data or by another number of processes."""
    before = _read_settings(folder).get("plan", {})
    changed = changed_keys(before, now, folder)
    for key, what in (("data", "data"), ("images", "content of images"), ("processes", "number of processes")):
        if key in changed:
            raise UserError(
                f"{folder} holds checkpoints made with another {what} ({before.get(key)}, now {now[key]}), so its "
                f"steps are not those of this run; restore the {what}, give another out=, or remove that folder"
            )


def complete_checkpoint(folder: Path, main_process: bool) -> str | None:
    """The newest whole checkpoint (trainer_state.json is written last); newer ones were cut off and go."""
    from accelerate import PartialState

    def newest_first() -> list[Path]:
        return sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]), reverse=True)

    if main_process:
        for path in newest_first():
            if _is_whole(path):
                break
            print(f"{path} was cut off while it was saved: removed")
            shutil.rmtree(path)
    PartialState().wait_for_everyone()
    return next((str(path) for path in newest_first()), None)


def _is_whole(checkpoint: Path) -> bool:
    """Whether its files open; only their ends and headers are read."""
    from safetensors import SafetensorError, safe_open

    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
        for path in checkpoint.glob("*.safetensors"):
            with safe_open(path, "pt"):
                pass
    except (OSError, ValueError, SafetensorError):
        return False
    zipped = [path for name in ("optimizer*.pt", "rng_state*.pth") for path in checkpoint.glob(name)]
    return all(zipfile.is_zipfile(path) for path in zipped)


def epochs_done(checkpoint: str | None) -> float:
    """Epochs that a checkpoint has behind it."""
    return json.loads(Path(checkpoint, "trainer_state.json").read_text())["epoch"] if checkpoint else 0.0
