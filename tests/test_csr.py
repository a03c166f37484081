"""python -m rovrm.csr: rewards of a hand-made tree, what is kept, and whole runs in-process on the tiny base."""

import math
from pathlib import Path

import pytest
from helpers import QUICK, error_line, message_of, output_of, read_json, read_lines

from rovrm.alignment.calibrators import Partial, RewardCalibrator, joined
from rovrm.alignment.csr_pairs import best_and_worst
from rovrm.alignment.search import _keep, answer_of, path_rewards
from rovrm.csr import main
from rovrm.data.example import Example
from rovrm.settings.keys import CsrConfig
from rovrm.world.default import BASE

DATA = "data=world:visual?n=6&questions=describe&seed=3"


def node(number: int, parent: int, depth: int, image: float, logprob: float, ended: str, text: str = "") -> dict:
    return {
        "id": number, "parent": parent, "depth": depth, "text": text or f" {number}.", "tokens": 2, "logprob": logprob,
        "image_score": image, "reward": 0.0, "kept": True, "ended": ended,
    }  # fmt: skip


def tree() -> list[dict]:
    """Two first steps; the first has two ends, the second one."""
    return [
        node(0, -1, 1, 3.0, math.log(0.5), "delimiter", " A."),
        node(1, -1, 1, 1.0, math.log(0.25), "delimiter", " B."),
        node(2, 0, 2, 2.0, math.log(0.5), "eos", " C."),
        node(3, 0, 2, 4.0, math.log(0.125), "eos", " D."),
        node(4, 1, 2, 5.0, math.log(0.5), "eos", " E."),
    ]


def test_scores_are_the_papers_sum():
    rewards = path_rewards(tree(), "scores", 0.9, "sum")
    steps = {0: 2.7 + 0.05, 1: 0.9 + 0.025, 2: 1.8 + 0.05, 3: 3.6 + 0.0125, 4: 4.5 + 0.05}
    want = {0: steps[0], 1: steps[1], 2: steps[0] + steps[2], 3: steps[0] + steps[3], 4: steps[1] + steps[4]}
    assert rewards == pytest.approx(want)
    mean = path_rewards(tree(), "scores", 0.9, "mean")
    assert mean == pytest.approx({key: value / (1 if key < 2 else 2) for key, value in want.items()})


def test_ranks_are_the_released_codes_mean_over_the_path():
    """Places among siblings, best 1 / siblings; an only child's is 1; the root counts as a node of the path."""
    rewards = path_rewards(tree(), "ranks", 0.9, "mean")
    steps = {0: 0.5, 1: 1.0, 2: 0.9 * 1.0 + 0.1 * 0.5, 3: 0.9 * 0.5 + 0.1 * 1.0, 4: 1.0}
    want = {0: -steps[0] / 2, 1: -steps[1] / 2, 2: -(steps[0] + steps[2]) / 3, 3: -(steps[0] + steps[3]) / 3}
    want[4] = -(steps[1] + steps[4]) / 3
    assert rewards == pytest.approx(want)
    assert max(rewards[2], rewards[3], rewards[4]) == rewards[3]  # the higher image score; ranks reversed would fail


def test_pairs_and_why_there_are_none():
    nodes = tree()
    for number, reward in path_rewards(nodes, "scores", 0.9, "sum").items():
        nodes[number]["reward"] = reward
    best, worst = best_and_worst(nodes, 0.1)
    assert (answer_of(nodes, best), answer_of(nodes, worst)) == ("A. D.", "A. C.")
    assert best["image_score"] > worst["image_score"]
    assert best_and_worst(nodes, 50.0) == "below_margin"
    assert best_and_worst(nodes[:3], 0.1) == "no_final"
    same = [nodes[0], nodes[2], nodes[2] | {"id": 5, "reward": 9.0}]
    assert best_and_worst(same, 0.1) == "one_text"
    cut = [part | {"ended": "cap"} for part in nodes]
    assert best_and_worst(cut, 0.1) == "no_final"


def test_what_is_searched_on():
    nodes = [node(i, -1, 1, 0.0, -float(i), "delimiter") | {"kept": False} for i in range(6)]
    for part, reward in zip(nodes, [3.0, 5.0, 1.0, 4.0, 2.0, 0.0], strict=True):
        part["reward"] = reward
    kept = _keep(nodes, nodes, CsrConfig())
    assert [part["id"] for part in kept] == [1, 2, 5]  # the best and the two worst by reward
    released = _keep(nodes, nodes, CsrConfig(search="released"))
    assert [part["id"] for part in released] == [0, 4, 5]  # the most and the two least probable
    nodes[5]["ended"] = "eos"
    assert nodes[5] in _keep(nodes, nodes, CsrConfig()) and len(_keep(nodes, nodes[:2], CsrConfig())) == 2


