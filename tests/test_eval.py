"""The measuring scripts on small sizes: that they run, check what they say they check, and count right."""

import json

import numpy as np
import pytest
from helpers import error_line, output_of, read_lines

from eval import extraction, rates, selection, speed, transport

SETTINGS = {"pool": 96, "n": 24, "visual": 48, "test": 20, "epochs": 1.0, "visual_epochs": 1.0, "warmup_pool": 32}


def result(seed: int, method: str, value: float, kept: dict | None = None) -> dict:
    row = {"seed": seed, "method": method, "after_caption": value, "after_visual": value, "kept": kept or {}}
    return {**row, "distances": {}, "settings": SETTINGS}


def line(text: str, method: str, part: int = 0) -> list[str]:
    return [line.split() for line in text.splitlines() if line.split()[:1] == [method]][part]


def test_tables_of_the_selection_study_are_paired_by_seed(capsys):
    values = {
        "random": [0.5, 0.6, 0.7],
        "oracle": [0.9, 0.9, 0.9],  # minus random: .4 .3 .2
        "knn": [0.6, 0.8],  # minus random on the seeds that both have: .1 .2
        "knn:unit": [0.5, 0.6, 0.7],
    }
    rows = [result(seed, method, value) for method, of in values.items() for seed, value in enumerate(of)]
    families = {"faithful": 0.5, "complete": 0.25, "neutral": 0.0, "conflicting": 0.125}
    rows[6]["kept"] = {"phase1-text": families, "phase2-caption": {key: 2 * share for key, share in families.items()}}
    selection.print_tables(rows)
    text = capsys.readouterr().out
    assert line(text, "knn") == ["knn", "0.50", "1.00", "0.25", "0.50", "0.00", "0.00", "0.12", "0.25"]
    deviation = np.std([0.4, 0.3, 0.2], ddof=1)
    half = 4.303 * deviation / 3**0.5  # Student's t, two degrees of freedom
    assert line(text, "oracle") == ["oracle", "3", "0.900", "+-", "0.000", "+0.300", "+-", f"{half:.3f}", "1.00"]
    half = 12.706 * np.std([0.1, 0.2], ddof=1) / 2**0.5
    knn = ["knn", "2", "0.700", "+-", f"{12.706 * 0.1:.3f}"]
    assert line(text, "knn", 1) == [*knn, "+0.150", "+-", f"{half:.3f}", f"{0.15 / 0.35:.2f}"]
    selection.print_tables(rows, against="knn")  # random minus knn: -.1 -.2; the gap is the same
    other = capsys.readouterr().out
    assert line(other, "random") == ["random", "3", "0.600", "+-", "0.248", "-0.150", "+-", f"{half:.3f}"]
    assert line(other, "knn", 1) == [*knn, f"{0.15 / 0.35:.2f}"]
    assert line(text, "knn:unit") == ["knn:unit", "3", "0.600", "+-", "0.248", "+0.000", "+-", "0.000", "0.00"]


@pytest.mark.parametrize(("seeds", "quantile"), [(1, None), (2, 12.706), (5, 2.776), (12, 2.201), (31, 2.042)])
def test_every_number_of_seeds_above_one_has_an_interval(capsys, seeds, quantile):
    """Quantiles of Student's t for 95 %, from a printed table."""
    values = [0.5 + 0.01 * (seed % 7) for seed in range(seeds)]
    selection.print_tables([result(seed, "random", value) for seed, value in enumerate(values)])
    mean = line(capsys.readouterr().out, "random")[2:]
    half = [] if quantile is None else ["+-", f"{quantile * np.std(values, ddof=1) / seeds**0.5:.3f}"]
    assert mean == [f"{np.mean(values):.3f}", *half]


def test_selection_study_trains_on_what_each_method_chose(tmp_path, capsys):
    settings = [f"{key}={value}" for key, value in SETTINGS.items()]
    command = [f"out={tmp_path}", "seeds=0", "methods=random,knn:unit+centre", *settings]
    assert selection.main(command) == 0
    first, second = read_lines(tmp_path / "results.jsonl")
    assert (first["method"], first["kept"]) == ("random", {})
    assert second["method"] == "knn:unit+centre"
    pool = [json.loads(row)["family"] for row in (tmp_path / "seed0" / "caption.jsonl").read_text().splitlines()]
    chosen = sum(share * pool.count(family) for family, share in second["kept"]["phase2-caption"].items())
    assert chosen == pytest.approx(24)
    assert all(0 <= row[key] <= 1 for row in (first, second) for key in ("after_caption", "after_visual"))
    assert "seed 0, random" in capsys.readouterr().out
    assert selection.main(command) == 0  # nothing is computed again
    assert "seed 0, random" not in capsys.readouterr().out
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 2
    assert "holds results of other settings" in error_line(capsys, selection.main, *command, "test=21")
    assert "'nearest'" in error_line(capsys, selection.main, *command, "methods=nearest")


def test_transport_times_the_choice_with_and_without_duplicates(capsys):
    lines = output_of(capsys, transport.main, "pool=600", "target=50", "n=100", "width=32").splitlines()
    assert [line.split(": ")[0] for line in lines] == ["capped_ot, unit", "capped_ot, unit, dedup"]


def test_extraction_compares_equal_gradients(capsys):
    text = output_of(capsys, extraction.main, "images=false", "pairs=2", "repeats=1", "width=64")
    assert "the sides differ by" in text and "extraction / loop" in text


def test_speed_compares_equal_rewards(capsys):
    assert "rewards" in output_of(capsys, speed.main, "pairs=2", "responses=2", "repeats=1", "trl=false")


def test_the_study_of_rates_trains_each_once_and_prints_means(tmp_path, capsys):
    command = [f"out={tmp_path}", "sizes=16", "seeds=0,1", "rates=1e-6,1e-3", "test=20"]
    assert rates.main(command) == 0
    rows = rates.read_results(tmp_path / "results-visual.jsonl")
    assert [(row["seed"], row["rate"], row["n_train"]) for row in rows] == [
        (seed, rate, 16) for seed in (0, 1) for rate in (1e-6, 1e-3)
    ]
    printed = capsys.readouterr().out
    for rate in (1e-6, 1e-3):
        found = [row["accuracy"] for row in rows if row["rate"] == rate]
        assert line(printed, f"{rate:g}")[1:3] == [f"{np.mean(found):.3f}", f"({min(found):.3f})"]
    assert rates.main(command) == 0  # nothing is trained again
    assert "phase 3 (visual)" not in capsys.readouterr().out
    assert rates.main([f"out={tmp_path}", "phase=1..3"]) == 2
