"""Notes: what a file or folder was made from, written beside it, so that no run goes on from another's results.

A note is a dictionary of JSON values. Before a run goes on, it compares the note that lies there with its own:

    refuse_changes(out, noted=read_json(path), now=as_note(settings), remedy="give another out=")
"""

import json
from typing import Any

from rovrm.common.errors import UserError


def as_note(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings as they will be read back: tuples as lists, keys as texts."""
    return json.loads(json.dumps(settings))


def changed_keys(noted: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The keys in which two notes differ, in the order of the settings; one that is lacking counts as null."""
    return [key for key in {**now, **noted} if noted.get(key) != now.get(key)]


def first_change(noted: dict[str, Any], now: dict[str, Any]) -> tuple[str, Any, Any]:
    """(key, noted value, value now) of the first difference between two notes that differ. Inside of sections the key
    is dotted: `text.n`."""
    key = changed_keys(noted, now)[0]
    before, after = noted.get(key), now.get(key)
    if isinstance(before, dict) and isinstance(after, dict):
        inner, before, after = first_change(before, after)
        key = f"{key}.{inner}"
    return key, before, after


def refuse_changes(
    what: object, noted: dict[str, Any], now: dict[str, Any], remedy: str, begun: str = "begun with other settings"
) -> None:
    """Raises UserError where the notes differ.

    Args:
        what: the file or folder that the first note is about.
        noted: what lies beside it.
        now: what would be noted today.
        remedy: the end of the message.
        begun: how it differs, in words.
    """
    changed = changed_keys(noted, now)
    if not changed:
        return
    key, before, after = first_change(noted, now)
    others = f"; also {', '.join(changed[1:])}" if changed[1:] else ""
    raise UserError(f"{what} was {begun} ({key}: {before!r}, now {after!r}{others}){remedy}")
