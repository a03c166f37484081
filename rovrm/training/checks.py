"""Every example is looked at once before training: images decoded, conversations rendered and measured, in parallel.

What is bad goes to `rejected.jsonl` with its reason; more than `max_bad_fraction` stops the run. Rows that are only too
long are listed there too, and counted apart: they are no fault of the data. The look runs the very collator code that
training runs, so what passes here does not fail an hour later.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from rovrm.common.errors import BadRows, UserError
from rovrm.data.bad_rows import BadRow, rejection
from rovrm.data.example import Example
from rovrm.data.images import content_hash, open_images
from rovrm.data.messages import is_blank, text_of
from rovrm.model.collator import RewardCollator
from rovrm.settings.keys import MAX_PIXELS


@dataclass(slots=True)
class Finding:
    """What one look at an example gave; `reason` is empty for a good one."""

    hashes: list[str] = field(default_factory=list)  # content hash of each image
    lengths: tuple[int, list[int]] | None = None
    where: str = ""
    value: str = ""
    reason: str = ""
    long: bool = False  # longer than max_length, and otherwise good


class _Looks(Dataset):
    """An item is what one look at an example gives, so that a DataLoader's workers share the looking."""

    def __init__(
        self,
        examples: Sequence[Example],
        pictured: Sequence[Example],
        collator: RewardCollator,
        max_length: int,
        max_pixels: int,
    ):
        self.examples, self.pictured, self.collator = examples, pictured, collator
        self.max_length, self.max_pixels = max_length, max_pixels
        self.image_words = _image_words(collator)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Finding:
        # From the cheapest look to the dearest; the first that finds a fault ends it.
        example = self.examples[index]
        finding = check_responses(example)
        if not finding.reason:
            finding = _find_image_word(example, self.image_words)
        if not finding.reason:
            finding = self._measure(example, self.pictured[index])
        return finding

    def _measure(self, example: Example, pictured: Example) -> Finding:
        """Opens the images and counts the tokens, as training will."""
        images: list[Any] = []
        try:
            for image in open_images(example.images, self.max_pixels):
                images.append(image)
        except UserError as error:  # of the image behind those that opened
            ref = example.images[len(images)]
            return Finding(where=f"image {len(images) + 1}", value=ref.name or str(ref), reason=str(error))
        hashes = [content_hash(image) for image in images]
        if not hashes:  # the caption phase: no image is trained on, but the split goes by those behind the captions
            hashes = [_hash_or_name(ref, self.max_pixels) for ref in pictured.images]
        try:
            lengths = self.collator.lengths(example, images)
        except UserError as error:
            return Finding(where="prompt", value=_prompt_text(example), reason=str(error))
        except Exception as error:  # an image processor may refuse an odd image with any exception: the row says which
            names = ", ".join(ref.name or str(ref) for ref in example.images)
            reason = f"the processor refuses it ({type(error).__name__}: {error}); replace the image or drop the row"
            return Finding(where="images" if names else "prompt", value=names or _prompt_text(example), reason=reason)
        prefix, responses = lengths
        if len(set(responses)) < len(responses):  # only responses of one length can be the same tokens
            same = self.collator.same_tokens(example)
            if same is not None:
                where = f"responses {same[0] + 1} and {same[1] + 1}"
                reason = "they are the same tokens to this model, but one is ranked above the other; drop the row"
                return Finding(where=where, value=example.responses[same[0]], reason=reason)
        longest = prefix + max(responses)
        if longest > self.max_length:
            reason = f"the row is over-long, max_length={self.max_length}; raise max_length or drop the row"
            return Finding(where="responses", value=f"{longest} tokens", reason=reason, long=True)
        return Finding(hashes, lengths)


def check_responses(example: Example) -> Finding:
    """The checks that need neither image nor tokenizer: responses, ranks and margin."""
    responses, ranks = example.responses, example.ranks
    if len(responses) < 2 or len(ranks) != len(responses):
        value = f"{len(responses)} responses, {len(ranks)} ranks"
        return Finding(where="responses", value=value, reason="takes two or more, each with its rank; drop the row")
    for j, response in enumerate(responses):
        if is_blank(response):
            reason = "the response is empty; fill it in or drop the row"
            return Finding(where=f"response {j + 1}", value=repr(response), reason=reason)
    firsts: dict[str, int] = {}
    for j, response in enumerate(responses):
        # Many chat templates strip the content, so white space makes no difference between two rows of tokens.
        other = firsts.setdefault(response.strip(), j)
        if ranks[j] != ranks[other]:
            reason = "they are identical but one is ranked above the other; drop the row"
            return Finding(where=f"responses {other + 1} and {j + 1}", value=response, reason=reason)
    if len(set(ranks)) == 1:
        reason = "all responses are tied, there is nothing to compare; drop the row"
        return Finding(where="ranks", value=str(ranks), reason=reason)
    if example.margin is not None and not math.isfinite(example.margin):
        reason = "the margin is not finite; mend it or leave it out"
        return Finding(where="margin", value=str(example.margin), reason=reason)
    if example.margin is not None and example.margin < 0:
        reason = "below 0 the margin lets the worse answer win; give 0 or more, or exchange the answers"
        return Finding(where="margin", value=str(example.margin), reason=reason)
    return Finding()


