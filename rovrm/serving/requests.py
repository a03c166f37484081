"""What `rovrm.serve` does with a request before it may wait among others: every way in which it can fail, fails here.

    checked = check([{"id": "", "prompt": "Hi", "responses": ["Yes."], "images": None}], measuring, config)

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
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import PIL.Image

from rovrm.common.errors import UserError
from rovrm.data.example import Example
from rovrm.data.images import FORMATS, ImageRef
from rovrm.model.chat import HALF
from rovrm.model.collator import RewardCollator
from rovrm.model.scorer import RewardScorer
from rovrm.settings.keys import ServeConfig

BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")
# English has 4 characters to a token: a text with more than this for each token of the limit is not even tokenised.
CHARACTERS = 32


class Refusal(UserError):
    """A request that is refused, with its HTTP status."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class CheckedRequest(NamedTuple):
    """The examples of one request, and what they cost: padded tokens, and pixels of all images."""

    examples: list[Example]
    tokens: int
    pixels: int


class EncodedImage(NamedTuple):
    content: bytes
    name: str  # in the request, as images[1]


def own_tokenizer(scorer: RewardScorer) -> RewardScorer:
    """The same model's scorer for measuring alone: with a tokenizer of its own it need not wait for a forward."""
    rows = "shared" if scorer.collator.shared else "separate"
    measuring = RewardScorer(scorer.model, copy.deepcopy(scorer.processor), rows)
    measuring.max_length, measuring.max_pixels = scorer.max_length, scorer.max_pixels
    return measuring


def check(rows: Sequence[dict[str, Any]], measuring: RewardScorer, config: ServeConfig) -> CheckedRequest:
    """The rows of a request as measured examples. What costs little is checked first.

    Args:
        rows: {id, prompt, responses, images}, images as texts or None. `id` names a row in refusals; it is "" where a
            request is one row. With `rendered` the prompt is a text that is read as it is (`Example.rendered`).
        measuring: what `own_tokenizer` made.
        config: the server's limits.

    Raises:
        Refusal: something is wrong with a row, or the request as a whole would cost too much.
    """
    images = [_encoded_images(row, config) for row in rows]
    pixels = sum(_pixels_by_header(image) for of_row in images for image in of_row)
    if pixels > config.max_pixels:
        raise Refusal(413, f"images of {pixels} pixels together, more than max_pixels={config.max_pixels}; shrink them")
    characters = sum(len(text) for row in rows for text in (str(row["prompt"]), *row["responses"]))
    if characters > CHARACTERS * config.max_tokens:
        raise _too_costly(f"{characters} characters", config)
    examples: list[Example] = []
    tokens = 0
    for row, of_row in zip(rows, images, strict=True):
        example = _measured_row(row, of_row, measuring)
        tokens += _tokens(example, measuring.collator, config.batch_tokens)
        if tokens > config.max_tokens:
            raise _too_costly(f"{tokens} tokens or more", config)
        examples.append(example)
    return CheckedRequest(examples, tokens, pixels)


def _tokens(example: Example, collator: RewardCollator, batch_tokens: int) -> int:
    """What an example takes of batches; of one that is scored in parts, the sum."""
    prefix, responses = example.lengths  # type: ignore[misc]
    groups = collator.split((prefix, responses), batch_tokens)
    return sum(collator.cost((prefix, [responses[j] for j in group])).tokens for group in groups)


def _too_costly(size: str, config: ServeConfig) -> Refusal:
    """The one scoring thread would be held by this request, and every other would wait."""
    return Refusal(
        413,
        f"conversations of {size} together, max_tokens={config.max_tokens}; send fewer or shorter ones at once, or "
        "start the server with a larger max_tokens",
    )


# ---- rows ------------------------------------------------------------------------------------------------------------


def _measured_row(row: dict[str, Any], images: list[EncodedImage], measuring: RewardScorer) -> Example:
    """A row as an example with its lengths in tokens; its images stay encoded until they are scored."""
    prompt = json.dumps(row["prompt"], ensure_ascii=False)
    for text in (prompt, *row["responses"]):
        if half := HALF.search(text):
            raise Refusal(422, f"{_row_name(row)}{text[:60]!r} holds {half[0]!r}, half a character; send whole ones")
    longest, limit = max(row["responses"], key=len), measuring.max_length or sys.maxsize
    size = len(prompt) + len(longest)
    if size > CHARACTERS * limit:
        problem = f"a conversation of {size} characters cannot fit into max_length={limit} tokens"
        raise Refusal(422, f"{_row_name(row)}{problem}; shorten prompt or response")

    # Requests wait with their images encoded, since a decoded one takes up to 100 times the memory: what is decoded
    # here is looked at, measured and dropped.
    encoded_ref = {}
    for image in images:
        decoded_ref = ImageRef(image=_decode(image.content, image.name))
        encoded_ref[decoded_ref] = ImageRef(drawing=partial(_decode, image.content))
    row = row | {"images": list(encoded_ref)}
    if size > limit and len(row["responses"]) > 1:
        # A long prompt with 64 responses takes minutes and gigabytes to tokenise: the longest conversation goes first.
        _measure_row(row | {"responses": [longest]}, measuring)
    example = _measure_row(row, measuring)
    return replace(example, images=[encoded_ref[ref] for ref in example.images])  # the prompt may have reordered them


