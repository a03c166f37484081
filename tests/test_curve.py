"""The curve of best-of-n: the mean over all sets of n candidates, its interval, the bound, the plot."""

import itertools
import math

import numpy as np
import pytest

from rovrm.best_of_n.curve import curve, expected_best, kl_bound, mean_ci95, plot_curve, print_curve, standing


def over_all_sets(values: np.ndarray, rewards: np.ndarray, n: int) -> float:
    """Slow twin: every set of n candidates, its best the first of highest reward."""
    sets = itertools.combinations(range(len(rewards)), n)
    return float(np.mean([values[max(some, key=lambda i: (rewards[i], -i))] for some in sets]))


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_the_best_of_n_is_the_mean_over_all_sets(n):
    rng = np.random.default_rng(0)
    values, rewards = rng.normal(size=(20, 6)), rng.integers(0, 4, (20, 6)).astype(float)  # many equal rewards
    expected = [over_all_sets(v, r, n) for v, r in zip(values, rewards, strict=True)]
    assert expected_best(values, rewards, n) == pytest.approx(expected)


def test_the_ends_of_the_curve_are_the_mean_and_the_best():
    rng = np.random.default_rng(1)
    rewards = rng.normal(size=(50, 8))
    records = curve([1, 4, 8], rewards, rewards, (rewards < 0).astype(float), rewards)
    assert records[0]["reward"]["value"] == pytest.approx(rewards.mean())
    assert records[-1]["reward"]["value"] == pytest.approx(rewards.max(1).mean())
    assert records[-1]["false"]["value"] == pytest.approx((rewards.max(1) < 0).mean())
    assert all(record["false"] == record["oracle"] for record in records)  # the rewards are the truth here
    values = [record["reward"]["value"] for record in records]
    assert values == sorted(values)


def test_a_candidate_without_text_is_the_best_of_its_kind_alone():
    texts, scores = ["a", " ", "b", ""], np.array([0.0, 5.0, 1.0, 6.0])
    strict, lax = ([standing(t, s, lax) for t, s in zip(texts, scores, strict=True)] for lax in (False, True))
    assert sorted(range(4), key=lambda i: strict[i]) == [1, 3, 0, 2]
    assert sorted(range(4), key=lambda i: lax[i]) == [0, 2, 1, 3]
    places = np.array([sorted(strict).index(one) for one in strict])
    records = curve([1, 2, 4], scores[None], places[None])
    # of the six pairs of candidates: a or b against an empty one (four times), b against a, and the better empty one
    assert [record["reward"]["value"] for record in records] == pytest.approx([3, (0 + 0 + 1 + 1 + 1 + 6) / 6, 1])


def test_the_bound_and_the_interval():
    assert kl_bound(1) == 0
    assert kl_bound(8) == pytest.approx(math.log(8) - 7 / 8)
    values = np.random.default_rng(2).normal(3, 2, 4000)
    found = mean_ci95(values)
    half = 1.96 * values.std() / math.sqrt(4000)  # what the central limit theorem gives
    assert found["value"] == pytest.approx(values.mean())
    assert found["ci95"] == pytest.approx([values.mean() - half, values.mean() + half], abs=0.1 * half)
    assert mean_ci95([2.0]) == {"value": 2.0, "ci95": [2.0, 2.0]}


def test_the_plot_is_the_same_twice_and_the_table_is_printed(tmp_path, capsys):
    rewards = np.random.default_rng(3).normal(size=(20, 4))
    records = curve([1, 2, 4], rewards, rewards, (rewards < 0).astype(float), rewards)
    plot_curve(tmp_path / "a.svg", records, greedy=0.3)
    plot_curve(tmp_path / "b.svg", records, greedy=0.3)
    drawn = (tmp_path / "a.svg").read_text()
    assert drawn == (tmp_path / "b.svg").read_text()
    assert "best of n by the oracle" in drawn and "greedy decoding" in drawn
    print_curve(records)
    print_curve(curve([1, 2], rewards, rewards))
    assert "hallucinates" in capsys.readouterr().out
