"""The canonical preference example: one prompt, its images, and k ranked responses.

The readers (rovrm/data/reader.py) return these, and everything behind them (captions, checks, the collator, the
losses) sees nothing else. The names follow TRL's vision preference format; a pair is the case k = 2.
"""

from dataclasses import dataclass, field
from typing import Any

from rovrm.data.images import ImageRef


@dataclass(slots=True)
class Example:
    """One prompt with k >= 2 responses.

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