def _measure_row(row: dict[str, Any], measuring: RewardScorer) -> Example:
    given: Any = row
    if row.get("rendered"):
        ranks = [0] * len(row["responses"])
        given = Example(row["id"], "", [], row["responses"], ranks, row["images"], rendered=row["prompt"])
    [example] = measuring.measure([given], _no_path)
    if isinstance(example, UserError):
        raise Refusal(422, _row_name(row) + str(example).removeprefix(f"example {row['id']}: "))
    return example


def _no_path(name: str) -> str:
    raise UserError(f"an image inside the prompt, {name[:80]!r}; send it under `images`")


def _row_name(row: dict[str, Any]) -> str:
    """What a refusal begins with where a request has several rows."""
    return f"{row['id']}: " if row["id"] else ""


# ---- images ----------------------------------------------------------------------------------------------------------


def _encoded_images(row: dict[str, Any], config: ServeConfig) -> list[EncodedImage]:
    """A row's images with their names in the request: images[1], or images[3][1] of the fourth row."""
    prefix = row["id"].replace("query", "images") or "images"
    images = []
    for i, value in enumerate(row["images"] or []):
        name = f"{prefix}[{i}]"
        images.append(EncodedImage(_content(value, f"{name} = {value[:80]!r}", config), name))
    return images


def _content(value: str, shown: str, config: ServeConfig) -> bytes:
    """The bytes of an image given as base64, as a data URI, or as a path under image_root. shown: for refusals."""
    if value.startswith("data:"):
        head, _, text = value.partition(",")
        if not head.endswith(";base64"):
            raise Refusal(415, f"{shown}: a data URI that is not base64; write data:image/png;base64,...")
        return _from_base64(text, shown)
    if "://" in value:
        raise Refusal(422, f"{shown}: URLs are not fetched; send the image as base64")
    if BASE64.fullmatch("".join(value.split())):  # a path ends in a suffix, whose dot is no base64
        return _from_base64(value, shown)
    return _from_file(value, shown, config)


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
        # Checked before whether the file exists, so that nothing about files outside can be found out.
        if os.path.isabs(value) or ".." in value.split("/") or os.path.commonpath([root, path]) != root:
            raise Refusal(422, f"{shown}: a path must stay inside image_root; give one relative to it")
        if not os.path.isfile(path):
            raise Refusal(422, f"{shown}: no such file under image_root; mend the path or send base64")
        with open(path, "rb") as file:
            content = file.read(config.max_body + 1)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise Refusal(422, f"{shown}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if len(content) > config.max_body:
        raise Refusal(413, f"{shown}: a file of more than max_body={config.max_body} bytes; shrink it")
    return content


def _pixels_by_header(image: EncodedImage) -> int:
    """The pixels that the header promises: nothing is decoded."""
    try:
        with PIL.Image.open(io.BytesIO(image.content), formats=FORMATS) as opened:
            return opened.width * opened.height
    except PIL.Image.DecompressionBombError as error:
        raise Refusal(413, f"{image.name}: {error}; shrink it") from None
    except Exception as error:  # decoders have no common class of errors
        reason = "" if isinstance(error, PIL.UnidentifiedImageError) else f" ({type(error).__name__}: {error})"
        raise Refusal(
            415,
            f"{image.name}: {len(image.content)} bytes that are no image in a format read here{reason}; takes "
            f"{', '.join(FORMATS)}",
        ) from None


def _decode(content: bytes, name: str = "image") -> PIL.Image.Image:
    try:
        return ImageRef(image=PIL.Image.open(io.BytesIO(content), formats=FORMATS)).open()
    except Exception as error:  # decoders have no common class of errors
        raise Refusal(415, f"{name}: cannot be decoded ({error.__cause__ or error}); send the whole file") from None
