"""Every example is looked at once before training: images decoded, conversations rendered and measured, in parallel.

What is bad goes to `rejected.jsonl` with its reason; more than `max_bad_fraction` stops the run. The look runs the very
collator code that training runs, so what passes here does not fail an hour later.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from rovrm.errors import UserError
from rovrm.examples import Example
from rovrm.images import content_hash
from rovrm.rows import RewardCollator


@dataclass(slots=True)
class Finding:
    """What one look at an example gave; `reason` is empty for a good one."""

    hashes: list[str] = field(default_factory=list)  # content hash of each image
    lengths: tuple[int, list[int]] | None = None
    where: str = ""
    value: str = ""
    reason: str = ""


class _Looks(Dataset):
    def __init__(
        self, examples: Sequence[Example], pictured: Sequence[Example], collator: RewardCollator, max_length: int
    ):
        self.examples, self.pictured, self.collator, self.max_length = examples, pictured, collator, max_length

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Finding:
        example, pictured = self.examples[index], self.pictured[index]
        finding = check_responses(example)
        try:
            opened = [ref.open() for ref in example.images]
            if finding.reason:
                return finding
            finding.hashes = [content_hash(image) for image in opened] or [
                _hash_or_name(ref) for ref in pictured.images
            ]
            finding.lengths = self.collator.lengths(example, opened)
        except UserError as error:
            return replace(finding, where="images or prompt", value=_first_image(example), reason=str(error))
        except Exception as error:  # an image processor may refuse an odd image with any exception: the row says which
            return replace(finding, where="row", value=_first_image(example), reason=f"{type(error).__name__}: {error}")
        longest = finding.lengths[0] + max(finding.lengths[1])
        if longest > self.max_length:
            finding.where, finding.value = "responses", f"{longest} tokens"
            finding.reason = f"the row is over-long: max_length={self.max_length}; raise max_length or drop the row"
        return finding


def check_responses(example: Example) -> Finding:
    """The checks that need neither image nor tokenizer: responses, ranks and margin."""
    responses, ranks = example.responses, example.ranks
    if len(responses) < 2 or len(ranks) != len(responses):
        return Finding(
            where="responses", value=f"{len(responses)} responses, {len(ranks)} ranks", reason="needs two or more"
        )
    for j, response in enumerate(responses):
        if not response.strip():
            return Finding(where=f"response {j + 1}", value=repr(response), reason="the response is empty")
    for j, response in enumerate(responses):
        for other in range(j):
            if response == responses[other] and ranks[j] != ranks[other]:
                return Finding(
                    where=f"responses {other + 1} and {j + 1}", value=response[:200], reason="they are identical"
                )
    if len(set(ranks)) == 1:
        return Finding(where="ranks", value=str(ranks), reason="all responses are tied: nothing to compare")
    if example.margin is not None and not math.isfinite(example.margin):
        return Finding(where="margin", value=str(example.margin), reason="the margin is not finite")
    return Finding()


@dataclass(slots=True)
class Checked:
    examples: list[Example]  # the good ones, `lengths` filled in
    hashes: list[list[str]]  # content hashes of their images
    rejected: list[dict[str, Any]]


def check_examples(
    examples: Sequence[Example],
    collator: RewardCollator,
    max_length: int,
    workers: int = 0,
    pictured: Sequence[Example] | None = None,
) -> Checked:
    """Looks at every example, the work shared between processes and workers.

    pictured: the same examples with their images, where `examples` have captions instead; their images are hashed for
    the held-out split, and one that cannot be opened counts by its name.
    """
    state = PartialState()
    mine = list(range(state.process_index, len(examples), state.num_processes))
    taken = [(examples[i], (pictured or examples)[i]) for i in mine]
    looks = _Looks([e for e, _ in taken], [p for _, p in taken], collator, max_length)
    loader = DataLoader(looks, batch_size=8, num_workers=workers, collate_fn=list)
    found: list[tuple[int, Finding]] = []
    with tqdm(total=len(mine), desc="checking rows", disable=not state.is_main_process) as bar:
        for batch in loader:
            found += zip(mine[len(found) :], batch, strict=False)
            bar.update(len(batch))
    if state.num_processes > 1:
        found = gather_object(found)
    checked = Checked([], [], [])
    for i, finding in sorted(found, key=lambda pair: pair[0]):
        if finding.reason:
            checked.rejected.append(_record(examples[i], finding))
        else:
            checked.examples.append(replace(examples[i], lengths=finding.lengths))
            checked.hashes.append(finding.hashes)
    return checked


def stop_if_too_bad(rejected: Sequence[dict[str, Any]], total: int, max_bad_fraction: float, listed: str) -> None:
    """Raises UserError when more than `max_bad_fraction` of `total` rows were rejected; `listed` is where all are."""
    if len(rejected) <= max_bad_fraction * total:
        return
    first = "\n".join(
        f"  {r['location']}: {r['field']} = {str(r['value'])[:120]!r}: {r['reason']}" for r in list(rejected)[:5]
    )
    raise UserError(
        f"{len(rejected)} of {total} rows are bad, more than max_bad_fraction={max_bad_fraction:g} allows "
        f"(all of them: {listed}); mend them or raise max_bad_fraction. The first:\n{first}"
    )


def _record(example: Example, finding: Finding) -> dict[str, Any]:
    return {
        "location": example.location,
        "id": example.id,
        "field": finding.where,
        "value": finding.value[:200],
        "reason": finding.reason,
    }


def _hash_or_name(ref: Any) -> str:
    try:
        return content_hash(ref.open())
    except UserError:
        return f"name:{ref.name}"


def _first_image(example: Example) -> str:
    return str(example.images[0]) if example.images else ""
