"""Token-budget batches: every example once, within the budget, the same for any number of processes."""

import random
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rovrm.model.batches import PlannedBatches, plan_batches, plan_by_cost

COSTS = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 400)), min_size=1, max_size=120)


@settings(max_examples=60, deadline=None)
@given(COSTS, st.integers(1, 900), st.integers(1, 9), st.one_of(st.none(), st.integers(0, 3)))
def test_plan_keeps_everything_within_the_budget(costs, batch_tokens, batch_size, seed):
    kinds = [i % 3 == 0 for i in range(len(costs))]
    plan = plan_by_cost(costs, kinds, batch_tokens, batch_size, seed)
    assert sorted(i for batch in plan for i in batch) == list(range(len(costs)))
    for batch in plan:
        assert len({kinds[i] for i in batch}) == 1 and len(batch) <= batch_size
        padded = sum(costs[i][0] for i in batch) * max(costs[i][1] for i in batch)
        assert padded <= batch_tokens or len(batch) == 1
    assert plan == plan_by_cost(costs, kinds, batch_tokens, batch_size, seed)


def test_sorted_buckets_waste_little():
    rng = random.Random(0)
    costs = [(1, rng.randint(50, 800)) for _ in range(2000)]
    plan = plan_by_cost(costs, [False] * 2000, 8192, 64, seed=0)
    padded = sum(len(b) * max(costs[i][1] for i in b) for b in plan)
    assert sum(tokens for _, tokens in costs) / padded > 0.9
    random_order = list(range(2000))
    rng.shuffle(random_order)
    naive = sum(16 * max(costs[i][1] for i in random_order[s : s + 16]) for s in range(0, 2000, 16))
    assert padded < 0.75 * naive


def test_batches_come_in_random_order():
    costs = [(1, 10 + i) for i in range(640)]
    lengths = [costs[batch[0]][1] for batch in plan_by_cost(costs, [False] * 640, 10**6, 4, seed=1)]
    assert lengths != sorted(lengths) and plan_by_cost(costs, [False] * 640, 10**6, 4, seed=2) != plan_by_cost(
        costs, [False] * 640, 10**6, 4, seed=1
    )


def measured(lengths: list[int]) -> list[Any]:
    return [SimpleNamespace(id=f"e{n}", images=[], lengths=(n, [1, 1])) for n in lengths]


def test_some_examples_are_planned_by_themselves():
    collator: Any = SimpleNamespace(shared=True, cost=lambda lengths: (1, lengths[0] + sum(lengths[1])))
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
