"""Nothing that a row says is dropped, doubled or guessed: keys of messages, columns, prompts in two places, ratings."""

from typing import Any

import pytest

from rovrm.common.errors import UserError
from rovrm.data.bad_rows import BadRow
from rovrm.data.columns import unread_columns
from rovrm.data.example import Example
from rovrm.data.formats import find_reader
from rovrm.data.messages import text_of
from rovrm.data.prompts import as_example
from rovrm.data.reader import read_row

PAIR = {"prompt": "Q", "chosen": "a", "rejected": "b"}


def read(row: dict[str, Any]) -> Example:
    return read_row(find_reader(row, row), row, find=lambda name: name)


def said(example: Example) -> list[str]:
    """The turns of the prompt, as u:text; * stands for an image."""
    lines = []
    for message in example.prompt:
        content = message["content"]
        text = content if isinstance(content, str) else "".join(block.get("text", "*") for block in content)
        lines.append(f"{message['role'][0]}:{text}")
    return lines


def user(content: Any, **keys: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **keys}


def answer(content: Any, **keys: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **keys}


# ---- keys of messages and blocks -------------------------------------------------------------------------------------

CALL = [{"function": {"name": "weather", "arguments": {"city": "Rome"}}}]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"prompt": [user("Q", images=["red.png"])]}, "prompt: images"),
        ({"prompt": [user("Q", name="Ann")]}, "prompt: name"),
        ({"prompt": [user("Q"), answer("", tool_calls=CALL), user("R")]}, "prompt: tool_calls"),
        ({"chosen": [answer("a", tool_calls=CALL)], "rejected": [answer("b")]}, "responses: tool_calls"),
        ({"chosen": [answer("a", reasoning_content="why")], "rejected": [answer("b")]}, "responses: reasoning_content"),
        ({"chosen": [answer("a")], "rejected": [answer("b", thinking="hm")]}, "responses: thinking"),
        ({"prompt": [user([{"type": "text", "value": "Q"}])]}, "prompt: value"),
        ({"prompt": [user([{"type": "text", "text": "Q", "image": "a.png"}])]}, "prompt: image"),
        ({"prompt": [user([{"type": "image", "image": "a.png", "resized_height": 56}])]}, "prompt: resized_height"),
        ({"prompt": [user([{"type": "image", "index": -1}])]}, "prompt: index"),
        ({"chosen": [answer([{"type": "text", "value": "a"}])], "rejected": [answer("b")]}, "responses: value"),
    ],
)
def test_a_key_that_is_not_read_is_refused_by_name(change: dict[str, Any], key: str) -> None:
    with pytest.raises(BadRow, match=f"^{key} = "):
        read(PAIR | change)
    with pytest.raises(UserError, match=f"{key} = "):  # and so in scoring
        as_example(PAIR | change, find=lambda name: name)


@pytest.mark.parametrize("last", [{"value": ["a", "b"]}, {"preference_values": ["a", "b"]}])
def test_a_key_of_the_turn_that_holds_the_answers(last: dict[str, Any]) -> None:
    talk = [{"from": "human", "value": "Q"}, {"from": "gpt", **last, "images": ["1.png"]}]
    with pytest.raises(BadRow, match="^conversations: images = "):
        read({"conversations": talk} | ({"origin_pre_dataset": "x"} if "preference_values" in last else {}))


def test_keys_without_a_value_and_without_content() -> None:
    empty = {"images": [], "tool_calls": None, "reasoning_content": "", "id": 7, "loss": True}
    blocks = [{"type": "text", "text": "Q", "index": None, "image": None}, {"type": "image", "text": None, "index": 0}]
    row = {"prompt": [user(blocks, **empty)], "chosen": [answer("a", **empty)], "rejected": [answer("b")]}
    assert said(read(row | {"images": ["1.png"]})) == ["u:Q*"]


@pytest.mark.parametrize("message", [user("Q", value="R"), {"role": "user", "from": "gpt", "content": "Q"}])
def test_a_message_with_two_contents_or_two_roles(message: dict[str, Any]) -> None:
    with pytest.raises(BadRow, match="a message with two values"):
        read(PAIR | {"prompt": [message]})


def test_an_answer_by_somebody_else() -> None:
    with pytest.raises(BadRow, match="responses = 'tool': an answer is by the assistant"):
        read(PAIR | {"chosen": [{"role": "tool", "content": "a"}], "rejected": [answer("b")]})


