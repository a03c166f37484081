"""Wilson's interval against its definition: the shares that a score test at 5 % would not reject."""

import pytest

from rovrm.common.intervals import Z95, share_in_words, wilson95
from rovrm.training.outputs import print_phases


@pytest.mark.parametrize(("share", "n"), [(0.5, 10), (0.9, 97), (1.0, 1), (0.0, 4), (0.73, 1000)])
def test_ends_are_where_the_score_test_turns(share: float, n: int):
    low, high = wilson95(share, n)
    assert 0 <= low <= share <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            assert abs(share - end) / (end * (1 - end) / n) ** 0.5 == pytest.approx(Z95, rel=1e-6)


def test_known_value():
    assert wilson95(0.8, 50) == pytest.approx([0.6696, 0.8876], abs=1e-4)  # Agresti and Coull's formula, by hand


def test_accuracy_is_printed_with_its_interval_and_n(capsys):
    assert share_in_words(0.8, 50) == "0.800 (0.670 to 0.888, n=50)"
    older = {"n_train": 200, "n_held_out": 50, "n_skipped": 3, "accuracy": 0.8, "loss": 0.5, "pairs_per_second": 9.0}
    print_phases({"phase1-text": older})  # a record from before they held the interval
    assert "0.800 (0.670 to 0.888, n=50)" in capsys.readouterr().out
