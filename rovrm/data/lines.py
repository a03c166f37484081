"""The lines of a file that rovrm.score takes, kept apart from each other: a bad one is that line's error alone.

A file is read once, then line by line:

    lines, digest = read_lines(Path("pairs.jsonl"))
    row = parse_line(lines[0][1], name="pairs-1")      # {"id": ..., "prompt": ..., ...}, or a UserError
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from rovrm.common.errors import UserError
from rovrm.data.raw_rows import whole_json

TABLES = (".csv", ".tsv", ".parquet")
Lines = list[tuple[int, bytes]]  # line number from 1, and content


def read_lines(source: Path) -> tuple[Lines, str]:
    """The lines that are not blank, and the file's sha1.

    Lines stay bytes, so that one in another encoding does not end the reading. The items of a JSON list count as lines.
    """
    if not source.is_file():
        raise UserError(f"in={str(source)!r} is no file; give a JSONL file with prompt, responses and images")
    if source.suffix in TABLES:
        raise UserError(f"in={str(source)!r} is a {source.suffix} file; write its rows as JSONL")
    content = source.read_bytes()
    contents = _items_of_a_list(content) or content.removeprefix(b"\xef\xbb\xbf").split(b"\n")  # a byte-order mark
    lines = [(number, line) for number, line in enumerate(contents, start=1) if line.strip()]
    if not lines:
        raise UserError(f"in={str(source)!r} is empty; give a JSONL file with prompt, responses and images")
    return lines, hashlib.sha1(content, usedforsecurity=False).hexdigest()


def _items_of_a_list(content: bytes) -> list[bytes]:
    """The rows of a file that is one JSON list, or an object that holds one; none of a JSONL file."""
    try:
        items = whole_json(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return []
    if isinstance(items, dict):  # lists by split
        if len(items) > 1:
            raise UserError(f"the input holds the lists {', '.join(items)}; give a file with one of them")
        [items] = items.values()
    return [json.dumps(item).encode() for item in items or []]


def parse_line(line: bytes, name: str) -> dict[str, Any] | UserError:
    """An input line with its id, or why it is none. name: the id of a line without one."""
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        return UserError(f"the line is no JSON ({error})")
    if not isinstance(row, dict):
        return UserError(f"the line is a JSON {type(row).__name__}, not an object with prompt and responses")
    return row | {"id": name if row.get("id") in (None, "") else str(row["id"])}
