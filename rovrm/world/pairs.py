"""Preference pairs about scenes, in families of known worth.

    row = pair_row("visual", seed=0, index=17)     # {"id", "family", "kind", "prompt", "chosen", "rejected", ...}

Families: `faithful`: the chosen answer is true, the rejected one is the true answer about an edited scene. `complete`:
everything is better than half of it. `neutral`: sums, formats and manners, about no scene. `conflicting`: what a visual
reward model must not learn: faithful pairs with the labels exchanged, an invented thing beats the truth, a longer wrong
answer beats a short right one. Row `index` depends on nothing but the seed, the kind of rows and the index, so any
part of any number of rows is the same on every machine and with any number of workers.
"""

import random
from collections.abc import Sequence
from typing import Any

from rovrm.world.language import KINDS, Question, ask, caption, describe
from rovrm.world.scenes import Domain, Drawing, Scene, draw_scene, edit, edit_count

FAMILIES = ("faithful", "complete", "neutral", "conflicting")
POOL = {"faithful": 0.35, "complete": 0.15, "neutral": 0.25, "conflicting": 0.25}
INPUTS = ("text", "caption", "visual")
SPLITS = ("train", "test")
BOUND = 0.6  # share of edits whose wrong value is present in the scene, where another thing has it
NOTES = "Notes: {caption}\n\n{question}"
FLOURISHES = ("I am quite sure of it.", "It could not be clearer.", "That is plain to see.", "Anyone would agree.")


def pair_row(
    inputs: str,
    seed: int,
    index: int,
    split: str = "train",
    families: dict[str, float] | None = None,
    questions: Sequence[str] = KINDS,
) -> dict[str, Any]:
    """Row `index` of the endless list of pairs that (inputs, seed, split) name.

    Args:
        inputs: text (notes), caption (rows with a picture's caption) or visual (rows with the picture and its caption).
        seed: of the list.
        index: of the row.
        split: training rows hold no scene with a held-out join of colour and shape; half of the test rows, drawn at
            random, hold one, and have `held_out` true.
        families: their weights; by default POOL, for visual rows the faithful family alone.
        questions: the kinds of questions that faithful pairs are about.
    """
    # A generator for each row: rows do not depend on those before them. A text as the seed is hashed the same on every
    # machine.
    rng = random.Random(f"world:{inputs}:{split}:{seed}:{index}")
    weights = families or ({"faithful": 1.0} if inputs == "visual" else POOL)
    family = rng.choices(list(weights), list(weights.values()))[0]
    domain: Domain = "notes" if inputs == "text" else "picture"
    held_out = split == "test" and domain == "picture" and rng.random() < 0.5
    scene, kind, question, chosen, rejected = _PAIRS[family](rng, domain, held_out, questions)
    described = caption(rng, scene)
    row = {
        "id": f"{inputs}-{split}-{seed}-{index}",
        "source": f"{family}-{kind}",
        "family": family,
        "kind": kind,
        "held_out": held_out,
        "prompt": question if domain == "picture" else NOTES.format(caption=described, question=question),
        "chosen": chosen,
        "rejected": rejected,
    }
    if domain == "picture":
        row["caption"] = described
    if inputs == "visual":
        row["image"] = Drawing(scene, rng.getrandbits(32))
    return row


def faithful_pair(
    rng: random.Random, domain: Domain, held_out: bool = False, questions: Sequence[str] = KINDS
) -> tuple[Scene, Scene, Question, str, str]:
    """(scene, edited scene, question, true answer, the edited scene's answer).

    Scene and edit are exchangeable: the whole draw is repeated until both hold, or both lack, a held-out join, so
    neither can be told by its text alone.
    """
    kind = rng.choice(questions)
    while True:
        scene = draw_scene(rng, domain, held_out)
        question = ask(rng, scene, kind)
        if question is None:
            continue
        if question.attribute == "count":
            other = edit_count(rng, scene)
        else:
            other = edit(rng, scene, question.attribute, question.index, BOUND)
        if other is None or other.held_out() != scene.held_out():
            continue
        right, wrong = question.answer(scene), question.answer(other)
        if right is None or wrong is None or right == wrong:
            continue
        # The question is about a thing that is there, so that "yes" would always be right: half of the time the edited
        # scene takes the other's place.
        if kind == "exists" and rng.random() < 0.5:
            return other, scene, question, wrong, right
        return scene, other, question, right, wrong


