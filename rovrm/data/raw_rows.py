"""Raw rows: dicts as files hold them, each with the place it came from; and how JSON files become raw rows.

    rows = read_json_rows(Path("pairs.jsonl"))
    rows[0].values       # {"prompt": "What is this?", "chosen": "A cup.", "rejected": "A dog."}
    rows[0].location     # "pairs.jsonl, row 1"

What the columns mean is not known here: rovrm/data/reader.py makes an Example of a raw row. Tables, data sets and the
synthetic world become raw rows in table_rows.py, dataset_rows.py and world_rows.py.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rovrm.common.errors import UserError, shown

SPLIT_WORD = re.compile(r"(?<![a-z])(train|test|validation|valid|val|dev)(?![a-z])")


@dataclass(slots=True)
class Source:
    """A source taken apart; every field but the first two is one of its options.

    text: as written; name: the NAME in it.
    split, config, revision: as in `datasets.load_dataset`. reader: the format, a name in formats.READERS; None to find
        it from the columns.
    n: how many examples are taken of it; weight: its share among several sources.
    pairs: whether a ranked list becomes all its pairs of different rank, so that `n` counts pairs and not lists.
    columns: `columns.prompt=question` and the like, our name -> theirs.
    options: those of the synthetic world alone.
    """

    text: str
    name: str
    split: str | None = None
    config: str | None = None
    revision: str | None = None
    reader: str | None = None
    n: int | None = None
    weight: float | None = None
    pairs: bool = False
    columns: dict[str, str] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Row:
    """One raw row.

    values: its cells by column; None for a row that could not be parsed, and `problem` then says why.
    location: "FILE, row 12", counted from 1; in a JSONL file or a table the number of the line.
    stem, number: make the id, STEM-NUMBER, of a row that has none.
    data_file: where the search for relative image paths starts.
    raw: the text of a row that could not be parsed.
    """

    values: dict[str, Any] | None
    location: str
    stem: str
    number: int
    data_file: str | None = None
    problem: str = ""
    raw: str = ""


@dataclass(slots=True)
class Rows:
    """The raw rows of one source, by index.

    kinds: by data file all columns seen in it and its first row, by which the format is told; the files of a folder may
        differ in format.
    take: yields the rows of these indices, in their order. Rows of data sets and of the world are made only then.
    """

    name: str
    kinds: dict[str | None, tuple[list[str], dict[str, Any]]]
    size: int
    take: Callable[[Iterable[int]], Iterator[Row]]

    def __len__(self) -> int:
        return self.size

    @property
    def columns(self) -> list[str]:
        """The columns of all files together."""
        return list(dict.fromkeys(column for columns, _ in self.kinds.values() for column in columns))


def rows_in_memory(name: str, rows: list[Row]) -> Rows:
    """Rows that are all read already, as those of JSON files and tables are."""
    columns: dict[str | None, dict[str, None]] = {}  # by file; a dict stands for an ordered set
    firsts: dict[str | None, dict[str, Any]] = {}
    for row in rows:
        if row.values is not None:
            columns.setdefault(row.data_file, {}).update(dict.fromkeys(row.values))
            firsts.setdefault(row.data_file, row.values)
    kinds = {file: (list(columns[file]), first) for file, first in firsts.items()}
    return Rows(name, kinds, len(rows), lambda indices: (rows[i] for i in indices))


def rows_of_dicts(dicts: Iterable[Any], name: str) -> Rows:
    """Dicts that were given in Python, such as a list for the trainer."""
    rows = [Row(dict(values), f"{name}, row {number}", name, number) for number, values in enumerate(dicts, 1)]
    return rows_in_memory(name, rows)


def choose_split(source: str, wanted: str | None, splits: Iterable[str]) -> str:
    """Which of its splits is read of a source: the one that is wanted, else `train`, else the only one."""
    names = list(splits)
    if wanted is not None:
        if wanted in names:
            return wanted
        raise UserError(f"source {source!r}: no split {wanted!r}; it has {', '.join(names)}")
    if "train" in names:
        return "train"
    if len(names) == 1:
        return names[0]
    raise UserError(f"source {source!r}: which split? It has {', '.join(names)}; add ?split=NAME")


# ---- JSON ------------------------------------------------------------------------------------------------------------


def read_json_rows(file: Path, split: str | None = None) -> list[Row]:
    """The rows of a .json or .jsonl file, whatever form it has inside.

    It may be a list, `{"data": [...]}`, one object per line, or the lists of several splits, `{"train": [...],
    "test": [...]}`, of which `split` names one. A broken line becomes a row with a `problem`. Raises UserError for an
    empty file and for one that is not JSON.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error}); mend it or name another") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text ({error}); a source is JSON, JSONL, CSV or parquet") from error
    if not text.strip():
        raise UserError(f"{file}: the file is empty; give one with rows")
    # One JSON value is tried first: a list may be written over many lines, and a line of JSONL is one value as well.
    items = whole_json(text)
    splits = items if isinstance(items, dict) else {"train": items or []}
    chosen = choose_split(str(file), split, splits)
    if items is None:  # JSON Lines
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        rows = [_line_row(file, number, line) for number, line in lines]
    else:
        rows = [_row(file, number, item, "") for number, item in enumerate(splits[chosen], 1)]
    if not rows:
        raise UserError(f"{file}: it holds no rows; give a file with at least one")
    if all(row.values is None for row in rows):
        raise UserError(
            f"{file}: neither a JSON list nor JSONL; {rows[0].location}: {rows[0].problem} ({rows[0].raw[:80]!r}); "
            "write one JSON object per line"
        )
    return rows


def whole_json(text: str) -> list[Any] | dict[str, list[Any]] | None:
    """The items of a text that is one JSON value, by split where it holds several lists; None when it is JSONL."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        return [value]
    if isinstance(value.get("data"), list):
        return value["data"]
    # Lists by split, or else the only row of a file.
    return value if _holds_splits(value) else [value]


def _holds_splits(value: dict[str, Any]) -> bool:
    """Whether every value is a list of rows: of objects that are not messages, which a row itself may consist of."""
    if not all(isinstance(items, list) for items in value.values()):
        return False
    firsts = [items[0] for items in value.values() if items]
    return bool(firsts) and all(isinstance(first, dict) and not {"role", "from"} & first.keys() for first in firsts)


def _line_row(file: Path, number: int, line: str) -> Row:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        problem = f"broken JSON at column {error.colno} ({error.msg}); mend or delete the line"
        return _row(file, number, None, line, problem)
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
        return _row(file, number, None, line, f"unreadable JSON ({error}); mend or delete the line")
    return _row(file, number, value, line)


def _row(file: Path, number: int, value: Any, raw: str, problem: str = "") -> Row:
    if not isinstance(value, dict):
        problem = problem or f"a row is a JSON object, got {type(value).__name__}; write {{...}}"
        raw, value = raw or shown(value), None
    return Row(value, f"{file}, row {number}", file.stem, number, str(file), problem, raw)
