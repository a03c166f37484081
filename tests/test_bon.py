"""python -m rovrm.bon and the policy behind it: exact log-probabilities, the right choice, resuming, refusals."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import REAL, error_line, output_of, read_json, read_lines, write_lines

from rovrm import bon, rank
from rovrm.best_of_n.choose import best_of_n
from rovrm.best_of_n.world_table import compare_choices, judge_records, print_choices
from rovrm.common.errors import UserError
from rovrm.data.example import Example
from rovrm.data.prompts import load_prompts
from rovrm.model.policy import Policy
from rovrm.model.scorer import RewardScorer
from rovrm.settings.keys import BonConfig
from rovrm.tiny_base.measure import picture_example
from rovrm.world.default import BASE
from rovrm.world.language import describe
from rovrm.world.scenes import Drawing, draw_scene

POOLS = REAL / "owleval" / "best_of_n_candidates.jsonl"
DATA = "data=world:visual?split=test&questions=describe&n=6"


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy.from_pretrained(BASE, device="cpu")


def pictures(count: int):
    rng = random.Random(0)
    return [
        picture_example(Drawing(draw_scene(rng, "picture"), i), text)
        for i, text in zip(
            range(count), ["What do you see?", "Describe the picture.", "Count the things."], strict=False
        )
    ]


@torch.inference_mode()
def one_by_one(policy: Policy, example, text: str) -> float:
    """The log-probability of an answer, from one forward of its whole conversation without padding."""
    asked = policy.processor.apply_chat_template(example.prompt, tokenize=False, add_generation_prompt=True)
    images = [ref.open() for ref in example.images]
    whole = policy.processor(
        text=[f"{asked} {text}</s>"], images=[images], return_tensors="pt", add_special_tokens=False
    )
    prompt = policy.processor(text=[asked], images=[images], return_tensors="pt", add_special_tokens=False)
    start = prompt["input_ids"].shape[1]
    logits = policy.model(**whole).logits[0, start - 1 : -1].log_softmax(-1)
    return logits.gather(-1, whole["input_ids"][0, start:, None]).sum().item()


def test_log_probabilities_are_those_of_the_whole_conversation(policy):
    examples = pictures(3)  # of different lengths: padded on the left
    for found in (policy.sample(examples, 2, max_new_tokens=64, seed=3), policy.sample(examples, temperature=0)):
        for example, candidates in zip(examples, found, strict=True):
            for candidate in candidates:
                assert candidate.logprob == pytest.approx(one_by_one(policy, example, candidate.text), abs=1e-3)


def test_greedy_answers_do_not_depend_on_the_batch_and_samples_on_the_seed_alone(policy):
    examples = pictures(3)
    together = [found[0].text for found in policy.sample(examples, temperature=0)]
    assert together == [policy.sample([example], temperature=0)[0][0].text for example in examples]
    first = policy.sample(examples, 4, seed=1)
    assert first == policy.sample(examples, 4, seed=1) != policy.sample(examples, 4, seed=2)


def test_long_prompts_are_sampled_apart(policy, monkeypatch):
    """Where a batch would hold too many tokens it is halved by length; answers stay with their prompts."""
    examples = pictures(3)
    examples[0] = picture_example(examples[0].images[0].drawing, "What do you see? " * 30)
    whole = policy.sample(examples, temperature=0, max_new_tokens=32)
    sizes: list[int] = []
    inner = policy.model.generate
    monkeypatch.setattr(policy.model, "generate", lambda **kw: sizes.append(len(kw["input_ids"])) or inner(**kw))
    monkeypatch.setattr("rovrm.model.policy.AT_ONCE", 400)
    assert [found[0].text for found in policy.sample(examples, temperature=0, max_new_tokens=32)] == [
        found[0].text for found in whole
    ]
    assert sizes == [1, 1, 1] or sizes == [1, 2] or sizes == [2, 1]
    sizes.clear()
    sampled = policy.sample(examples[1:2], 8, max_new_tokens=32)
    assert len(sampled[0]) == 8 and 1 < max(sizes) < 8  # of one prompt the candidates are shared out


def test_answers_without_an_end_are_cut(policy):
    """Cut are those that hold max_new_tokens tokens of which the last is no end."""
    examples = pictures(3)
    whole = [one for many in policy.sample(examples, 4, seed=1) for one in many]
    longest, shortest = (pick(one.tokens for one in whole) for pick in (max, min))
    assert shortest < longest and not any(one.cut for one in whole)
    short = [one for many in policy.sample(examples, 4, seed=1, max_new_tokens=shortest) for one in many]
    assert [one.cut for one in short] == [one.tokens > shortest for one in whole]
    exact = [one for many in policy.sample(examples, 4, seed=1, max_new_tokens=longest) for one in many]
    assert not any(one.cut for one in exact)  # the end is the last token


def test_a_reward_model_is_no_policy(reward):
    with pytest.raises(UserError, match="is a reward model"):
        Policy.from_pretrained(reward)


def test_answers_beside_the_prompts_are_not_looked_at(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "Q", "chosen": null, "rejected": "x", "response": null}\n')
    [example] = load_prompts([str(tmp_path / "a.jsonl")], "")
    assert example.responses == [""]


def test_bon_keeps_the_candidate_with_the_highest_reward(reward, tmp_path, capsys):
    assert bon.main(f"--n 3 model={reward} {DATA} out={tmp_path} batch_size=4 max_new_tokens=48".split()) == 0
    rows = read_lines(tmp_path / "bon.jsonl")
    assert [row["id"] for row in rows] == [f"visual-test-0-{i}" for i in range(6)]
    examples = load_prompts([DATA.removeprefix("data=")], "")
    scorer = RewardScorer.from_pretrained(reward)
    for row, example in zip(rows, examples, strict=True):
        assert len(row["candidates"]) == len(row["scores"]) == len(row["logprobs"]) == 3
        assert row["best"] == row["scores"].index(max(row["scores"]))
        scores = scorer.score(example.prompt, row["candidates"], images=example.images[0].open())
        assert scores == pytest.approx(row["scores"], abs=1e-5)
    summary = read_json(tmp_path / "summary.json")
    rates = summary["choices"]["rates"]
    assert rates["oracle"]["false"] <= rates["mean"]["false"]
    assert summary["reward"]["best"]["value"] >= summary["reward"]["mean"]["value"]
    assert [record["n"] for record in summary["curve"]] == [1, 2, 3]
    assert [record["kl_bound"] for record in summary["curve"]] == pytest.approx([0, 0.193147, 0.431946], abs=1e-6)
    assert summary["curve"][0]["false"]["value"] == pytest.approx(rates["mean"]["false"])
    assert summary["curve"][-1]["false"]["value"] == pytest.approx(rates["reward"]["false"])
    assert summary["curve"][-1]["oracle"]["value"] == pytest.approx(rates["oracle"]["false"])
    assert {"best", "mean", "first", "random", "greedy"} == set(summary["reward"])
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png") == 6 and "best of 3 by the oracle" in page
    assert page.count("★ chosen ") == 6 and page.count('class="why">') == 6 and "<h1>The best of 3 answers" in page
    assert "best of 3 by the reward model" in capsys.readouterr().out


def test_the_images_of_drawn_prompts_are_kept_beside_the_rows(reward, tmp_path):
    """bon.jsonl stands alone: its prompts, images and candidates give its scores again."""
    first, second = tmp_path / "first", tmp_path / "second"
    assert bon.main(f"--n 2 model={reward} {DATA} out={first} max_new_tokens=48".split()) == 0
    assert bon.main(f"model={reward} candidates={first / 'bon.jsonl'} out={second} rows=separate".split()) == 0
    sampled, read = (read_lines(out / "bon.jsonl") for out in (first, second))
    assert all(row["images"][0].startswith("images/") for row in sampled)
    for one, two in zip(sampled, read, strict=True):
        assert two["scores"] == pytest.approx(one["scores"], abs=1e-5)
        assert [two[key] for key in ("id", "prompt", "candidates")] == [
            one[key] for key in ("id", "prompt", "candidates")
        ]


def test_bon_goes_on_where_it_was_stopped(reward, tmp_path, capsys):
    command = f"--n 2 model={reward} {DATA} batch_size=2 max_new_tokens=16".split()
    assert bon.main([*command, f"out={tmp_path / 'whole'}"]) == 0
    whole = (tmp_path / "whole" / "bon.jsonl").read_bytes()
    assert bon.main([*command, f"out={tmp_path / 'cut'}"]) == 0
    lines = whole.splitlines(keepends=True)
    (tmp_path / "cut" / "bon.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:40])  # killed in the second batch
    assert "2 of 6 prompts are in" in output_of(capsys, bon.main, *command, f"out={tmp_path / 'cut'}")
    assert (tmp_path / "cut" / "bon.jsonl").read_bytes() == whole


def test_cut_answers_are_flagged_and_lines_of_an_earlier_version_go_on(reward, tmp_path, capsys):
    out, pairs = tmp_path / "out", tmp_path / "pairs.jsonl"
    command = f"--n 3 model={reward} {DATA} out={out} batch_size=2 max_new_tokens=16".split()
    ranking = [f"in={out / 'bon.jsonl'}", f"out={pairs}", "margin=0"]
    printed = output_of(capsys, bon.main, *command)
    lines = (out / "bon.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert all(set(row["cut"]) == {i for i, n in enumerate(row["tokens"]) if n == 16} for row in rows)
    assert all(row["greedy"]["cut"] is True for row in rows)  # of more than 16 tokens
    flagged = read_json(out / "summary.json")["flagged"]
    assert flagged["cut"] == sum(len(row["cut"]) for row in rows) > 0
    assert flagged["best_is_cut"] == sum(row["best"] in row["cut"] for row in rows) > 0
    assert f"{flagged['cut']} candidates are cut at max_new_tokens=16, the best in" in printed
    assert "raise max_new_tokens" in printed
    assert rank.main(ranking) == 0
    preferences = pairs.read_bytes()

    for row in rows:
        del row["cut"], row["greedy"]["cut"]
    write_lines(out / "bon.jsonl", *rows)
    assert rank.main(ranking) == 0 and pairs.read_bytes() == preferences
    write_lines(out / "bon.jsonl", *rows[:2])
    noted = out / "config.yaml"
    noted.write_text(noted.read_text().replace("allow_empty: false\n", ""))
    printed = output_of(capsys, bon.main, *command)
    assert "2 of 6 prompts are in" in printed and "not noted for 2 prompts of an earlier version" in printed
    again = (out / "bon.jsonl").read_text().splitlines()
    assert again[2:] == lines[2:] and "cut" not in json.loads(again[0])


def test_bon_refuses_a_folder_begun_with_other_settings(reward, tmp_path, capsys):
    command = f"--n 2 model={reward} {DATA} out={tmp_path} max_new_tokens=16".split()
    assert bon.main(command) == 0
    assert "begun with other settings (temperature: 1.0, now 0.5)" in error_line(
        capsys, bon.main, *command, "temperature=0.5"
    )


def test_bon_refuses_scores_of_a_model_that_is_gone(reward, tmp_path, capsys):
    command = f"--n 2 model={tmp_path / 'model'} {DATA} out={tmp_path / 'out'} max_new_tokens=16".split()
    shutil.copytree(reward, tmp_path / "model")
    assert bon.main(command) == 0
    assert bon.main(command) == 0  # the same model: nothing is sampled again
    shutil.rmtree(tmp_path / "model")
    shutil.copytree(reward, tmp_path / "model", copy_function=shutil.copy)  # without the times: another model's
    assert "answers and scores of another model" in error_line(capsys, bon.main, *command)


def test_nothing_is_claimed_where_nothing_is_false(capsys):
    """The truth told by all, and one candidate each: no ratio, no pair, no sentence about less or more."""
    examples, rows = pictures(2), []
    for example in examples:
        text = describe(example.images[0].drawing.scene)
        told = {"text": text, "score": 0.0, "logprob": 0.0}
        rows.append({"candidates": [text], "scores": [0.0], "best": 0, "logprobs": [0.0], "greedy": told})
    choices = compare_choices(judge_records(examples, rows), rows)
    assert choices["reward_over_mean"] == {"ratio": None, "ci95": None} and choices["own_pairs"]["accuracy"] is None
    print_choices(choices)
    printed = capsys.readouterr().out
    assert "too few false answers by greedy" in printed and "no pair to order" in printed
    assert "times as often" not in printed


def test_prompts_of_a_file_and_rows_that_cannot_be_used(reward, tmp_path, capsys):
    picture = Drawing(draw_scene(random.Random(0), "picture"), 0)
    picture().save(tmp_path / "a.png")
    rows = [{"prompt": "What do you see?", "image": "a.png"}, {"question": "What is there?", "image": "a.png"}]
    file = tmp_path / "prompts.jsonl"
    write_lines(file, *rows)
    command = f"--n 2 model={reward} policy={BASE} data={file} out={tmp_path / 'out'} max_new_tokens=16".split()
    assert bon.main(command) == 0
    found = read_lines(tmp_path / "out" / "bon.jsonl")
    assert [row["id"] for row in found] == ["prompts-1", "prompts-2"]
    assert "choices" not in read_json(tmp_path / "out" / "summary.json")
    file.write_text(file.read_text().replace("see?", "see now?"))
    assert "holds other prompts or candidates than the data" in error_line(capsys, bon.main, *command)
    missing = json.dumps({"prompt": "What?", "image": "none.png"}) + "\n"
    file.write_text(missing)
    assert "none.png: no such file, and so with all of them" in error_line(
        capsys, bon.main, *command[:-2], f"out={tmp_path / 'other'}"
    )
    file.write_text(missing + json.dumps(rows[0]) + "\n")
    assert bon.main([*command[:-2], "max_new_tokens=16", f"out={tmp_path / 'some'}"]) == 0
    found = read_lines(tmp_path / "some" / "bon.jsonl")
    assert "none.png: no such file" in found[0]["error"] and len(found[1]["candidates"]) == 2


@pytest.fixture
def pools(tmp_path):
    """Five prompts: one with a picture that is no picture, one with empty and repeated candidates, one without any."""
    Drawing(draw_scene(random.Random(0), "picture"), 0)().save(tmp_path / "a.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    many = {"x": "A red ball.", "y": "A blue ball.", "z": "A ball."}
    rows = [
        {"id": "one", "prompt": "What do you see?", "image": "a.png", "candidates": many},
        {"id": "two", "prompt": "What do you see?", "image": "bad.png", "candidates": many},
        {"id": "three", "prompt": "What do you see?", "image": "a.png", "candidates": ["A ball.", " ", "A  ball.", ""]},
        {"id": "four", "prompt": "Say something.", "candidates": ["Yes.", "No.", "No, no."]},
        {"id": "five", "prompt": "Say nothing.", "candidates": []},
    ]
    write_lines(tmp_path / "pools.jsonl", *rows)
    return tmp_path / "pools.jsonl"


def test_candidates_of_a_file_are_scored_and_flagged(reward, pools, tmp_path, capsys):
    assert bon.main(f"model={reward} candidates={pools} out={tmp_path / 'out'} batch_size=2".split()) == 0
    one, two, three, four, five = read_lines(tmp_path / "out" / "bon.jsonl")
    scorer = RewardScorer.from_pretrained(reward)
    for row, image in ((one, tmp_path / "a.png"), (three, tmp_path / "a.png"), (four, None)):
        prompt = "Say something." if image is None else "What do you see?"
        assert row["scores"] == pytest.approx(scorer.score(prompt, row["candidates"], images=image), abs=1e-5)
    for row in (one, four):
        assert row["best"] == row["scores"].index(max(row["scores"]))
    assert three["best"] in (0, 2) and three["scores"][three["best"]] == max(three["scores"][0], three["scores"][2])
    assert one["names"] == ["x", "y", "z"] and one["images"] == [str(tmp_path / "a.png")]
    assert two["id"] == "two" and "bad.png" in two["error"] and "scores" not in two
    assert five["error"] == "the prompt has no candidates"
    assert three["empty"] == [1, 3] and three["repeated"] == [2, 3]
    summary = read_json(tmp_path / "out" / "summary.json")
    assert (summary["prompts"], summary["failed"]) == (3, 2)
    assert summary["flagged"]["empty"] == summary["flagged"]["repeated"] == 2
    assert sum(found["candidates"] for found in summary["names"].values()) == 10
    assert sum(found["best"] for found in summary["names"].values()) == 3
    assert [record["n"] for record in summary["curve"]] == [1, 2, 3]  # as many as every prompt has
    assert "kl_bound" not in summary["curve"][0]  # of three models, not of one policy
    assert "2 prompts could not be used, the first: " in capsys.readouterr().out


class Fake:
    """Scores the shorter text higher, and of equal ones the later by a little: noise."""

    def __init__(self):
        self.seen = []

    def score_or_error(self, examples, batch_tokens):
        self.seen += [list(example.responses) for example in examples]
        return [[-len(text) + i / 1000 for i, text in enumerate(example.responses)] for example in examples]


def chosen(scorer, *candidates: str, **settings) -> dict:
    example = Example("x", "", [{"role": "user", "content": "Q"}], list(candidates), [0] * len(candidates), [])
    (row,) = best_of_n(scorer, [example], BonConfig(**settings), None, 0)
    return row


def test_equal_texts_have_one_score_and_the_first_of_them_is_chosen():
    scorer = Fake()
    row = chosen(scorer, "Longer.", "Yes.", "No, no.", "Yes.", "Yes. ")
    assert scorer.seen == [["Longer.", "Yes.", "No, no.", "Yes. "]]
    assert row["scores"][1] == row["scores"][3] and row["best"] == 1 and row["repeated"] == [3, 4]


def test_an_empty_answer_does_not_win_over_one_with_text():
    scorer = Fake()
    assert chosen(scorer, "", "Yes.", " ", "No.")["best"] == 3
    assert chosen(scorer, "", "Yes.", " ", allow_empty=True)["best"] == 0
    assert chosen(scorer, "  ", " ", " ")["best"] == 1  # all are empty
    unseen = chosen(scorer, "Yes.", "\u200b", "\u2060 \ufeff")  # a zero-width space and its like
    assert unseen["best"] == 0 and unseen["empty"] == [1, 2]


@pytest.fixture
def weak(tmp_path, monkeypatch):
    """A command about two prompts whose empty candidates have the highest reward."""
    monkeypatch.setattr(bon, "_models", lambda config: (Fake(), None))
    rows = [
        {"id": "one", "prompt": "Why?", "candidates": {"x": "A ball.", "y": "", "z": "Ball."}},
        {"id": "two", "prompt": "Who?", "candidates": {"x": " ", "y": "", "z": ""}},
    ]
    write_lines(tmp_path / "weak.jsonl", *rows)
    return f"candidates={tmp_path / 'weak.jsonl'} out={tmp_path / 'out'}".split()


def test_best_of_fewer_is_chosen_by_the_same_rule(weak, tmp_path):
    for more, best in (([], [2, 1]), (["allow_empty=true", f"out={tmp_path / 'any'}"], [1, 1])):
        assert bon.main([*weak, *more]) == 0
        out = tmp_path / ("any" if more else "out")
        rows = read_lines(out / "bon.jsonl")
        summary = read_json(out / "summary.json")
        assert [row["best"] for row in rows] == best
        assert summary["curve"][-1]["reward"]["value"] == pytest.approx(summary["reward"]["best"]["value"])
        assert summary["curve"][0]["reward"]["value"] == pytest.approx(summary["reward"]["mean"]["value"])
        assert summary["flagged"]["best_is_empty"] == (2 if more else 1)
        assert "cut" not in summary["flagged"]  # of a file nobody knows
        assert [summary["names"][name]["best"] for name in "xyz"] == [best.count(i) for i in range(3)]


def test_an_earlier_choice_of_an_empty_answer_is_made_again(weak, tmp_path, capsys):
    assert bon.main(weak) == 0
    path = tmp_path / "out" / "bon.jsonl"
    today = path.read_bytes()
    path.write_bytes(today.replace(b'"best": 2', b'"best": 1'))
    assert "in 1 prompts of" in output_of(capsys, bon.main, *weak) and path.read_bytes() == today
    assert "an earlier version" not in output_of(capsys, bon.main, *weak)


def test_scores_of_candidates_go_on_where_they_were_stopped(reward, pools, tmp_path, capsys):
    command = f"model={reward} candidates={pools} out={tmp_path / 'out'} batch_size=1".split()
    assert bon.main(command) == 0
    path = tmp_path / "out" / "bon.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"\n") + 50])
    assert bon.main(command) == 0
    assert path.read_bytes() == whole
    pools.write_text(pools.read_text().replace("A blue ball.", "A green ball."))
    assert "holds other prompts or candidates than the data" in error_line(capsys, bon.main, *command)


def test_the_shipped_policy_answers_about_the_world_alone(reward, pools, tmp_path, capsys):
    pools.write_text(json.dumps({"prompt": "What do you see?", "image": "a.png"}) + "\n")
    command = f"--n 1 model={reward} out={tmp_path / 'out'} max_new_tokens=4".split()
    for data in (str(pools), f"world:visual?n=2,{pools}"):
        told = error_line(capsys, bon.main, *command, f"data={data}")
        assert f"data='{pools}' without policy" in told and "policy=FOLDER_OR_HUB_ID, or candidates=FILE" in told
        assert not (tmp_path / "out").exists()
    assert bon.main([*command, f"data={pools}", f"policy={BASE}"]) == 0


def test_settings_that_exclude_each_other(reward, pools, tmp_path, capsys):
    command = f"model={reward} candidates={pools} out={tmp_path / 'out'}".split()
    assert "policy and candidates are both given" in error_line(capsys, bon.main, *command, "policy=other")
    assert "n=5: prompt 'one' has only 3 candidates" in error_line(capsys, bon.main, *command, "--n", "5")
    assert "n: got '0,8', takes a list a,b or [a,b] with numbers from 1 to 1024" in error_line(
        capsys, bon.main, *command, "--n", "0,8"
    )
    broken = pools.read_text().replace("a.png", "bad.png").splitlines()[0]
    pools.write_text(broken + "\n")
    assert "not one of the 1 prompts could be used" in error_line(capsys, bon.main, *command)


# ---- slow: real answers, a real kill ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not POOLS.is_file(), reason="the real data are not beside this folder")
def test_real_answers_are_scored_once_each_through_kills(reward, tmp_path):
    """OwlEval: 71 prompts with photographs, 6 answers each; killed twice, at about a third and two thirds."""
    command = f"model={reward} candidates={POOLS} batch_size=4".split()
    assert bon.main([*command, f"out={tmp_path / 'whole'}"]) == 0
    path = tmp_path / "killed" / "bon.jsonl"
    for kill_at in (20, 45):
        line = [sys.executable, "-m", "rovrm.bon", *command, f"out={path.parent}"]
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while (path.read_bytes().count(b"\n") if path.is_file() else 0) < kill_at:
            assert process.poll() is None, "the command ended before it could be killed"
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert kill_at <= path.read_bytes().count(b"\n") < 71
    assert bon.main([*command, f"out={path.parent}"]) == 0
    assert path.read_bytes() == (tmp_path / "whole" / "bon.jsonl").read_bytes()
    asked = read_lines(POOLS)
    rows = read_lines(path)
    assert [row["id"] for row in rows] == [row["id"] for row in asked] and len(rows) == 71
    for row, given in zip(rows, asked, strict=True):
        assert dict(zip(row["names"], row["candidates"], strict=True)) == given["candidates"]
        assert len(row["scores"]) == 6 and Path(row["images"][0]).is_file()


def test_half_a_character_in_a_prompt_or_a_candidate(reward, tmp_path, capsys):
    """The file can be written and read again, and only the prompt that no tokenizer takes is without scores."""
    good, bad = ("Q", ["Yes.", "No."]), ("half \ud83d", ["A.", "half \udc80"])
    rows = [{"prompt": prompt, "candidates": texts} for prompt, texts in (good, bad)]
    file = tmp_path / "pools.jsonl"
    write_lines(file, *rows)
    given = [f"model={reward}", f"candidates={file}", f"out={tmp_path}/bon", "device=cpu"]
    for _ in range(2):  # the second time from the file
        assert bon.main(given) == 0
        good, bad = read_lines(tmp_path / "bon" / "bon.jsonl")
        assert len(good["scores"]) == 2 and bad["prompt"][0]["content"] == "half \ud83d"
        assert "half a character" in bad["error"]
    assert "Traceback" not in capsys.readouterr().err
