"""python -m rovrm.rank: true answers for each strategy, what is left out, refusals, and readers: our own and TRL's."""

import difflib
import math
import random
import shutil
from typing import Any

import pytest
from helpers import read_json, read_lines, write_lines
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from PIL import Image

from rovrm import rank as command
from rovrm.best_of_n.preferences import COUNTED, ScoredAnswer, distinct, likeness, preference_rows
from rovrm.data.loading import load_examples
from rovrm.tiny_base.measure import picture_example
from rovrm.training.checks import check_responses
from rovrm.world.default import BASE
from rovrm.world.language import describe
from rovrm.world.scenes import Drawing, draw_scene

WORDS = {"cup": "A red cup stands on it.", "dog": "Nothing but one dog!", "two": "Two.", "sky": "The sky is so blue."}
CUP, DOG, TWO, SKY = WORDS.values()


@pytest.fixture
def run(tmp_path, capsys):
    """run(lines, *more): (exit status, rows or None, what was printed); lines=None leaves the input as it is."""
    source, out = tmp_path / "data" / "bon.jsonl", tmp_path / "new" / "pairs.jsonl"
    source.parent.mkdir()

    def call(lines, *more):
        if lines is not None:
            write_lines(source, *lines)
        status = command.main([f"in={source}", f"out={out}", *more])
        printed = capsys.readouterr()
        rows = read_lines(out) if out.is_file() else None
        return status, rows, printed.out + printed.err

    call.source, call.out, call.summary = source, out, out.with_name("pairs.jsonl.summary.json")
    return call


def line(scores, candidates=(CUP, DOG, TWO, SKY), **more) -> dict[str, Any]:
    return {"id": "q", "prompt": "What is there?", "candidates": list(candidates), "scores": scores, "best": 0} | more


def ids(found) -> list[str]:
    return [row["id"] for row in found[1] or []]


# ---- true answers ----------------------------------------------------------------------------------------------------


def test_best_worst(run):
    status, rows, printed = run([line([0.5, 2.0, -1.0, 1.0])])
    assert status == 0 and rows == [
        {
            "id": "q-1-2",
            "prompt": [{"role": "user", "content": "What is there?"}],
            "chosen": [{"role": "assistant", "content": DOG}],
            "rejected": [{"role": "assistant", "content": TWO}],
            "score_chosen": 2.0,
            "score_rejected": -1.0,
        }
    ]
    assert "1 pairs of 1 prompts (0 gave none)" in printed and len(printed.splitlines()) == 2
    assert sorted(path.name for path in run.out.parent.iterdir()) == ["pairs.jsonl", "pairs.jsonl.summary.json"]


def test_all_pairs_clearest_first(run):
    scores = [0.0, 2.0, 0.25, 1.0]  # differences: 2, 1.75, 1, 1, .75, and .25 inside the noise
    found = run([line(scores)], "strategy=all_pairs")
    assert ids(found) == ["q-1-0", "q-1-2", "q-1-3", "q-3-0", "q-3-2"] and "1 pairs inside the noise" in found[2]
    found = run([line(scores)], "strategy=all_pairs", "max_pairs=2")
    assert ids(found) == ["q-1-0", "q-1-2"] and "3 above max_pairs" in found[2]


@pytest.mark.parametrize(
    ("margin", "scores", "ranks"),
    [
        (0.4, [3.0, 2.0, 1.0, 0.0], [0, 1, 2, 3]),
        (0.5, [3.0, 2.75, 2.5, 2.0], [0, 0, 1, 2]),
        (0.5, [3.0, 3.0, 2.5, 2.25], [0, 0, 1, 1]),
        (0.5, [3.0, 2.625, 2.25, 1.875], [0, 0, 1, 1]),  # neighbours .375 apart: a rank is measured from its first
        (0.0, [3.0, 3.0, 2.5, 2.5], [0, 0, 1, 1]),
    ],
)
def test_ranked_lists_and_their_ties(run, margin, scores, ranks):
    _, rows, printed = run([line(scores)], "strategy=ranked", f"margin={margin}")
    expected = {"responses": [CUP, DOG, TWO, SKY], "ranks": ranks, "scores": scores}
    assert rows == [{"id": "q", "prompt": [{"role": "user", "content": "What is there?"}]} | expected]
    assert f"{len(ranks) - len(set(ranks))} pairs inside the noise" in printed


def test_a_list_of_one_rank_is_none(run):
    status, rows, printed = run([line([3.0, 2.9, 2.8, 2.7])], "strategy=ranked")
    assert status == 2 and rows is None and "6 pairs inside the noise" in printed


