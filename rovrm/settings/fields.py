"""The leaf keys of a settings dataclass: their types, limits, defaults and comments, and the text of `--help`."""

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING, field, fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import yaml

from rovrm.settings.recipes import Dumper


class Limit(NamedTuple):
    """What a value must satisfy beyond its type. `words` go behind "a number" in messages, or stand alone for text."""

    words: str
    holds: Callable[[Any], bool]


ABOVE_ZERO = Limit("above 0", lambda v: 0 < v < float("inf"))
FROM_ZERO = Limit("of at least 0", lambda v: 0 <= v < float("inf"))
FRACTION = Limit("from 0 to 1", lambda v: 0 <= v <= 1)


def limited(default: Any, limit: Limit) -> Any:
    """A field with a default and a limit."""
    return field(default=default, metadata={"limit": limit})


def limited_list(default: list[Any], limit: Limit) -> Any:
    """A list field with a default and a limit."""
    return field(default_factory=lambda: list(default), metadata={"limit": limit})


def named(key: str) -> Any:
    """A required field whose key on the command line is not a legal Python name."""
    return field(metadata={"key": key})


# ---- the settings of a dataclass ------------------------------------------------------------------------------------


class Setting(NamedTuple):
    """One leaf key: as typed, as a path in the dataclass, its type and default, and what `--help` says of it."""

    key: str
    path: str
    hint: Any
    default: Any
    comment: str
    limit: Limit | None

    @property
    def takes(self) -> str:
        return type_in_words(self.hint, self.limit.words if self.limit else "", self.key)


def settings(config_class: type, prefix: str = "", parent: Any = None) -> Iterator[Setting]:
    """The leaf keys of a config dataclass, sections unfolded (`text.n`), in source order."""
    hints, comments = get_type_hints(config_class), _comments(config_class)
    for f in fields(config_class):
        hint, default = hints[f.name], getattr(parent, f.name) if parent else _default(f)
        if is_dataclass(hint):
            yield from settings(hint, f"{prefix}{f.name}.", default)  # pyright: ignore[reportArgumentType]
        else:
            key = prefix + f.metadata.get("key", f.name)
            comment, limit = comments.get(f.name, ""), f.metadata.get("limit")
            yield Setting(key, prefix + f.name, hint, default, comment, limit)


def usage(config_class: type, prog: str) -> str:
    """The text of `--help`: every key with its default, its type and its comment."""
    lines = [
        f"usage: {prog} [recipe=FILE.yaml] [key=value | --key value | --flag] ...",
        "The command line wins over the recipe. A list is a,b or [a,b]; a flag alone means true.\n",
    ]
    for s in settings(config_class):
        left = f"{s.key} (required)" if s.default is MISSING else f"{s.key}={_plain(s.default)}"
        lines.append(f"  {left:<44} {s.takes}: {s.comment}")
    return "\n".join(lines)


def _default(f: Any) -> Any:
    return f.default_factory() if f.default_factory is not MISSING else f.default


@cache
def _comments(config_class: type) -> dict[str, str]:
    """Field name -> the comment beside it, read from the source; inherited fields included."""
    found: dict[str, str] = {}
    for base in reversed([c for c in config_class.__mro__ if is_dataclass(c)]):
        try:
            source = inspect.getsource(base)
        except (OSError, TypeError):  # no source at hand: help without comments
            continue
        for name, comment in re.findall(r"^    (\w+): .*?  # (.*(?:\n    # .*)*)", source, re.MULTILINE):
            found[name] = comment.replace("\n    # ", " ")
    return found


def type_in_words(hint: Any, limit: str, key: str) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return f"{type_in_words(args[0], limit, key)} or null"
    if origin is Literal:
        return f"one of {', '.join(args)}"
    if origin is dict:
        return f"values by name, {key}.NAME=VALUE"
    if origin is list:
        return f"a list a,b or [a,b] {limit}".strip()
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "" if limit else "text"}
    return f"{words.get(hint, 'any value')} {limit}".strip()


def _plain(value: Any) -> str:
    """A default as one would type it."""
    if isinstance(value, str):
        return value.replace("\n", "\\n")
    if isinstance(value, float):
        return repr(value)
    return yaml.dump(value, Dumper=Dumper, default_flow_style=True).removesuffix("\n").removesuffix("\n...")
