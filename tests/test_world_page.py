"""The page of best-of-n: each false fact named, the choice explained, and nothing but text from answers."""

import pytest

from rovrm.best_of_n.world_page import explain, headline, write_report
from rovrm.best_of_n.world_table import compare_choices, judge_records
from rovrm.data.example import Example
from rovrm.data.images import ImageRef
from rovrm.world.oracle import judge
from rovrm.world.scenes import Drawing, Scene, Thing

SCENE = Scene("picture", (Thing("large", "blue", "circle", "top left"), Thing("small", "red", "ring", "bottom right")))
TRUE = "I see a large blue circle in the top left and a small red ring in the bottom right."


@pytest.mark.parametrize(
    "prompt, answer, told",
    [
        ("What do you see?", "A large red circle.", ["circle, colour: said red, is blue"]),
        ("What do you see?", "A circle in the bottom right.", ["circle, place: said bottom right, is top left"]),
        ("What do you see?", "A star.", ["star: said to be there, there is none"]),
        ("Is there a red ring?", "No.", ["said there is no red ring, there is"]),
        ("Is there a green ring?", "Yes.", ["said there is a green ring, there is none"]),
        ("How many red things are there?", "Three.", ["count of red thing: said 3, is 1"]),
        ("Which is higher, the circle or the ring?", "Ring.", ["said the ring is higher than the circle, it is not"]),
    ],
)
def test_a_false_fact_in_words(prompt, answer, told):
    assert [explain(fact, SCENE) for fact in judge(SCENE, prompt, answer).hallucinated] == told


def test_a_page(tmp_path):
    prompt = [{"role": "user", "content": "What do you see?"}]
    drawn = ImageRef(drawing=Drawing(SCENE, seed=1))
    example = Example("a", "world", prompt, [""], [0], images=[drawn])
    texts = [TRUE, "A large red circle.", "A large red circle.", "<script>alert(1)</script>"]
    row = {"candidates": texts, "scores": [1.0, 2.5, 2.5, -1.0], "best": 1, "logprobs": [-1.0] * 4}
    row["greedy"] = {"text": TRUE, "score": 1.0}
    judged = judge_records([example], [row])
    choices = compare_choices(judged, [row])
    page = write_report(tmp_path, {}, [example], [row], judged, choices).read_text(encoding="utf-8")
    assert "says something false about 100.0% of 1 pictures" in headline(choices) and headline(choices) in page
    items = page.split("<li")[1:]
    assert [("★ chosen" in item, "✓ true" in item, "✗ 1 false" in item, "? unreadable" in item) for item in items] == [
        (True, False, True, False),
        (False, True, False, False),
        (False, False, False, True),
        (False, True, False, False),
    ]
    assert "circle, colour: said red, is blue" in items[0] and "2×" in items[0]
    assert "its reward, +2.50, is the highest of 3 different answers (the next: +1.00)" in items[0]
    assert "a true answer was there, with +1.00" in items[0] and "<script>" not in page
    assert 'name="viewport"' in page and "large blue circle, top left" in page  # for those who do not see the picture
