"""Chat messages: placeholders become blocks in place, and each image gets one."""

import json
from typing import Any

import pytest

from rovrm.data.bad_rows import BadRow
from rovrm.data.example import Example
from rovrm.data.messages import normalise, parse_content, parsed, text_of, to_messages
from rovrm.data.reader import read_row


def with_images(prompt: Any, *images: str) -> Example:
    row = {"prompt": prompt, "chosen": "a", "rejected": "b", "images": list(images)}
    return read_row("trl", row, find=lambda name: name)


def shape(example: Example) -> list[str]:
    content = example.prompt[0]["content"]
    return [block.get("text", "*") for block in content] if isinstance(content, list) else [content]


@pytest.mark.parametrize(
    ("prompt", "images", "expected", "order"),
    [
        ("Q", "", ["Q"], ""),
        ("Q", "12", ["*", "*", "Q"], "12"),
        ("<image>\nQ", "1", ["*", "\nQ"], "1"),
        ("<image>\n<image>\nQ", "12", ["*", "\n", "*", "\nQ"], "12"),
        ("Q\n<image>", "1", ["Q", "*"], "1"),
        ("\n<image>\nQ\n", "1", ["*", "\nQ"], "1"),
        ("<image>\n", "1", ["*"], "1"),
        ("Is <image> like <image>?", "12", ["Is ", "*", " like ", "*", "?"], "12"),
        ("<image 2> after <image 1>", "12", ["*", " after ", "*"], "21"),
        ("<image_1> and <image1>", "1", ["*", " and ", "*"], "11"),
        ("See <image 2>", "12", ["*", "See ", "*"], "12"),
    ],
)
def test_placeholders(prompt: str, images: str, expected: list[str], order: str) -> None:
    example = with_images(prompt, *images)
    assert shape(example) == expected
    assert [ref.name for ref in example.images] == list(order)


def test_images_without_a_block_go_before_the_first_user_message() -> None:
    talk = [{"role": "system", "content": "See <image>"}, {"role": "user", "content": "<image 3> Q"}]
    example = with_images(talk, "1", "2", "3")
    assert [ref.name for ref in example.images] == ["1", "2", "3"]
    assert [len(message["content"]) for message in example.prompt] == [2, 3]


@pytest.mark.parametrize("prompt", ["<image><image>", "<image 2>", "<image 0>"])
def test_more_placeholders_than_images(prompt: str) -> None:
    with pytest.raises(BadRow, match=r"prompt = .*asks for image \d, but the row has 1; give the images or drop"):
        with_images(prompt, "1")


def test_normalise() -> None:
    assert normalise("  A “Cat”,\n sat; STRASSE!  ") == normalise("a cat sat straße") == "a cat sat strasse"
    assert normalise("5 + 3") != normalise("5 3")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a <image> b", "a  b"),
        ("a\n<image>\nb", "a\nb"),
        ("<image>\nb", "b"),
        ("plain\n", "plain\n"),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "a\nb"),
    ],
)
def test_text_without_its_images(content: Any, expected: str) -> None:
    assert text_of(parse_content(content, "prompt")) == expected


def test_role_names() -> None:
    both = [{"from": "human", "value": "Q"}, {"role": "assistant", "content": "A"}]
    assert to_messages(both) == [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    with pytest.raises(BadRow, match="field = 'tool': unknown role; takes human"):
        to_messages([{"role": "tool", "content": "x"}], "field")


def test_parsed() -> None:
    assert parsed([1], "f") == parsed("[1]", "f") == [1]
    assert parsed("[{'a': None}]", "f") == [{"a": None}]
    with pytest.raises(BadRow, match="f = .*should hold a JSON value does not"):
        parsed("__import__('os')", "f")


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ([{"role": "user", "content": 5}], "content is a string or a list of blocks"),
        ([{"role": ["user"], "content": "Q"}], "unknown role"),
        ([{"role": {"a": 1}, "content": "Q"}], "unknown role"),
        ("<image " + "9" * 5000 + ">", "an image number of 5000 digits"),
    ],
)
def test_prompts_of_other_types_are_bad_rows(prompt: Any, reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        with_images(prompt)


@pytest.mark.parametrize("content", [5, ["a", "b"], [5], [{"type": "text", "text": 5}], [{"type": "image"}], [None]])
def test_answers_hold_text_only(content: Any) -> None:
    row = {"prompt": "Q", "chosen": [{"role": "assistant", "content": content}], "rejected": [{"content": "b"}]}
    with pytest.raises(BadRow, match="responses = .*an answer holds text only"):
        read_row("trl", row, find=lambda name: name)


def test_what_nobody_thought_of_is_a_bad_row() -> None:
    def find(name: str) -> str:
        raise ZeroDivisionError("odd")

    with pytest.raises(BadRow, match=r"row = .*not the shape of trl \(ZeroDivisionError: odd\); mend the row"):
        read_row("trl", {"prompt": "Q", "chosen": "a", "rejected": "b", "image": "a.png"}, find)


def test_a_very_long_literal_is_not_tried() -> None:
    """Python takes seconds for one of megabytes; JSON of any length is read."""
    turns = [{"from": "human", "value": "It's a question?"}]
    assert parsed(str(turns), "conversations") == turns
    long = [{"from": "human", "value": "It's a question? " * 250_000}]
    assert parsed(json.dumps(long), "conversations") == long
    with pytest.raises(BadRow, match="should hold a JSON value does not .*too many to be tried as Python"):
        parsed(str(long), "conversations")