@pytest.mark.parametrize("strategy", ["best_worst", "all_pairs", "ranked"])
def test_a_difference_of_exactly_the_margin_counts(run, strategy):
    two = {"candidates": [CUP, DOG]}
    assert len(run([line([1.0, 0.5], **two)], f"strategy={strategy}", "margin=0.5")[1]) == 1
    below = math.nextafter(0.5, 1)
    status, _, printed = run([line([1.0, below], **two)], f"strategy={strategy}", "margin=0.5")
    assert status == 2 and "1 pairs inside the noise (margin=0.5)" in printed
    assert run([line([1.0, 1.0], **two)], f"strategy={strategy}", "margin=0")[0] == 2  # equal is never a preference


def test_near_duplicates(run):
    """Copies and near-copies of a better answer go, unless their reward is clearly another; a copy always goes."""
    answers = [CUP, CUP.upper() + " ", "A red cup stands on it", "A red cap stands on it.", f" {CUP}", DOG]
    found = run([line([2.0, 1.9, 1.8, 1.0, 0.0, 0.5], answers)], "strategy=all_pairs")
    assert ids(found) == ["q-0-5", "q-0-3", "q-3-5"] and "3 near-duplicates" in found[2]
    found = run(None, "strategy=all_pairs", "similarity=1")
    assert ids(found) == ["q-0-5", "q-2-5", "q-0-3", "q-2-3", "q-3-5"] and "2 near-duplicates" in found[2]


def test_empty_and_scoreless_candidates_and_rows_with_an_error(run):
    rows = [
        line([9.0, 1.0, math.nan, 0.0], [" \n", CUP, DOG, TWO]),
        {"id": "e", "prompt": "Hi", "error": "image missing"},
        line([None, -math.inf, 0.0, 10**400], id="none"),
        line([0.0, 0.1, 0.2, 0.3], id="noise"),
        line([1.0, 0.0], [CUP, DOG], id=None, error=None),
    ]
    found = run(rows)
    assert found[0] == 0 and ids(found) == ["q-1-3", "bon-5-0-1"]
    summary = read_json(run.summary)
    expected = {
        "prompts": 4,
        "errors": 1,
        "images": 0,
        "without": 2,
        "empty": 1,
        "not_finite": 4,
        "duplicates": 0,
        "noise": 1,
    }
    assert summary == expected | {
        "in": str(run.source),
        "strategy": "best_worst",
        "margin": 0.4,
        "rows": 2,
        "over_max_pairs": 0,
    }
    assert "2 pairs of 4 prompts (2 gave none); 1 more rows had an error" in found[2]
    assert "1 empty candidates, 4 without a finite score" in found[2]


@effort(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-40, 40), min_size=2, max_size=7, unique=True),
    st.randoms(use_true_random=False),
    st.sampled_from(["best_worst", "all_pairs", "ranked"]),
)
def test_the_order_of_candidates_does_not_matter(whole, rng, strategy):
    scores = [score / 10 for score in whole]
    texts = [" ".join(rng.choice(("red", "cup", "dog", "on")) for _ in range(4)) for _ in scores]
    order = rng.sample(range(len(scores)), len(scores))
    assert preferences(texts, scores, strategy) == preferences(
        [texts[i] for i in order], [scores[i] for i in order], strategy
    )


def preferences(texts, scores, strategy) -> list[Any]:
    from rovrm.data.raw_rows import Row
    from rovrm.settings.keys import RankConfig

    row = Row({"prompt": "Q", "candidates": texts, "scores": scores}, "file, row 1", "file", 1)
    counts = dict.fromkeys(COUNTED, 0)
    made = preference_rows(row, RankConfig("in", "out", strategy), counts)
    return [counts, [{key: value for key, value in one.items() if key != "id"} for one in made]]


# ---- likeness --------------------------------------------------------------------------------------------------------


def slow_likeness(a: str, b: str) -> float:
    """The textbook's table of longest common subsequences."""
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, one in enumerate(a):
        for j, other in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if one == other else max(table[i][j + 1], table[i + 1][j])
    return 2 * table[-1][-1] / (len(a) + len(b))


TEXTS = st.text("abc é", min_size=1, max_size=80)


@effort(max_examples=100, deadline=None)
@given(TEXTS, TEXTS)
def test_likeness_is_that_of_the_table_and_bounds_difflib(a, b):
    assert likeness(a, b) == likeness(b, a) == slow_likeness(a, b)
    assert likeness(a, a) == 1
    assert likeness(a, b) >= difflib.SequenceMatcher(None, a, b, autojunk=False).ratio() - 1e-12


def test_a_copy_of_what_was_left_out_may_stay():
    """Only what is kept is compared with: c is like b, b is like a, c is not like a."""
    a, b, c = "abcdefghij", "abcdefghXY", "abcdefVWXY"
    found = [ScoredAnswer(i, text, -0.01 * i) for i, text in enumerate((a, b, c))]
    assert [one.text for one in distinct(found, 0.4, 0.8)] == [a, c]


