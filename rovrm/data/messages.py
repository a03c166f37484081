"""Chat messages, images and captions out of the many ways in which data sets write them.

    to_messages("<image>\nWhat is this?")   # [{"role": "user", "content": [{"type": "image"}, {"type": "text", ...}]}]

Everything here raises BadRow, which stands for one row that cannot be read.
"""

import ast
import dataclasses
import json
import os
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import PIL.Image

from rovrm.common.errors import UserError, described, one_line, shown
from rovrm.data.images import ImageRef

IMAGE_COLUMNS = ("images", "image", "img_path", "image_path")
IMAGE_NAMES = IMAGE_COLUMNS[2:]  # beside another image column they only name its image
IMAGE_SUFFIXES = tuple(".jpg .jpeg .png .webp .gif .bmp .tif .tiff .ppm .pgm .jp2 .avif".split())
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
MOST_IMAGES = 999_999  # that a placeholder may count
LITERAL = 100_000  # characters of a Python literal that is read: beyond, Python takes seconds
PLACEHOLDER = re.compile(r"<image(?:[ _]?(\d+))?>")


class BadRow(Exception):
    """A row that cannot be read: which field, its value, and why, with the remedy. The row is counted and skipped."""

    def __init__(self, field: str, value: Any, reason: str):
        super().__init__(one_line(f"{field} = {shown(value)!r}: {reason}"))
        self.field, self.value, self.reason = field, value, reason


@contextmanager
def fence(where: str) -> Iterator[None]:
    """Around the reading of one row of which a command wants all: what is raised inside, whatever it is, becomes a
    UserError that begins with `where`. Where bad rows are counted, `readers.read_row` is the fence."""
    try:
        yield
    except (BadRow, UserError) as error:
        raise UserError(f"{where}: {error}") from error
    except Exception as error:  # a row may hold anything anywhere
        raise UserError(f"{where}: cannot be read ({described(error)}); mend or delete the row") from error


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
    for part in (block["text"] for block in content if block["type"] == "text" and block["text"]):
        text += ("\n" if text and not text[-1].isspace() and not part[0].isspace() else "") + part
    return text


def parse_content(content: Any, field: str) -> str | list[dict[str, Any]]:
    """A message's content with `<image>` and `<image N>` as image blocks in place; a string where there is no image."""
    if content is not None and not isinstance(content, Iterable):
        raise BadRow(field, content, "content is a string or a list of blocks; mend the row")
    parts = [content] if isinstance(content, (str, Mapping)) or content is None else list(content)
    blocks = [block for part in parts for block in _parse_part(part, field)]
    return blocks if any(block["type"] == "image" for block in blocks) else text_of(blocks)


def _parse_part(part: Any, field: str) -> list[dict[str, Any]]:
    if isinstance(part, str):
        return _split_placeholders(part, field)
    if not isinstance(part, Mapping):
        raise BadRow(field, part, "content is a string or a list of blocks; mend the row")
    kind = part.get("type") or ("text" if part.get("text") is not None else None)
    if kind == "text" and isinstance(part.get("text"), str):
        return _split_placeholders(part["text"], field)
    if kind in ("image", "image_url"):
        value = next((part[key] for key in ("image", "image_url", "url", "path") if part.get(key) is not None), None)
        value = value.get("url", value) if isinstance(value, Mapping) else value
        return [{"type": "image"} if value is None else {"type": "image", "image": value}]
    raise BadRow(field, part, f"content block of type {kind!r}; only text and image can be scored, drop the row")


def _split_placeholders(text: str, field: str) -> list[dict[str, Any]]:
    if "<video>" in text:
        raise BadRow(field, text, "<video>: video cannot be scored, only images; drop the row")
    blocks: list[dict[str, Any]] = []
    parts = PLACEHOLDER.split(text)
    for i, part in enumerate(parts):
        if i % 2:  # the group of a match: the number, or None
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


