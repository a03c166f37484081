"""The reward model as a reward function of TRL's GRPO and RLOO trainers: `RewardScorer.reward`.

TRL gives flat lists, one entry per sample, in which the samples of one prompt follow each other. They are gathered into
examples again, so that a prompt and its images are encoded once for all of its samples.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

from rovrm.common.errors import UserError, shown
from rovrm.data.bad_rows import fence
from rovrm.data.columns import MEDIA
from rovrm.data.example import Example
from rovrm.data.images import ImageRef
from rovrm.data.messages import is_empty
from rovrm.data.pictures import IMAGE_SUFFIXES, is_encoded_picture, is_lost
from rovrm.data.prompts import as_example, as_messages, holds_more

logger = logging.getLogger(__name__)


def group_samples(
    prompts: Sequence[Any], completions: Sequence[Any], images: Sequence[Any] | None, columns: Mapping[str, Any]
) -> list[Example | UserError]:
    """The samples as examples, one for each run of samples with the same prompt and images; of a sample that cannot be
    read, the UserError that says why.

    Raises:
        UserError: a column holds videos, or images that are not read; or there are not as many of one as of another.
    """
    for name, values in (("completions", completions), ("images", images)):
        if values is not None and len(values) != len(prompts):
            raise UserError(f"{name}: {len(values)} for {len(prompts)} prompts; give one for each")
    cells = {name: values for name, values in columns.items() if _per_sample(values, len(prompts))}
    groups: list[Example | UserError] = []
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        beside = {name: values[i] for name, values in cells.items()}
        pictures = _pictures(None if images is None else images[i], beside)
        pictured = not is_empty(pictures) or (isinstance(prompt, (list, tuple)) and holds_more(prompt, None))
        if column := _unread(beside, pictured):
            raise UserError(
                f"{column} = {shown(beside[column], 60)} of sample {i} is a picture, video or audio that is not read, "
                "and the reward would be blind to it; call the column `images`, or drop it (only images can be scored)"
            )
        try:
            with fence(f"example {i}"):
                example = _sample(prompt, completion, pictures, i)
        except UserError as error:
            groups.append(error)
            continue
        last = groups[-1] if groups else None
        if isinstance(last, Example) and last.prompt == example.prompt and _same_images(last.images, example.images):
            last.responses += example.responses
            last.ranks += example.ranks
        else:
            groups.append(example)
    return groups


def _sample(prompt: Any, completion: Any, pictures: Any, i: int) -> Example:
    """One sample. Raises UserError for a completion that is no text, and for one with content that is not scored."""
    if prompt is None or not isinstance(completion, (str, list, tuple)):
        raise UserError("a sample has a prompt, and a completion that is a text or a list of turns")
    if not isinstance(completion, str):
        turns = list(completion)
        if not turns or turns[-1].get("role", "assistant") != "assistant":
            raise UserError("a completion that does not end with the assistant's turn has nothing to score")
        if len(turns) > 1:  # several turns: the last one is scored
            prompt = as_messages(prompt) + turns[:-1]
        completion = turns[-1:]
    pictures = None if holds_more(prompt, pictures) else pictures
    example = as_example({"prompt": prompt, "responses": [completion], "images": pictures}, i)
    example.responses = [text.lstrip() for text in example.responses]
    return example


def _per_sample(values: Any, count: int) -> bool:
    """Whether a column has a cell for each sample; TRL also gives its state and functions."""
    return isinstance(values, (list, tuple)) and len(values) == count


def _pictures(images: Any, beside: dict[str, Any]) -> Any:
    """A sample's pictures: of `images`, or of the column `image` where that is empty."""
    if is_empty(images) and "image" in beside:
        return beside.pop("image")
    return images


def _unread(beside: Mapping[str, Any], pictured: bool) -> str | None:
    """The first column that holds a video or picture which is not read; None where there is none.

    pictured: whether the sample has pictures that are read, beside which a text may name them.
    """
    for column, value in beside.items():
        cells = value if isinstance(value, (list, tuple)) else [value]
        if column in MEDIA and any(not is_empty(cell) for cell in cells):
            return column
        if any(_is_picture(column, cell, pictured) for cell in cells):
            return column
    return None


def _is_picture(column: str, cell: Any, pictured: bool) -> bool:
    if isinstance(cell, str):
        named = cell.lower().endswith(IMAGE_SUFFIXES) or is_lost(column, cell)
        return is_encoded_picture(cell) or (not pictured and named)
    if isinstance(cell, Mapping):  # as data sets store an image
        return {"bytes", "path"} <= cell.keys() and (cell["bytes"] is not None or cell["path"] is not None)
    is_array = len(getattr(cell, "shape", ())) == 3  # height, width, colours
    return is_array or isinstance(cell, (bytes, Image.Image, ImageRef))


def rewards_or_none(
    score_or_error: Callable[[list[Example | UserError]], list[list[float] | UserError]],
    groups: list[Example | UserError],
) -> list[float | None]:
    """The rewards of all responses, in order; None for a response that cannot be scored. Each reason is logged once.

    score_or_error: `RewardScorer.score_or_error`.
    """
    results: list[list[float] | UserError] = []
    for group, result in zip(groups, score_or_error(groups), strict=True):
        if isinstance(result, UserError) and isinstance(group, Example) and len(group.responses) > 1:
            # One bad response is an error of its whole group: tried alone, the others get their rewards.
            alone: list[Example | UserError] = [replace(group, responses=[t], ranks=[0]) for t in group.responses]
            results += score_or_error(alone)
        else:
            results.append(result)
    rewards: list[float | None] = []
    reasons: Counter[str] = Counter()
    for result in results:
        if isinstance(result, UserError):
            reasons[re.sub(r"^(example \d+: )+", "", str(result))] += 1
            rewards.append(None)
        else:
            rewards += result
    for reason, count in reasons.items():
        logger.warning("no reward for %d of %d completions: %s", count, len(rewards), reason)
    return rewards


def _same_images(images: list[ImageRef], others: list[ImageRef]) -> bool:
    """Whether two samples have the same images: the same files, or the same pixels.

    Pixels are compared because data sets decode an image anew for every sample that repeats it.
    """
    if len(images) != len(others):
        return False
    for image, other in zip(images, others, strict=True):
        if image != other and (image.image is None or image.image != other.image):
            return False
    return True
