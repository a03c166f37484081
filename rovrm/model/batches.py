"""Batches by token budget, planned once for the whole data set and the same for any number of processes.

    plan = plan_batches(examples, collator, batch_tokens=16384, batch_size=8, seed=0)   # [[3, 17], [5], ...]
    for batch in batch_loader(examples, plan, collator):                                # dicts of tensors
        model_inputs, loss_inputs = split_batch(batch)

A plan is a list of batches, and a batch a list of numbers of examples. Whatever runs forwards over examples (training,
evaluation, scoring, gradient features, the dry run that only counts batches) plans and loads them here.

An item of the loader's data set is one whole batch, so `transformers.Trainer` and accelerate shard, accumulate and
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


# ---- planning --------------------------------------------------------------------------------------------------------


def plan_batches(
    examples: Sequence[Example],
    collator: RewardCollator,
    batch_tokens: int,
    batch_size: int,
    seed: int | None,
    numbers: range | None = None,
) -> list[list[int]]:
    """The batches in which examples go through the model, each batch as the numbers of its examples.

    Args:
        examples: measured examples: their `lengths` are known.
        collator: what will build the batches; it knows how many rows of how many tokens an example becomes.
        batch_tokens: padded tokens of one batch, at most. An example that alone exceeds them is a batch of its own.
        batch_size: examples of one batch, at most.
        seed: for the random order of training. None: sorted by length over everything, for scoring.
        numbers: plans these of the examples alone; None for all.

    Raises:
        ValueError: for an example that was not measured.
    """
    numbers = range(len(examples)) if numbers is None else numbers
    costs = []
    kinds = []
    for number in numbers:
        example = examples[number]
        if example.lengths is None:
            raise ValueError(f"example {example.id} was not measured: it has no lengths to plan batches by")
        costs.append(collator.cost(example.lengths))
        # Processors refuse a batch of separate rows in which some have images and others none.
        kinds.append(bool(example.images) and not collator.shared)
    plan = plan_by_cost(costs, kinds, batch_tokens, batch_size, seed)
    return [[numbers[i] for i in batch] for batch in plan]


def plan_by_cost(
    costs: Sequence[tuple[int, int]], kinds: Sequence[bool], batch_tokens: int, batch_size: int, seed: int | None
) -> list[list[int]]:
    """`plan_batches` for examples of which only the cost and the kind are known.

    Args:
        costs: (rows, tokens of the longest row) of each example.
        kinds: of each example; a batch never mixes two kinds.
    """
    order = list(range(len(costs)))
    bucket = len(order)
    if seed is not None:
        random.Random(f"{seed}-plan").shuffle(order)
        bucket = BUCKET_BATCHES * batch_size
    # Examples of like length share a batch, or padding would fill it; sorting within buckets of shuffled examples keeps
    # the order of training random.
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
    """Cuts an order into batches, at each example that would exceed a limit or is of another kind."""
    batches: list[list[int]] = []
    rows = longest = 0  # of the batch that is being filled; it takes rows * longest padded tokens
    for i in order:
        rows, longest = rows + costs[i][0], max(longest, costs[i][1])
        full = not batches or len(batches[-1]) == batch_size or rows * longest > batch_tokens
        if full or kinds[i] != kinds[batches[-1][0]]:
            batches.append([])
            rows, longest = costs[i]
        batches[-1].append(i)
    return batches


# ---- loading ---------------------------------------------------------------------------------------------------------


def batch_loader(
    examples: Sequence[Example],
    plan: list[list[int]],
    collator: RewardCollator,
    workers: int = 0,
    pin_memory: bool = False,
    multiple_of: int = 1,
    seed: int | None = None,
) -> DataLoader:
    """A loader of the collated batches of a plan, in its order.

    Args:
        workers: processes that read images and build tensors; 0 for none.
        pin_memory: as in `torch.utils.data.DataLoader`.
        multiple_of: the number of processes; see `PlannedBatches`.
        seed: for another order of the batches in every epoch but the first; None keeps the order.
    """
    return DataLoader(
        PlannedBatches(examples, plan, multiple_of, seed),
        batch_size=1,
        shuffle=False,
        num_workers=workers,
        pin_memory=pin_memory,
        collate_fn=_Collate(collator),
    )


class PlannedBatches(Dataset):
    """Batches as items: `self[i]` is (numbers of the examples, examples, real).

    Every process must take as many steps as the others, so the batches are filled up to a multiple of `multiple_of`
    (the number of processes) with batches that are not real: the loader empties their labels, and so they weigh nothing
    in loss and metrics.
    """

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
        numbers = self.batches[self.order[index]] if real else self.batches[0][:1]
        return numbers, [self.examples[i] for i in numbers], real


class _Collate:
    """A class and no closure, because platforms that spawn their workers must pickle it."""

    def __init__(self, collator: Callable[[Sequence[Example]], dict[str, Any]]):
        self.collator = collator

    def __call__(self, items: list[tuple[list[int], list[Example], bool]]) -> dict[str, Any]:
        [(numbers, examples, real)] = items
        batch = self.collator(examples)
        batch["example_ids"] = torch.tensor(numbers)
        if not real:
            batch["labels"] = batch["labels"].fill_(-100)
        return batch


# ---- what a batch holds ----------------------------------------------------------------------------------------------


def split_batch(batch: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A collated batch in two: what the model takes, and what the loss and the metrics take (LOSS_KEYS)."""
    model_inputs = {key: value for key, value in batch.items() if key not in LOSS_KEYS}
    loss_inputs = {key: batch[key] for key in LOSS_KEYS}
    return model_inputs, loss_inputs


def collect_rewards(
    loss_inputs: dict[str, Tensor], rewards: Tensor, rewards_by_example: dict[int, dict[int, float]]
) -> None:
    """Sorts the rewards of a batch by example and response.

    Args:
        loss_inputs: of the batch, from `split_batch`.
        rewards: (rows, k), the model's logits; places without a label are left out.
        rewards_by_example: number of the example -> number of the response -> reward; written into.
    """
    present = loss_inputs["labels"] != -100  # (rows, k)
    example_of_row = loss_inputs["example_ids"][loss_inputs["list_ids"]]  # (rows,)
    examples = example_of_row[:, None].expand_as(present)[present].tolist()
    responses = loss_inputs["response_ids"][present].tolist()
    for example, response, reward in zip(examples, responses, rewards[present].tolist(), strict=True):
        rewards_by_example.setdefault(example, {})[response] = reward
