"""What a user is told: one line of bounded length, whatever the names and values in it hold."""

import pickle
from typing import Any

import pytest
from helpers import nested

from rovrm.common.errors import LONGEST, UserError, one_line, shown
from rovrm.data.bad_rows import BadRow, fence


def test_an_error_is_one_line_of_bounded_length() -> None:
    assert str(UserError("a\nb\r\x1b[31m\u202e\ud800\0: mend it")) == r"a\nb\r\x1b[31m\u202e\ud800\x00: mend it"
    assert str(UserError("größer, 大きい, C:\\new")) == "größer, 大きい, C:\\new"
    for text in ("x" * 100_000, "\n" * 100_000):
        told = str(UserError(f"a thing = {text}: mend it"))
        assert len(told) <= LONGEST and told.isprintable()
        assert told.startswith("a thing = ") and " [...] " in told and told.endswith(": mend it")
    assert len(one_line("x" * 600, 480)) <= 480


def test_an_error_stays_itself_when_it_is_told_again() -> None:
    error = UserError("a\nb" + "x" * 5000)
    assert str(UserError(str(error))) == str(error) == str(pickle.loads(pickle.dumps(error)))


def test_details_are_lines_of_their_own() -> None:
    assert str(UserError("3 rows:", "  one\n", "  two")) == "3 rows:\n  one\\n\n  two"


@pytest.mark.parametrize("value", [10**5000, nested(3000)], ids=["digits", "depth"])
def test_what_str_refuses_is_shown_all_the_same(value: Any) -> None:
    assert "cannot be shown" in shown(value) and "cannot be shown" in str(BadRow("id", value, "mend it"))
    assert shown("a" * 500) == "a" * 200


@pytest.mark.parametrize("error", [BadRow("id", 5, "mend it"), UserError("mend it"), KeyError("x"), RecursionError()])
def test_a_fence_lets_no_other_error_pass(error: Exception) -> None:
    with pytest.raises(UserError, match="^a.jsonl, row 3: .*mend") as caught, fence("a.jsonl, row 3"):
        raise error
    assert type(error).__name__ in str(caught.value) or "mend it" in str(caught.value)
