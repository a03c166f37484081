"""The oracle: what it reads in right, wrong, broken and odd answers; that it agrees with every pair of the world."""

import random
from pathlib import Path

import pytest

from rovrm.world import oracle, reading
from rovrm.world.language import KINDS, ask, caption, describe, join
from rovrm.world.oracle import Verdict, better, judge
from rovrm.world.pairs import _PAIRS, FLOURISHES, NOTES, faithful_pair
from rovrm.world.reading import read
from rovrm.world.scenes import DOMAINS, Domain, Scene, Thing, draw_scene, edit
from rovrm.world.tokens import LEXICON

SEE = "What do you see?"
KEEPS = "Who keeps what?"


def scene(domain: Domain, *things: str) -> Scene:
    """`large red cup kitchen Ann`, `large red ring top left`"""
    rows = [thing.split(" ", 3) for thing in things]
    if domain == "notes":
        return Scene(domain, tuple(Thing(*row[:3], *row[3].split()) for row in rows))
    return Scene(domain, tuple(Thing(*row) for row in rows))


PICTURE = scene("picture", "large red circle top left", "small blue square bottom right")
THREE = PICTURE.with_things([*PICTURE.things, Thing("small", "green", "star", "middle centre")])
NOTED = scene("notes", "large red cup kitchen Ann", "small blue hat hall Ben")


def show(facts: frozenset[tuple]) -> set[str]:
    """`circle colour red`, `count 3 size=small`, `no kind=ring place=top left`"""
    return {" ".join("=".join(p) if isinstance(p, tuple) else str(p) for p in fact) for fact in facts}


def expected(facts: str) -> set[str]:
    return set(filter(None, facts.split("; ")))


# ---- descriptions: (answer, false facts, things named, true facts of the scene) --------------------------------------

