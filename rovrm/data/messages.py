r"""Chat messages out of the many ways in which data sets write prompts, contents and answers.

    to_messages("<image>\nWhat is this?")   # [{"role": "user", "content": [{"type": "image"}, {"type": "text", ...}]}]

A message is `{"role": "system" | "user" | "assistant", "content": ...}`. Its content is a string, or a list of blocks
`{"type": "text", "text": ...}` and `{"type": "image"}` where images stand in it. What cannot be read raises BadRow.
"""

import ast
import itertools
import json
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from rovrm.data.bad_rows import BadRow
from rovrm.data.images import ImageRef

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
NO_ANSWERERS = {"human", "user", "system", "developer", "tool", "function"}
MOST_IMAGES = 999_999  # that a placeholder may count
LITERAL = 100_000  # characters of a Python literal that is read: beyond, Python takes seconds
PLACEHOLDER = re.compile(r"<image(?:[ _]?(\d+))?>")
# What a message, a content block and the dict of an image's address are read by.
MESSAGE_KEYS = {"role", "from", "content", "value"}
PICTURE_KEYS = ("image", "image_url", "url", "path")
ADDRESS_KEYS = {"url", "path", "bytes", "detail"}  # detail: OpenAI's wish for a resolution
NO_CONTENT = {"id", "loss", "weight", "cache_control"}  # what other tools keep there; no word of it is said to a model


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
    text, behind_image = "", False
    for block in content:
        part = block["text"] if block["type"] == "text" else ""
        part = part.lstrip("\n") if behind_image else part
        behind_image = block["type"] == "image"
        if not part:
            continue
        apart = text and not text[-1].isspace() and not part[0].isspace()
        text += f"\n{part}" if apart else part
    return text


