"""Batches by token budget, planned once for the whole data set and the same for any number of processes.

The data are shuffled, cut into buckets, sorted by length within a bucket and packed until a batch would exceed the
budget. An item of `PlannedBatches` is one whole batch, so `transformers.Trainer` and accelerate shard, accumulate and
resume batches as they do samples, through public API only.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rovrm.data.example import Example
from rovrm.model.collator import RewardCollator

LOSS_KEYS = ("labels", "margins", "list_ids", "response_ids", "example_ids")
BUCKET_BATCHES = 32  # batches in one length-sorted bucket: wide enough to pack well, narrow enough to stay random


def plan_batches(
    costs: Sequence[tuple[int, int]], kinds: Sequence[bool], batch_tokens: int, batch_size: int, seed: int | None
) -> list[list[int]]:
    """Groups examples into batches of at most `batch_size` examples and `batch_tokens` padded tokens.

    costs: (rows, tokens of the longest row) of each example; kinds: batches never mix two kinds (separate rows must not
    mix examples with and without images). An example that alone exceeds the budget is a batch of its own. seed None:
    sorted by length over everything, in no random order, for scoring.
    """
    order = list(range(len(costs)))
    bucket = len(order)
    if seed is not None:
        random.Random(f"{seed}-plan").shuffle(order)
        bucket = BUCKET_BATCHES * batch_size
    batches: list[list[int]] = []
    for start in range(0, len(order), bucket or 1):
        part = sorted(order[start : start + bucket], key=lambda i: (kinds[i], costs[i][1], i))
        batches += _pack(part, costs, kinds, batch_tokens, batch_size)
    if seed is not None:
        random.Random(f"{seed}-order").shuffle(batches)
    return batches


def _pack(
    order: list[int], costs: Sequence[tuple[int, int]], kinds: Sequence[bool], batch_tokens: int, batch_size: int
) -> list[list[int]]:
    batches: list[list[int]] = []
    rows = longest = 0
    for i in order:
        rows, longest = rows + costs[i][0], max(longest, costs[i][1])
        full = not batches or len(batches[-1]) == batch_size or rows * longest > batch_tokens
        if full or kinds[i] != kinds[batches[-1][0]]:
            batches.append([])
            rows, longest = costs[i]
        batches[-1].append(i)
    return batches


class PlannedBatches(Dataset):
    """Batches as items: `self[i]` is (indices, examples, real). Filled up to a multiple of `multiple_of` (the number of
    processes) with unreal batches, whose labels the loader empties: they weigh nothing in loss and metrics."""

    def __init__(
        self, examples: Sequence[Example], batches: list[list[int]], multiple_of: int = 1, seed: int | None = None
    ):
        self.examples, self.batches, self.seed = examples, batches, seed
        self.missing = -len(batches) % multiple_of
        self.order = list(range(len(batches)))

    def set_epoch(self, epoch: int) -> None:
        """Another order of the same batches for every epoch but the first; called by Trainer through accelerate."""
        self.order = list(range(len(self.batches)))
        if self.seed is not None and epoch:
            random.Random(f"{self.seed}-epoch-{epoch}").shuffle(self.order)

    def __len__(self) -> int:
        return len(self.batches) + self.missing

    def __getitem__(self, index: int) -> tuple[list[int], list[Example], bool]:
        real = index < len(self.batches)
        indices = self.batches[self.order[index]] if real else self.batches[0][:1]
        return indices, [self.examples[i] for i in indices], real


def batch_loader(planned: PlannedBatches, collator: RewardCollator, workers: int, pin_memory: bool) -> DataLoader:
    """A loader of collated batches. Workers only read images and build tensors."""
    return DataLoader(
        planned,
        batch_size=1,
        shuffle=False,
        num_workers=workers,
        pin_memory=pin_memory,
        collate_fn=_Collate(collator),
    )


class _Collate:
    """Picklable, for platforms that spawn their workers."""

    def __init__(self, collator: Callable[[Sequence[Example]], dict[str, Any]]):
        self.collator = collator

    def __call__(self, items: list[tuple[list[int], list[Example], bool]]) -> dict[str, Any]:
        [(indices, examples, real)] = items
        batch = self.collator(examples)
        batch["example_ids"] = torch.tensor(indices)
        if not real:
            batch["labels"] = batch["labels"].fill_(-100)
        return batch


def split_batch(batch: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(what the model takes, what the loss and the metrics take)."""
    ours = {key: batch[key] for key in LOSS_KEYS}
    return {key: value for key, value in batch.items() if key not in LOSS_KEYS}, ours


def collect_rewards(ours: dict[str, Tensor], rewards: Tensor, into: dict[int, dict[int, float]]) -> None:
    """Writes a batch's rewards (rows, k) into `into[example][response]`, leaving out what has no label."""
    present = ours["labels"] != -100
    examples = ours["example_ids"][ours["list_ids"]][:, None].expand_as(present)[present].tolist()
    responses = ours["response_ids"][present].tolist()
    for example, response, reward in zip(examples, responses, rewards[present].tolist(), strict=True):
        into.setdefault(example, {})[response] = reward
