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
from eval.selection_tables import print_tables
from eval.shared.timing import peak_memory
from rovrm.data.loading import load_examples
from rovrm.model.loading import load_processor, load_reward_model
from rovrm.model.modeling import PrefixCache
from rovrm.model.scorer import RewardScorer
from rovrm.settings.command_line import parse
from rovrm.settings.keys import TrainConfig

SIZES = {"pool": 96, "n": 24, "visual": 48, "test": 20, "epochs": 1.0, "visual_epochs": 1.0, "warmup_pool": 32}
SETTINGS = [f"{key}={value}" for key, value in SIZES.items()] + ["trained_on=0,16", "pools=conflict"]


def result(seed: int, method: str, value: float) -> dict:
    return {"pool": "conflict", "seed": seed, "method": method, "accuracy": {"0": {"all": value}}, "kept": {}}


def line(text: str, method: str, part: int = 0) -> list[str]:
    return [line.split() for line in text.splitlines() if line.split()[:1] == [method]][part]


def test_tables_of_the_selection_study_are_paired_by_seed(capsys):
    values = {
        "random": [0.5, 0.6, 0.7],
        "oracle": [0.9, 0.9, 0.9],  # minus random: .4 .3 .2
        "knn": [0.6, 0.8],  # minus random on the seeds that both have: .1 .2
        "knn:targets=9": [0.5, 0.6, 0.7],
    }
    rows = [result(seed, method, value) for method, of in values.items() for seed, value in enumerate(of)]
    print_tables([], rows)
    text = capsys.readouterr().out
    deviation = np.std([0.4, 0.3, 0.2], ddof=1)
    half = 4.303 * deviation / 3**0.5  # Student's t, two degrees of freedom
    assert line(text, "oracle") == ["oracle", "3", "0.900", "+-", "0.000", "+0.300", "+-", f"{half:.3f}", "1.00"]
    half = 12.706 * np.std([0.1, 0.2], ddof=1) / 2**0.5
    knn = ["knn", "2", "0.700", "+-", f"{12.706 * 0.1:.3f}"]
    assert line(text, "knn") == [*knn, "+0.150", "+-", f"{half:.3f}", f"{0.15 / 0.35:.2f}"]
    assert line(text, "random") == ["random", "3", "0.600", "+-", "0.248"]
    expected = ["knn:targets=9", "3", "0.600", "+-", "0.248", "+0.000", "+-", "0.000", "0.00"]
    assert line(text, "knn:targets=9") == expected


def test_tables_of_the_selection_study_say_what_is_kept(capsys):
    choices = []
    for seed, share in enumerate((0.25, 0.75)):
        kept = {"families": {"conflicting": 0.125, "faithful": share}, "kinds": {"exists": share / 2}}
        choices.append({"pool": "conflict", "seed": seed, "method": "knn", "kept": kept})
    print_tables(choices, [])
    text = capsys.readouterr().out
    assert line(text, "knn") == ["knn", "2", "0.50", "(0.25-0.75)", "0.12", "(0.12-0.12)"]
    assert line(text, "knn", 1) == ["knn", "2", "0.25", "(0.12-0.38)"]


@pytest.mark.parametrize(("seeds", "quantile"), [(1, None), (2, 12.706), (5, 2.776), (12, 2.201), (31, 2.042)])
def test_every_number_of_seeds_above_one_has_an_interval(capsys, seeds, quantile):
    """Quantiles of Student's t for 95 %, from a printed table."""
    values = [0.5 + 0.01 * (seed % 7) for seed in range(seeds)]
    print_tables([], [result(seed, "random", value) for seed, value in enumerate(values)])
    mean = line(capsys.readouterr().out, "random")[2:]
    half = [] if quantile is None else ["+-", f"{quantile * np.std(values, ddof=1) / seeds**0.5:.3f}"]
    assert mean == [f"{np.mean(values):.3f}", *half]


