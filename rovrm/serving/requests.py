"""What `rovrm.serve` does with a request before it may wait among others: every way in which it can fail, fails here.

Images are found, bounded by their headers, decoded; prompts and responses are measured against the model's limit.
Whatever passes is an Example that the scorer takes. Needs no HTTP: refusals are exceptions with a status.
"""

import base64
import binascii
import copy
import io
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import PIL.Image

from rovrm.common.errors import UserError
from rovrm.data.example import Example
from rovrm.data.images import FORMATS, ImageRef
from rovrm.model.chat import HALF
from rovrm.model.scorer import RewardScorer
from rovrm.settings.keys import ServeConfig

BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")
# English has 4 characters to a token: a text with more than this for each token of the limit is not even tokenised.
CHARACTERS = 32
ASKED, ANSWERED = "QUESTIONOFTHEUSER", "ANSWEROFTHEMODEL"  # stand for the texts when a chat template is looked at


class Refusal(UserError):
    """A request that is refused, with its HTTP status."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class Checked(NamedTuple):
    """The examples of one request, and what they cost."""

    examples: list[Example]
    tokens: int
    pixels: int


# ---- rows ------------------------------------------------------------------------------------------------------------


def own_tokenizer(scorer: RewardScorer, batch_tokens: int) -> RewardScorer:
    """The same model's scorer for measuring alone: with a tokenizer of its own it need not wait for a forward."""
    rows = "shared" if scorer.collator.shared else "separate"
    twin = RewardScorer(scorer.model, copy.deepcopy(scorer.processor), rows)
    twin.max_length, twin.max_pixels, twin.collator.row_tokens = scorer.max_length, scorer.max_pixels, batch_tokens
    return twin


def check(rows: Sequence[dict[str, Any]], measuring: RewardScorer, config: ServeConfig) -> Checked:
    """Rows {id, prompt, responses, images} as measured examples, images as texts or None. `id` names a row in refusals,
    "" where a request is one row. Raises Refusal."""
    found = [[_bytes(value, name, config) for value, name in _named(row)] for row in rows]
    pixels = sum(_pixels(data, name) for row, many in zip(rows, found, strict=True) for data, name in many)
    if pixels > config.max_pixels:
        raise Refusal(413, f"images of {pixels} pixels together, more than max_pixels={config.max_pixels}; shrink them")
    characters = sum(len(text) for row in rows for text in (str(row["prompt"]), *row["responses"]))
    if characters > CHARACTERS * config.max_tokens:
        raise _too_costly(f"{characters} characters", config)
    examples, tokens = [], 0
    for row, many in zip(rows, found, strict=True):
        examples.append(_measured(row, many, measuring))
        count, longest = measuring.collator.cost(examples[-1].lengths)  # type: ignore[arg-type]
        tokens += count * longest
        if tokens > config.max_tokens:
            raise _too_costly(f"{tokens} tokens or more", config)
    return Checked(examples, tokens, pixels)


def _too_costly(what: str, config: ServeConfig) -> Refusal:
    """The one scoring thread would be held by this request, and every other would wait."""
    return Refusal(
        413, f"conversations of {what} together, max_tokens={config.max_tokens}; send fewer or shorter ones at once, "
        "or start the server with a larger max_tokens"
    )  # fmt: skip