PICTURED = [
    ("There is a large red circle in the top left and a small blue square in the bottom right.", "", 2, 8),
    ("a small blue square in the bottom right, a large red circle in the top left", "", 2, 8),
    ("I SEE A LARGE RED CIRCLE IN THE TOP LEFT!!! AND A BLUE SQUARE???", "", 2, 6),
    ("The circle is large and red, in the top left. The square is small and blue, in the bottom right.", "", 2, 8),
    # wrong grammar
    ("a large red circle in the top left a small blue square in the bottom right", "", 2, 8),
    ("large red circle top left small blue square bottom right", "", 2, 8),
    ("circle red big left top. square bottom right blue little", "", 2, 8),
    ("a a large large red red circle circle in in the the top left", "", 1, 4),
    ("a large, red circle", "", 1, 3),
    ("a large and red circle, and a small and blue square", "", 2, 6),
    ("In the top left is a large red circle, in the bottom right a small blue square.", "", 2, 8),
    ("In the top left there is a circle and in the bottom right there is a square.", "", 2, 4),
    ("- red circle (top-left)\n- blue square (bottom-right)", "", 2, 6),
    ("1. a red circle 2. a blue square", "", 2, 4),
    ("The top left circle and the bottom right square are there", "", 2, 4),
    ("the the the circle", "", 1, 1),
    ("In the top left large a red circle and in the bottom right a small in blue square", "", 2, 8),
    ("there is in the top top left a large red circle in bottom right a small blue square", "", 2, 8),
    ("In the top left a large a circle, in the bottom right a small blue square.", "", 2, 7),
    ("In the top left a large red, in the bottom right a small blue square.", "", 1, 7),
    ("In the top left a circle in the bottom right a square", "", 2, 4),
    ("In the top left is a large red circle. The square is small, in the bottom right.", "", 2, 7),
    # half of it
    ("There is a large red circle in the top left.", "", 1, 4),
    ("There is a square.", "", 1, 1),
    ("a red circle, a blue square", "", 2, 4),
    # cut off
    ("I see a large red circle in the top", "", 1, 3),
    ("I see a large red circle in the top left and a", "", 1, 4),
    ("I see a large red circle in the top left and a small", "", 1, 5),
    ("I see a large red", "", 0, 2),
    ("I see a large red cir", "", 0, 2),
    ("In the top left a large red circle and in the bottom", "", 1, 4),
    ("In the top left a large red circle and in the bottom right a small", "", 1, 6),
    ("In the bottom right a large red circle and in the top", "circle place bottom right", 1, 3),
    # repeated, and in conflict
    ("a red circle and a red circle and a red circle", "", 1, 2),
    ("a red dog and a red dog", "dog kind dog; dog colour red", 0, 0),
    ("a red circle and a blue circle", "circle colour blue", 1, 2),
    ("a red blue circle", "circle colour blue", 1, 2),
    ("a large circle in the top left and in the bottom right", "circle place bottom right", 1, 3),
    ("In the top left a large circle, in the bottom right.", "circle place bottom right", 1, 3),
    ("The circle is red or blue", "circle colour blue", 1, 2),
    ("The circle is a square.", "circle kind square", 1, 1),
    # exchanged between two things that are there
    ("a large blue circle in the top left and a small red square", "circle colour blue; square colour red", 2, 5),
    ("a large red square in the top left", "square size large; square colour red; square place top left", 1, 1),
    ("circle in the bottom right, square in the top left", "circle place bottom right; square place top left", 2, 2),
    ("The circle and the square are red.", "square colour red", 2, 3),
    ("They are here: a circle and a square. They are large", "square size large", 2, 3),
    # not in the scene
    ("a large green star", "star kind star; star colour green; star size large", 0, 0),
    ("a red circle and a dog on a table", "dog kind dog; table kind table", 1, 2),
    ("a cup in the kitchen", "cup kind cup; cup place kitchen", 0, 0),
    ("Ann has a circle", "circle owner Ann", 1, 1),
    ("a white circle", "circle colour white", 1, 1),
    ("a medium circle", "circle size medium", 1, 1),
    ("Three things: a circle and a square", "count 3", 2, 2),
    ("The picture shows two shapes, a circle and a square", "", 2, 2),
    ("two red circles", "count 2 colour=red kind=circle", 1, 2),
    ("nothing", "no", 0, 0),
    # of unknown kind
    ("a large red in the top left and a small blue in the bottom right", "", 0, 6),
    ("a large blue in the top left", "circle colour blue", 0, 2),
    ("an orange", "thing colour orange", 0, 0),
    ("The red thing is a circle. The blue one is a square.", "", 2, 4),
    ("The thing in the top left is a square.", "square place top left", 1, 1),
    # synonyms and other wordings
    ("A huge red disc in the upper left corner, a tiny blue square in the lower right-hand corner", "", 2, 8),
    ("a circle, which is red, and it is large", "", 1, 3),
    ("I see a circle. It is red. It is in the left top.", "", 1, 3),
    ("A circle on the left at the top", "", 1, 1),
    ("A circle on the right", "circle place right", 1, 1),
    ("A circle in the centre", "circle place centre", 1, 1),
    ("The circle is to the left of the square, the square is below the circle", "", 2, 2),
    ("The colour of the circle is red and its size is large.", "", 1, 3),
    # chatter
    ("Sure! I can see a red circle, I think. That is right, anyone would agree.", "", 1, 2),
    ("It could not be clearer. A circle and nothing else. I am quite sure of it.", "", 1, 1),
    # negation
    ("There is no star, but a circle.", "", 1, 1),
    ("I don't see a star. I see a circle.", "", 1, 1),
    ("There is no red circle.", "no colour=red kind=circle", 0, 0),
    ("There's no circle in the bottom right, and no blue circle or red square, only a circle", "", 1, 1),
    ("The circle is not blue but red.", "", 1, 2),
    ("The circle isn't red", "circle not colour red", 1, 1),
    ("The circle is not a square", "", 1, 1),
    ("There is nothing in the top left", "no place=top left", 0, 0),
]