@pytest.mark.parametrize("text", ["Here: <image>", "<image 2> is red.", "<image_1>"])
def test_a_placeholder_in_an_answer(text: str) -> None:
    for change in (
        {"chosen": text},
        {"chosen": [answer(text)], "rejected": [answer([{"type": "text", "text": text}])]},
    ):
        with pytest.raises(BadRow, match="stands for an image, and an answer holds text only"):
            read(PAIR | change | {"images": ["1.png", "2.png"]})
        with pytest.raises(UserError, match="an answer holds text only"):
            as_example(PAIR | change)


# ---- columns ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "history",
    [
        [["What colour is it?", "Red."]],
        '[["What colour is it?", "Red."]]',
        [user("What colour is it?"), answer("Red.")],
        [{"from": "human", "value": "What colour is it?"}, {"from": "gpt", "value": "Red."}],
    ],
)
@pytest.mark.parametrize("prompt", ["And in French?", [user("And in French?")]])
def test_history_becomes_turns(history: Any, prompt: Any) -> None:
    row = {"prompt": prompt, "chosen": "Rouge.", "rejected": "Bleu.", "history": history, "system": "Be brief."}
    expected = ["s:Be brief.", "u:What colour is it?", "a:Red.", "u:And in French?"]
    assert said(read(row)) == expected
    assert said(as_example(row)) == expected
    alpaca = {"instruction": "And", "input": "in French?", "chosen": "Rouge.", "rejected": "Bleu.", "history": history}
    assert said(read(alpaca))[-2:] == ["a:Red.", "u:And\n\nin French?"]


@pytest.mark.parametrize("history", ["Hi", [["Hi"]], [[1, 2]], [user("Hi")], {"a": 1}])
def test_a_history_of_another_shape(history: Any) -> None:
    with pytest.raises(BadRow, match="history"):
        read(PAIR | {"history": history})


@pytest.mark.parametrize(
    "column", ["context", "documents", "tools", "audio", "Audios", "video", "conversation", "hint"]
)
def test_a_column_with_content_is_refused_by_name(column: str) -> None:
    row = PAIR | {column: ["something"]}
    with pytest.raises(BadRow, match=f"^{column} = "):
        read(row)
    with pytest.raises(UserError, match=f"{column} = "):
        as_example(row)
    with pytest.raises(UserError, match=f"{column} = "):
        as_example({"prompt": "Q", "responses": ["a"], column: "something"})
    for empty in (None, "", [], {}):
        assert said(read(PAIR | {column: empty})) == ["u:Q"]


@pytest.mark.parametrize("change", [{"system": "S"}, {"system_prompt": "S"}, {"system": "S", "system_prompt": " S"}])
def test_the_system_prompt_of_a_column(change: dict[str, Any]) -> None:
    assert said(read(PAIR | change)) == said(as_example(PAIR | change)) == ["s:S", "u:Q"]
    assert said(read(PAIR | change | {"prompt": [{"role": "system", "content": "S"}, user("Q")]})) == ["s:S", "u:Q"]


@pytest.mark.parametrize(
    "change",
    [
        {"system": "S", "system_prompt": "T"},
        {"system": "S", "prompt": [{"role": "system", "content": "T"}, user("Q")]},
        {"system": ["S"]},
    ],
)
def test_system_prompts_that_disagree(change: dict[str, Any]) -> None:
    with pytest.raises(BadRow, match="^system = "):
        read(PAIR | change)


@pytest.mark.parametrize("change", [{"question": "R"}, {"instruction": "R", "prompt": "Q"}, {"input": "R"}])
def test_a_second_prompt_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BadRow, match="a second prompt that is not read"):
        read(PAIR | change)
    assert said(read(PAIR | {"question": " q!"})) == ["u:Q"]  # the same once more


def test_columns_that_nothing_reads() -> None:
    columns = [*PAIR, "id", "image", "rating_chosen", "rating_rejected", "reason", "models", "rating_of_others"]
    assert unread_columns(columns, "plain") == ["reason", "models", "rating_of_others"]


# ---- the question in two places --------------------------------------------------------------------------------------


def twice(prompt: Any, *turns: dict[str, Any], **columns: Any) -> Example:
    return read({"prompt": prompt, "chosen": [*turns, answer("a")], "rejected": [*turns, answer("b")], **columns})


SYSTEM = {"role": "system", "content": "S"}