def _named(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """A row's images with their names in the request: images[1], or images[3][1] of the fourth row."""
    where = row["id"].replace("query", "images")
    for i, value in enumerate(row["images"] or []):
        yield value, f"{where or 'images'}[{i}]"


def _measured(row: dict[str, Any], images: list[tuple[bytes, str]], measuring: RewardScorer) -> Example:
    prompt = json.dumps(row["prompt"], ensure_ascii=False)
    for text in (prompt, *row["responses"]):
        if half := HALF.search(text):
            raise Refusal(422, f"{_of(row)}{text[:60]!r} holds {half[0]!r}, half a character; send whole ones")
    longest, limit = max(row["responses"], key=len), measuring.max_length or sys.maxsize
    size = len(prompt) + len(longest)
    if size > CHARACTERS * limit:
        told = f"a conversation of {size} characters cannot fit into max_length={limit} tokens"
        raise Refusal(422, f"{_of(row)}{told}; shorten prompt or response")
    # Requests wait with their images encoded, since a decoded one takes up to 100 times the memory: what is decoded
    # here is looked at, measured and dropped.
    waiting = {ImageRef(image=_decoded(data, name)): ImageRef(drawing=partial(_decoded, data)) for data, name in images}
    row = row | {"images": list(waiting)}
    if size > limit and len(row["responses"]) > 1:
        # A long prompt with 64 responses takes minutes and gigabytes to tokenise: the longest conversation goes first.
        _measure(row | {"responses": [longest]}, measuring)
    example = _measure(row, measuring)
    return replace(example, images=[waiting[ref] for ref in example.images])


def _measure(row: dict[str, Any], measuring: RewardScorer) -> Example:
    [example] = measuring.measure([row], _no_path)
    if isinstance(example, UserError):
        raise Refusal(422, _of(row) + str(example).removeprefix(f"example {row['id']}: "))
    return example


def _of(row: dict[str, Any]) -> str:
    return f"{row['id']}: " if row["id"] else ""


def _no_path(name: str) -> str:
    raise UserError(f"an image inside the prompt, {name[:80]!r}; send it under `images`")


# ---- images ----------------------------------------------------------------------------------------------------------


def _bytes(value: str, name: str, config: ServeConfig) -> tuple[bytes, str]:
    """(content, name) of an image given as base64, as a data URI, or as a path under image_root."""
    shown = f"{name} = {value[:80]!r}"
    if value.startswith("data:"):
        head, _, text = value.partition(",")
        if not head.endswith(";base64"):
            raise Refusal(415, f"{shown}: a data URI that is not base64; write data:image/png;base64,...")
        return _from_base64(text, shown), name
    if "://" in value:
        raise Refusal(422, f"{shown}: URLs are not fetched; send the image as base64")
    if BASE64.fullmatch("".join(value.split())):
        return _from_base64(value, shown), name
    return _from_file(value, shown, config), name


def _from_base64(text: str, shown: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refusal(415, f"{shown}: is no whole base64 ({error}); send the image's bytes as base64") from None


def _from_file(value: str, shown: str, config: ServeConfig) -> bytes:
    if not config.image_root:
        raise Refusal(422, f"{shown}: is no base64, and paths are taken only with image_root=FOLDER; send base64")
    root = os.path.realpath(config.image_root)
    try:
        path = os.path.realpath(os.path.join(root, value))
        # Looked at before whether the file exists, so that nothing outside can be found out.
        if os.path.isabs(value) or ".." in value.split("/") or os.path.commonpath([root, path]) != root:
            raise Refusal(422, f"{shown}: a path must stay inside image_root; give one relative to it")
        if not os.path.isfile(path):
            raise Refusal(422, f"{shown}: no such file under image_root; mend the path or send base64")
        with open(path, "rb") as file:
            data = file.read(config.max_body + 1)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise Refusal(422, f"{shown}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if len(data) > config.max_body:
        raise Refusal(413, f"{shown}: a file of more than max_body={config.max_body} bytes; shrink it")
    return data


def _pixels(data: bytes, name: str) -> int:
    """Pixels as the header has them: nothing is decoded."""
    try:
        with PIL.Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.width * image.height
    except PIL.Image.DecompressionBombError as error:
        raise Refusal(413, f"{name}: {error}; shrink it") from None
    except Exception as error:  # decoders have no common class of errors
        reason = "" if isinstance(error, PIL.UnidentifiedImageError) else f" ({type(error).__name__}: {error})"
        raise Refusal(
            415,
            f"{name}: {len(data)} bytes that are no image in a format read here{reason}; takes {', '.join(FORMATS)}",
        ) from None


def _decoded(data: bytes, name: str = "image") -> PIL.Image.Image:
    try:
        return ImageRef(image=PIL.Image.open(io.BytesIO(data), formats=FORMATS)).open()
    except Exception as error:  # decoders have no common class of errors
        raise Refusal(415, f"{name}: cannot be decoded ({error.__cause__ or error}); send the whole file") from None