# ---- readers ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def pictured(run):
    """Lines about pictures, which lie in a folder above the input file's, and one line with a conversation."""
    rng, lines = random.Random(0), []
    (run.source.parents[1] / "images").mkdir()
    for i in range(2):
        drawing = Drawing(draw_scene(rng, "picture"), i)
        name = f"images/{i}.png"
        drawing().save(run.source.parents[1] / name)
        asked = picture_example(drawing, "What do you see?").prompt
        answers = [describe(drawing.scene), "I see nothing at all.", "There is one small red star."]
        lines.append(line([1.5, -0.5, 0.25], answers, id=f"p{i}", prompt=asked, images=[name]))
    system = [{"role": "system", "content": "Be brief."}]
    first = [{"role": "user", "content": "Look: <image>"}, {"role": "assistant", "content": "Yes."}]
    return [
        *lines,
        line([2.0, 1.0, 1.9, 0.0], prompt=[*system, *first, *asked], images=["images/0.png", "images/1.png"]),
    ]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("strategy", ["best_worst", "all_pairs", "ranked"])
def test_our_readers(run, pictured, suffix, strategy):
    """The examples of a written file are those of the same preferences written by hand beside the input."""
    lines = [*pictured, line([1.0, 0.0], [CUP, DOG], id="text")]
    out = run.out.with_name(f"file.{suffix}")
    assert run(lines, f"strategy={strategy}", f"out={out}")[0] == 0
    byhand = run.source.with_name("hand.jsonl")
    rows = []
    for one in lines:
        best = sorted(range(len(one["scores"])), key=lambda i: -one["scores"][i])
        ranks = [0, 0, 1, 2] if len(best) == 4 else list(range(len(best)))
        lists = [(best, ranks)]
        if strategy != "ranked":
            pairs = [(a, b) for i, a in enumerate(best) for b in best[i + 1 :]]
            pairs = [pair for pair in pairs if one["scores"][pair[0]] - one["scores"][pair[1]] >= 0.4]
            pairs.sort(key=lambda pair: one["scores"][pair[1]] - one["scores"][pair[0]])
            lists = [(pair, [0, 1]) for pair in (pairs[:1] if strategy == "best_worst" else pairs)]
        kept = {key: one.get(key) for key in ("prompt", "images")}
        rows += [kept | {"responses": [one["candidates"][i] for i in some], "ranks": order} for some, order in lists]
    write_lines(byhand, *rows)
    expected = load_examples([str(byhand)]).examples
    pixels = [[ref.open().tobytes() for ref in example.images] for example in expected]
    if suffix == "parquet":
        shutil.rmtree(run.source.parents[1] / "images")  # they are in the file
    loaded = load_examples([str(out)])
    assert not loaded.rejected and len(loaded.examples) == len(expected) >= 4
    for ours, theirs, images in zip(loaded.examples, expected, pixels, strict=True):
        assert (ours.prompt, ours.responses, ours.ranks) == (theirs.prompt, theirs.responses, theirs.ranks)
        assert ours.margin is None and not check_responses(ours).reason
        assert [ref.open().tobytes() for ref in ours.images] == images
    assert {len(images) for images in pixels} == {0, 1, 2}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_our_readers_without_images(run, suffix):
    out = run.out.with_name(f"file.{suffix}")
    assert run([line([1.0, 0.0, 3.0, 2.0])], "strategy=ranked", f"out={out}")[0] == 0
    (example,) = load_examples([str(out)]).examples
    assert example.prompt == [{"role": "user", "content": "What is there?"}] and not example.images
    assert (example.responses, example.ranks) == ([TWO, SKY, CUP, DOG], [0, 1, 2, 3])


def test_an_image_that_cannot_be_embedded_is_left_out(run, pictured):
    (run.source.parents[1] / "images" / "0.png").write_bytes(b"no picture")
    status, _, printed = run(pictured[:2], f"out={run.out.with_name('file.parquet')}")
    assert status == 0 and "1 an image that cannot be decoded" in printed
    assert len(load_examples([str(run.out.with_name("file.parquet"))]).examples) == 1