def test_pools_of_the_selection_study_differ_in_their_labels_alone():
    rows = {pool: [selection.pool_row(pool, "caption", 0, i) for i in range(2000)] for pool in selection.POOLS}
    assert {row["family"] for row in rows["clean"]} == {"faithful", "complete", "neutral"}
    for pool, share in (("noise10", 0.1), ("noise25", 0.25)):
        exchanged = [row["family"] == "exchanged" for row in rows[pool]]
        faithful = sum(row["family"] == "faithful" for row in rows["clean"])
        assert sum(exchanged) / faithful == pytest.approx(share, abs=0.03)
        for row, clean, is_exchanged in zip(rows[pool], rows["clean"], exchanged, strict=True):
            answers = (clean["rejected"], clean["chosen"]) if is_exchanged else (clean["chosen"], clean["rejected"])
            assert (row["chosen"], row["rejected"], row["prompt"]) == (*answers, clean["prompt"])
    assert "conflicting" in {row["family"] for row in rows["conflict"]}


@pytest.fixture
def trained(monkeypatch, reward) -> list[TrainConfig]:
    """The settings of the runs that a study asks for. In place of each, a run leaves what the study reads: the same
    reward model, the first rows of the pool as its choice, and an accuracy that follows from seed and rate."""
    runs: list[TrainConfig] = []

    def train(argv: list[str]) -> int:
        config = parse(TrainConfig, argv, "rovrm.train")
        runs.append(config)
        out, rate = Path(config.out), config.visual.learning_rate
        last = out / ("phase3-visual" if config.phase == "3" else "phase2-caption")
        shutil.copytree(reward, last)
        record = {"accuracy": accuracy_of(config.seed, rate), "loss": 0.5, "n_train": 16}
        (last / "phase.json").write_text(json.dumps(record))
        (out / "summary.json").write_text(json.dumps({"phase3-visual": record}))
        choose(config)
        return 0

    def choose(config: TrainConfig) -> None:
        for phase, section in (("phase1-text", config.text), ("phase2-caption", config.caption)):
            if section.by_selection:
                folder = Path(config.out) / "selection" / phase
                folder.mkdir(parents=True, exist_ok=True)
                chosen = [row["id"] for row in read_lines(Path(section.data[0]))[: section.n]]
                (folder / "selected.json").write_text(json.dumps({"ids": chosen}))

    def select(argv: list[str]) -> int:
        choose(parse(TrainConfig, argv, "rovrm.select"))
        return 0

    monkeypatch.setattr("rovrm.select.main", select)
    monkeypatch.setattr("rovrm.train.main", train)
    return runs


def accuracy_of(seed: int, rate: float | None) -> float:
    return 0.5 + 0.1 * seed + (0.25 if rate == 1e-3 else 0)


def test_selection_study_notes_what_each_method_chose_and_how_it_judges(tmp_path, capsys, reward, trained):
    command = [f"out={tmp_path}", "seeds=1", "methods=random,knn,knn:preprocess=[unit]", "train=true", *SETTINGS]
    shown = output_of(capsys, selection.main, *command)
    rows, choices = read_lines(tmp_path / "results.jsonl"), read_lines(tmp_path / "choices.jsonl")
    assert [row["method"] for row in rows] == ["random", "knn", "knn:preprocess=[unit]"]
    examples = load_examples(f"world:visual?n={SIZES['test']}&seed=77&split=test").examples
    rewards = RewardScorer.from_pretrained(reward).score_batch(examples)
    right = [one > other for one, other in rewards]
    shapes = [won for won, example in zip(right, examples, strict=True) if example.source == "faithful-shape"]
    for row in rows:
        assert row["accuracy"]["0"] == row["accuracy"]["16"]  # the same weights stand for both
        assert row["accuracy"]["0"]["all"] == np.mean(right) and row["accuracy"]["0"]["shape"] == np.mean(shapes)
    assert f"{np.mean(right):.3f}" in shown
    assert [row["method"] for row in choices] == ["knn", "knn:preprocess=[unit]"]
    for phase, kept in [("caption", row["kept"]) for row in choices] + [
        (name.split("-")[1], kept) for row in rows[1:] for name, kept in row["kept"].items()
    ]:
        pairs = read_lines(tmp_path / "conflict" / "seed1" / f"{phase}.jsonl")
        families = [pair["family"] for pair in pairs]
        first = families[: SIZES["n"]]
        assert kept["families"] == pytest.approx({name: first.count(name) / families.count(name) for name in families})
        exists = [pair["family"] == "faithful" and pair["kind"] == "exists" for pair in pairs]
        assert kept["kinds"]["exists"] == pytest.approx(sum(exists[: SIZES["n"]]) / sum(exists))
    assert rows[0]["kept"] == {}


