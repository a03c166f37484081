"""Rows that cannot be used: the exception that says why, and the line of `rejected.jsonl` that it becomes.

A row goes one of two ways. Where a command wants every row (scoring, best-of-n, captions), `fence` makes of whatever is
raised over one row the UserError that ends the command. Where rows may be bad (training), BadRow is caught row by row,
and the row is listed and counted.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rovrm.common.errors import UserError, described, one_line, shown


class BadRow(Exception):
    """A row that cannot be read: which field, its value, and why, with the remedy."""

    def __init__(self, field: str, value: Any, reason: str):
        super().__init__(one_line(f"{field} = {shown(value)!r}: {reason}"))
        self.field, self.value, self.reason = field, value, reason


@contextmanager
def fence(where: str) -> Iterator[None]:
    """Around the reading of one row: whatever is raised inside becomes a UserError that begins with `where`."""
    try:
        yield
    except (BadRow, UserError) as error:
        raise UserError(f"{where}: {error}") from error
    except Exception as error:  # a row may hold anything anywhere
        raise UserError(f"{where}: cannot be read ({described(error)}); mend or delete the row") from error


def rejection(location: str, id_: str, error: BadRow) -> dict[str, str]:
    """A line of `rejected.jsonl`: the place and the id of a row, and what is wrong with it."""
    value = error.value
    try:
        value = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    except Exception:  # keys that are no texts, lists nested too deeply, numbers that are too long
        value = shown(value)
    return {"location": location, "id": id_, "field": error.field, "value": value[:200], "reason": error.reason}


def first_rejection(rejected: Sequence[dict[str, str]]) -> str:
    """How many rows were rejected, and the first of them, in words."""
    first = rejected[0]
    where = f"{first['location']}: {first['field']} = {first['value']!r}"
    return f"{len(rejected)} rows cannot be used; the first, {where}: {first['reason']}"
