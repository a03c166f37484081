"""Prompts and responses as users write them (a text, messages, a row) to Examples, for scoring and best-of-n."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from PIL import Image

from rovrm.common.errors import UserError, shown
from rovrm.data.example import Example
from rovrm.data.formats import VIDEO_COLUMNS
from rovrm.data.images import ImageRef, find_image
from rovrm.data.messages import BadRow, fence, image_column, unread_image
from rovrm.data.reader import answers_of, read_row

if TYPE_CHECKING:
    from rovrm.data.example import Example


PROMPT_COLUMNS = ("prompt", "question", "instruction", "input", "system")
ANSWERS = ("responses", "chosen", "rejected", "response")
NO_IMAGES = {*PROMPT_COLUMNS, *ANSWERS, *VIDEO_COLUMNS, "candidates", "id", "source", "caption"}


# ---- rows ------------------------------------------------------------------------------------------------------------


def as_example(row: Example | Mapping[str, Any], number: int = 0, find: Callable[[str], str] = find_image) -> Example:
    """A row with prompt, responses and images as an Example, responses in their order.

    number: names a row without `id`. find: an image's name -> its path. Raises UserError naming what is missing or
    refused, whatever it is.
    """
    if isinstance(row, Example):
        return row
    if not isinstance(row, Mapping):
        raise UserError(f"example {number}: needs a mapping with prompt and responses, got {type(row).__name__}")
    name = str(number) if row.get("id") is None else shown(row["id"], sys.maxsize)
    with fence(f"example {name}"):
        return _example(row, name, find)


def _example(row: Mapping[str, Any], name: str, find: Callable[[str], str]) -> Example:
    given = [key for key in ANSWERS if row.get(key) is not None]
    for key, other in (("chosen", "rejected"), ("rejected", "chosen")):
        if key in row and row[key] is None and other in given:  # one reward would be taken for that of a whole pair
            raise UserError(f"{key} is null beside {other}; fill it in or leave it out")
    prompt, responses = _as_trained(row, given)
    if isinstance(responses, (str, Mapping)) or not isinstance(responses, Sequence) or not responses:
        raise UserError(f"needs a list of one or more responses, got {shown(row.get('responses'), 80)}")
    kept = {key: row[key] for key in PROMPT_COLUMNS if row.get(key) is not None}
    kept = kept if prompt is None else {"prompt": prompt, "system": row.get("system")}
    videos = {key: True for key in VIDEO_COLUMNS if not _empty(row.get(key))}
    column = image_column(row)
    pictures = {"images": _pictures(None if column is None else row[column])}
    example = read_row("ranked", {**kept, **videos, **pictures, "responses": responses, "id": name}, find)
    unread = unread_image(row, NO_IMAGES, example.images, find)
    if unread is not None:
        raise BadRow(unread, row[unread], "an image under a key that is not read; give all of them as `images`")
    return example


def _as_trained(row: Mapping[str, Any], given: Sequence[str]) -> tuple[Any, Any]:
    """(prompt, responses) by the reader that training has for the row's columns; (None, responses) for rows of this
    module's own: with `responses`, `response` or half a pair, or of columns that no reader fits."""
    own = row["responses"] if "responses" in given else [row[key] for key in given]
    if "response" in given and isinstance(row["response"], (list, tuple)) and len(row["response"]) > 1:
        theirs = "; VL-RewardBench's query is the prompt" if "query" in row else ""
        raise BadRow("response", row["response"], f"several answers; call the column `responses`{theirs}")
    if given and set(given) != {"chosen", "rejected"}:
        return None, own
    try:
        return answers_of(row)
    except UserError:  # no reader fits: what is missing is said of this module's own columns
        return None, own


def example_or_error(row: Any, number: int, find: Callable[[str], str]) -> Example | UserError:
    if isinstance(row, UserError):
        return row
    try:
        return as_example(row, number, find)
    except UserError as error:
        return error


def _empty(value: Any) -> bool:
    return value is None or (isinstance(value, (str, list, tuple)) and not value)


def _pictures(images: Any) -> list[Any]:
    """None, one image or several as a list of paths and PIL images. Raises UserError for anything else."""
    listed = [] if images is None else list(images) if isinstance(images, (list, tuple)) else [images]
    for image in listed:
        if not isinstance(image, (str, os.PathLike, Image.Image, ImageRef)):
            shape = f" of shape {tuple(image.shape)}" if hasattr(image, "shape") else ""
            raise UserError(
                f"images takes a path, a PIL image or a list of them, got {type(image).__name__}{shape}; "
                "make a PIL image of it: Image.fromarray(array), or Image.open(io.BytesIO(data))"
            )
    return [os.fspath(image) if isinstance(image, os.PathLike) else image for image in listed]


def as_messages(prompt: Any) -> list[Any]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def holds_more(prompt: Any, images: Any) -> bool:
    """Whether the content blocks of a prompt's messages hold more images than these."""
    contents = [message.get("content") for message in prompt if isinstance(message, Mapping)]
    blocks = [block for content in contents if isinstance(content, (list, tuple)) for block in content]
    inside = sum(isinstance(block, Mapping) and block.get("image") is not None for block in blocks)
    return inside > (len(images) if isinstance(images, (list, tuple)) else images is not None)


def load_prompts(data: Sequence[str], image_root: str) -> list["Example"]:
    """The prompts of all sources as Examples with one empty response each. Raises UserError for the first bad row."""
    from rovrm.data.images import find_image
    from rovrm.data.sources import load_rows, parse_sources

    examples: list[Example] = []
    for source in parse_sources(data):
        rows = load_rows(source)
        for row in rows.take(range(min(len(rows), source.n or len(rows)))):
            if row.values is None:
                raise UserError(f"{row.location}: {row.problem}")
            find = partial(find_image, image_root=image_root or None, data_file=row.data_file, must_exist=False)
            asked = {key: value for key, value in row.values.items() if key not in ANSWERS}
            values = {"id": f"{row.stem}-{row.number}"} | asked | {"responses": [""]}
            examples.append(as_example(values, row.number, find))
    check_images(examples)
    names = [example.id for example in examples]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"data: two prompts have the id {twice!r}; give every row its own id")
    bare = next((example.id for example in examples if not example.images), None)
    if bare is not None and any(example.images for example in examples):
        raise UserError(f"data: prompt {bare!r} has no image, others have; give prompts with and without in two runs")
    return examples


def check_images(examples: Sequence["Example"]) -> None:
    """Raises UserError where not one image file can be found, which is no matter of single prompts."""
    paths = [ref.path for example in examples for ref in example.images if ref.path is not None]
    if paths and not any(map(os.path.isfile, paths)):
        raise UserError(
            f"image {paths[0]}: no such file, and so with all of them; mend the paths or set image_root=FOLDER"
        )
