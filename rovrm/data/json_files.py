"""Rows of JSON and JSON Lines files."""

import json
from pathlib import Path
from typing import Any

from rovrm.common.errors import UserError
from rovrm.data.raw_rows import Row, Source, choose_split, json_row

# ---- JSON ------------------------------------------------------------------------------------------------------------


def read_json(file: Path, split: str | None = None) -> list[Row]:
    """The rows of a .json or .jsonl file, whatever form it has inside: a list, `{"data": [...]}`, lines, or the lists
    of several splits, `{"train": [...], "test": [...]}`, of which `split` names one.

    A broken line becomes a row with a `problem`. Raises UserError for an empty file and for one that is not JSON.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error}); mend it or name another") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text ({error}); a source is JSON, JSONL, CSV or parquet") from error
    if not text.strip():
        raise UserError(f"{file}: the file is empty; give one with rows")
    items = whole_json(text)
    splits = items if isinstance(items, dict) else {"train": items or []}
    chosen = choose_split(Source(str(file), str(file), split), splits)
    if items is None:
        rows = [_line_row(file, number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    else:
        rows = [json_row(file, number, item, "") for number, item in enumerate(splits[chosen], 1)]
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
    if isinstance(value, dict):
        if isinstance(value.get("data"), list):
            return value["data"]
        return value if _holds_splits(value) else [value]
    return value if isinstance(value, list) else [value]


def _holds_splits(value: dict[str, Any]) -> bool:
    """Whether every value is a list of rows: of objects that are not messages, which a row itself may consist of."""
    lists = [items for items in value.values() if isinstance(items, list)]
    firsts = [items[0] for items in lists if items]
    rows = all(isinstance(first, dict) and not {"role", "from"} & first.keys() for first in firsts)
    return bool(firsts) and len(lists) == len(value) and rows


def _line_row(file: Path, number: int, line: str) -> Row:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        problem = f"broken JSON at column {error.colno} ({error.msg}); mend or delete the line"
        return json_row(file, number, None, line, problem)
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
        return json_row(file, number, None, line, f"unreadable JSON ({error}); mend or delete the line")
    return json_row(file, number, value, line)
