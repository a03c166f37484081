"""The table of tests/test_five_roads.py: rows good and bad, and what each means."""

import base64
from dataclasses import dataclass, field
from typing import Any

from helpers import encoded, noise

TRAIN, SCORE, BON, SERVE, PYTHON = ROADS = ("train", "score", "bon", "serve", "python")
WINDOW = 300  # tokens
PICTURES = {"red": noise(1, (40, 32)), "blue": noise(2, (32, 48)), "green": noise(3, (64, 32))}
CALL = [{"function": {"name": "weather", "arguments": {"city": "Rome"}}}]


def user(*content: Any, **keys: Any) -> dict[str, Any]:
    """A turn of blocks; a dict is one as it is."""
    blocks = [block if isinstance(block, dict) else {"type": "text", "text": block} for block in content]
    return {"role": "user", "content": blocks, **keys}


def said(text: str, role: str = "assistant", **keys: Any) -> dict[str, Any]:
    return {"role": role, "content": text, **keys}


def picture(name: str) -> dict[str, Any]:
    """A block that names its picture."""
    return {"type": "image", "image": f"{name}.png"}


def in_base64(name: str) -> str:
    return base64.b64encode(encoded(PICTURES[name])).decode()


IMAGE = {"type": "image"}
ANSWERS = {"chosen": "It is red.", "rejected": "It is blue."}
TEXTS = [*ANSWERS.values()]
QUESTION = "What colour is it?"
ASKED = [user(IMAGE, QUESTION)]  # what most rows mean
RED = {"prompt": QUESTION, "image": "red.png", **ANSWERS}


@dataclass
class Case:
    """row: as a data file has it. means: the plain messages of a row that is read, with its pictures by name; None for
    a row that every road refuses. answers: the texts, best first. bon: columns of the prompt for best-of-n where the
    row keeps its prompt in the answers. refused: the roads that refuse a row that others read, and why."""

    name: str
    row: dict[str, Any]
    means: list[dict[str, Any]] | None = None
    pictures: list[str] = field(default_factory=list)
    answers: list[Any] = field(default_factory=lambda: TEXTS)
    bon: dict[str, Any] | None = None
    refused: dict[str, str] = field(default_factory=dict)


