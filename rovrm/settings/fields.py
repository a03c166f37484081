"""The keys of a settings dataclass: their types, limits, defaults and comments, and the text of `--help`."""

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, field, fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import yaml

# ---- for the definitions of the dataclasses --------------------------------------------------------------------------


class Limit(NamedTuple):
    """What a value must satisfy beyond its type.

    Args:
        words: the limit in a message, which stands behind "a number", or alone where the field holds text.
        holds: whether a value satisfies it.
    """

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


def mapping(is_text: Callable[[str], bool]) -> Any:
    """A mapping that may hold anything. is_text: whether the value of a name must be text, even if it is `no`."""
    return field(default_factory=dict, metadata={"is_text": is_text})


# ---- the keys of a dataclass -----------------------------------------------------------------------------------------


class Setting(NamedTuple):
    """One key of a settings dataclass.

    Args:
        key: as it is typed, `text.n` or `in`.
        path: where it is in the dataclass, `text.n` or `input`.
        hint: its type.
        default: its default, or dataclasses.MISSING.
        comment: what `--help` says of it.
        limit: what its value must satisfy beyond its type.
        is_text: of a mapping that may hold anything: whether the value of a name must be text.
    """

    key: str
    path: str
    hint: Any
    default: Any
    comment: str
    limit: Limit | None
    is_text: Callable[[str], bool]

    @property
    def is_mapping(self) -> bool:
        return get_origin(self.hint) is dict

    @property
    def takes(self) -> str:
        """What it takes, in words."""
        return type_in_words(self.hint, self.limit.words if self.limit else "", self.key)


def settings(config_class: type, prefix: str = "", parent: Any = None) -> Iterator[Setting]:
    """The keys of a settings dataclass in the order of its source, those of a section as `text.n`.

    Args:
        config_class: the dataclass.
        prefix: what stands before its keys where it is a section, `text.`.
        parent: the instance that holds the defaults where it is a section; a section may have others than its class.
    """
    hints, comments = get_type_hints(config_class), _comments(config_class)
    for f in fields(config_class):
        hint = hints[f.name]
        default = getattr(parent, f.name) if parent else _default(f)
        if is_dataclass(hint):
            yield from settings(hint, f"{prefix}{f.name}.", default)  # pyright: ignore[reportArgumentType]
            continue
        yield Setting(
            key=prefix + f.metadata.get("key", f.name),
            path=prefix + f.name,
            hint=hint,
            default=default,
            comment=comments.get(f.name, ""),
            limit=f.metadata.get("limit"),
            is_text=f.metadata.get("is_text", lambda name: False),
        )


def _default(f: Field) -> Any:
    return f.default if f.default_factory is MISSING else f.default_factory()


@cache
def _comments(config_class: type) -> dict[str, str]:
    """The comment beside each field, by the field's name, read from the source; inherited fields included."""
    comments: dict[str, str] = {}
    for base in reversed(config_class.__mro__):
        if not is_dataclass(base):
            continue
        try:
            source = inspect.getsource(base)
        except (OSError, TypeError):  # no source at hand: help without comments
            continue
        # `name: type = default  # comment`, and the lines below it that are nothing but a comment.
        for name, comment in re.findall(r"^    (\w+): .*?  # (.*(?:\n    # .*)*)", source, re.MULTILINE):
            comments[name] = comment.replace("\n    # ", " ")
    return comments


# ---- in words --------------------------------------------------------------------------------------------------------


def usage(config_class: type, prog: str) -> str:
    """The text of `--help`: every key with its default, its type and its comment."""
    lines = [
        f"usage: {prog} [recipe=FILE.yaml] [key=value | --key value | --flag] ...",
        "The command line wins over the recipe. A list is a,b or [a,b]; a flag alone means true.\n",
    ]
    for setting in settings(config_class):
        default = " (required)" if setting.default is MISSING else f"={_as_typed(setting.default)}"
        lines.append(f"  {setting.key + default:<44} {setting.takes}: {setting.comment}")
    return "\n".join(lines)


def _as_typed(default: Any) -> str:
    """A default as one would type it."""
    if isinstance(default, str):
        return default.replace("\n", "\\n")
    if isinstance(default, float):
        return repr(default)
    # YAML marks the end of a document that is one word by a line of dots.
    return yaml.safe_dump(default, default_flow_style=True).removesuffix("\n").removesuffix("\n...")


def type_in_words(hint: Any, limit: str, key: str) -> str:
    """What a field takes, as `a number above 0 or null`.

    Args:
        hint: the type of the field.
        limit: the words of its limit, or "".
        key: its key, for an example of how a mapping is typed.
    """
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
