r"""Chat messages out of the many ways in which data sets write prompts, contents and answers.

    to_messages("<image>\nWhat is this?")   # [{"role": "user", "content": [{"type": "image"}, {"type": "text", ...}]}]

A message is `{"role": "system" | "user" | "assistant", "content": ...}`. Its content is a string, or a list of blocks
`{"type": "text", "text": ...}` and `{"type": "image"}` where images stand in it. What cannot be read raises BadRow.
"""

import ast
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rovrm.data.bad_rows import BadRow
from rovrm.data.images import ImageRef

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
MOST_IMAGES = 999_999  # that a placeholder may count
LITERAL = 100_000  # characters of a Python literal that is read: beyond, Python takes seconds
PLACEHOLDER = re.compile(r"<image(?:[ _]?(\d+))?>")


# ---- text ------------------------------------------------------------------------------------------------------------


def normalise(text: str) -> str:
    """Case folded, punctuation removed, white space collapsed: how answers, captions and prompts are compared."""
    return " ".join(text.casefold().translate(_PUNCTUATION).split())


def is_blank(text: str) -> bool:
    """Whether nothing in a text can be seen: white space, control characters and marks of format (zero width) alone."""
    return all(character.isspace() or unicodedata.category(character) in ("Cc", "Cf") for character in text)


class _Punctuation(dict[int, int | None]):
    """For str.translate: removes punctuation, looking each character up once."""

    def __missing__(self, code: int) -> int | None:
        self[code] = None if unicodedata.category(chr(code)).startswith("P") else code
        return self[code]


_PUNCTUATION = _Punctuation()


def text_of(content: str | Sequence[Mapping[str, Any]]) -> str:
    """The text of a message's content without its images. Parts that an image held apart get a line break."""
    if isinstance(content, str):
        return content
    text = ""
    for block in content:
        if block["type"] != "text" or not block["text"]:
            continue
        part = block["text"]
        apart = text and not text[-1].isspace() and not part[0].isspace()
        text += f"\n{part}" if apart else part
    return text


