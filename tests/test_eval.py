"""The measuring scripts on small sizes: that they run, check what they say they check, and count right."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import error_line, output_of, read_lines

from data_selection.choose import choose
from data_selection.transport import wasserstein
from eval import extraction, rates, selection, speed, transport
from rovrm.data.loading import load_examples
from rovrm.model.loading import load_processor, load_reward_model
from rovrm.model.scorer import RewardScorer
from rovrm.settings.command_line import parse
from rovrm.settings.keys import TrainConfig

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


@pytest.fixture
def trained(monkeypatch, reward) -> list[TrainConfig]:
    """The settings of the runs that a study asks for. In place of each, a run leaves what the study reads: the same
    reward model, the first rows of the pool as its choice, and an accuracy that follows from seed and rate."""
    runs: list[TrainConfig] = []

    def train(argv: list[str]) -> int:
        config = parse(TrainConfig, argv, "rovrm.train")
        runs.append(config)
        out, rate = Path(config.out), config.visual.learning_rate
        shutil.copytree(reward, out / "phase2-caption")
        record = {"accuracy": accuracy_of(config.seed, rate), "loss": 0.5, "n_train": 16}
        (out / "phase3-visual").mkdir()
        (out / "phase3-visual" / "phase.json").write_text(json.dumps(record))
        (out / "summary.json").write_text(json.dumps({"phase3-visual": record}))
        if config.caption.select == "knn":
            for phase, section in (("phase1-text", config.text), ("phase2-caption", config.caption)):
                folder = out / "selection" / phase
                for part in ("warmup", "pool", "target", "judges"):
                    (folder / part).mkdir(parents=True, exist_ok=True)
                chosen = [row["id"] for row in read_lines(Path(section.data[0]))[: section.n]]
                (folder / "selected.json").write_text(json.dumps({"ids": chosen}))
                (folder / "report.json").write_text(json.dumps({"wasserstein": {"chosen": 1.25}}))
        return 0

    monkeypatch.setattr("rovrm.train.main", train)
    return runs


def accuracy_of(seed: int, rate: float | None) -> float:
    return 0.5 + 0.1 * seed + (0.25 if rate == 1e-3 else 0)


def test_selection_study_notes_what_each_method_chose_and_how_it_judges(tmp_path, capsys, reward, trained):
    settings = [f"{key}={value}" for key, value in SETTINGS.items()]
    command = [f"out={tmp_path}", "seeds=1", "methods=random,oracle,knn,knn:unit+centre", *settings]
    shown = output_of(capsys, selection.main, *command)
    rows = read_lines(tmp_path / "results.jsonl")
    assert [row["method"] for row in rows] == ["random", "oracle", "knn", "knn:unit+centre"]
    examples = load_examples(f"world:visual?n={SETTINGS['test']}&seed=77&split=test").examples
    rewards = RewardScorer.from_pretrained(reward).score_batch(examples)
    right = np.mean([one > other for one, other in rewards])
    assert all(row["after_caption"] == right and row["after_visual"] == accuracy_of(1, None) for row in rows)
    assert f"{right:.3f}" in shown
    for row in rows[2:]:
        for phase in ("text", "caption"):
            families = [pair["family"] for pair in read_lines(tmp_path / "seed1" / f"{phase}.jsonl")]
            first = families[: SETTINGS["n"]]
            expected = {name: first.count(name) / families.count(name) for name in set(families)}
            assert row["kept"][f"phase{1 + (phase == 'caption')}-{phase}"] == pytest.approx(expected)
        assert row["distances"]["phase2-caption"] == {"chosen": 1.25}
    assert [row["kept"] for row in rows[:2]] == [{}, {}]


def test_selection_study_asks_for_the_same_run_but_for_the_choice(tmp_path, trained, capsys):
    settings = [f"{key}={value}" for key, value in SETTINGS.items()]
    command = [f"out={tmp_path}", "seeds=1", "methods=random,oracle,all,knn:unit+centre", *settings]
    assert selection.main(command) == 0
    random, oracle, whole, knn = trained
    for run in trained:
        assert (run.seed, run.visual.n, run.visual.select, run.text.epochs) == (1, None, "random", 1.0)
        assert run.visual.data == [f"world:visual?n={SETTINGS['visual']}&seed=1"]
    assert random.text.data == knn.text.data == whole.text.data != oracle.text.data
    assert {row["family"] for row in read_lines(Path(oracle.text.data[0]))} == {"faithful"}
    assert [run.caption.n for run in trained] == [24, 24, None, 24]
    assert [run.caption.select for run in trained] == ["random", "random", "random", "knn"]
    assert knn.selection.preprocess == ["unit", "centre"] and knn.selection.warmup_pool == 32
    assert "seed 1, random" not in output_of(capsys, selection.main, *command)  # nothing is computed again
    assert len(trained) == 4 == len(read_lines(tmp_path / "results.jsonl"))
    assert "holds results of other settings" in error_line(capsys, selection.main, *command, "test=21")
    assert "'nearest'" in error_line(capsys, selection.main, *command, "methods=nearest")


@pytest.mark.slow
def test_selection_study_trains_on_what_each_method_chose(tmp_path):
    settings = [f"{key}={value}" for key, value in SETTINGS.items()]
    assert selection.main([f"out={tmp_path}", "seeds=0", "methods=random,knn:unit+centre", *settings]) == 0
    random, knn = read_lines(tmp_path / "results.jsonl")
    pool = [row["family"] for row in read_lines(tmp_path / "seed0" / "caption.jsonl")]
    chosen = sum(share * pool.count(family) for family, share in knn["kept"]["phase2-caption"].items())
    assert chosen == pytest.approx(24)
    assert all(0 <= row[key] <= 1 for row in (random, knn) for key in ("after_caption", "after_visual"))


def test_transport_chooses_near_the_target_from_equal_features(capsys, monkeypatch):
    """The rows that it takes the time of are near the target, where as many at random are not."""
    calls = []

    def watched(pool, target, k, method, preprocess):
        choice = choose(pool, target, k, method, preprocess)
        calls.append((np.array(pool, np.float32), np.array(target, np.float32), choice))
        return choice

    monkeypatch.setattr("data_selection.choose.choose", watched)
    shown = output_of(capsys, transport.main, "pool=600", "target=50", "n=100", "width=32").splitlines()
    for line, (pool, target, choice) in zip(shown, calls, strict=True):
        steps = ", ".join(choice.preprocess)
        assert line.startswith(f"capped_ot, {steps}: 100 of 600 rows against 50 targets, width 32: ")
        assert pool.shape == (600, 32) and target.shape == (50, 32) and len(choice.indices) == 100
        rows = [torch.from_numpy(values) for values in (pool[choice.indices], pool[:100], target)]
        chosen, some, aim = (torch.nn.functional.normalize(one, dim=1) for one in rows)
        assert wasserstein(chosen, aim) < 0.9 * wasserstein(some, aim)
    assert [call[2].preprocess for call in calls] == [["unit"], ["unit", "dedup"]]


def rate_of(text: str, name: str) -> float:
    """The rate that is printed behind the name of a side."""
    return float(re.search(rf"^  {name} +([\d.]+) \S*/s", text, re.MULTILINE)[1])


def test_extraction_compares_equal_gradients(capsys):
    shown = output_of(capsys, extraction.main, "images=false", "pairs=2", "repeats=1", "width=64")
    assert float(re.search(r"the sides differ by (\S+) \(limit 0.0001\)", shown)[1]) < 1e-4
    for other in ("training", "loop"):
        ratio = float(re.search(rf"extraction / {other} +([\d.]+) ", shown)[1])
        assert ratio == pytest.approx(rate_of(shown, "extraction") / rate_of(shown, other), rel=0.1, abs=0.02)


SPEED = ["pairs=2", "responses=3", "repeats=1", "trl=false"]


@pytest.fixture
def small_speed(family_folder, monkeypatch) -> None:
    """eval.speed with a model that is small enough for a test."""
    folder = str(family_folder("llava"))
    model = load_reward_model(folder)
    model.score.weight.data.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr("eval.speed_rows.make_reward_model", lambda *_: (model, load_processor(folder)))


def assert_sides_agree(shown: str) -> None:
    """The two sides' rewards and losses, and the ratio of their rates, where every line stands for one repeat."""
    count, gap = re.search(r"scoring k=\d: (\d+) rewards differ by at most (\S+) \(limit 0.0001\)", shown).groups()
    assert int(count) == 6 and float(gap) < 1e-4
    assert float(re.search(r"through rovrm.bon: rewards differ by at most (\S+)", shown)[1]) < 1e-4
    one, other = (float(loss) for loss in re.search(r"losses (\S+) and (\S+)", shown).groups())
    assert one == pytest.approx(other, abs=1e-4) and 0.1 < one < 10
    parts = re.split(r"^\S", shown, flags=re.MULTILINE)
    parts = [part for part in parts if "  ratio " in part]
    assert len(parts) == 3
    for part in parts:
        ratio = float(re.search(r"^  ratio ([\d.]+) ", part, re.MULTILINE)[1])
        assert ratio == pytest.approx(rate_of(part, "shared rows") / rate_of(part, "separate rows"), rel=0.05, abs=0.02)


