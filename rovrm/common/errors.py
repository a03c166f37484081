"""The one exception that stands for a user's mistake: commands print it as one line and exit with status 2."""

import os
from collections.abc import Iterable
from typing import Any

LONGEST = 2000  # characters of a line that tells of an error
CUT = " [...] "


class UserError(Exception):
    """A mistake in a file, a row or a setting. The message names the thing, its value and the remedy.

    It is one line, whatever the names and values in it hold, and of bounded length. details: further lines, as a list
    of bad rows.
    """

    def __init__(self, message: str, *details: str):
        super().__init__("\n".join(one_line(line) for line in (message, *details)))


class BadRows(UserError):
    """Too many rows are bad; those of other phases are looked at before it is said. rows: as in rejected.jsonl."""

    def __init__(self, message: str, *details: str, rows: Iterable[dict[str, Any]] = ()):
        super().__init__(message, *details)
        self.rows = list(rows)


def one_line(text: str, longest: int = LONGEST) -> str:
    """The text with newlines, control characters and halves of characters escaped, and its middle cut out where it is
    too long: the thing stands at the beginning, the remedy at the end."""
    text = _cut(text, longest)
    if text.isprintable():
        return text
    return _cut("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text), longest)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest * 2 // 3 - len(CUT)]}{CUT}{text[-(longest // 3) :]}"


def shown(value: Any, longest: int = 200) -> str:
    """The beginning of a value as text, whatever it is: lists may be nested too deeply, numbers too long for str()."""
    try:
        return str(value)[:longest]
    except Exception as error:  # __str__ may raise anything
        return f"{type(value).__name__} that cannot be shown ({type(error).__name__})"


def first_line(error: BaseException) -> str:
    """What an error says first, or its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def refuse(wrong: Iterable[str]) -> None:
    """Raises UserError for all settings that are wrong, with a line for each; there may be none."""
    lines = list(dict.fromkeys(wrong))
    if len(lines) == 1:
        raise UserError(lines[0])
    if lines:
        raise UserError(f"{len(lines)} settings are wrong:", *(f"  {line}" for line in lines))


def described(error: BaseException) -> str:
    """The type and the message of an error that nobody expected."""
    return f"{type(error).__name__}: {shown(error, LONGEST)}"


OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")


def offline(name: str | os.PathLike) -> str:
    """Behind the message that a hub id cannot be reached: the variable, if any, that keeps it from being asked for."""
    found = [key for key in OFFLINE if os.environ.get(key, "").lower() in ("1", "on", "yes", "true")]
    if os.path.isdir(name) or not found:
        return ""
    return f"; {found[0]}={os.environ[found[0]]} is set, so only what is in the cache is found: unset it to download"