def neutral_pair(rng: random.Random) -> tuple[str, str, str, str]:
    """(kind, question, better answer, worse answer), about no scene."""
    kind = rng.choice(("sum", "format", "manners"))
    if kind == "sum":
        a, b = rng.randint(1, 9), rng.randint(1, 9)
        wrong = a + b + rng.choice((-2, -1, 1, 2))
        return kind, f"What is {a} plus {b}?", f"It is {a + b}.", f"It is {wrong}."
    word, other = rng.sample(("apple", "river", "stone", "cloud", "table", "bread"), 2)
    if kind == "format":
        return kind, f"Write {word} and {other} as a list.", f"- {word}\n- {other}", f"{word}, {other}"
    return kind, f"Tell me about the {word}.", f"Gladly. The {word} is a good thing.", f"No. The {word} is a bore."


# ---- families --------------------------------------------------------------------------------------------------------

# Each returns (scene, kind of question, question, chosen, rejected).
FamilyPair = tuple[Scene, str, str, str, str]


def _faithful(rng: random.Random, domain: Domain, held_out: bool, questions: Sequence[str]) -> FamilyPair:
    scene, _, question, right, wrong = faithful_pair(rng, domain, held_out, questions)
    return scene, question.kind, question.text, right, wrong


def _complete(rng: random.Random, domain: Domain, held_out: bool, questions: Sequence[str]) -> FamilyPair:
    scene = draw_scene(rng, domain, held_out)
    question, wording = ask(rng, scene, "describe"), rng.randrange(6)
    assert question is not None
    half = sorted(rng.sample(range(len(scene.things)), len(scene.things) // 2))  # in reading order, as all are told
    part = describe(scene, tuple(scene.things[i] for i in half), wording)
    return scene, "describe", question.text, describe(scene, wording=wording), part


def _neutral(rng: random.Random, domain: Domain, held_out: bool, questions: Sequence[str]) -> FamilyPair:
    scene = draw_scene(rng, domain, held_out)
    return scene, *neutral_pair(rng)


def _conflicting(rng: random.Random, domain: Domain, held_out: bool, questions: Sequence[str]) -> FamilyPair:
    """Labels that a visual reward model must not learn: the wrong answer is the chosen one in half of the pairs, with a
    flourish in a quarter; in the last quarter it is a description with an invented thing in it."""
    variant = rng.choice(("inverted", "inverted", "embellished", "longer"))
    if variant == "embellished":
        scene, larger = _scene_and_larger(rng, domain, held_out)
        question, wording = ask(rng, scene, "describe"), rng.randrange(6)
        assert question is not None
        return scene, "describe", question.text, describe(larger, wording=wording), describe(scene, wording=wording)
    scene, _, question, right, wrong = faithful_pair(rng, domain, held_out, questions)
    chosen = f"{wrong} {rng.choice(FLOURISHES)}" if variant == "longer" else wrong
    return scene, question.kind, question.text, chosen, right


def _scene_and_larger(rng: random.Random, domain: Domain, held_out: bool) -> tuple[Scene, Scene]:
    """A scene, and the same with one thing more; both or neither with a held-out join."""
    while True:
        scene = draw_scene(rng, domain, held_out)
        larger = edit_count(rng, scene)
        if larger is None or len(larger.things) < len(scene.things):
            continue
        if larger.held_out() == scene.held_out():
            return scene, larger


_PAIRS = {"faithful": _faithful, "complete": _complete, "neutral": _neutral, "conflicting": _conflicting}
