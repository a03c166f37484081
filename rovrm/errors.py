"""The one exception that stands for a user's mistake: commands print it as one line and exit with status 2."""

from collections.abc import Iterable
from typing import Any


class UserError(Exception):
    """A mistake in a file, a row or a setting. The message names the thing, its value and the remedy."""


class BadRows(UserError):
    """Too many rows are bad; those of other phases are looked at before it is said. rows: as in rejected.jsonl."""

    def __init__(self, message: str, rows: Iterable[dict[str, Any]] = ()):
        super().__init__(message)
        self.rows = list(rows)
