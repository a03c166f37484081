"""The one exception that stands for a user's mistake, and what messages say of values and of other errors.

Commands print a UserError as one line and exit with status 2 (rovrm.settings.command_line.run).
"""

import errno
import os
from collections.abc import Iterable
from typing import Any

LONGEST = 2000  # characters of a line of a message
CUT = " [...] "

# How libraries say that a disk is full without an OSError: safetensors, and torch.save, which gives no reason.
FULL_WORDS = ("No space left on device", "PytorchStreamWriter", "inline_container")

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")


class UserError(Exception):
    """A mistake in a file, a row or a setting. The message names the thing, its value and the remedy.

    It is one line of bounded length, whatever the names and values in it hold.

    Args:
        message: the line.
        details: further lines, such as a list of bad rows.
    """

    def __init__(self, message: str, *details: str):
        super().__init__("\n".join(one_line(line) for line in (message, *details)))


class BadRows(UserError):
    """Too many rows of a phase are bad. It is raised only when the rows of the other phases were looked at too.

    Args:
        rows: the bad rows, as they stand in rejected.jsonl.
    """

    def __init__(self, message: str, *details: str, rows: Iterable[dict[str, Any]] = ()):
        super().__init__(message, *details)
        self.rows = list(rows)


def refuse(mistakes: Iterable[str]) -> None:
    """Raises UserError for all settings that are wrong, with a line for each; does nothing where there are none."""
    lines = list(dict.fromkeys(mistakes))  # each once, in their order
    if len(lines) == 1:
        raise UserError(lines[0])
    if lines:
        raise UserError(f"{len(lines)} settings are wrong:", *(f"  {line}" for line in lines))


# ---- lines and values ------------------------------------------------------------------------------------------------


def one_line(text: str, longest: int = LONGEST) -> str:
    """The text as one printable line: newlines, control characters and lone surrogates are escaped.

    Where it is too long its middle is cut out, since the thing stands at the beginning and the remedy at the end.
    """
    text = _cut(text, longest)
    if text.isprintable():
        return text
    escaped = [c if c.isprintable() else c.encode("unicode_escape").decode() for c in text]
    return _cut("".join(escaped), longest)


def _cut(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    return f"{text[: longest * 2 // 3 - len(CUT)]}{CUT}{text[-(longest // 3) :]}"


def shown(value: Any, longest: int = 200) -> str:
    """The beginning of a value as text. The value may be anything, such as a list that is nested too deeply for str(),
    or a number with too many digits."""
    try:
        return str(value)[:longest]
    except Exception as error:  # __str__ may raise anything
        return f"{type(value).__name__} that cannot be shown ({type(error).__name__})"


def quoted(value: Any, longest: int = 100) -> str:
    """A value in a message about settings, as YAML writes it: text in quotes; null, true and false without."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        value = repr(value)
    text = shown(value, longest + 1)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


# ---- other errors ----------------------------------------------------------------------------------------------------


def described(error: BaseException) -> str:
    """The type and the message of an error that nobody expected."""
    return f"{type(error).__name__}: {shown(error, LONGEST)}"


def first_line(error: BaseException) -> str:
    """What an error says first, or its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def trouble_in_words(error: BaseException) -> str:
    """What an error of the operating system says, with the file's name, in one line."""
    if not isinstance(error, OSError) or not error.strerror:
        return first_line(error)
    if error.filename:
        return f"{error.filename}: {error.strerror}"
    return f"no room left on a disk: {error.strerror}" if is_full(error) else error.strerror


def broken_torchvision(error: BaseException | None) -> UserError | None:
    """The error about a torchvision that does not fit torch, where that is what an error came from: transformers looks
    at it whatever is loaded, and nothing works beside it."""
    while error is not None:
        text = str(error)
        if "torchvision::" in text or ("torchvision" in text and "undefined symbol" in text):
            return UserError(
                f"the installed torchvision does not fit torch ({first_line(error)}); take it out: pip uninstall "
                "torchvision (images need none), or install the one of the index that torch came from"
            )
        error = error.__cause__ or error.__context__
    return None


def is_full(error: BaseException) -> bool:
    """Whether an error, or one that it came from, says that a disk or a quota is full."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    if any(words in str(error) for words in FULL_WORDS):
        return True
    origin = error.__cause__ or error.__context__
    return origin is not None and is_full(origin)


def offline(name: str | os.PathLike) -> str:
    """What to add to the message that a hub id cannot be reached, where a variable forbids asking the hub; else ""."""
    if os.path.isdir(name):
        return ""
    for variable in OFFLINE:
        setting = os.environ.get(variable, "")
        if setting.lower() in ("1", "on", "yes", "true"):
            return f"; {variable}={setting} is set, so only what is in the cache is found: unset it to download"
    return ""