@pytest.mark.parametrize("suffix", ["json", "parquet"])
def test_a_step_of_trl(run, pictured, suffix, tmp_path):
    """DPOTrainer takes what load_dataset makes of the file, with nothing between: images reach the model."""
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    out = run.out.with_name(f"file.{suffix.replace('json', 'jsonl')}")
    assert run(pictured[:2], f"out={out}")[0] == 0
    pictures = [Image.open(run.source.parents[1] / f"images/{i}.png").convert("RGB") for i in range(2)]
    if suffix == "parquet":
        shutil.rmtree(run.source.parents[1] / "images")  # they are in the file
    data = datasets.load_dataset(suffix, data_files=str(out), split="train", cache_dir=str(tmp_path / "cache"))
    args = trl.DPOConfig(
        output_dir=str(tmp_path / "dpo"),
        max_steps=1,
        per_device_train_batch_size=2,
        learning_rate=1e-4,
        max_length=None,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
    )
    trainer = trl.DPOTrainer(BASE, args=args, train_dataset=data)
    batch = next(iter(trainer.get_train_dataloader()))
    pixels = trainer.processing_class.image_processor(pictures, return_tensors="pt")["pixel_values"]
    assert batch["pixel_values"].sort(dim=0)[0].equal(pixels.repeat(2, 1, 1, 1).sort(dim=0)[0])  # for both answers
    asked = trainer.processing_class.decode(batch["input_ids"][0])
    assert "What do you see?" in asked and asked.count("<image>") == 9
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses == [pytest.approx(math.log(2), abs=1e-3)]  # the policy is still its own reference
    assert any(not value.equal(before[name]) for name, value in trainer.model.named_parameters())


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("{not json", "row 2: broken JSON"),
        (["a"], "row 2: a row is a JSON object, got list"),
        ({"prompt": "Q", "scores": [1.0]}, "row 2: candidates = 'None'; give a list of texts"),
        ({"prompt": "Q", "candidates": [CUP]}, "row 2: scores = 'None'; give a list of numbers"),
        (line([], []), "row 2: candidates = '[]'"),
        (line([1.0, 2.0]), "row 2: 4 candidates and 2 scores; give one score for each"),
        (line([1.0, "2", 3.0, 4.0]), "row 2: scores hold '2'; give numbers only"),
        (line([1.0, True, 3.0, 4.0]), "row 2: scores hold 'True'"),
        (line([1.0, 2.0], [CUP, 5]), "row 2: candidates hold '5'; give texts only"),
        (line([1.0, 2.0]) | {"candidates": "ab"}, "row 2: candidates = 'ab'"),
        (line([1.0, 0.0, 0.0, 0.0], prompt=None), "row 2: prompt = 'None': no value in prompt"),
        (line([1.0, 0.0, 0.0, 0.0], prompt=[{"role": "assistant", "content": "x"}]), "row 2: prompt"),
        (line([1.0, 0.0, 0.0, 0.0], images=["gone.png"]), "gone.png: not found in"),
        (line([1.0, 0.0, 0.0, 0.0], images=[5]), "row 2: images = '5': an image is a path"),
        (line([1.0, 0.0, 0.0, 0.0], video="clip.mp4"), "row 2: video"),
    ],
)
def test_bad_lines(run, bad, words):
    status, rows, printed = run([line([1.0, 0.0, 0.0, 0.0]), bad])
    assert status == 2 and rows is None and words in printed, printed
    assert printed.count("\n") == 1 and str(run.source) in printed and not run.out.parent.exists()


def test_files_and_keys_that_are_refused(run, tmp_path):
    good = [line([1.0, 0.0, 0.0, 0.0])]
    for lines, more, words in (
        (None, [], "is no file"),
        ([], [], "the file is empty"),
        (good, [f"out={run.source}"], "is the input file"),
        (good, [f"out={tmp_path}"], "is a folder"),
        (good, [f"out={tmp_path / 'pairs.csv'}"], "ends in '.csv'; name a file that ends in .jsonl or .parquet"),
        (good, [f"out={run.source}/pairs.jsonl"], "cannot be written"),
        (good, ["max_pairs=2"], "max_pairs=2 is for strategy=all_pairs, got best_worst"),
        (good, ["strategy=best"], "takes one of best_worst, all_pairs, ranked"),
        (good, ["margin=-1"], "margin: got '-1', takes a number of at least 0"),
        (good, ["similarity=2"], "similarity: got '2', takes a number from 0 to 1"),
        ([line([0.0, 0.1, 0.2, 0.3])], [], "gives not one preference of 1 prompts (1 gave none)"),
        ([{"id": "e", "error": "x"}], [], "1 more rows had an error"),
    ):
        status, rows, printed = run(lines, *more)
        assert status == 2 and rows is None and words in printed and printed.count("\n") == 1, printed


def test_image_root(run, pictured):
    root = run.source.parents[1] / "elsewhere"
    (run.source.parents[1] / "images").rename(root)
    for one in pictured:
        one["images"] = [name.removeprefix("images/") for name in one["images"]]
    assert run(pictured)[0] == 2
    status, rows, _ = run(None, f"image_root={root}")
    assert status == 0 and rows[0]["images"] == [str(root / "0.png")]
