"""The ranking loss: analytic values, a slow twin, and what must not change it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rovrm.training.losses import batch_sums, compare, preference_loss, ranking_metrics


def loss_of(rewards, ranks, margin=0.0, center=0.0):
    pairs = compare(torch.tensor(rewards), torch.tensor(ranks), torch.zeros(len(ranks), dtype=torch.long))
    return preference_loss(pairs, torch.tensor([margin]), center).item() / len(rewards)


def slow_plackett_luce(rewards, ranks, margin=0.0):
    """Mean over the responses that beat another of -log P(it is chosen among itself and the strictly worse ones)."""
    stages = []
    for r, rank in zip(rewards, ranks, strict=True):
        worse = [other for other, o in zip(rewards, ranks, strict=True) if o > rank]
        if worse:
            stages.append(-math.log(math.exp(r) / (math.exp(r) + sum(math.exp(w + margin) for w in worse))))
    return sum(stages) / len(stages) if stages else 0.0


def test_pair_is_bradley_terry():
    assert loss_of([0.0, 0.0], [0, 1]) == pytest.approx(math.log(2), abs=1e-6)
    assert loss_of([2.0, -1.0], [0, 1]) == pytest.approx(math.log1p(math.exp(-3)), abs=1e-6)
    assert loss_of([2.0, -1.0], [1, 0]) == pytest.approx(3 + math.log1p(math.exp(-3)), abs=1e-6)
    assert loss_of([2.0, -1.0], [0, 1], margin=1.0) == pytest.approx(math.log1p(math.exp(-2)), abs=1e-6)


def test_list_is_the_papers_sum():
    rewards = [0.3, -1.2, 2.0, 0.5]
    paper = -sum(r - math.log(sum(math.exp(x) for x in rewards[i:])) for i, r in enumerate(rewards))
    assert loss_of(rewards, [0, 1, 2, 3]) == pytest.approx(paper / 3, abs=1e-6)


def test_huge_rewards_do_not_overflow():
    assert loss_of([1e4, -1e4], [1, 0]) == pytest.approx(2e4)
    assert loss_of([1e4, -1e4], [0, 1]) == 0.0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(-5, 5), st.integers(0, 3)), min_size=2, max_size=7), st.floats(0, 2))
def test_equals_the_slow_twin_with_ties(responses, margin):
    rewards, ranks = [r for r, _ in responses], [rank for _, rank in responses]
    assert loss_of(rewards, ranks, margin) == pytest.approx(slow_plackett_luce(rewards, ranks, margin), abs=1e-5)


def test_tied_responses_are_not_compared():
    rewards = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    pairs = compare(rewards, torch.tensor([0, 0, 0]), torch.zeros(3, dtype=torch.long))
    preference_loss(pairs, torch.zeros(1)).backward()
    assert rewards.grad is not None and rewards.grad.abs().max() == 0


def test_lists_may_mix_in_a_batch():
    """In any order, with conversations that are left out between them."""
    ids = torch.tensor([0, 1, 0, 1, 0, 1, 0])
    rewards = torch.tensor([0.3, 0.1, -1.2, 9.0, 2.0, 0.7, 0.5])
    labels = torch.tensor([0, 1, 1, -100, 2, 0, 3])
    pairs = compare(rewards, labels, ids)
    expected = 4 * slow_plackett_luce([0.3, -1.2, 2.0, 0.5], [0, 1, 2, 3]) + 2 * slow_plackett_luce([0.1, 0.7], [1, 0])
    assert preference_loss(pairs, torch.zeros(2)).item() == pytest.approx(expected, abs=1e-5)


def test_margins_belong_to_their_list():
    pairs = compare(torch.zeros(4), torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1]))
    expected = 2 * (math.log(2) + math.log1p(math.exp(1.5)))
    assert preference_loss(pairs, torch.tensor([0.0, 1.5])).item() == pytest.approx(expected, abs=1e-5)


def test_center_term_is_trls_for_pairs():
    without, with_term = loss_of([1.0, 0.5], [0, 1]), loss_of([1.0, 0.5], [0, 1], center=0.01)
    assert with_term - without == pytest.approx(0.01 * 1.5**2, abs=1e-6)


def test_empty_batch_is_zero_with_zero_gradient():
    rewards = torch.tensor([1.0, 2.0], requires_grad=True)
    pairs = compare(rewards, torch.full((2,), -100), torch.zeros(2, dtype=torch.long))
    loss = preference_loss(pairs, torch.zeros(1))
    loss.backward()
    assert loss.item() == 0 and rewards.grad is not None and rewards.grad.abs().max() == 0


def test_metrics_weigh_every_list_the_same():
    rewards, labels = torch.tensor([3.0, 2.0, 1.0, 0.0, 1.0]), torch.tensor([0, 1, 2, 0, 1])
    pairs = compare(rewards, labels, torch.tensor([0, 0, 0, 1, 1]))
    lists, accuracy, margin, responses, reward = batch_sums(pairs).tolist()
    assert (lists, responses, reward) == (pytest.approx(2), 5, pytest.approx(7))
    assert accuracy == pytest.approx(1.0)  # the first list is all right, the second all wrong
    assert margin == pytest.approx(4 / 3 - 1)
    whole = ranking_metrics([[3.0, 2.0, 1.0], [0.0, 1.0]], [[0, 1, 2], [0, 1]], [None, None])
    assert whole["accuracy"] == pytest.approx(0.5)
    assert whole["loss"] == pytest.approx(
        (slow_plackett_luce([3, 2, 1], [0, 1, 2]) + slow_plackett_luce([0, 1], [0, 1])) / 2
    )
    assert (whole["min_reward"], whole["max_reward"], whole["mean_reward"]) == (0.0, 3.0, pytest.approx(1.4))


def test_a_tied_reward_counts_half():
    assert ranking_metrics([[1.0, 1.0]], [[0, 1]], [None])["accuracy"] == 0.5


def test_swapped_order_mirrors_the_accuracy():
    rewards = [[0.1, 0.7, 0.3], [1.0, 2.0], [5.0, 4.0]]
    ranks = [[0, 1, 2], [0, 1], [0, 1]]
    swapped = [[max(r) - x for x in r] for r in ranks]
    one, other = ranking_metrics(rewards, ranks, [None] * 3), ranking_metrics(rewards, swapped, [None] * 3)
    assert one["accuracy"] + other["accuracy"] == pytest.approx(1)