def parsed(value: Any, field: str) -> Any:
    """The value of a text that holds a list or dict, as JSON or as the Python literal that str() makes; another value
    as it is."""
    if not isinstance(value, str):
        return value
    parsers = [json.loads] if len(value) > LITERAL else [json.loads, ast.literal_eval]
    for parse in parsers:
        try:
            return parse(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    beyond = f" (of {len(value)} characters, too many to be tried as Python)" if len(value) > LITERAL else ""
    raise BadRow(field, value, f"a text that should hold a JSON value does not{beyond}; mend the row")


# ---- content ---------------------------------------------------------------------------------------------------------


def parse_content(content: Any, field: str) -> str | list[dict[str, Any]]:
    """A message's content with `<image>` and `<image N>` as image blocks in place; a string where there is no image.

    Until `place_images`, an image block may hold the `image` itself, or the `number` of its placeholder.
    """
    if content is not None and not isinstance(content, Iterable):
        raise BadRow(field, content, "content is a string or a list of blocks; mend the row")
    parts = [content] if isinstance(content, (str, Mapping)) or content is None else list(content)
    blocks = [block for part in parts for block in _parse_part(part, field)]
    return blocks if any(block["type"] == "image" for block in blocks) else text_of(blocks)


def _parse_part(part: Any, field: str) -> list[dict[str, Any]]:
    """A string, or a content block, as blocks."""
    if isinstance(part, str):
        return _split_placeholders(part, field)
    if not isinstance(part, Mapping):
        raise BadRow(field, part, "content is a string or a list of blocks; mend the row")
    kind = part.get("type") or ("text" if part.get("text") is not None else None)
    if kind == "text" and isinstance(part.get("text"), str):
        return _split_placeholders(part["text"], field)
    if kind in ("image", "image_url"):
        image = next((part[key] for key in ("image", "image_url", "url", "path") if part.get(key) is not None), None)
        if isinstance(image, Mapping):  # OpenAI's {"image_url": {"url": ...}}
            image = image.get("url", image)
        return [{"type": "image"} if image is None else {"type": "image", "image": image}]
    raise BadRow(field, part, f"content block of type {kind!r}; only text and image can be scored, drop the row")


def _split_placeholders(text: str, field: str) -> list[dict[str, Any]]:
    if "<video>" in text:
        raise BadRow(field, text, "<video>: video cannot be scored, only images; drop the row")
    blocks: list[dict[str, Any]] = []
    parts = PLACEHOLDER.split(text)  # text, number or None, text, number or None, ..., text
    for i, part in enumerate(parts):
        if i % 2:
            blocks.append({"type": "image"} if part is None else {"type": "image", "number": _number(part, field)})
            continue
        # The line break between a placeholder and its text belongs to the chat template.
        part = part.strip("\n") if len(parts) > 1 else part
        if part:
            blocks.append({"type": "text", "text": part})
    return blocks


def _number(digits: str, field: str) -> int:
    if len(digits) > len(str(MOST_IMAGES)):
        raise BadRow(field, f"<image {digits[:20]}...>", f"an image number of {len(digits)} digits; mend the row")
    return int(digits)


# ---- messages --------------------------------------------------------------------------------------------------------


def to_messages(prompt: Any, field: str = "prompt") -> list[dict[str, Any]]:
    """A string, or messages in either naming (role/content, from/value), as role/content messages."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": parse_content(prompt, field)}]
    if not isinstance(prompt, Sequence) or not prompt:
        raise BadRow(field, prompt, "a prompt is a text or a list of messages; mend the row")
    return [_message(message, field) for message in prompt]


def _message(message: Any, field: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise BadRow(field, message, "a message is {role, content} or {from, value}; mend the row")
    role = message.get("role", message.get("from"))
    if not isinstance(role, str) or role not in ROLES:
        raise BadRow(field, role, f"unknown role; takes {', '.join(ROLES)}")
    return {"role": ROLES[role], "content": parse_content(message.get("content", message.get("value")), field)}


def response_text(response: Any) -> str:
    """The text of an answer given as a string, one message, or a list with one message."""
    if isinstance(response, str):
        return response
    if isinstance(response, Sequence) and len(response) == 1:
        response = response[0]
    if not isinstance(response, Mapping):
        raise BadRow("responses", response, "an answer is a text or one message; drop the row")
    content = response.get("content", response.get("value"))
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or not all(map(_is_text, content)):
        raise BadRow("responses", response, "an answer holds text only; drop the row")
    return text_of([{"type": "text", "text": block.get("text") or ""} for block in content])


def _is_text(block: Any) -> bool:
    """Whether a content block is a text, or one without any."""
    if not isinstance(block, Mapping) or block.get("type", "text") != "text":
        return False
    return isinstance(block.get("text"), str | None)


def place_images(messages: list[dict[str, Any]], images: list[ImageRef]) -> tuple[list[dict[str, Any]], list[ImageRef]]:
    """Messages with one image block per image, and the images in the order of their blocks.

    A placeholder with a number stands for that image, those without stand for the images in turn. Images without a
    placeholder get blocks that lead the first user's message.
    """
    first_user = next((i for i, message in enumerate(messages) if message["role"] == "user"), None)
    if first_user is None:
        raise BadRow("prompt", messages, "it has no message by the user; mend the row")
    order: list[int] = []  # of the images, by the blocks that there are
    placed: list[dict[str, Any]] = []
    before = 0  # blocks in front of the first user's message, where a system message has images
    unnumbered = 0
    for i, message in enumerate(messages):
        if i == first_user:
            before = len(order)
        if not isinstance(message["content"], list):
            placed.append(dict(message))
            continue
        blocks = []
        for block in message["content"]:
            if block["type"] != "image":
                blocks.append(block)
                continue
            number = block.get("number")
            if number is None:
                unnumbered += 1
                number = unnumbered
            order.append(number - 1)
            blocks.append({"type": "image"})
        placed.append(message | {"content": blocks})
    if order and not 0 <= min(order) <= max(order) < len(images):
        have = f"asks for image {max(order) + 1}, but the row has {len(images)}"
        text = text_of(messages[first_user]["content"])
        raise BadRow("prompt", text, f"{have}; give the images or drop the placeholder")
    extra = [i for i in range(len(images)) if i not in order]
    if extra:
        content = placed[first_user]["content"]
        blocks = content if isinstance(content, list) else [{"type": "text", "text": content}]
        placed[first_user]["content"] = [{"type": "image"} for _ in extra] + blocks
    return placed, [images[i] for i in (*order[:before], *extra, *order[before:])]
