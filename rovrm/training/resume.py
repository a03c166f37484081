"""Where a run stands: which phases are done, what a phase starts from, whether a checkpoint may be gone on from."""

import hashlib
import json
import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rovrm.common.errors import UserError
from rovrm.data.example import Example

# What records say of contents, beside names and settings: those of older versions lack it.
MARKS = {"images": "its images", "weights": "the weights of its base", "max_pixels": "its limit of pixels"}


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


def read_settings(folder: Path) -> dict[str, Any]:
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
    before = read_settings(folder).get("plan", {})
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
