"""Files and folders: JSON, JSON Lines, folders that are written whole, the lock of a run's folder."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from rovrm.common.errors import UserError

PARTIAL = "saving.tmp"  # inside a folder that is being written: what is not whole yet


def write_json(path: Path, content: Any) -> None:
    """Atomically: under a temporary name, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, path)


def check_new(out: Path) -> None:
    """Raises UserError unless there is no `out`, or nothing in it but what a killed command left there."""
    try:
        taken = out.exists() and (not out.is_dir() or any(path.name != PARTIAL for path in out.iterdir()))
    except OSError as error:
        raise UserError(f"out={str(out)!r} cannot be read: {error.strerror or error}; give a new folder") from error
    if taken:
        raise UserError(f"out={str(out)!r} is not an empty folder; give a new one")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, moved up into `out` in the end (`rovrm.common.files.saving`); after a failure nothing is
    left, `out` itself only where it was there before. Raises UserError where it cannot be written."""

    made = not out.exists()
    try:
        with saving(out) as partial:
            yield partial
        made = False
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"out={str(out)!r} cannot be written: {reason}; give another one") from error
    finally:
        if made:
            shutil.rmtree(out, ignore_errors=True)


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON ({error}); copy it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no keys with values, but {str(content)[:40]!r}; copy it again")
    return content


# ---- saving ----------------------------------------------------------------------------------------------------------


@contextmanager
def saving(folder: Path) -> Iterator[Path]:
    """A folder inside `folder` to write into. In the end what is in it is moved up, config.json last, so that a crash
    leaves no half-written file under a final name and no loadable folder without its weights."""
    partial = folder / PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in sorted(partial.iterdir(), key=lambda path: path.name == "config.json"):
            target = folder / path.name
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(path, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


# ---- writing ---------------------------------------------------------------------------------------------------------


def write_jsonl(path: str | os.PathLike, rows: Iterable[dict[str, Any]]) -> None:
    """Writes rows as JSON lines, whole or not at all: a temporary name beside the file, then os.replace."""
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "w", encoding="utf-8", errors="backslashreplace") as file:  # half an emoji in a text
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


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