def parsed(value: Any, field: str) -> Any:
    """JSON, or the Python literal that str() makes of it, when a list or dict is stored as a string."""
    if not isinstance(value, str):
        return value
    for parse in (json.loads, ast.literal_eval)[: 2 if len(value) <= LITERAL else 1]:
        try:
            return parse(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    beyond = f" (of {len(value)} characters, too many to be tried as Python)" if len(value) > LITERAL else ""
    raise BadRow(field, value, f"a text that should hold a JSON value does not{beyond}; mend the row")


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
    """One block per image, and the images in the order of their blocks. Those without lead the first user's text."""
    order: list[int] = []
    placed: list[dict[str, Any]] = []
    before = plain = 0  # images placed before the first user message, and placeholders without a number so far
    first = next((i for i, message in enumerate(messages) if message["role"] == "user"), None)
    if first is None:
        raise BadRow("prompt", messages, "it has no message by the user; mend the row")
    for i, message in enumerate(messages):
        before = len(order) if i == first else before
        blocks = message["content"] if isinstance(message["content"], list) else []
        for number in [block.get("number") for block in blocks if block["type"] == "image"]:
            plain += number is None
            order.append((plain if number is None else number) - 1)
        clean = [{"type": "image"} if block["type"] == "image" else block for block in blocks]
        placed.append(message | {"content": clean or message["content"]})
    if order and not 0 <= min(order) <= max(order) < len(images):
        have = f"asks for image {max(order) + 1}, but the row has {len(images)}"
        raise BadRow("prompt", text_of(messages[first]["content"]), f"{have}; give the images or drop the placeholder")
    extra = [i for i in range(len(images)) if i not in order]
    if extra:
        content = placed[first]["content"]
        blocks = content if isinstance(content, list) else [{"type": "text", "text": content}]
        placed[first]["content"] = [{"type": "image"} for _ in extra] + blocks
    return placed, [images[i] for i in (*order[:before], *extra, *order[before:])]


# ---- a row's images and captions -------------------------------------------------------------------------------------


def captions_of(row: Mapping[str, Any]) -> list[str]:
    value = row.get("caption")
    captions = [value] if isinstance(value, str) else value or []
    if not isinstance(captions, Sequence) or not all(isinstance(caption, str) for caption in captions):
        raise BadRow("caption", value, "takes a text or a list of texts; mend the row")
    return [caption for caption in captions if caption.strip()]


def pick_caption(captions: Sequence[str], best: Iterable[str]) -> str | None:
    """The first caption that is not one of the best answers; the first of all when every one is; None for none."""
    if not captions:
        return None
    leaks = {normalise(answer) for answer in best}
    return next((caption for caption in captions if normalise(caption) not in leaks), captions[0])


def images_of(row: Mapping[str, Any], messages: list[dict[str, Any]], find: Callable[[str], str]) -> list[ImageRef]:
    """The row's images; without a column of them those that content blocks carry."""
    column = image_column(row)
    if column is None:
        blocks = [block for m in messages if isinstance(m["content"], list) for block in m["content"]]
        column, value = "prompt", [block["image"] for block in blocks if block.get("image") is not None]
    else:
        value = row[column]
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    # An embedded image is known to caption files by the path that stands beside it.
    beside = next((row[name] for name in reversed(IMAGE_NAMES) if isinstance(row.get(name), str)), None)
    return [_ref(item, column, find, beside if len(values) == 1 else None) for item in values]


def image_column(row: Mapping[str, Any]) -> str | None:
    """The column that holds the row's images: the first of IMAGE_COLUMNS that is neither null nor an empty list."""
    return next((name for name in IMAGE_COLUMNS if not _empty(row.get(name))), None)


def _empty(value: Any) -> bool:
    return value is None or (isinstance(value, (list, tuple)) and not value)


def unread_image(
    row: Mapping[str, Any], read: Collection[str], images: Sequence[ImageRef], find: Callable[[str], str]
) -> str | None:
    """The first column with an image that is not one of `images`, those that were read; it would be dropped in silence.

    An image: what `is_image` takes, or a text that ends like an image file and by which `find` finds one. read: columns
    of texts, not looked at.
    """
    taken = image_column(row)
    for column, value in row.items():
        if column in read or column == taken:
            continue
        for item in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(item, str):
                other = column not in IMAGE_NAMES and _names_another(item, images, find)
            else:
                ref = ImageRef(image=item) if isinstance(item, PIL.Image.Image) else item
                other = is_image(item) and ref not in images
            if other:
                return column
    return None


def is_image(cell: Any) -> bool:
    """Whether a cell is an image itself: in memory, in a data set, or the {"bytes", "path"} that data sets store."""
    if isinstance(cell, Mapping):
        return {"bytes", "path"} <= cell.keys() and (cell["bytes"] is not None or cell["path"] is not None)
    return isinstance(cell, (ImageRef, PIL.Image.Image))


def _names_another(text: str, images: Sequence[ImageRef], find: Callable[[str], str]) -> bool:
    """Whether a text is the path of an image file that is not one of `images`."""
    if not text[-5:].lower().endswith(IMAGE_SUFFIXES):
        return False
    try:
        path = find(text)
    except UserError:
        return False
    if not os.path.isfile(path):  # in the caption phase names are taken unseen
        return False
    files = {os.path.realpath(ref.path) for ref in images if ref.path is not None}
    embedded = {os.path.basename(ref.name) for ref in images if ref.path is None}
    return os.path.realpath(path) not in files and os.path.basename(text) not in embedded


def _ref(value: Any, column: str, find: Callable[[str], str], label: str | None) -> ImageRef:
    if isinstance(value, ImageRef):
        return dataclasses.replace(value, label=label) if label and value.label is None else value
    if isinstance(value, PIL.Image.Image):
        return ImageRef(image=value, label=label)
    if isinstance(value, Mapping) and value.get("bytes") is None:
        value = value.get("path")
    if isinstance(value, str) and not value.strip():
        raise BadRow(column, value, "the name is empty; give a path, or null for a row without an image")
    if not isinstance(value, str):
        raise BadRow(column, value, "an image is a path, or embedded in a data set; give one of them, or null for none")
    try:
        return ImageRef(path=find(value), label=value)
    except UserError as error:
        raise BadRow(column, value, str(error)) from error
