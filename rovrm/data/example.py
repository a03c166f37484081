"""The canonical preference example: one prompt, its images, and k ranked responses.

The readers (rovrm/data/reader.py) return these, and everything behind them (captions, checks, the collator, the
losses) sees nothing else. The names follow TRL's vision preference format; a pair is the case k = 2.
"""

import itertools
from dataclasses import dataclass, field, replace
from typing import Any

from rovrm.data.images import ImageRef


@dataclass(slots=True)
class Example:
    """One prompt with k >= 2 responses (with any number of them, where they are only scored).

    prompt: chat messages, `{"role": ..., "content": ...}`, the last one not by the assistant. Content is a string or a
        list of blocks `{"type": "text", "text": ...}` and `{"type": "image"}`; each image block stands for one entry
        of `images`, in order. Images without a block go before the text of the first user message.
    responses: k strings; ranks: k integers, 0 the best, equal ranks are ties.
    margin: Bradley-Terry margin by which a better response must beat a worse one, None for no margin.
    caption: text that stands for the image in the caption phase.
    location: the file (or hub id) and row it came from, for error messages.
    lengths: tokens of the shared prefix and of each response behind it, once measured (rovrm/model/collator.py).
    hashes: content hash of each image, once looked at (rovrm/training/checks.py); in the caption phase, of those that
        captions stand for.
    rendered: in place of `prompt`, the text that a chat template has made of it, up to where the assistant's turn opens
        (rovrm/serving/openrlhf.py); it is read as it is. None for messages.
    reference_logps: log pi_ref of each response, where a policy is trained against a reference (rovrm/alignment).
    """

    id: str
    source: str
    prompt: list[dict[str, Any]]
    responses: list[str]
    ranks: list[int]
    images: list[ImageRef] = field(default_factory=list)
    margin: float | None = None
    caption: str | None = None
    location: str = ""
    lengths: tuple[int, list[int]] | None = None
    hashes: list[str] = field(default_factory=list)
    rendered: str | None = None
    reference_logps: list[float] | None = None


def pairs_of(example: Example) -> list[Example]:
    """A ranked list as its pairs of different rank.

    A pair's id is ID-i-j: the places, from 0 for the best, of the better and the worse response. An example that is a
    pair already, and a list of ties alone (which the checks refuse), stay as they are.
    """
    ranks, responses = example.ranks, example.responses
    if len(ranks) <= 2 or len(set(ranks)) == 1:
        return [example]
    pairs = []
    for i, j in itertools.combinations(range(len(ranks)), 2):
        if ranks[i] != ranks[j]:
            name = f"{example.id}-{i}-{j}"
            pairs.append(replace(example, id=name, responses=[responses[i], responses[j]], ranks=[0, 1]))
    return pairs
