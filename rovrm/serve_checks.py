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
from itertools import groupby
from typing import Any, NamedTuple

import PIL.Image

from rovrm.chat import HALF
from rovrm.config import ServeConfig
from rovrm.errors import UserError
from rovrm.examples import Example
from rovrm.images import FORMATS, ImageRef
from rovrm.messages import PLACEHOLDER
from rovrm.scorer import RewardScorer

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


# ---- OpenRLHF --------------------------------------------------------------------------------------------------------


class Template(NamedTuple):
    """What the model's chat template writes around a question and its answer, and for an image."""

    head: str
    middle: str
    ends: tuple[str, ...]
    image: str
    image_token: str
    special: tuple[str, ...]


def look_at_template(scorer: RewardScorer) -> Template:
    chat, tokenizer = scorer.collator.chat, scorer.collator.tokenizer

    def rendered(content: Any, images: list[ImageRef]) -> str:
        question = [{"role": "user", "content": content}]
        return chat.conversations(Example("", "", question, [ANSWERED], [0], images))[0]

    head, _, rest = rendered(ASKED, []).partition(ASKED)
    middle, _, end = rest.partition(ANSWERED)
    image = token = ""
    if scorer.collator.image_token_id >= 0:
        token = tokenizer.convert_ids_to_tokens(scorer.collator.image_token_id)
        blocks = [{"type": "image"}, {"type": "text", "text": ASKED}]
        image = rendered(blocks, [ImageRef()]).removeprefix(head).split(ASKED)[0]
    ends = tuple(text for text in (end.strip(), tokenizer.eos_token, tokenizer.pad_token, *" \n\r\t") if text)
    special = tuple(text for text in tokenizer.all_special_tokens if text not in (token, "<image>"))
    return Template(head, middle.rstrip(), ends, image, token, special)


def openrlhf_rows(
    query: list[str], prompts: list[str], images: list[None | str | list[str]] | None, template: Template
) -> list[dict[str, Any]]:
    """Rows of OpenRLHF's remote reward request (see rovrm.serve); neighbours with the same prompt and images share one.
    Raises Refusal."""
    given: list[Any] = [None] * len(query) if images is None else images
    for name, values in (("prompts", prompts), ("images", given)):
        if len(values) != len(query):
            raise Refusal(422, f"{name}: {len(values)} entries for {len(query)} of query; send one for each")
    listed = [[images] if isinstance(images, str) else images for images in given]
    cut = []
    for i, (text, prompt) in enumerate(zip(query, prompts, strict=True)):
        question, response = _cut(text, prompt, i, template)
        cut.append((_one_for_each(question, prompt, len(listed[i] or ()), i, template), response, listed[i]))
    rows = []
    for (prompt, pictures), same in groupby(enumerate(cut), lambda item: (item[1][0], item[1][2])):
        many = list(same)
        row = {"id": f"query[{many[0][0]}]", "prompt": prompt, "images": pictures}
        rows.append(row | {"responses": [response for _, (_, response, _) in many]})
    return rows


def _cut(query: str, prompt: str, i: int, template: Template) -> tuple[str, str]:
    """(question, response) without what a chat template has written around them."""
    if template.image_token:  # decoded from expanded tokens a query has hundreds of them for one image
        query, prompt = (_runs(template).sub(lambda _: template.image_token, text) for text in (query, prompt))
    if not query.startswith(prompt):
        raise Refusal(
            422, f"query[{i}] = {query[:60]!r} does not start with prompts[{i}] = {prompt[:60]!r}, so the response "
            "cannot be cut out; send prompt + response"
        )  # fmt: skip
    stop = len(query)
    while size := next((len(end) for end in template.ends if query.endswith(end, len(prompt), stop)), 0):
        stop -= size
    response = query[len(prompt) : stop].lstrip()
    bare = prompt.rstrip()
    if bare.startswith(template.head) and bare.endswith(template.middle):
        bare = bare[len(template.head) : len(bare) - len(template.middle)]
        return bare.replace(template.image, "<image>") if template.image else bare, response
    if other := next((token for token in template.special if token in prompt), None):
        raise Refusal(
            422, f"prompts[{i}] = {prompt[:60]!r} holds {other!r} and is not in this model's chat template; send the "
            "plain question, or messages to /score"
        )  # fmt: skip
    return prompt, response


def _runs(template: Template) -> re.Pattern:
    return re.compile(f"(?:{re.escape(template.image_token)})+")


def _one_for_each(question: str, prompt: str, count: int, i: int, template: Template) -> str:
    """The question with `count` placeholders where it has fewer: it has one for each run of image tokens in the prompt,
    and adjacent images, expanded, are one run. Raises Refusal where nothing tells which runs hold several images."""
    parts = question.split("<image>")
    places = len(parts) - 1
    numbered = any(PLACEHOLDER.findall(question))  # <image 2>: the text says which
    if numbered or not 0 < places < count:
        return question
    runs = _runs(template).findall(prompt) if template.image_token else []
    sizes = [len(run) // len(template.image_token) for run in runs]
    if len(sizes) != places or sum(sizes) != count:  # not one token for each image
        sizes = [count]
    if len(sizes) != places:
        raise Refusal(
            422, f"prompts[{i}] = {prompt[:60]!r} has {places} places for {count} images, and nothing tells which of "
            "them holds several; send one <image> for each image, or messages to /score"
        )  # fmt: skip
    return parts[0] + "".join("<image>" * size + part for size, part in zip(sizes, parts[1:], strict=True))