@pytest.mark.parametrize(
    ("prompt", "turns", "expected"),
    [
        ("Q?", [user("Q? ")], ["u:Q? "]),
        ("<image>\nQ?", [user("Q?")], ["u:*\nQ?"]),
        ("Q?", [user("<image>\nQ?")], ["u:*\nQ?"]),
        ([user([{"type": "image"}, {"type": "text", "text": "Q?"}])], [user("<image> Q?")], ["u:*Q?"]),
        ([SYSTEM, user("Q?")], [user("Q?")], ["s:S", "u:Q?"]),
        ("Q?", [SYSTEM, user("Q?")], ["s:S", "u:Q?"]),
        ([SYSTEM, user("Q?")], [SYSTEM, user("Q?\n")], ["s:S", "u:Q?\n"]),
        ("R?", [user("Q?"), answer("A"), user("R? ")], ["u:Q?", "a:A", "u:R? "]),
        ([user("Q?"), answer("A"), user("R?")], [user("R?")], ["u:Q?", "a:A", "u:R?"]),
        ([user("Q?"), answer("A")], [user("R?")], ["u:Q?", "a:A", "u:R?"]),
        ([user("Q?"), answer("A")], [user("Q?"), answer("A"), user("R?")], ["u:Q?", "a:A", "u:R?"]),
    ],
)
def test_one_question_stands_in_the_text(prompt: Any, turns: list[dict[str, Any]], expected: list[str]) -> None:
    pictured = "image" in str((prompt, turns))
    example = twice(prompt, *turns, images=["1.png"] if pictured else None)
    assert ["".join(line.split()) for line in said(example)] == ["".join(line.split()) for line in expected]
    assert len(example.images) == pictured


@pytest.mark.parametrize(
    ("prompt", "turns"),
    [
        ("Q?", [user("R?")]),
        ([user("Q?"), answer("A"), user("R?")], [user("R?"), answer("B"), user("S?")]),
        ([SYSTEM, user("Q?")], [{"role": "system", "content": "T"}, user("Q?")]),
        ([user([{"type": "image", "image": "a.png"}, "Q?"])], [user([{"type": "image", "image": "b.png"}, "Q?"])]),
    ],
)
def test_two_questions_are_refused(prompt: Any, turns: list[dict[str, Any]]) -> None:
    with pytest.raises(BadRow, match="^(prompt|system) = "):
        twice(prompt, *turns)


def test_the_prompt_column_may_be_called_question() -> None:
    row = {"question": "Q?", "chosen": [user("Q?"), answer("a")], "rejected": [user("Q?"), answer("b")]}
    assert said(read(row)) == ["u:Q?"]
    with pytest.raises(BadRow, match="one question can be meant"):
        read(row | {"question": "R?"})


# ---- ratings ---------------------------------------------------------------------------------------------------------

SPELLINGS = [
    ("score_chosen", "score_rejected"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-avg-rating", "rejected-avg-rating"),
    ("reward_chosen", "reward_rejected"),
    ("ScoreChosen", "ScoreRejected"),
]


@pytest.mark.parametrize(("chosen", "rejected"), SPELLINGS)
def test_ratings_of_any_spelling(chosen: str, rejected: str) -> None:
    with pytest.raises(BadRow, match="the chosen answer scores worse"):
        read(PAIR | {chosen: 1, rejected: "4.5"})
    assert read(PAIR | {chosen: 3, rejected: 3}).ranks == [0, 0]
    assert read(PAIR | {chosen: 4, rejected: 3}).ranks == [0, 1]
    assert read_row("plain", PAIR | {chosen: None, rejected: 3}, find=str).ranks == [0, 1]
    with pytest.raises(BadRow, match="takes a finite number"):
        read(PAIR | {chosen: "good", rejected: 3})


def test_ratings_in_one_column_and_ranks() -> None:
    for change in (
        {"ratings": [1, 5]},
        {"rating": {"chosen": 1, "rejected": 5}},
        {"rank_chosen": 2, "rank_rejected": 1},
    ):
        with pytest.raises(BadRow):
            read(PAIR | change)
    assert read(
        PAIR | {"rank_chosen": 1, "rank_rejected": 2, "chosen_ratings": [5, 4], "rejected_ratings": [1]}
    ).ranks == [0, 1]
    with pytest.raises(BadRow, match="scores worse"):
        read(PAIR | {"chosen_ratings": [1, 2], "rejected_ratings": [4, 4]})


# ---- formats ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rejected",
    [
        {"rejected_response": "b"},
        {"rejected_response": [answer("b")]},
        {"rejected_response": [user("<image>Q"), answer("b")]},
        {"rejected_messages": [user("<image>Q"), answer("b")]},
    ],
)
def test_ms_swift(rejected: dict[str, Any]) -> None:
    row = {"messages": [user("<image>Q"), answer("a")], "images": ["1.png"], **rejected}
    for example in (read(row), as_example(row, find=lambda name: name)):
        assert (said(example), example.responses, [ref.path for ref in example.images]) == (
            ["u:*Q"],
            ["a", "b"],
            ["1.png"],
        )


