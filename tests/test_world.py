"""The synthetic world: same bytes for the same seed, exchangeable pairs, no shortcut in the text, readable as data."""

import json
import random
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from rovrm.common.errors import UserError
from rovrm.data.loading import load_examples
from rovrm.world.language import KINDS, ask
from rovrm.world.pairs import POOL, faithful_pair, pair_row
from rovrm.world.scenes import COLOURS, HELD_OUT, Drawing, draw_scene, edit, values

# So many pairs a text-only model is fitted on, and judged by: the more, the weaker the shortcut that it would show.
SIZES = [800, pytest.param(4000, marks=pytest.mark.slow)]


def row_bytes(job: tuple[str, int]) -> bytes:
    inputs, index = job
    row = pair_row(inputs, 3, index, "test")
    picture = row.pop("image", None)
    return json.dumps(row, sort_keys=True).encode() + (picture().tobytes() if picture else b"")


def test_same_seed_gives_the_same_bytes_with_any_number_of_workers():
    jobs = [(inputs, index) for inputs in ("text", "caption", "visual") for index in range(60)]
    here = [row_bytes(job) for job in jobs]
    with ProcessPoolExecutor(1) as one, ProcessPoolExecutor(2) as two:
        assert list(one.map(row_bytes, jobs)) == here
        assert list(two.map(row_bytes, reversed(jobs)))[::-1] == here
    assert pair_row("text", 4, 0)["prompt"] != pair_row("text", 3, 0)["prompt"]


def test_training_scenes_never_join_what_is_held_out_and_half_of_the_test_scenes_do():
    rows = [pair_row("visual", 0, i, split) for split in ("train", "test") for i in range(600)]
    joined = [any((t.colour, t.kind) in HELD_OUT for t in row["image"].scene.things) for row in rows]
    assert not any(joined[:600])
    assert 240 < sum(joined[600:]) < 360
    assert joined == [row["held_out"] for row in rows]
    told = " ".join(f"{row['chosen']} {row['rejected']}" for row in rows[:600])
    assert not any(f"{colour} {kind}" in told for colour, kind in HELD_OUT)


def test_edits_are_symmetric():
    rng = random.Random(0)
    there, back = Counter(), Counter()
    for _ in range(20000):
        scene = draw_scene(rng, "notes")
        other = edit(rng, scene, "colour", rng.randrange(len(scene.things)), 0.6)
        if other is not None and len(scene.things) == 2:
            colours = [tuple(t.colour for t in s.things) for s in (scene, other)]
            there[(len({*colours[0]} & {*colours[1]}), colours[0] < colours[1])] += 1
            back[(len({*colours[0]} & {*colours[1]}), colours[1] < colours[0])] += 1
    for key, count in there.items():
        assert abs(count - back[key]) < 4 * np.sqrt(count + back[key])


def test_negatives_keep_length_and_mostly_bind_what_is_present_wrongly():
    rng = random.Random(1)
    bound = total = 0
    for _ in range(3000):
        scene, other, question, right, wrong = faithful_pair(rng, "picture")
        assert len(right.split()) == len(wrong.split())
        if question.attribute in ("colour", "kind", "place"):
            present, told = ({getattr(t, question.attribute) for t in s.things} for s in (scene, other))
            total += 1
            bound += present == told
    assert bound / total >= 0.5


def test_a_picture_shows_its_things_where_they_are():
    rng = random.Random(2)
    for _ in range(50):
        scene = draw_scene(rng, "picture", None)
        pixels = np.asarray(Drawing(scene, rng.getrandbits(32))()).astype(int)
        assert pixels.shape == (72, 72, 3)
        for thing in scene.things:
            row, column = divmod(values("picture", "place").index(thing.place), 3)
            cell = pixels[row * 24 : row * 24 + 24, column * 24 : column * 24 + 24].reshape(-1, 3)
            near = np.abs(cell - COLOURS[thing.colour]).max(axis=1) < 20
            assert near.sum() > 15
        empty = set(values("picture", "place")) - {t.place for t in scene.things}
        for place in empty:
            row, column = divmod(values("picture", "place").index(place), 3)
            assert (
                np.ptp(pixels[row * 24 + 3 : row * 24 + 21, column * 24 + 3 : column * 24 + 21], axis=(0, 1)).max() == 0
            )


def test_pool_mixes_families_in_known_proportions():
    counts = Counter(pair_row("text", 0, i)["family"] for i in range(4000))
    for family, share in POOL.items():
        assert abs(counts[family] / 4000 - share) < 0.03


