"""The parts of a conversation, and the marks that stand for its texts when a chat template is tried."""

import re
from typing import Any

from rovrm.data.messages import text_of


def message_of(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}


def blocks_of(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if message["role"] == "user" or any(block["type"] == "image" for block in content):
        return list(content)
    return [{"type": "text", "text": text_of(content)}]


def has_text(block: dict[str, Any]) -> bool:
    return block["type"] == "text" and bool(block["text"].strip())


def kind_of(block: dict[str, Any]) -> str:
    """Of a block in a structure: image, text, or nothing (a text that is empty)."""
    return block["type"] if block["type"] == "image" or has_text(block) else ""


def marked(messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """The messages with a mark for each text, and whose texts they are."""
    roles: list[str] = []
    marked = []
    for message in messages:
        blocks = []
        for block in message["content"]:
            if has_text(block):
                block = {"type": "text", "text": mark(len(roles))}
                roles.append(message["role"])
            blocks.append(block)
        marked.append(message | {"content": blocks})
    return marked, roles


def mark(number: int) -> str:
    """Stands for a text when a template is tried: a word that no template writes or changes."""
    return f"Part{number}OfTheConversation"


def set_apart(messages: list[dict[str, Any]], pieces: list[str]) -> list[dict[str, Any]]:
    """The messages with a line break between texts that the template would write as one word: some move the images of a
    turn in front, and join what stood around them. pieces: the text around the parts, from `_structure`."""
    number = 0  # of the piece behind the part
    apart = []
    for message in messages:
        blocks = []
        for block in message["content"]:
            if has_text(block):
                number += 1
                joined = number < len(pieces) - 1 and not pieces[number]  # nothing stands between it and the next part
                if joined and not block["text"][-1].isspace():
                    block = block | {"text": block["text"] + "\n"}
            blocks.append(block)
        apart.append(message | {"content": blocks})
    return apart


def squeezed(text: str) -> str:
    """Without white space, which templates trim and add, and the empty thoughts that some put before an answer."""
    return re.sub(r"\s+", "", text).replace("<think></think>", "")