@pytest.mark.parametrize("change", [{"messages": [answer("a")]}, {"tools": ["x"]}, {"rejected_images": ["2.png"]}])
def test_ms_swift_rows_that_are_refused(change: dict[str, Any]) -> None:
    row = {"messages": [user("Q"), answer("a")], "rejected_response": "b"}
    with pytest.raises(BadRow, match=f"^{next(iter(change))} = "):
        read(row | change)


def test_messages_beside_chosen_and_rejected() -> None:
    pair = {"chosen": [answer("a")], "rejected": [answer("b")]}
    assert said(read(pair | {"messages": [user("Q")]})) == ["u:Q"]
    talk = [user("Q"), answer("a")]
    copy = {"prompt": "Q", "chosen": talk, "rejected": [user("Q"), answer("b")], "messages": talk}
    assert said(read(copy)) == ["u:Q"]  # as in ultrafeedback_binarized


def rated(response: str, overall: Any, rating: str) -> dict[str, Any]:
    annotations = {"honesty": {"Rating": rating}, "helpfulness": {"Rating": rating}}
    return {"response": response, "overall_score": overall, "annotations": annotations}


def test_an_overall_score_of_10_beside_ratings_of_1_is_a_1() -> None:
    completions = [rated("bad", 10, "1"), rated("good", 8, "5"), rated("best", "10", "5"), rated("worse", 0.5, "1")]
    example = read({"instruction": "Q", "completions": completions})
    assert example.responses == ["best", "good", "bad", "worse"]
    alone = {"response": "bad", "overall_score": "10.0", "fine-grained_score": 1.0}
    assert read({"instruction": "Q", "completions": [alone, rated("good", 2, "2")]}).responses == ["good", "bad"]
    assert text_of(example.prompt[0]["content"]) == "Q"


@pytest.mark.parametrize("column", ["System", "HISTORY", "Prompt"])
def test_a_column_in_other_letters(column: str) -> None:
    row = {"question": "Q", "chosen": "a", "rejected": "b", column: "Be brief."}
    with pytest.raises(BadRow, match=f"^{column} = .* call it {column.lower()}, or remove it"):
        read(row)
    with pytest.raises(UserError, match=f"call it {column.lower()}"):
        as_example(row)


def test_a_history_with_which_the_prompt_begins_stands_once() -> None:
    talk = [user("What colour is it?"), answer("Red."), user("And in French?")]
    row = PAIR | {"prompt": talk, "history": [["What colour is it?", "Red."]]}
    assert said(read(row)) == said(as_example(row)) == ["u:What colour is it?", "a:Red.", "u:And in French?"]
    other = row | {"history": [["What colour is it?", "Blue."]]}
    assert len(said(read(other))) == 5


def test_sound_in_a_text() -> None:
    with pytest.raises(BadRow, match="<audio>: audio cannot be scored"):
        read(PAIR | {"prompt": "<audio>What is said?"})


OTHER = [user("And that?")]


@pytest.mark.parametrize(
    "row",
    [
        PAIR | {"messages": OTHER},
        {"prompt": "Q", "responses": ["a", "b"], "messages": OTHER},
        {
            "conversations": [{"from": "human", "value": "Q"}],
            "prompt": "And that?",
            "chosen": {"from": "gpt", "value": "a"},
            "rejected": {"from": "gpt", "value": "b"},
        },
    ],
)
def test_a_second_prompt_is_refused_in_scoring_too(row: dict[str, Any]) -> None:
    for reading in (read, as_example):
        with pytest.raises((BadRow, UserError), match="a second prompt that is not read"):
            reading(row)


def test_messages_may_hold_the_answer_that_is_read() -> None:
    row = PAIR | {"messages": [user("Q"), answer("a")]}
    assert said(read(row)) == said(as_example(row)) == ["u:Q"]
    assert said(read({"messages": [user("Q")], "responses": ["a", "b"]})) == ["u:Q"]