WRITTEN = [
    ("Ann has a large red cup in the kitchen and Ben has a small blue hat in the hall.", "", 2, 10),
    ("Ann's cup is large and red, in the kitchen. Ben's hat in the hall is small and blue.", "", 2, 10),
    ("ann large red cup kitchen ben small blue hat hall", "", 2, 10),
    ("The cup is Ann's. The hat belongs to Ben.", "", 2, 4),
    ("In the kitchen Ann has a large red cup and in the hall Ben keeps a small blue hat.", "", 2, 10),
    ("in the kitchen ann large red cup in the hall ben small blue hat", "", 2, 10),
    ("In the kitchen Ann keeps a large a cup, in the the hall Ben a small hat.", "", 2, 8),
    ("In the hall Ann has a large red cup and in the kitchen Ben has a hat", "cup place hall; hat place kitchen", 2, 6),
    ("In the kitchen Ann has a cup and in the hall Ben", "", 1, 5),
    ("In the kitchen Ann has a cup and a hat.", "hat owner Ann", 2, 4),
    ("Ann keeps a cup and there is a hat in the hall", "", 2, 4),
    ("Ann has a cup and a hat.", "hat owner Ann", 2, 3),
    ("Ben has a cup and Ann has a hat", "cup owner Ben; hat owner Ann", 2, 2),
    ("Ann has a large red cup in the hall", "cup place hall", 1, 4),
    ("Tom has a book", "book kind book; book owner Tom", 0, 0),
    ("Ann has a cup in the top left", "cup place top left", 1, 2),
    ("Ann has a cup in the kitchen and Ben has", "", 1, 4),
    ("Ann has a large", "", 0, 2),
    ("Ann does not have the hat and nobody has a key. The cup is Ann's", "", 1, 2),
    ("Ann has no cup.", "no kind=cup owner=Ann", 0, 0),
]


@pytest.mark.parametrize(
    ("domain", "answer", "false", "named", "true"),
    [("picture", *case) for case in PICTURED] + [("notes", *case) for case in WRITTEN],
)
def test_descriptions(domain, answer, false, named, true):
    shown, prompt, size = (PICTURE, SEE, 8) if domain == "picture" else (NOTED, KEEPS, 10)
    verdict = judge(shown, prompt, answer)
    assert show(verdict.hallucinated) == expected(false)
    assert verdict.coverage == named / 2
    assert verdict.fact_coverage == true / size
    assert verdict.correct == (true > 0 and not false)
    assert verdict.parsed


# ---- questions: (scene, prompt, [(answer, correct, false facts)]) ----------------------------------------------------

