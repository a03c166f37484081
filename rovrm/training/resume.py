"""Going on where a phase was stopped: the newest whole checkpoint, and whether its steps are those of this run."""

import hashlib
import json
import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rovrm.common.errors import UserError
from rovrm.common.notes import changed_keys
from rovrm.data.example import Example

# What notes say of contents, beside names and settings. The first versions did not write them.
MARKS = {
    "images": "its images",
    "weights": "the weights of its base",
    "max_pixels": "its limit of pixels",
    "template": "its chat template",
}


def read_note(folder: Path) -> dict[str, Any]:
    """What a phase noted in settings.json before it began."""
    try:
        return json.loads((folder / "settings.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'settings.json'} is damaged ({error}); remove that folder") from error


def accept_older_note(noted: dict[str, Any], now: dict[str, Any], where: Path, say: bool) -> dict[str, Any]:
    """The note, with marks that an older version did not write taken as unchanged, which is said."""
    lacking = [key for key in MARKS if key in now and key not in noted]
    completed = noted | {key: now[key] for key in lacking}
    if lacking and say and not changed_keys(completed, now):
        words = " and ".join(MARKS[key] for key in lacking)
        print(f"{where} was made by a version that did not note {words}: taken as unchanged")
    return completed


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


def template_mark(processor: Any) -> str:
    """A hash of a processor's chat template, which a file of the same name may change."""
    return hashlib.sha1(str(processor.chat_template).encode()).hexdigest()[:12]


def check_same_data(folder: Path, now: dict[str, Any], say: bool) -> None:
    """Raises UserError where a phase's checkpoints were made from other data or by another number of processes.

    Args:
        folder: the phase's folder.
        now: `data` and `images` (the two marks above) and `processes`, as settings.json notes them under `plan`.
        say: whether this process prints.
    """
    noted = accept_older_note(read_note(folder).get("plan", {}), now, folder, say)
    whats = {"data": "data", "images": "content of images", "processes": "number of processes"}
    for key, what in (whats | {"template": "chat template"}).items():
        if noted.get(key) != now[key]:
            raise UserError(
                f"{folder} holds checkpoints made with another {what} ({noted.get(key)}, now {now[key]}), so its "
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
    checkpoints = newest_first()
    return str(checkpoints[0]) if checkpoints else None


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
    # torch.save writes zip files, whose directory stands at the end: one that was cut off has none.
    zipped = [*checkpoint.glob("optimizer*.pt"), *checkpoint.glob("rng_state*.pth")]
    return all(zipfile.is_zipfile(path) for path in zipped)


def epochs_done(checkpoint: str | None) -> float:
    """Epochs that a checkpoint has behind it."""
    return json.loads(Path(checkpoint, "trainer_state.json").read_text())["epoch"] if checkpoint else 0.0
