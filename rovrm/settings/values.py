"""What a given value means for the field that it goes to.

A value is the text that was typed on the command line, or what a recipe holds: texts, Plain scalars, lists, mappings
and None. The field's type decides what is made of it, so that `no` is a boolean in one field and a text in another.
Numbers and choices are left as texts, which OmegaConf converts and checks.
"""

import csv
import re
from collections.abc import Callable
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

import yaml

from rovrm.settings.recipes import Loader, Plain, read_scalar

BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
NULLS = ("null", "none", "~")


def value_for(value: Any, hint: Any, is_text: Callable[[str], bool]) -> Any:
    """A given value as OmegaConf takes it for a field.

    Args:
        value: what was given.
        hint: the type of the field.
        is_text: whether the value of a name must be text, asked for the names of a mapping that may hold anything.

    Raises:
        ValueError, KeyError: for a value that the field cannot hold. Others may pass, for OmegaConf to refuse.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        kind = next(arg for arg in args if arg is not NoneType)
        return _optional(value, kind, is_text)
    if origin is list:
        items = _split(value) if isinstance(value, str) else value
        if not isinstance(items, list):
            raise ValueError(value)
        return [value_for(item, args[0], is_text) for item in items]
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(value)
        return {str(name): value_of_name(str(name), item, args[1], is_text) for name, item in value.items()}
    if hint is Any:
        return _anything(value)
    if hint is bool:
        return value if isinstance(value, bool) else BOOLEANS[str(value).lower()]
    if hint is str and not isinstance(value, str):
        raise ValueError(value)
    return _literal(value) if isinstance(value, str) else value


def value_of_name(name: str, value: Any, hint: Any, is_text: Callable[[str], bool]) -> Any:
    """A given value as OmegaConf takes it for a name of a mapping whose values are of type `hint`."""
    # `no` is asked about alone: to ask may take long, and of other values one can tell.
    if hint is Any and _is_word(value) and is_text(name):
        hint = str
    return value_for(value, hint, is_text)


def value_of_text(text: str, hint: Any) -> Any:
    """What a text typed on the command line gives. Only a field that may hold anything reads it as YAML: `[...]` and
    `{...}` as they stand, all else as one scalar, so that `a #1` and `b: c` need no quotes."""
    if hint is not Any and get_origin(hint) is not dict:
        return text
    try:
        if text.lstrip().startswith(("[", "{")):
            return yaml.load(text, Loader=Loader)
        return read_scalar(text)
    except Exception:  # no YAML, or a number of thousands of digits
        return text


def _is_word(value: Any) -> bool:
    """Whether it is `yes`, `no`, `on` or `off`: booleans of YAML 1.1 that may well be meant as texts."""
    return isinstance(value, Plain) and isinstance(value.value, bool) and value.lower() not in ("true", "false")


def _optional(value: Any, kind: Any, is_text: Callable[[str], bool]) -> Any:
    """A value for a field that holds `kind` or null."""
    word = value.lower() if isinstance(value, str) else ""
    if word == "none" and get_origin(kind) is list:
        return []  # none of what the list may hold, where null stands for the default
    if value is None or word in NULLS:
        return None
    return value_for(value, kind, is_text)


def _split(text: str) -> list[str]:
    """`a,b` or `[a,b]`; an item that holds a comma goes in double quotes."""
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    for items in csv.reader([text], skipinitialspace=True):
        return [item.strip() for item in items if item.strip()]
    return []


def _anything(value: Any) -> Any:
    """A value for a field that may hold anything: as YAML reads it."""
    if isinstance(value, Plain):
        return value.value
    if isinstance(value, str):
        return _literal(value)
    if isinstance(value, dict):
        return {name.value if isinstance(name, Plain) else name: _anything(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_anything(item) for item in value]
    return value


def _literal(text: str) -> str:
    """Text that OmegaConf reads back unchanged: it would take `${` for the start of an interpolation."""
    if text == "???":  # OmegaConf's mark for a missing value, which it cannot escape
        raise ValueError(text)
    # A backslash before `${` is an escape, so those that stand there already are doubled.
    return re.sub(r"(\\*)\$\{", lambda match: 2 * match[1] + r"\${", str(text))