YES = "some colour=red kind=circle place=top left"
NO = "no colour=red kind=circle place=top left"
ASKED = [
    (
        PICTURE,
        "What colour is the circle?",
        [
            ("Red.", True, ""),
            ("it is RED", True, ""),
            ("The circle is red.", True, ""),
            ("It's the colour red! I am quite sure of it.", True, ""),
            ("red, not blue", True, ""),
            ("A red circle", True, ""),
            ("The large red circle is in the top left.", True, ""),
            ("Blue.", False, "circle colour blue"),
            ("It is pink.", False, "circle colour pink"),
            ("Red or blue.", False, "circle colour blue"),
            ("It is not red.", False, "circle not colour red"),
            ("It is not blue.", False, ""),
            ("The square is blue.", False, ""),
            ("The square is red.", False, "square colour red"),
            ("It is red. The square is green.", False, "square colour green"),
            ("It is in the top left.", False, ""),
            ("There is no circle.", False, "no kind=circle"),
        ],
    ),
    (
        PICTURE,
        "In  which place\nis the CIRCLE?",
        [
            ("In the top left.", True, ""),
            ("top-left", True, ""),
            ("It is in the upper left corner of the picture", True, ""),
            ("In the top left, there is a circle.", True, ""),
            ("It is in the top left, the square in the bottom right.", True, ""),
            ("On the left.", False, ""),
            ("In the top", False, ""),
            ("On the right.", False, "circle place right"),
            ("In the bottom right.", False, "circle place bottom right"),
            ("In the kitchen.", False, "circle place kitchen"),
            ("It is left of the square.", False, ""),
            ("The square is in the bottom right.", False, ""),
        ],
    ),
    (
        PICTURE,
        "Which thing is in the top left?",
        [
            ("A circle.", True, ""),
            ("the circle", True, ""),
            ("There is a circle.", True, ""),
            ("It's a large red circle", True, ""),
            ("It is not a square but a circle.", True, ""),
            ("The thing in the top left is a circle.", True, ""),
            ("A circle, and a square in the bottom right.", True, ""),
            ("A square.", False, "square place top left"),
            ("It is a ring.", False, "ring kind ring; ring place top left"),
            ("A circle and a square.", False, "square place top left"),
            ("A circle in the bottom right.", False, "circle place bottom right"),
            ("A square in the bottom right.", False, ""),
            ("It is not a square.", False, ""),
            ("A red thing.", False, ""),
            ("Nothing.", False, "no place=top left"),
        ],
    ),
    (
        THREE,
        "How many small things are there?",
        [
            ("Two.", True, ""),
            ("I count 2", True, ""),
            ("The answer is two.", True, ""),
            ("There are two small things, a star and a square.", True, ""),
            ("two small things and one large thing", True, ""),
            ("Three.", False, "count 3 size=small"),
            ("Two or three.", False, "count 3 size=small"),
            ("None.", False, "count 0 size=small"),
            ("There are no small things", False, "count 0 size=small"),
            ("There are two large things", False, "count 2 size=large"),
            ("There is one large thing", False, ""),
            ("A star and a square.", False, ""),
        ],
    ),
    (
        THREE,
        "What is the number of things?",
        [("Three.", True, ""), ("I see 3 shapes", True, ""), ("two", False, "count 2"), ("one large thing", False, "")],
    ),
    (
        PICTURE,
        "Do you find a red circle in the top left?",
        [
            ("Yes.", True, ""),
            ("yes there is a red circle", True, ""),
            ("Yes, it is so. It could not be clearer.", True, ""),
            ("There is a red circle.", True, ""),
            ("Yes, a large one.", True, ""),
            ("No.", False, NO),
            ("No, it is not.", False, NO),
            ("No, there is no red circle.", False, NO),
            ("Yes, there is no red circle.", False, NO),
            ("No, there is a red circle.", False, NO),
            ("Yes. No.", False, NO),
            ("Yes, and a green square.", False, "square colour green"),
            ("Yes, in the bottom right.", False, "circle place bottom right"),
            ("There is a circle.", False, ""),
        ],
    ),
    (
        scene("picture", "large red circle bottom left", "small blue ring top left"),
        "Is it right that there is a red circle in the top left?",
        [
            ("No.", True, ""),
            ("No, there is no red circle.", True, ""),
            ("no there is no red circle", True, ""),
            ("That is not right.", True, ""),
            ("No, it is in the bottom left.", True, ""),
            ("No, there is a blue ring.", True, ""),
            ("No, there is no ring.", False, "no kind=ring"),
            ("Yes.", False, YES),
            ("Yes, it is so.", False, YES),
            ("Yes, there is a red circle.", False, f"{YES}; circle place top left"),
        ],
    ),
    (
        PICTURE,
        "Which is larger, the square or the circle?",
        [
            ("The circle.", True, ""),
            ("circle", True, ""),
            ("It is the circle.", True, ""),
            ("The circle is larger than the square.", True, ""),
            ("The square is smaller.", True, ""),
            ("The square is not larger.", True, ""),
            ("The circle, not the square.", True, ""),
            ("The red one.", True, ""),
            ("The square.", False, "larger square circle"),
            ("The circle is not larger.", False, "larger square circle"),
            ("The star.", False, "larger star square; star kind star"),
            ("The square or the circle.", False, ""),
            ("The blue circle.", False, "circle colour blue"),
        ],
    ),
    (
        PICTURE,
        "Which is further left, the square or the circle?",
        [
            ("The circle is further left.", True, ""),
            ("The circle is left of the square.", True, ""),
            ("The square is further to the right.", True, ""),
            ("The square is further left.", False, "further left square circle"),
        ],
    ),
    (
        PICTURE,
        "Which is higher, the square or the circle?",
        [("The circle is higher.", True, ""), ("It is the square.", False, "higher square circle")],
    ),
    (
        NOTED,
        "Who has the cup?",
        [
            ("Ann.", True, ""),
            ("it is ann", True, ""),
            ("Ann has it.", True, ""),
            ("The cup belongs to Ann", True, ""),
            ("It's not Ben but Ann.", True, ""),
            ("Ann has a large red cup.", True, ""),
            ("Ben.", False, "cup owner Ben"),
            ("Ben has the cup.", False, "cup owner Ben"),
            ("Ann or Ben", False, "cup owner Ben"),
            ("Ben has the hat.", False, ""),
            ("Ann does not have the cup", False, "no kind=cup owner=Ann"),
        ],
    ),
    (
        NOTED,
        NOTES.format(caption="Ben's hat is large and green, in the attic.", question="Name the thing in the kitchen."),
        [
            ("A cup.", True, ""),
            ("Ann's cup.", True, ""),
            ("It is a hat.", False, "hat place kitchen"),
            ("Ann has a cup, there is a hat.", False, "hat place kitchen"),
        ],
    ),
    (NOTED, "Say where the hat is.", [("In the hall", True, ""), ("It is in the attic.", False, "hat place attic")]),
    (NOTED, "Which is larger, the cup or the hat?", [("The cup.", True, ""), ("The hat.", False, "larger hat cup")]),
    (NOTED, "Is there a small hat?", [("Yes.", True, ""), ("There is no small hat.", False, "no kind=hat size=small")]),
    (PICTURE, "Image description: a ring.\n\nName the colour of the square.", [("Blue", True, ""), ("", False, "")]),
    (PICTURE, "What colour is the ring?", [("It is red.", False, "ring colour red"), ("There is no ring.", False, "")]),
    (PICTURE, "Say something.", [("A circle.", True, ""), ("A ring.", False, "ring kind ring"), ("Yes.", False, "")]),
]