def without_breaks(messages: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages of blocks without the line breaks behind images, for a chat template that writes them itself."""
    without = []
    for message in messages:
        blocks: list[dict[str, Any]] = []
        for block in message["content"]:
            if blocks and blocks[-1]["type"] == "image" and block["type"] == "text":
                block = block | {"text": block["text"].lstrip("\n")}
            if block["type"] == "image" or block["text"]:
                blocks.append(block)
        without.append(message | {"content": blocks})
    return without


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
    if kind == "text":
        check_keys(part, {"type", "text"}, field, "a text block")
        if isinstance(part.get("text"), str):
            return _split_placeholders(part["text"], field)
    if kind in ("image", "image_url"):
        return [_image_block(part, field)]
    raise BadRow(field, part, f"content block of type {kind!r}; only text and image can be scored, drop the row")


def _image_block(part: Mapping[str, Any], field: str) -> dict[str, Any]:
    """An image block, with its `image`, or its `number` where it has an `index` (from 0)."""
    check_keys(part, {"type", "index", *PICTURE_KEYS}, field, "an image block")
    images = [part[key] for key in PICTURE_KEYS if not is_empty(part.get(key))]
    if len(images) > 1:
        raise BadRow(field, part, "an image block that names two pictures; leave one")
    index = part.get("index")
    if index is not None and (isinstance(index, bool) or not isinstance(index, int) or index < 0 or images):
        raise BadRow(
            f"{field}: index", index, "takes the number of a picture, from 0, and no picture beside it; mend it"
        )
    if index is not None:
        return {"type": "image", "number": index + 1}
    if not images:
        return {"type": "image"}
    [image] = images
    if isinstance(image, Mapping):  # OpenAI's {"image_url": {"url": ...}}
        check_keys(image, ADDRESS_KEYS, field, "the address of an image")
        image = image if image.get("url") is None else image["url"]
    return {"type": "image", "image": image}


def is_empty(value: Any) -> bool:
    """Whether a cell or a value carries nothing: null, and empty texts and lists. Others, as tensors, are not asked."""
    return value is None or (isinstance(value, (str, list, tuple, dict)) and not value)


def check_keys(values: Mapping[str, Any], read: Collection[str], field: str, what: str) -> None:
    """Raises BadRow for a key that is not read and has a value: its content would be dropped in silence."""
    for key, value in values.items():
        if key not in read and key not in NO_CONTENT and not is_empty(value):
            reason = f"a key of {what} that is not read; put what it says into the text, or remove it"
            raise BadRow(f"{field}: {key}", value, reason)


def _split_placeholders(text: str, field: str) -> list[dict[str, Any]]:
    for media in ("video", "audio"):
        if f"<{media}>" in text:
            raise BadRow(field, text, f"<{media}>: {media} cannot be scored, only images; drop the row")
    blocks: list[dict[str, Any]] = []
    parts = PLACEHOLDER.split(text)  # text, number or None, text, number or None, ..., text
    for i, part in enumerate(parts):
        if i % 2:
            blocks.append({"type": "image"} if part is None else {"type": "image", "number": _number(part, field)})
            continue
        # A line break behind a placeholder stays, for chat templates that write none of their own; one in front of it
        # only sets the image apart, which its block does.
        if 0 < i < len(parts) - 1:
            part = part.rstrip("\n") or part[:1]
        elif len(parts) > 1:
            part = part.rstrip("\n") if i else part.strip("\n")
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
    check_keys(message, MESSAGE_KEYS, field, "a message")
    role = _either(message, "role", "from", field)
    if not isinstance(role, str) or role not in ROLES:
        raise BadRow(field, role, f"unknown role; takes {', '.join(ROLES)}")
    return {"role": ROLES[role], "content": parse_content(_either(message, "content", "value", field), field)}


def _either(message: Mapping[str, Any], name: str, other: str, field: str) -> Any:
    """The value under either name. Raises BadRow where there are two that differ."""
    value, second = message.get(name), message.get(other)
    if not is_empty(value) and not is_empty(second) and value != second:
        raise BadRow(field, message, f"a message with two values, {name} and {other}; leave one of them")
    return second if value is None else value


def response_text(response: Any) -> str:
    """The text of an answer given as a string, one message, or a list with one message. A placeholder in it is refused:
    whether it is an image token depends on the model, and no answer has a picture."""
    text = _answer(response)
    if place := PLACEHOLDER.search(text):
        reason = f"{place[0]!r} stands for an image, and an answer holds text only; remove it or drop the row"
        raise BadRow("responses", text[max(place.start() - 80, 0) :], reason)
    return text


def _answer(response: Any) -> str:
    if isinstance(response, str):
        return response
    if isinstance(response, Sequence) and len(response) == 1:
        response = response[0]
    if not isinstance(response, Mapping):
        raise BadRow("responses", response, "an answer is a text or one message; drop the row")
    check_keys(response, MESSAGE_KEYS, "responses", "an answer")
    role = _either(response, "role", "from", "responses")
    if isinstance(role, str) and role in NO_ANSWERERS:  # a data set may name the model here
        raise BadRow("responses", role, "an answer is by the assistant; mend the role or drop the row")
    content = _either(response, "content", "value", "responses")
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or not all(map(_is_text, content)):
        raise BadRow("responses", response, "an answer holds text only; drop the row")
    return text_of([{"type": "text", "text": block.get("text") or ""} for block in content])


def _is_text(block: Any) -> bool:
    """Whether a content block is a text, or one without any."""
    if not isinstance(block, Mapping) or block.get("type", "text") != "text":
        return False
    check_keys(block, {"type", "text"}, "responses", "a text block")
    return isinstance(block.get("text"), str | None)


def image_blocks(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The image blocks of messages, in order."""
    contents = [message["content"] for message in messages if isinstance(message["content"], list)]
    return [block for content in contents for block in content if block["type"] == "image"]


def place_images(messages: list[dict[str, Any]], images: list[ImageRef]) -> tuple[list[dict[str, Any]], list[ImageRef]]:
    """Messages with one image block per image, and the images in the order of their blocks.

    A placeholder with a number stands for that image, those without stand in turn for the images that no number stands
    for. Images without a placeholder get blocks that lead the first user's message.
    """
    first_user = next((i for i, message in enumerate(messages) if message["role"] == "user"), None)
    if first_user is None:
        raise BadRow("prompt", messages, "it has no message by the user; mend the row")
    order: list[int] = []  # of the images, by the blocks that there are
    placed: list[dict[str, Any]] = []
    before = 0  # blocks in front of the first user's message, where a system message has images
    numbers = {block.get("number") for block in image_blocks(messages)}
    unnumbered = (number for number in itertools.count(1) if number not in numbers)
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
                number = next(unnumbered)
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