def test_speed_compares_equal_rewards(small_speed, capsys):
    assert_sides_agree(output_of(capsys, speed.main, *SPEED))


def test_speed_stops_where_rewards_are_not_equal(small_speed, monkeypatch):
    def causal(segments: torch.Tensor) -> torch.Tensor:
        return torch.ones(segments.shape[1], segments.shape[1], dtype=torch.bool).tril()[None, None]

    monkeypatch.setattr("rovrm.model.modeling.shared_prefix_mask", causal)
    with pytest.raises(AssertionError, match="do not compute the same rewards"):
        speed.main(SPEED)


@pytest.mark.slow
def test_speed_at_real_lengths(capsys):
    assert_sides_agree(output_of(capsys, speed.main, *SPEED))


def test_the_study_of_rates_trains_each_once_and_prints_means(tmp_path, capsys, trained):
    command = [f"out={tmp_path}", "sizes=16", "seeds=0,1", "rates=1e-6,1e-3", "test=20"]
    shown = output_of(capsys, rates.main, *command)
    asked = [(run.seed, run.visual.learning_rate) for run in trained]
    assert asked == [(seed, rate) for seed in (0, 1) for rate in (1e-6, 1e-3)]
    assert all(run.phase in ("visual", "3") and "n=16&" in run.visual.data[0] for run in trained)
    assert all("n=20&" in run.visual.eval_data[0] and "seed=77" in run.visual.eval_data[0] for run in trained)
    assert line(shown, "1e-06")[1:4] == ["0.550", "(0.500)", "0.550"]  # mean of .5 and .6, the lowest; the mean of all
    assert line(shown, "0.001")[1:4] == ["0.800", "(0.750)", "0.800"]
    assert output_of(capsys, rates.main, *command).strip() == shown[shown.index("rate  ") :].strip()
    assert len(trained) == 4  # nothing is trained again
    assert "takes one phase" in error_line(capsys, rates.main, f"out={tmp_path}", "phase=1..3")


@pytest.mark.slow
def test_the_study_of_rates_for_real(tmp_path):
    assert rates.main([f"out={tmp_path}", "sizes=16", "seeds=0", "rates=1e-6,1e-3", "test=20"]) == 0
    rows = read_lines(tmp_path / "results-visual.jsonl")
    assert [(row["rate"], row["n_train"]) for row in rows] == [(1e-6, 16), (1e-3, 16)]
    assert rows[0]["loss"] != rows[1]["loss"]