class Letters:
    """A scorer that counts letters."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def score_batch(self, examples: list[Example]) -> list[list[float]]:
        self.calls += [example.responses for example in examples]
        return [[float(len(text)) for text in example.responses] for example in examples]


def test_increments_sum_up_to_the_whole_answers_reward():
    scorer = Letters()
    calibrator, example = RewardCalibrator(scorer), Example("e", "test", [], [], [])
    answers = ["A cup.", "A cup. Red.", "A cup. Red. Here."]
    total, before = 0.0, ""
    for whole in answers:
        [[score]] = calibrator.scores([example], [[Partial(before, whole.removeprefix(before), whole)]])
        total, before = total + score, whole
    assert total == len(answers[-1]) and scorer.calls == [[text] for text in answers]  # each text is scored once


def test_several_calibrators_count_alike_whatever_their_scale():
    assert joined([[3.0, 5.0]]) == [3.0, 5.0]
    assert joined([[3.0, 5.0, 7.0], [0.2, 0.2, 0.2]]) == pytest.approx([-math.sqrt(1.5) / 2, 0, math.sqrt(1.5) / 2])


@pytest.fixture(scope="module")
def run(reward, tmp_path_factory) -> tuple[Path, list[str]]:
    """A run of two iterations with clauses as steps."""
    out = tmp_path_factory.mktemp("csr")
    words = [f"model={reward}", f"policy={BASE}", DATA, "iterations=2", "batch_size=4", "steps.n=3"]
    words += ['steps.delimiters=[",", " and", "."]', "dpo.lora_r=4", *(f"dpo.{word}" for word in QUICK)]
    assert main([f"out={out}", *words]) == 0
    return out, words


def test_a_run_leaves_what_it_says(run):
    from transformers import AutoModelForImageTextToText

    out, _ = run
    for iteration in ("iter1", "iter2"):
        records, summary = read_lines(out / iteration / "candidates.jsonl"), read_json(out / iteration / "summary.json")
        rows = read_lines(out / iteration / "pairs.jsonl")
        assert summary["prompts"] == len(records) == 6 and summary["pairs"] == len(rows) > 0
        assert sum(summary[key] for key in ("pairs", "no_final", "one_text", "below_margin")) == 6
        assert summary["chosen"]["reward"] > summary["rejected"]["reward"]
        for record in records:
            nodes = record["nodes"]
            rewards = path_rewards(nodes, "scores", 0.9, "sum")  # increments of the reward model
            assert [part["reward"] for part in nodes] == pytest.approx([rewards[part["id"]] for part in nodes])
            parents = {part["parent"] for part in nodes} - {-1}
            assert all(nodes[parent]["kept"] and nodes[parent]["ended"] != "eos" for parent in parents)
            assert all(len([n for n in nodes if n["parent"] == p]) == 3 for p in {*parents, -1})
        for row in rows:
            assert row["chosen"] != row["rejected"] and all(Path(image).is_file() for image in row["images"])
        plain = AutoModelForImageTextToText.from_pretrained(out / iteration / "merged")
        assert plain.config.architectures == ["LlavaForConditionalGeneration"]
    assert read_json(out / "report.json").keys() == {"iter1", "iter2"}
    first, second = (out / name / "merged" / "model.safetensors" for name in ("iter1", "iter2"))
    assert first.read_bytes() != second.read_bytes()


def test_an_interrupted_run_ends_in_the_same_bytes(run, capsys):
    out, words = run
    names = ("iter1/candidates.jsonl", "iter1/pairs.jsonl", "iter1/merged/model.safetensors", "iter2/pairs.jsonl")
    before = {name: (out / name).read_bytes() for name in names}
    lines = before["iter1/candidates.jsonl"].splitlines(keepends=True)
    (out / "iter1" / "candidates.jsonl").write_bytes(b"".join(lines[:5]) + lines[5][:50])  # the second batch is cut
    (out / "iter1" / "pairs.jsonl").unlink()
    shown = output_of(capsys, main, f"out={out}", *words)
    assert "4 of 6 prompts are in" in shown
    assert {name: (out / name).read_bytes() for name in names} == before
    assert "weight" in error_line(capsys, main, f"out={out}", *words, "weight=0.5")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["calibrator=clip"], "set clip=FOLDER"),
        (["model=nowhere/at/all"], "nowhere/at/all"),
        (["policy=", DATA], "data without policy"),
        (["dpo.beta=0"], "beta"),
    ],
)
def test_bad_input(reward, tmp_path, capsys, words, message):
    line = message_of(capsys, main, f"out={tmp_path}", f"model={reward}", f"policy={BASE}", DATA, *words)
    assert message in line


def test_a_reward_model_is_no_policy(reward, tmp_path, capsys):
    line = error_line(capsys, main, f"out={tmp_path}", f"model={reward}", f"policy={reward}", DATA)
    assert "is a reward model; give a model that generates text" in line
