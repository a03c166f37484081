"""Room on the disk: asked for before hours are spent, and said in one line where it runs out all the same.

    with room_for(config.out, run_bytes(...), "the phases asked for"):
        ...                                                  # a full disk in here is a UserError

What a training needs is estimated in rovrm/training/estimates.py, from the model's architecture: checkpoints, the
adapter and the merged model. Tokenizers, logs and scores are small beside these and not counted.
"""

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rovrm.common.errors import UserError, first_line, is_full


@contextmanager
def room_for(folder: str | os.PathLike, needed: float, what: str) -> Iterator[None]:
    """Raises UserError where the folder's disk has no room, before or while something is written.

    Args:
        folder: a folder on that disk.
        needed: bytes that are still to be written.
        what: what needs them, for the message.
    """
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


def missing(needed: float, folder: Path) -> float:
    """How many of `needed` bytes are still to be written, where some of them lie in `folder` already."""
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    return max(0.0, needed - sum(path.stat().st_size for path in files))


def in_units(size: float) -> str:
    """A size in bytes as `1.2 GB`, `3.4 MB` or `5 kB`."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{math.ceil(size / 1e3)} kB"
