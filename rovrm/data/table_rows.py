"""Rows of .csv and .tsv files as raw rows: a header names the columns, and every row below has as many cells."""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from rovrm.common.errors import UserError
from rovrm.data.bad_rows import BadRow
from rovrm.data.messages import parsed
from rovrm.data.raw_rows import Row

LISTS = ("responses", "images", "ranks", "scores", "margin", "completions")  # columns that are no text


def read_table(file: Path) -> list[Row]:
    """The rows of a .csv or .tsv file.

    Cells of a .csv file are separated by comma, semicolon or tab, whichever the header has most of. An empty cell is
    null, a blank line nothing; a row of another length than the header, or with broken quotes, is one with a `problem`.
    Raises UserError for an empty file, a header without names, and a file that is not UTF-8.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            rows = list(_rows(file, text))
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text ({error}); save the table as UTF-8") from error
    if not rows:
        raise UserError(f"{file}: it holds no rows below its header; give a file with at least one")
    return rows


def _rows(file: Path, text: TextIO) -> Iterator[Row]:
    header = text.readline()
    if not header.strip():
        raise UserError(f"{file}: the file is empty, or its first line; give a row of column names, and rows below it")
    text.seek(0)
    separator = "\t" if file.suffix == ".tsv" else max(",;\t", key=header.count)
    records = _records(csv.reader(text, delimiter=separator, strict=True))
    _, names, problem = next(records, (1, [], ""))
    if problem or not all(names) or len(set(names)) < len(names) or not names:
        raise UserError(f"{file}: the first row names the columns, each once; got {header.strip()[:120]!r}; mend it")
    for number, cells, problem in records:
        if not problem and len(cells) != len(names):
            problem = f"{len(cells)} cells, where the header has {len(names)}; quote a cell that holds {separator!r}, "
            problem += "or mend the row"
        values = None if problem else {name: _value(name, cell) for name, cell in zip(names, cells, strict=True)}
        yield Row(values, f"{file}, row {number}", file.stem, number, str(file), problem, separator.join(cells))


def _records(reader: Any) -> Iterator[tuple[int, list[str], str]]:
    """(number of its first line, cells, what is wrong with it) of every row that is not blank."""
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield number, [], f"broken quotes or characters ({error}); mend or delete the row"
            continue
        if cells:
            yield number, cells, ""


def _value(name: str, cell: str) -> Any:
    """A cell: null, a text, or the list that stands in it as JSON or as Python writes it.

    `datasets` and pandas write lists in that way. A text may begin with a bracket too, so a cell is read as a list only
    in the columns that hold lists, and elsewhere where it is a list of messages.
    """
    if not cell.strip():
        return None
    if name not in LISTS and not cell.startswith(("[{'", '[{"')):
        return cell
    try:
        value = parsed(cell, name)
    except BadRow:
        return cell
    if name in LISTS:
        return value
    messages = isinstance(value, list) and all(isinstance(m, dict) and m.keys() & {"role", "from"} for m in value)
    return value if messages else cell
