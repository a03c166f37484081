"""Prompts and responses as users write them (a text, messages, a row) to Examples, for scoring and best-of-n.

    as_example({"prompt": "What is on the table?", "responses": ["A cup.", "A dog."], "images": "photo.jpg"})

The responses stay in the row's own order, and one is enough: nothing is ranked here.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from PIL import Image

from rovrm.common.errors import UserError, described, shown
from rovrm.data.bad_rows import BadRow, fence
from rovrm.data.columns import KEPT, check_content
from rovrm.data.example import Example
from rovrm.data.formats import BEFORE_PROMPT, READERS, find_reader
from rovrm.data.images import ImageRef, find_image
from rovrm.data.pictures import image_column, unread_image
from rovrm.data.ratings import listed
from rovrm.data.reader import read_row
from rovrm.data.sources import load_rows, parse_sources

ANSWERS = ("responses", "chosen", "rejected", "response")
NO_IMAGES = {*KEPT, *ANSWERS, "candidates", "id", "source", "caption"}


# ---- rows ------------------------------------------------------------------------------------------------------------


def as_example(row: Example | Mapping[str, Any], number: int = 0, find: Callable[[str], str] = find_image) -> Example:
    """A row with prompt, responses and images as an Example, responses in their order.

    Args:
        row: a mapping as `RewardScorer.score_batch` takes it; an Example stays as it is.
        number: names a row without `id`.
        find: the name of an image -> its path.

    Raises:
        UserError: which names what is missing or refused, whatever it is.
    """
    if isinstance(row, Example):
        return row
    if not isinstance(row, Mapping):
        raise UserError(f"example {number}: needs a mapping with prompt and responses, got {type(row).__name__}")
    name = str(number) if row.get("id") is None else shown(row["id"], sys.maxsize)
    with fence(f"example {name}"):
        return _example(row, name, find)


def example_or_error(row: Any, number: int, find: Callable[[str], str]) -> Example | UserError:
    """`as_example`, with the UserError returned; a row that is a UserError already stays one."""
    if isinstance(row, UserError):
        return row
    try:
        return as_example(row, number, find)
    except UserError as error:
        return error


def _example(row: Mapping[str, Any], name: str, find: Callable[[str], str]) -> Example:
    answer_columns = [column for column in ANSWERS if row.get(column) is not None]
    for column, other in (("chosen", "rejected"), ("rejected", "chosen")):
        # Without this, one reward would be taken for that of a whole pair.
        if column in row and row[column] is None and other in answer_columns:
            raise UserError(f"{column} is null beside {other}; fill it in or leave it out")
    reader, prompt, responses = _prompt_and_responses(row, answer_columns)
    if isinstance(responses, (str, Mapping)) or not isinstance(responses, Sequence) or not responses:
        raise UserError(f"needs a list of one or more responses, got {shown(row.get('responses'), 80)}")

    # The row is written anew in the columns of the reader `ranked`, which then checks it as a training row.
    kept = KEPT if reader is None else BEFORE_PROMPT
    ranked = {column: value for column, value in row.items() if str(column).lower() in kept}
    if reader is not None:
        ranked["prompt"] = prompt
    # All images go under one name, whatever column they stand in.
    column = image_column(row)
    ranked["images"] = _pictures(None if column is None else row[column])
    example = read_row("ranked", ranked | {"responses": responses, "id": name}, find)
    if reader is not None:
        check_content(row, reader, example.prompt, responses)
    unread = unread_image(row, NO_IMAGES, example.images, find)
    if unread is not None:
        raise BadRow(unread, row[unread], "an image under a key that is not read; give all of them as `images`")
    return example


def _prompt_and_responses(row: Mapping[str, Any], answer_columns: Sequence[str]) -> tuple[str | None, Any, Any]:
    """The format, the prompt and the responses as training reads them, where a format fits the row's columns.

    Format and prompt are None for rows of scoring's own shape, whose prompt stands in `prompt` or its like: with
    `responses`, `response` or half a pair, or of columns that no format fits.
    """
    own = row["responses"] if "responses" in answer_columns else [row[column] for column in answer_columns]
    if "response" in answer_columns and isinstance(row["response"], (list, tuple)) and len(row["response"]) > 1:
        theirs = "; VL-RewardBench's query is the prompt" if "query" in row else ""
        raise BadRow("response", row["response"], f"several answers; call the column `responses`{theirs}")
    if answer_columns and set(answer_columns) != {"chosen", "rejected"}:
        return None, None, own
    try:
        return _answers_of(row)
    except UserError:  # no reader fits: what is missing is said of scoring's own columns
        return None, None, own


def _answers_of(row: Mapping[str, Any]) -> tuple[str, Any, list[Any]]:
    """Format, prompt and answers of a row in any known format, as training reads them; the answers keep their order.

    Raises UserError where no format fits its columns, BadRow where the row is not of that format's shape.
    """
    values = {column: value for column, value in row.items() if value is not None}
    reader = find_reader(values, values)
    try:
        prompt, answers, _ = READERS[reader].read(values)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise BadRow("row", row, f"not the shape of {reader} ({described(error)}); mend the row") from error
    if "completions" in READERS[reader].columns and len(answers) != len(listed(values["completions"])):
        reason = "some have no rating, and training passes them over; give those to score as `responses`"
        raise BadRow("completions", row["completions"], reason)
    return reader, prompt, answers


def _pictures(images: Any) -> list[Any]:
    """None, one image or several as a list of paths and PIL images. Raises UserError for anything else."""
    if images is None:
        return []
    pictures = list(images) if isinstance(images, (list, tuple)) else [images]
    for image in pictures:
        if not isinstance(image, (str, bytes, Mapping, os.PathLike, Image.Image, ImageRef)):
            shape = f" of shape {tuple(image.shape)}" if hasattr(image, "shape") else ""
            raise UserError(
                f"images takes a path, a PIL image or a list of them, got {type(image).__name__}{shape}; "
                "make a PIL image of it: Image.fromarray(array), or Image.open(io.BytesIO(data))"
            )
    return [os.fspath(image) if isinstance(image, os.PathLike) else image for image in pictures]


# ---- prompts as TRL gives them ---------------------------------------------------------------------------------------


def as_messages(prompt: Any) -> list[Any]:
    """A prompt as messages: a string is one by the user."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def holds_more(prompt: Any, images: Any) -> bool:
    """Whether the content blocks of a prompt's messages hold more images than these."""
    contents = [message.get("content") for message in prompt if isinstance(message, Mapping)]
    blocks = [block for content in contents if isinstance(content, (list, tuple)) for block in content]
    inside = sum(isinstance(block, Mapping) and block.get("image") is not None for block in blocks)
    if isinstance(images, (list, tuple)):
        return inside > len(images)
    return inside > (0 if images is None else 1)