@pytest.mark.parametrize(
    ("shown", "prompt", "answer", "correct", "false"), [(*asked, *case) for *asked, cases in ASKED for case in cases]
)
def test_questions(shown, prompt, answer, correct, false):
    verdict = judge(shown, prompt, answer)
    assert verdict.correct == correct
    assert show(verdict.hallucinated) == expected(false)


@pytest.mark.parametrize("prompt", [SEE, "What colour is the circle?", "Is there a ring?", "How many things are there"])
@pytest.mark.parametrize("answer", ["", " \n", "???", "the in and a", "Xyzzy plugh.", "I do not know.", *FLOURISHES])
def test_what_says_nothing_of_the_scene_is_not_parsed(prompt, answer):
    verdict = judge(PICTURE, prompt, answer)
    assert not verdict.parsed and not verdict.correct and not verdict.facts
    assert verdict.coverage == verdict.fact_coverage == verdict.mentions == 0


@pytest.mark.parametrize(
    ("answer", "mentions", "false"),
    [
        ("a red circle and a blue square", 2, 0),
        ("a red circle and a dog", 2, 1),
        ("a red circle. A red circle!", 1, 0),
        ("a red circle and a blue circle", 2, 1),
        ("a dog and a dog", 1, 1),
        ("a circle, it is large and blue", 1, 1),
        ("There is no dog. There are three things.", 0, 0),
    ],
)
def test_mentions_count_things_spoken_of_each_wording_once(answer, mentions, false):
    verdict = judge(PICTURE, SEE, answer)
    assert (verdict.mentions, verdict.hallucinated_mentions) == (mentions, false)


@pytest.mark.parametrize(
    ("prompt", "first", "second", "order"),
    [
        (SEE, "a circle and a square", "a circle", 1),
        (SEE, "a circle", "a red circle and a dog", 1),
        (SEE, "a dog", "a dog and a cat", 1),
        (SEE, "a red circle", "the circle is red", 0),
        (SEE, "", "a dog", -1),
        ("Where is the square?", "Bottom right.", "It is in the bottom right.", 0),
        ("Where is the square?", "Bottom right.", "There is a circle.", 1),
        ("Where is the square?", "", "Top left.", -1),
        ("Where is the square?", "Bottom right.", "The small blue square is in the bottom right.", 0),
    ],
)
def test_better_prefers_truth_then_in_descriptions_more_of_it(prompt, first, second, order):
    assert better(PICTURE, prompt, first, second) == order
    assert better(PICTURE, prompt, second, first) == -order


def test_what_is_read_of_a_sentence():
    (mention,) = read("There is a red ring, it is not large.")
    assert mention.said == [("colour", "red", True), ("kind", "ring", True), ("size", "large", False)]


# ---- the world's own texts -------------------------------------------------------------------------------------------


def last(shown: Scene) -> str:
    """A description with each place behind its thing."""
    whose = "{0.owner} has " if shown.domain == "notes" else "I see "
    return join([(whose + "a {0.size} {0.colour} {0.kind} in the {0.place}").format(t) for t in shown.things]) + "."


def facts_of(shown: Scene) -> set[tuple]:
    names = ("size", "colour", "kind", "place") + (("owner",) if shown.domain == "notes" else ())
    return {(thing.kind, name, getattr(thing, name)) for thing in shown.things for name in names}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("domain", DOMAINS)