def test_selection_study_asks_for_the_same_run_but_for_the_choice(tmp_path, trained, capsys):
    methods = "methods=random,oracle,all,knn:preprocess=[unit]"
    command = [f"out={tmp_path}", "seeds=1", methods, "train=true", *SETTINGS]
    assert selection.main(command) == 0
    assert [run.phase for run in trained] == ["1,2", "3"] * 4
    for run in trained[1::2]:
        assert run.visual.data == ["world:visual?n=16&seed=1"] and run.init_from.endswith("/phase2-caption")
    random, oracle, whole, knn = trained[::2]
    for run in trained[::2]:
        assert (run.seed, run.visual.n, run.visual.select, run.text.epochs) == (1, None, "random", 1.0)
        assert run.visual.data == [f"world:visual?n={SIZES['visual']}&seed=1"]
    assert random.text.data == knn.text.data == whole.text.data != oracle.text.data
    assert {row["family"] for row in read_lines(Path(oracle.text.data[0]))} == {"faithful"}
    assert [run.caption.n for run in trained[::2]] == [24, 24, None, 24]
    assert [run.caption.select for run in trained[::2]] == ["random", "random", "random", "knn"]
    assert knn.selection.preprocess == ["unit"] and knn.selection.warmup_pool == 32
    assert "seed 1, random" not in output_of(capsys, selection.main, *command)  # nothing is computed again
    assert len(trained) == 8 and len(read_lines(tmp_path / "results.jsonl")) == 4
    assert "holds results of other settings" in error_line(capsys, selection.main, *command, "test=21")
    assert "'nearest'" in error_line(capsys, selection.main, *command, "methods=nearest")
    assert "'dirty'" in error_line(capsys, selection.main, *command, "pools=dirty")


@pytest.mark.slow
def test_selection_study_trains_on_what_each_method_chose(tmp_path):
    words = ["seeds=0", "methods=random,knn:side_price=0.1,margin", "train=true", *SETTINGS]
    assert selection.main([f"out={tmp_path}", *words]) == 0
    rows = read_lines(tmp_path / "results.jsonl")
    pool = [row["family"] for row in read_lines(tmp_path / "conflict" / "seed0" / "caption.jsonl")]
    for row, choice in zip(rows[1:], read_lines(tmp_path / "choices.jsonl"), strict=True):
        assert row["kept"]["phase2-caption"] == choice["kept"]
        chosen = sum(share * pool.count(family) for family, share in choice["kept"]["families"].items())
        assert chosen == pytest.approx(24)
    assert all(0 <= row["accuracy"][pairs]["all"] <= 1 for row in rows for pairs in ("0", "16"))


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


def test_peak_memory_counts_what_is_held_at_once() -> None:
    def work() -> None:
        one = torch.ones(1000, 1000)
        two = one @ one
        del one
        three = two + two  # beside `two` alone
        torch.ones(10)
        del two, three

    assert peak_memory(work, "cpu") == pytest.approx(2 * 4e6 / 2**20, rel=0.01)


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
    assert float(re.search(r"up to 32 tokens: log-probabilities differ by at most (\S+)", shown)[1]) < 1e-4
    one, other = (float(loss) for loss in re.search(r"losses (\S+) and (\S+)", shown).groups())
    assert one == pytest.approx(other, abs=1e-4) and 0.1 < one < 10
    parts = re.split(r"^\S", shown, flags=re.MULTILINE)
    parts = [part for part in parts if "  ratio " in part]
    assert len(parts) == 4
    for part in parts:
        assert re.search(r"beyond the weights: \d+ and \d+ MiB", part)
        ratio = float(re.search(r"^  ratio ([\d.]+) ", part, re.MULTILINE)[1])
        assert ratio == pytest.approx(
            rate_of(part, "shared prompts") / rate_of(part, "separate rows"), rel=0.05, abs=0.02
        )


def test_speed_compares_equal_rewards(small_speed, capsys):
    assert_sides_agree(output_of(capsys, speed.main, *SPEED))


def test_speed_stops_where_rewards_are_not_equal(small_speed, monkeypatch):
    of = PrefixCache.of
    monkeypatch.setattr(PrefixCache, "of", lambda state, owners: of(state, owners * 0))
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
