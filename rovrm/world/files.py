"""The world as files, for other tools: rows as JSON lines and pictures as PNG."""

from pathlib import Path

from rovrm.common.errors import UserError
from rovrm.common.files import replacing, write_jsonl
from rovrm.world.pairs import INPUTS, pair_row


def write_world(folder: Path, pairs: int, seed: int = 0, split: str = "train") -> None:
    """Writes `pairs` rows of each kind and the pictures of the visual ones; whole or not at all. Raises UserError for
    a folder that holds something and for one that cannot be written."""
    folder = folder.resolve()
    try:
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"out={str(folder)!r} is not empty; give another folder")
        with replacing(folder) as temporary:
            (temporary / "images").mkdir(parents=True)
            for inputs in INPUTS:
                rows = [_with_file(temporary, row) for row in _pair_rows(inputs, pairs, seed, split)]
                write_jsonl(temporary / f"{inputs}.jsonl", rows)
    except OSError as error:
        raise UserError(f"out={str(folder)!r} cannot be written ({error.strerror or error}); give another") from error


def _pair_rows(inputs: str, pairs: int, seed: int, split: str) -> list[dict]:
    return [pair_row(inputs, seed, index, split) for index in range(pairs)]


def _with_file(folder: Path, row: dict) -> dict:
    """The row with the name of its picture, which is drawn into the folder, in place of the picture."""
    if "image" not in row:
        return row
    name = f"images/{row['id']}.png"
    row["image"]().save(folder / name)
    return row | {"image": name}