def test_every_faithful_pair_is_ordered_right(domain, kind):
    for i in range(200):
        rng, held_out = random.Random(f"{domain}{kind}{i}"), domain == "picture" and i % 2 > 0
        shown, _, question, right, wrong = faithful_pair(rng, domain, held_out, (kind,))
        assert judge(shown, question.text, right).correct, (shown, question.text, right)
        assert not judge(shown, question.text, wrong).correct, (shown, question.text, wrong)
        assert better(shown, question.text, right, wrong) == 1


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_conflicting_pair_is_wrong_and_every_complete_one_right(domain):
    for i in range(250):
        rng = random.Random(f"{domain}{i}")
        shown, _, question, chosen, rejected = _PAIRS["conflicting"](rng, domain, False, KINDS)
        assert better(shown, question, chosen, rejected) == -1, (shown, question, chosen, rejected)
        shown, _, question, chosen, rejected = _PAIRS["complete"](rng, domain, False, KINDS)
        assert better(shown, question, chosen, rejected) == 1, (shown, question, chosen, rejected)
        assert not judge(shown, question, chosen).hallucinated | judge(shown, question, rejected).hallucinated


@pytest.mark.parametrize("domain", DOMAINS)
def test_full_descriptions_and_captions_state_every_fact_also_when_mangled(domain):
    for i in range(60):
        rng = random.Random(f"{domain}{i}")
        shown = draw_scene(rng, domain, None)
        for text in (describe(shown, wording=i % 6), last(shown), caption(rng, shown)):
            bare = text.replace(",", "").replace(".", "")
            for odd in (text, text.upper(), bare, text.replace(" and", ""), text.replace(" a ", " "), f"{text} {text}"):
                verdict = judge(shown, SEE, odd)
                assert verdict.facts == verdict.covered == facts_of(shown), odd
                assert verdict.fact_coverage == verdict.coverage == 1 and verdict.correct
                assert verdict.mentions == len(shown.things)


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_description_of_another_scene_is_false_in_exactly_what_differs(domain):
    for i in range(200):
        rng = random.Random(f"{domain}{i}")
        shown = draw_scene(rng, domain, None)
        names = ("size", "colour", "kind", "place") + (("owner",) if domain == "notes" else ())
        other = draw_scene(rng, domain, None)
        other = (edit(rng, shown, rng.choice(names), 0, 0.5) or other) if i % 2 else other
        for text in (describe(other, wording=i % 6), last(other), caption(rng, other)):
            verdict = judge(shown, SEE, text)
            assert verdict.hallucinated == facts_of(other) - facts_of(shown), text
            assert verdict.covered == facts_of(other) & facts_of(shown)


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_true_description_that_breaks_off_states_nothing_false(domain):
    for i in range(15):
        rng = random.Random(f"{domain}{i}")
        shown = draw_scene(rng, domain, None)
        for text in (describe(shown, wording=i % 6), last(shown), caption(rng, shown)):
            for end in range(len(text)):
                assert not judge(shown, SEE, text[:end]).hallucinated, text[:end]


def test_word_salad_never_raises_and_the_parts_of_a_verdict_agree():
    words = [*LEXICON, "xyzzy", "n't", "’s", *(["a", "the", "is", "it", "not", "no", ",", "."] * 6)]
    for i in range(3000):
        rng = random.Random(i)
        shown = draw_scene(rng, rng.choice(DOMAINS), None)
        question = ask(rng, shown, KINDS[i % len(KINDS)])
        prompt = question.text if question and i % 4 else " ".join(rng.choices(words, k=9))
        assert_parts_agree(shown, judge(shown, prompt, " ".join(rng.choices(words, k=rng.randrange(30)))))


def assert_parts_agree(shown: Scene, verdict: Verdict) -> None:
    assert verdict.hallucinated <= verdict.facts and verdict.covered <= facts_of(shown)
    assert verdict.covered <= verdict.facts - verdict.hallucinated
    assert verdict.parsed == bool(verdict.facts) and verdict.hallucinated_mentions <= verdict.mentions
    assert not verdict.correct or not verdict.hallucinated


def test_any_characters_are_taken():
    for i in range(300):
        rng = random.Random(i)
        text = "".join(chr(rng.choice([rng.randrange(32, 127), rng.randrange(0x3000), 10])) for _ in range(60))
        shown = draw_scene(rng, "notes")
        assert_parts_agree(shown, judge(shown, text[::-1], text))


def test_the_oracle_does_not_know_how_answers_are_worded():
    for module in (oracle, reading):
        source = Path(str(module.__file__)).read_text()
        assert "world.language" not in source and "world.pairs" not in source
