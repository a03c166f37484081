"""The world as files, for other tools: rows as JSON lines and pictures as PNG."""

import os
import shutil
from pathlib import Path

from rovrm.data import write_jsonl
from rovrm.errors import UserError
from rovrm.world.pairs import INPUTS, pair_row


def write_world(folder: Path, pairs: int, seed: int = 0, split: str = "train") -> None:
    """Writes `pairs` rows of each kind and the pictures of the visual ones; whole or not at all. Raises UserError for
    a folder that holds something."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"out={str(folder)!r} is there already and not an empty folder; give another")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    (temporary / "images").mkdir(parents=True)
    try:
        for inputs in INPUTS:
            rows = []
            for index in range(pairs):
                row = pair_row(inputs, seed, index, split)
                if "image" in row:
                    name = f"images/{row['id']}.png"
                    row["image"]().save(temporary / name)
                    row["image"] = name
                rows.append(row)
            write_jsonl(temporary / f"{inputs}.jsonl", rows)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
