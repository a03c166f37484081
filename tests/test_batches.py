"""Token-budget batches: every example once, within the budget, the same for any number of processes."""

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rovrm.common.errors import UserError
from rovrm.model.batches import PlannedBatches, fitting_into_memory, plan_batches, plan_by_cost
from rovrm.model.collator import Cost

SHARED_COST = st.builds(Cost, st.just(1), st.integers(1, 400), st.integers(1, 4), st.integers(1, 100))
SEPARATE_COST = st.builds(Cost, st.just(0), st.just(0), st.integers(1, 4), st.integers(1, 400))
COSTS = st.one_of(st.lists(SHARED_COST, min_size=1, max_size=120), st.lists(SEPARATE_COST, min_size=1, max_size=120))


@settings(max_examples=60, deadline=None)
@given(COSTS, st.integers(1, 900), st.integers(1, 9), st.one_of(st.none(), st.integers(0, 3)))
def test_plan_keeps_everything_within_the_budget(costs, batch_tokens, batch_size, seed):
    kinds = [i % 3 == 0 for i in range(len(costs))]
    plan = plan_by_cost(costs, kinds, batch_tokens, batch_size, seed)
    assert sorted(i for batch in plan for i in batch) == list(range(len(costs)))
    for batch in plan:
        assert len({kinds[i] for i in batch}) == 1 and len(batch) <= batch_size
        prefix, answer = max(costs[i].prefix for i in batch), max(costs[i].answer for i in batch)
        answers = sum(costs[i].answers for i in batch)
        padded = sum(costs[i].prompts for i in batch) * prefix + answers * (answer + prefix // 8)
        assert padded <= batch_tokens or len(batch) == 1
    assert plan == plan_by_cost(costs, kinds, batch_tokens, batch_size, seed)


@pytest.mark.parametrize("seed", [None, 0])
def test_sorted_buckets_waste_little(seed):
    """Prompts of 600 tokens of an image and 20 to 60 of a question, two answers of 60 to 330 tokens."""
    rng = random.Random(0)
    prompts = [(600 + rng.randint(20, 60), [rng.randint(60, 330) for _ in range(2)]) for _ in range(2000)]
    costs = [Cost(1, prefix, 2, max(answers)) for prefix, answers in prompts]
    computed = sum(prefix + 2 * max(answers) for prefix, answers in prompts)

    def padded(plan):
        return sum(sum_of([costs[i] for i in batch]) for batch in plan)

    def sum_of(batch):
        return len(batch) * max(c.prefix for c in batch) + 2 * len(batch) * max(c.answer for c in batch)

    assert computed / padded(plan_by_cost(costs, [False] * 2000, 16384, 8, seed)) > 0.95
    assert computed / padded([list(range(start, start + 8)) for start in range(0, 2000, 8)]) < 0.9


def test_batches_come_in_random_order():
    costs = [Cost(1, 10 + i, 2, 10) for i in range(640)]
    lengths = [costs[batch[0]].prefix for batch in plan_by_cost(costs, [False] * 640, 10**6, 4, seed=1)]
    assert lengths != sorted(lengths) and plan_by_cost(costs, [False] * 640, 10**6, 4, seed=2) != plan_by_cost(
        costs, [False] * 640, 10**6, 4, seed=1
    )


def measured(lengths: list[int]) -> list[Any]:
    return [SimpleNamespace(id=f"e{n}", images=[], lengths=(n, [1, 1])) for n in lengths]


def test_some_examples_are_planned_by_themselves():
    collator: Any = SimpleNamespace(mixes_images=True, cost=lambda lengths: Cost(0, 0, 1, lengths[0]))
    examples = measured([10, 30, 20, 40, 50])
    assert plan_batches(examples, collator, 100, 2, None) == [[0, 2], [1, 3], [4]]
    assert plan_batches(examples, collator, 100, 2, None, range(1, 4)) == [[2, 1], [3]]
    assert plan_batches(examples, collator, 100, 2, None, range(5, 5)) == []
    examples[2].lengths = None
    with pytest.raises(ValueError, match="example e20 was not measured"):
        plan_batches(examples, collator, 100, 2, None)


def test_filled_to_the_number_of_processes():
    examples = [object() for _ in range(5)]
    planned = PlannedBatches(examples, [[0], [1, 2], [3], [4], [0]], multiple_of=3, seed=0)
    items = [planned[i] for i in range(len(planned))]
    assert [real for _, _, real in items] == [True] * 5 + [False]
    assert items[1][1] == examples[1:3]


def test_epochs_reorder_the_same_batches():
    planned = PlannedBatches(list(range(40)), [[i] for i in range(40)], seed=3)
    first = [planned[i][0] for i in range(40)]
    planned.set_epoch(1)
    second = [planned[i][0] for i in range(40)]
    assert first != second and sorted(first) == sorted(second)
    planned.set_epoch(0)
    assert [planned[i][0] for i in range(40)] == first


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried\nmore"), "can't allocate memory"])
def test_a_batch_that_does_not_fit_names_the_keys(error):
    error = RuntimeError(f"DefaultCPUAllocator: {error}: 9 bytes") if isinstance(error, str) else error
    with pytest.raises(
        UserError, match="8 answers does not fit into memory; lower batch_tokens or batch_size .(CUDA|Def)"
    ):
        with fitting_into_memory(8):
            raise error
    with pytest.raises(RuntimeError, match="other"), fitting_into_memory(8):
        raise RuntimeError("other")