# ---- shortcuts -------------------------------------------------------------------------------------------------------


def text_only_accuracy(rows: list[dict], with_prompt: bool) -> float:
    """Test accuracy of a logistic regression on words, bigrams and length of the answers (and, with the prompt, on
    every prompt word joined with every answer word), fitted on the first half of the pairs."""
    words = CountVectorizer(ngram_range=(1, 2), token_pattern=r"[A-Za-z]+|[0-9]+|[.,-]")

    def text(row: dict, answer: str) -> str:
        joined = [f"{p}X{a}" for p in row["prompt"].split() for a in answer.split()] if with_prompt else []
        return " ".join([answer, *joined])

    chosen = words.fit_transform([text(row, row["chosen"]) for row in rows])
    rejected = words.transform([text(row, row["rejected"]) for row in rows])
    length = np.array([[len(row["chosen"]) - len(row["rejected"])] for row in rows])
    features = np.hstack([(chosen - rejected).toarray(), length]).astype(np.float32)
    sign = np.where(np.arange(len(rows)) % 2 == 0, 1, -1)
    model = LogisticRegression(C=0.05, max_iter=200, fit_intercept=False)
    half = len(rows) // 2
    model.fit(features[:half] * sign[:half, None], sign[:half])
    scores = model.decision_function(features[half:])
    return float(np.mean(scores > 0) + np.mean(scores == 0) / 2)  # swapped words leave some pairs equal


def is_chance(rows: list[dict], with_prompt: bool = False) -> bool:
    """Within four standard errors of one half."""
    return abs(text_only_accuracy(rows, with_prompt) - 0.5) < 4 * 0.5 / (len(rows) / 2) ** 0.5


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_no_question_type_can_be_answered_from_the_text(kind, size):
    assert is_chance([pair_row("visual", 5, i, questions=(kind,)) for i in range(2 * size)])


@pytest.mark.parametrize("size", SIZES)
def test_all_question_types_together_cannot_be_answered_from_the_text(size):
    assert is_chance([pair_row("visual", 6, i) for i in range(2 * size)])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ("colour", "exists", "compare"))
def test_prompt_and_text_together_do_not_answer_either(kind, size):
    assert is_chance([pair_row("visual", 7, i, questions=(kind,)) for i in range(2 * size)], with_prompt=True)


@pytest.mark.parametrize("size", SIZES)
def test_faithful_caption_pairs_cannot_be_answered_without_the_caption(size):
    assert is_chance([pair_row("caption", 8, i, families={"faithful": 1.0}) for i in range(2 * size)])


def test_the_check_finds_a_shortcut_where_there_is_one():
    rows = [pair_row("caption", 8, i, families={"complete": 1.0}) for i in range(2000)]
    assert text_only_accuracy(rows, with_prompt=False) > 0.75


# ---- as data ---------------------------------------------------------------------------------------------------------


def test_world_sources_read_like_any_data_set():
    loaded = load_examples("world:visual?n=30&seed=2,world:text?n=10&families=faithful", seed=1)
    assert len(loaded.examples) == 40 and not loaded.rejected
    picture = loaded.examples[0]
    assert picture.images[0].open().size == (72, 72) and picture.caption
    assert picture.source == f"faithful-{pair_row('visual', 2, 0)['kind']}"
    assert all(example.source.startswith("faithful-") for example in loaded.examples)
    assert load_examples("world:visual?n=30&seed=2").examples[0].images == picture.images  # equal by what they draw


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("world:video", "world:video"),
        ("world:text?families=nice", "'nice'"),
        ("world:text?families=faithful:0", "'faithful:0'"),
        ("world:text?questions=colour+smell", "'smell'"),
        ("world:text?seed=-1", "seed='-1'"),
        ("world:text?split=dev", "'dev'"),
        ("world:text?colour=red", "'colour'"),
        ("world:text?questions=colour:2+place", "no weights"),
        ("world:text?revision=main", "revision"),
        ("world:text?families=faithful+faithful:9", "'faithful' twice; it takes one weight"),
    ],
)
def test_bad_world_sources_are_named(source, named):
    with pytest.raises(UserError, match="takes|valid") as error:
        load_examples(source)
    assert named in str(error.value)


def test_questions_that_make_no_sense_are_not_asked():
    rng = random.Random(3)
    for _ in range(2000):
        scene = draw_scene(rng, rng.choice(("picture", "notes")))
        question = ask(rng, scene, rng.choice(KINDS))
        if question is not None:
            assert question.answer(scene)
