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

from rovrm.common.errors import UserError, first_line

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


def missing(needed: float, folder: Path) -> float:
    """What is still to be written of `needed` bytes, a part of which is there."""
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
    return max(0.0, needed - there)