# ---- files of prompts ------------------------------------------------------------------------------------------------


def load_prompts(data: Sequence[str], image_root: str) -> list[Example]:
    """The prompts of all sources as Examples with one empty response each. Raises UserError for the first bad row."""
    examples: list[Example] = []
    for source in parse_sources(data):
        rows = load_rows(source)
        for row in rows.take(range(min(len(rows), source.n or len(rows)))):
            if row.values is None:
                raise UserError(f"{row.location}: {row.problem}")
            find = partial(find_image, image_root=image_root or None, data_file=row.data_file, must_exist=False)
            prompt = {column: value for column, value in row.values.items() if column not in ANSWERS}
            values = {"id": f"{row.stem}-{row.number}"} | prompt | {"responses": [""]}
            examples.append(as_example(values, row.number, find))
    check_images(examples)
    # Results are written by id, and candidates joined by it.
    names = [example.id for example in examples]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"data: two prompts have the id {twice!r}; give every row its own id")
    # Prompts with and without images cannot be sampled in one batch.
    bare = next((example.id for example in examples if not example.images), None)
    if bare is not None and any(example.images for example in examples):
        raise UserError(f"data: prompt {bare!r} has no image, others have; give prompts with and without in two runs")
    return examples


def check_images(examples: Sequence[Example]) -> None:
    """Raises UserError where not one image file can be found, which is no matter of single prompts."""
    paths = [ref.path for example in examples for ref in example.images if ref.path is not None]
    if paths and not any(map(os.path.isfile, paths)):
        raise UserError(
            f"image {paths[0]}: no such file, and so with all of them; mend the paths or set image_root=FOLDER"
        )
