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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rovrm.common.errors import UserError, first_line
from rovrm.data.example import Example
from rovrm.model.collator import Cost, RewardCollator

LOSS_KEYS = ("labels", "margins", "list_ids", "response_ids", "example_ids", "reference_logps")  # the last of policies
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
        collator: what will build the batches; it knows what an example takes of one.
        batch_tokens: tokens of one batch, at most (`Cost.tokens`). An example that exceeds them is a batch of its own.
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
        kinds.append(bool(example.images) and not collator.mixes_images)
    plan = plan_by_cost(costs, kinds, batch_tokens, batch_size, seed)
    return [[numbers[i] for i in batch] for batch in plan]


def plan_by_cost(
    costs: Sequence[Cost], kinds: Sequence[bool], batch_tokens: int, batch_size: int, seed: int | None
) -> list[list[int]]:
    """`plan_batches` for examples of which only the cost and the kind are known.

    Args:
        costs: of each example alone.
        kinds: of each example; a batch never mixes two kinds.
    """
    order = list(range(len(costs)))
    bucket = len(order)
    if seed is not None:
        random.Random(f"{seed}-plan").shuffle(order)
        bucket = BUCKET_BATCHES * batch_size
    # Examples of like lengths share a batch, or padding would fill it; sorting within buckets of shuffled ones keeps
    # the order of training random.
    batches: list[list[int]] = []
    for start in range(0, len(order), bucket or 1):
        for kind in (False, True):
            part = [i for i in order[start : start + bucket] if kinds[i] == kind]
            batches += _pack(part, costs, batch_tokens, batch_size)
    if seed is not None:
        random.Random(f"{seed}-order").shuffle(batches)
    return batches


def _pack(numbers: list[int], costs: Sequence[Cost], batch_tokens: int, batch_size: int) -> list[list[int]]:
    """Cuts examples into batches of like lengths, at each that would exceed a limit."""
    batches: list[list[int]] = []
    cost = Cost(0, 0, 0, 0)  # of the batch that is being filled
    if numbers:
        fitting = batch_tokens * len(numbers) // sum(costs[i].tokens for i in numbers)  # examples of a batch, about
        numbers = _sorted(numbers, costs, max(min(fitting, batch_size), 1))
    for i in numbers:
        cost = cost.joined(costs[i])
        if not batches or len(batches[-1]) == batch_size or cost.tokens > batch_tokens:
            batches.append([])
            cost = costs[i]
        batches[-1].append(i)
    return batches


def _sorted(numbers: list[int], costs: Sequence[Cost], size: int) -> list[int]:
    """Examples in an order in which neighbours have prefixes and answers of like lengths: halves of them, by whichever
    length would be padded more, and so on down to batches of `size`."""
    prefix = max(costs[i].prefix for i in numbers)
    answer = max(costs[i].answer for i in numbers)
    padded_prefixes = sum(costs[i].prompts * (prefix - costs[i].prefix) for i in numbers)
    padded_answers = sum(costs[i].answers * (answer - costs[i].answer) for i in numbers)
    if padded_prefixes > padded_answers:
        order = sorted(numbers, key=lambda i: (costs[i].prefix, i))
    else:
        order = sorted(numbers, key=lambda i: (costs[i].answer, i))
    if len(order) <= size:
        return order
    half = size * -(-len(order) // (2 * size))  # whole batches
    return _sorted(order[:half], costs, size) + _sorted(order[half:], costs, size)


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


@contextmanager
def fitting_into_memory(answers: int) -> Iterator[None]:
    """Around the work on a batch of so many answers. Raises UserError, which names the keys that make batches smaller,
    instead of torch's own error where it does not fit into memory."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one; on a CPU it is a plain one
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        remedy = f"lower batch_tokens or batch_size ({first_line(error)})"
        raise UserError(f"a batch of {answers} answers does not fit into memory; {remedy}") from error


# ---- what a batch holds ----------------------------------------------------------------------------------------------


def split_batch(batch: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A collated batch in two: what the model takes, and what the loss and the metrics take (LOSS_KEYS)."""
    model_inputs = {key: value for key, value in batch.items() if key not in LOSS_KEYS}
    loss_inputs = {key: batch[key] for key in LOSS_KEYS if key in batch}
    return model_inputs, loss_inputs


def collect_rewards(
    loss_inputs: dict[str, Tensor], rewards: Tensor, rewards_by_example: dict[int, dict[int, float]]
) -> None:
    """Sorts the rewards of a batch by example and response.

    Args:
        loss_inputs: of the batch, from `split_batch`.
        rewards: (conversations,); those without a label are left out.
        rewards_by_example: number of the example -> number of the response -> reward; written into.
    """
    present = loss_inputs["labels"] != -100
    examples = loss_inputs["example_ids"][loss_inputs["list_ids"]][present].tolist()
    responses = loss_inputs["response_ids"][present].tolist()
    for example, response, reward in zip(examples, responses, rewards[present].tolist(), strict=True):
        rewards_by_example.setdefault(example, {})[response] = reward