def _image_words(collator: RewardCollator) -> list[str]:
    """The texts that the model, or the processor before it, takes for an image wherever they stand; none for a text
    model. The two differ where the processor writes a sequence for one word (Gemma 3)."""
    if collator.image_token_id < 0:
        return []
    ids = [collator.image_token_id, collator.placeholder_id]
    words = [*collator.tokenizer.convert_ids_to_tokens(ids), getattr(collator.processor, "image_token", None)]
    return sorted({str(word) for word in words if word})


def _find_image_word(example: Example, words: list[str]) -> Finding:
    """Finds an image token that stands in a text. It would fail, or take another's image, only in training."""
    texts = [("prompt", text_of(message["content"])) for message in example.prompt]
    texts += [(f"response {j}", response) for j, response in enumerate(example.responses, 1)]
    for where, text in texts:
        for word in words:
            if word in text:
                start = max(text.index(word) - 80, 0)
                reason = f"the text {word!r} stands for an image in this model; remove it from the text"
                return Finding(where=where, value=text[start:], reason=reason)
    return Finding()


@dataclass(slots=True)
class Checked:
    examples: list[Example]  # the good ones, `lengths` and `hashes` filled in
    rejected: list[dict[str, Any]]  # the bad ones
    long: list[dict[str, Any]] = field(default_factory=list)  # those whose only fault is their length

    @property
    def skipped(self) -> list[dict[str, Any]]:
        return self.rejected + self.long


def check_examples(
    examples: Sequence[Example],
    collator: RewardCollator,
    max_length: int,
    workers: int = 0,
    pictured: Sequence[Example] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Checked:
    """Looks at every example, the work shared between processes and workers.

    Args:
        examples: what is to be trained on or held out.
        collator: renders and measures the rows, as it will batch them.
        max_length: tokens of the longest conversation that is taken.
        workers: processes that look, beside this one's own waiting; 0 = none.
        pictured: the same examples with their images, where `examples` have captions instead; their images are hashed
            for the held-out split, and one that cannot be opened counts by its name.
        max_pixels: pixels of all images of a row together, at most.
    """
    state = PartialState()
    pictured = pictured or examples
    mine = range(state.process_index, len(examples), state.num_processes)  # every process looks at its own share
    looks = _Looks([examples[i] for i in mine], [pictured[i] for i in mine], collator, max_length, max_pixels)
    loader = DataLoader(looks, batch_size=8, num_workers=workers, collate_fn=list)
    quiet = not state.is_main_process or bool(os.environ.get("TQDM_DISABLE"))
    findings: list[Finding] = []
    with tqdm(total=len(mine), desc="checking rows", disable=quiet) as bar:
        for batch in loader:
            findings += batch
            bar.update(len(batch))
    numbered = list(zip(mine, findings, strict=True))
    if state.num_processes > 1:
        numbered = gather_object(numbered)
    checked = Checked([], [])
    for i, finding in sorted(numbered, key=lambda pair: pair[0]):
        if finding.reason:
            listed = checked.long if finding.long else checked.rejected
            listed.append(record(examples[i], finding.where, finding.value, finding.reason))
        else:
            checked.examples.append(replace(examples[i], lengths=finding.lengths, hashes=finding.hashes))
    return checked


def is_too_bad(count: int, total: int, limit: float) -> bool:
    """Whether `count` bad rows are more than a share `limit` of `total`."""
    return count > limit * total + 1e-9  # 0.29 * 100 is less than 29


def stop_if_too_bad(
    rejected: Sequence[dict[str, Any]], total: int, limit: float, listed: str, key: str = "max_bad_fraction"
) -> None:
    """Raises BadRows when more than a share `limit` of `total` rows were rejected. listed: where all of them are; key:
    what the limit is called."""
    if not is_too_bad(len(rejected), total, limit):
        return
    first = [f"  {r['location']}: {r['field']} = {str(r['value'])[:120]!r}: {r['reason']}" for r in rejected[:5]]
    raise BadRows(
        f"{len(rejected)} of {total} rows are bad, more than {key}={limit:g} allows "
        f"(all of them: {listed}); mend them or raise {key}. The first:",
        *first,
    )


def record(example: Example, field: str, value: str, reason: str) -> dict[str, str]:
    """A line of `rejected.jsonl`."""
    return rejection(example.location, example.id, BadRow(field, value, reason))


def _hash_or_name(ref: Any, max_pixels: int) -> str:
    try:
        return content_hash(ref.open(max_pixels))
    except UserError:
        return f"name:{ref.name}"


def _prompt_text(example: Example) -> str:
    return "\n".join(text_of(message["content"]) for message in example.prompt)
