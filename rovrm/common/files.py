"""Reading and writing: JSON, JSON Lines, files and folders that appear whole or not at all, locks.

How much room a disk has, and what to say when there is none left, is in rovrm/common/disk.py.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from rovrm.common.errors import UserError

if TYPE_CHECKING:
    from filelock import BaseFileLock

PARTIAL = "saving.tmp"  # inside a folder that is being written: what is not whole yet


# ---- one file or folder at once --------------------------------------------------------------------------------------


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A path beside `path` to write a file or a folder to, which is renamed to `path` at the end.

    Whoever reads `path` meanwhile sees what was there before, or the whole new file. After a failure that is still
    there, and nothing else is left. Only one process at a time may write the same path.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove(temporary)  # of a process that was killed
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


# ---- JSON ------------------------------------------------------------------------------------------------------------


def write_json(path: Path, content: Any) -> None:
    """Writes one JSON value, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError for a file that cannot be read and for any other JSON."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON ({error}); copy it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no keys with values, but {str(content)[:40]!r}; copy it again")
    return content


def write_jsonl(path: str | os.PathLike, rows: Iterable[dict[str, Any]]) -> None:
    """Writes rows as JSON Lines, whole or not at all."""
    # A text may hold half of a surrogate pair, such as a cut emoji, which UTF-8 cannot hold: it is escaped.
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_jsonl(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file of ours, as `write_jsonl` writes it. (rovrm/data reads those of users.)"""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


# ---- folders of models -----------------------------------------------------------------------------------------------


@contextmanager
def saving(folder: Path) -> Iterator[Path]:
    """A folder inside `folder` to write into, whose content is moved up into `folder` at the end.

    config.json is moved last, so that a crash leaves no half-written file under a final name and no folder that can
    be loaded without its weights. Other files of `folder` stay as they are.
    """
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


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """As `saving`, for a folder that a command makes: where it fails, `out` is removed unless it was there before.

    Raises UserError where the folder cannot be written.
    """
    is_new = not out.exists()
    try:
        with saving(out) as partial:
            yield partial
        is_new = False
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"out={str(out)!r} cannot be written: {reason}; give another one") from error
    finally:
        if is_new:
            shutil.rmtree(out, ignore_errors=True)


def check_new(out: Path) -> None:
    """Raises UserError unless there is no `out`, or nothing in it but what a killed command left there."""
    try:
        taken = out.exists() and (not out.is_dir() or any(path.name != PARTIAL for path in out.iterdir()))
    except OSError as error:
        raise UserError(f"out={str(out)!r} cannot be read: {error.strerror or error}; give a new folder") from error
    if taken:
        raise UserError(f"out={str(out)!r} is not an empty folder; give a new one")


# ---- locks -----------------------------------------------------------------------------------------------------------


def lock(path: Path) -> "BaseFileLock | None":
    """Takes a lock file for this process, until it is released or the process ends, however it ends.

    Returns None, at once, where another run has it.
    """
    from filelock import FileLock, Timeout

    # The workers of a DataLoader are forked, and may outlive a run that is killed. They must not go on holding its
    # lock, and with filelock they do not: from its version 4 on it closes the file in forked children.
    held = FileLock(path, timeout=0)
    try:
        held.acquire()
    except Timeout:
        return None
    return held


@contextmanager
def lock_folder(out: str) -> Iterator[None]:
    """Takes a run's folder for this process, and makes the folder. Raises UserError where another run has it.

    It is given back at the end of the block, however that ends, and when the process is killed.
    """
    if not out.isprintable():  # tokenizers and safetensors take no other names, which would show after the training
        raise UserError(f"out={out!r} holds a byte or character that cannot be printed; give another name")
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
        held = lock(Path(out) / ".lock")
    except OSError as error:
        raise UserError(f"out={out!r} cannot be written to ({error.strerror}); give another folder") from error
    if held is None:
        raise UserError(f"another run is writing into out={out!r}; wait for it, or give another out=")
    try:
        yield
    finally:
        held.release()
