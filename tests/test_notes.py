"""Notes of what was made from which settings: what differs is named, and nothing else."""

import pytest

from rovrm.common.errors import UserError
from rovrm.common.notes import as_note, changed_keys, first_change, refuse_changes


def test_changes() -> None:
    noted = as_note({"seed": 0, "text": {"n": 5, "data": ("a", "b")}, "gone": 1})
    assert noted["text"]["data"] == ["a", "b"]
    now = {"seed": 0, "text": {"n": 7, "data": ["a", "b"]}, "new": None}
    assert changed_keys(noted, now) == ["text", "gone"]  # what is null and what is absent are alike
    assert first_change(noted, now) == ("text.n", 5, 7)
    assert first_change(noted["text"], now["text"]) == ("n", 5, 7)
    assert first_change({"text": noted["text"]}, {"text": now["text"]}) == ("text.n", 5, 7)


def test_refusal() -> None:
    refuse_changes("out", {"a": 1}, {"a": 1}, "; not said")
    with pytest.raises(UserError) as error:
        refuse_changes("runs/x", {"a": 1, "b": {"c": 2}}, {"a": 2, "b": {"c": 3}}, "; give another out=")
    message = "runs/x was begun with other settings (a: 1, now 2; also b); give another out="
    assert str(error.value) == message