CASES = [
    Case("a pair with an image", RED, ASKED, ["red"]),
    Case(
        "pictures in two turns",
        {
            "prompt": [user("One:", IMAGE), said("Red."), user("two:", IMAGE, "And this?")],
            "images": ["red.png", "blue.png"],
        }
        | ANSWERS,
        [user("One:", IMAGE), said("Red."), user("two:", IMAGE, "And this?")],
        ["red", "blue"],
    ),
    Case(
        "history",
        {"instruction": "And this?", "input": "", "history": [["<image>What colour?", "Red."]], "images": ["red.png"]}
        | ANSWERS,
        [user(IMAGE, "What colour?"), said("Red."), user("And this?")],
        ["red"],
    ),
    Case(
        "a system column",
        ANSWERS | {"prompt": QUESTION, "system": "Be brief.", "image": "blue.png"},
        [said("Be brief.", "system"), *ASKED],
        ["blue"],
    ),
    Case(
        "blocks that name their pictures, beside a column in another order",
        {
            "prompt": [user("First:", picture("blue"), "then:", picture("red"), "Which?")],
            "images": ["red.png", "blue.png"],
        }
        | ANSWERS,
        [user("First:", IMAGE, "then:", IMAGE, "Which?")],
        ["blue", "red"],
    ),
    Case(
        "numbered placeholders",
        ANSWERS | {"prompt": "<image 2> or <image 1>?", "images": ["red.png", "green.png"]},
        [user(IMAGE, " or ", IMAGE, "?")],
        ["green", "red"],
    ),
    Case("base64", ANSWERS | {"prompt": QUESTION, "images": [in_base64("red")]}, ASKED, ["red"]),
    Case(
        "a data URI in a block",
        {
            "messages": [
                user(
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{in_base64('green')}"}}, QUESTION
                )
            ]
        }
        | ANSWERS,
        ASKED,
        ["green"],
    ),
    Case(
        "a ranked list",
        {"prompt": QUESTION, "image": "red.png", "responses": [*TEXTS, "No."], "ranks": [0, 1, 2]},
        ASKED,
        ["red"],
        [*TEXTS, "No."],
    ),
    Case("a margin", RED | {"margin": 0.5}, ASKED, ["red"]),
    Case(
        "from and value",
        {
            "conversations": [{"from": "human", "value": f"<image>{QUESTION}"}],
            "images": ["green.png"],
            "chosen": {"from": "gpt", "value": TEXTS[0]},
            "rejected": {"from": "gpt", "value": TEXTS[1]},
        },
        ASKED,
        ["green"],
        bon={"prompt": [{"from": "human", "value": f"<image>{QUESTION}"}], "images": ["green.png"]},
    ),
    Case(
        "ms-swift",
        {
            "messages": [said(f"<image>{QUESTION}", "user"), said(TEXTS[0])],
            "rejected_response": TEXTS[1],
            "images": ["red.png"],
        },
        ASKED,
        ["red"],
        bon={"messages": [said(f"<image>{QUESTION}", "user")], "images": ["red.png"]},
    ),
    Case(
        "the prompt in its column and in the answers",
        {
            "prompt": f"<image>{QUESTION}",
            "images": ["red.png"],
            "chosen": [said(f"{QUESTION} ", "user"), said(TEXTS[0])],
            "rejected": [said(f"{QUESTION} ", "user"), said(TEXTS[1])],
        },
        ASKED,
        ["red"],
    ),
    Case(
        "line breaks round pictures",
        ANSWERS
        | {"prompt": [user("First:\n", IMAGE, "\nsecond:\n", IMAGE, "\nWhich?")], "images": ["red.png", "blue.png"]},
        [user("First:\n", IMAGE, "\nsecond:\n", IMAGE, "\nWhich?")],
        ["red", "blue"],
    ),
    Case(
        "a break behind the placeholder",
        ANSWERS | {"prompt": f"<image>\n{QUESTION}", "image": "red.png"},
        [said(f"<image>\n{QUESTION}", "user")],
        ["red"],
    ),
    Case(
        "text alone",
        {"prompt": "What is 2 plus 3?", "chosen": "5", "rejected": "6"},
        [user("What is 2 plus 3?")],
        answers=["5", "6"],
    ),
    Case(
        "keys without content",
        {
            "prompt": [user(IMAGE, QUESTION, id=7, images=[])],
            "image": "red.png",
            "reason": "why",
            "tools": [],
            **ANSWERS,
        },
        ASKED,
        ["red"],
    ),
    Case(
        "messages beside a ranked list",
        {"messages": [said("Be brief.", "system"), user(IMAGE, QUESTION)], "image": "red.png", "responses": TEXTS},
        [said("Be brief.", "system"), *ASKED],
        ["red"],
    ),
    # ---- read by some ------------------------------------------------------------------------------------------------
    Case(
        "an empty answer",
        RED | {"chosen": "Red.", "rejected": ""},
        ASKED,
        ["red"],
        ["Red.", ""],
        refused={TRAIN: "it would teach nothing but length; a policy may say nothing"},
    ),
    Case(
        "one answer",
        {"prompt": QUESTION, "image": "red.png", "responses": ["Red."]},
        ASKED,
        ["red"],
        ["Red."],
        refused={TRAIN: "one answer is no pair"},
    ),
    Case(
        "equal answers",
        RED | {"chosen": "Red.", "rejected": "Red."},
        ASKED,
        ["red"],
        ["Red.", "Red."],
        refused={TRAIN: "nothing to compare"},
    ),
    Case(
        "a margin below 0",
        RED | {"margin": -1},
        ASKED,
        ["red"],
        refused={TRAIN: "scoring has no margin", SERVE: "no key of a request"},
    ),
    # ---- refused -----------------------------------------------------------------------------------------------------
    Case("a video column", ANSWERS | {"prompt": QUESTION, "video": "a.mp4"}),
    Case("audio beside an image", RED | {"audio": "a.wav"}),
    Case("an image under another name", ANSWERS | {"prompt": QUESTION, "photo": "red.png"}),
    Case(
        "a placeholder in an answer",
        RED | {"chosen": "<image> Red.", "rejected": "No."},
        answers=["<image> Red.", "No."],
    ),
    Case(
        "two questions",
        {
            "prompt": "And that?",
            "chosen": [said(QUESTION, "user"), said("a")],
            "rejected": [said(QUESTION, "user"), said("b")],
        },
        answers=[[said("a")], [said("b")]],
    ),
    Case("two prompts beside a pair", ANSWERS | {"prompt": QUESTION, "messages": [said("And that?", "user")]}),
    Case(
        "two prompts beside a list", {"prompt": QUESTION, "messages": [said("And that?", "user")], "responses": TEXTS}
    ),
    Case(
        "a prompt beside another conversation",
        {
            "conversations": [{"from": "human", "value": QUESTION}],
            "prompt": "And that?",
            "chosen": {"from": "gpt", "value": "a"},
            "rejected": {"from": "gpt", "value": "b"},
        },
        answers=["a", "b"],
    ),
    Case(
        "a conversation beside a list",
        {"prompt": QUESTION, "responses": TEXTS, "conversations": [{"from": "human", "value": "And that?"}]},
    ),
    Case("tool_calls", ANSWERS | {"prompt": [user(QUESTION), said("", tool_calls=CALL), user("Well?")]}),
    Case(
        "reasoning_content",
        {"prompt": QUESTION, "chosen": [said("a", reasoning_content="why")], "rejected": [said("b")]},
        answers=[said("a", reasoning_content="why"), said("b")],
    ),
    Case("images in a message", ANSWERS | {"prompt": [user(QUESTION, images=["red.png"])]}),
    Case(
        "chosen with several turns",
        {"prompt": QUESTION, "chosen": [said("a"), said("More?", "user"), said("c")], "rejected": [said("b")]},
        answers=[[said("a"), said("More?", "user"), said("c")], "b"],
    ),
    Case("over-long", RED | {"chosen": "red " * WINDOW, "rejected": "No."}, answers=["red " * WINDOW, "No."]),
    Case("half a character", RED | {"chosen": "Red \ud83d", "rejected": "No."}, answers=["Red \ud83d", "No."]),
    Case("more placeholders than images", ANSWERS | {"prompt": "<image> or <image>?", "image": "red.png"}),
    Case(
        "a picture that no block names",
        {"prompt": [user(picture("red"), QUESTION)], "images": ["red.png", "blue.png"], **ANSWERS},
    ),
    Case("a broken picture", RED | {"image": "broken.png"}),
    Case("documents", RED | {"context": "The cup is red."}),
    Case("the assistant's turn last", ANSWERS | {"prompt": [user(IMAGE, QUESTION), said("It is")], "image": "red.png"}),
    Case("a video block", ANSWERS | {"prompt": [user({"type": "video", "video": "a.mp4"}, QUESTION)]}),
    Case("a URL", RED | {"image": "https://example.org/red.png"}),
    Case("an empty prompt", ANSWERS | {"prompt": " "}),
    Case("a tool's turn", ANSWERS | {"prompt": [user(QUESTION), said("42", "tool"), user("Well?")]}),
]
