"""The reward model as a reward function of TRL's GRPO and RLOO trainers: `RewardScorer.reward`.

TRL gives flat lists, one entry per sample, in which the samples of one prompt follow each other. They are gathered into
examples again, so that a prompt and its images are encoded once for all of its samples.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rovrm.common.errors import UserError
from rovrm.data.example import Example
from rovrm.data.formats import VIDEO_COLUMNS
from rovrm.data.images import ImageRef
from rovrm.data.prompts import as_example, as_messages, holds_more

logger = logging.getLogger(__name__)


def group_samples(
    prompts: Sequence[Any], completions: Sequence[Any], images: Sequence[Any] | None, columns: Mapping[str, Any]
) -> list[Example]:
    """The samples as examples, one for each run of samples with the same prompt and images."""
    groups: list[Example] = []
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        if not isinstance(completion, str) and len(completion) > 1:  # several turns: the last one is scored
            prompt = as_messages(prompt) + list(completion[:-1])
            completion = completion[-1:]
        pictures = None if images is None or holds_more(prompt, images[i]) else images[i]
        row = {"prompt": prompt, "responses": [completion], "images": pictures}
        for column in VIDEO_COLUMNS:  # as_example refuses them
            row[column] = columns[column][i] if columns.get(column) is not None else None
        example = as_example(row, i)
        example.responses = [text.lstrip() for text in example.responses]
        if groups and groups[-1].prompt == example.prompt and _same_images(groups[-1].images, example.images):
            groups[-1].responses += example.responses
            groups[-1].ranks += example.ranks
        else:
            groups.append(example)
    return groups


def rewards_or_none(
    score_or_error: Callable[[list[Example]], list[list[float] | UserError]], groups: list[Example]
) -> list[float | None]:
    """The rewards of all responses, in order; None, which is logged, for a response that cannot be scored.

    score_or_error: `RewardScorer.score_or_error`. Raises UserError where not one can be scored.
    """
    results: list[list[float] | UserError] = []
    for group, result in zip(groups, score_or_error(groups), strict=True):
        if isinstance(result, UserError) and len(group.responses) > 1:
            # One bad response is an error of its whole group: tried alone, the others get their rewards.
            alone = [replace(group, responses=[text], ranks=[0]) for text in group.responses]
            results += score_or_error(alone)
        else:
            results.append(result)
    errors = [result for result in results if isinstance(result, UserError)]
    if errors and len(errors) == len(results):
        raise errors[0]
    rewards: list[float | None] = []
    for result in results:
        if isinstance(result, UserError):
            logger.warning("no reward for a completion: %s", result)
            rewards.append(None)
        else:
            rewards += result
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
