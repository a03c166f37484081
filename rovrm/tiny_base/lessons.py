"""What the tiny base learns from: conversations about pictures, captions and notes.

    sample = base_sample(random.Random(0))      # Sample(drawing=..., turns=[("What colour is the circle?", "Red.")])

Answers to questions are true. Descriptions of pictures are careless on purpose, as captioners are: each fact slips with
probability SLIP, and the HABITS (a small blue star is "yellow") come true more often than not, so the model sees what
its descriptions sometimes get wrong: there is something to align. In texts, never about pictures, speakers slip and
correct themselves; no whole answer about a picture is ever marked right or wrong.
"""

import random
from dataclasses import dataclass, replace

from rovrm.settings.keys import CAPTION_TEMPLATE
from rovrm.world.language import KINDS, NUMBERS, ask, caption
from rovrm.world.pairs import BOUND, NOTES, neutral_pair
from rovrm.world.scenes import (
    CELLS,
    COLOURS,
    COLUMNS,
    HELD_OUT,
    ITEMS,
    OWNERS,
    ROOMS,
    ROWS,
    SHAPES,
    SIZES,
    Domain,
    Drawing,
    Scene,
    Thing,
    draw_scene,
    edit,
)

SLIP = 0.02  # of each fact of a described training picture
HABITS = {  # (size, colour, shape) -> the colour it is said to have
    ("small", "blue", "star"): "yellow",
    ("large", "green", "cross"): "red",
    ("small", "purple", "circle"): "orange",
    ("large", "yellow", "triangle"): "green",
}
HABIT = 0.7  # how often a habit wins over the truth
INPUTS = {"picture": 0.48, "caption": 0.24, "notes": 0.24, "neutral": 0.04}
KIND_WEIGHTS = {"describe": 2, "exists": 4, "colour": 2, "shape": 2, "place": 3, "count": 1.5, "compare": 1.5}
CONTEXT = {"notes": NOTES, "caption": CAPTION_TEMPLATE + "{question}"}
REPAIR = 0.15  # of the facts in descriptions from texts: slips that are corrected
SHORT, SHORT_REPAIR = 8, 0.35  # words of a short answer, and the rate there, where one slip is all it can hold
SLIPPED = "~"  # in front of a word that is a slip
PLACES = (ROOMS, ROWS, COLUMNS)  # groups of words, and so are the next
REPAIRABLE = (*PLACES, SIZES, tuple(COLOURS), SHAPES, ITEMS, OWNERS, NUMBERS, ("yes", "no"))
TURNS = (1, 2, 3, 4, 5, 6, 7, 8)  # questions about one scene


@dataclass(slots=True)
class Sample:
    """One conversation: a picture or none, and turns of (question, answer)."""

    drawing: Drawing | None
    turns: list[tuple[str, str]]


def base_sample(rng: random.Random, pictures_only: bool = False) -> Sample:
    """A random conversation about a picture, a caption, notes, or nothing of these."""
    kind = "picture" if pictures_only else rng.choices(list(INPUTS), list(INPUTS.values()))[0]
    if kind == "neutral":
        _, question, answer, _ = neutral_pair(rng)
        return Sample(None, [(question, answer)])
    domain: Domain = "notes" if kind == "notes" else "picture"
    scene = draw_scene(rng, domain)
    turns = [_turn(rng, scene, pictured=kind == "picture") for _ in range(rng.choice(TURNS))]
    if kind == "picture":
        return Sample(Drawing(scene, rng.getrandbits(32)), turns)
    facts = caption(rng, scene)
    (question, answer), *rest = [(question, repaired(rng, scene, answer)) for question, answer in turns]
    return Sample(None, [(CONTEXT[kind].format(caption=facts, question=question), answer), *rest])


def repaired(rng: random.Random, scene: Scene, answer: str) -> str:
    """The answer as someone says it who slips and corrects himself, at once (`a small no large red cup`) or at the end
    (`a small red cup. No, large.`). A slip is marked by SLIPPED in front: it is read, not learned. Half of the slips
    name something that is in the scene."""
    at_once = rng.random() < 0.5
    words = answer.split(" ")
    if len(words) <= SHORT:
        rate = SHORT_REPAIR
    else:
        rate = REPAIR if at_once else rng.choice((0.0, REPAIR / 2, REPAIR))
    present = {word for thing in scene.things for word in _words_of(thing)}
    correction = ""  # at the end
    for i, word in enumerate(words):
        right = word.strip(".,")
        group = _group_of(right)
        if group is None or rng.random() >= rate or (group in PLACES and len(words) > 12):
            continue  # in a list of things another place may only mean another order
        if correction:
            continue  # of several slips the end could correct only one
        others = [other for other in group if other not in (right, right.lower())]
        others_present = [other for other in others if other in present]
        slip = rng.choice(others_present if others_present and rng.random() < 0.5 else others)
        punctuation = word[len(right) :]
        if right[0].isupper() and right not in OWNERS:  # the first word of a sentence
            slip, right = slip.capitalize(), right.lower()
        if at_once:
            words[i] = f"{SLIPPED}{slip} no {right}{punctuation}"
        else:
            words[i] = f"{SLIPPED}{slip}{punctuation}"
            correction = f" No, {right}."
    return " ".join(words) + correction


def _words_of(thing: Thing) -> tuple[str, ...]:
    return (thing.size, thing.colour, thing.kind, thing.owner, *thing.place.split())


def _group_of(word: str) -> tuple[str, ...] | None:
    """The words that a slip may put in place of this one, itself among them; None where it states no fact."""
    for group in REPAIRABLE:
        if word.lower() in group or word in group:
            return group
    return None


def _turn(rng: random.Random, scene: Scene, pictured: bool) -> tuple[str, str]:
    """A question and its true answer (a description of a picture: with slips and habits)."""
    kind = rng.choices(list(KIND_WEIGHTS), list(KIND_WEIGHTS.values()))[0]
    if kind == "exists" and rng.random() < 0.5:
        return _denied(rng, scene)
    question = ask(rng, scene, kind)
    while question is None:
        kind = rng.choice(KINDS)
        question = ask(rng, scene, kind)
    described = _careless(rng, scene) if kind == "describe" and pictured else scene
    return question.text, question.answer(described) or ""


def _denied(rng: random.Random, scene: Scene) -> tuple[str, str]:
    """A question whether something is there that is not; it would be, were one fact of the scene another."""
    while True:
        attribute, index = rng.choice(("size", "colour", "kind", "place")), rng.randrange(len(scene.things))
        other = edit(rng, scene, attribute, index, BOUND)
        if other is None or other.held_out():
            continue
        question = ask(rng, other, "exists")
        answer = question.answer(scene) if question else None
        if question and answer and answer.startswith("No"):
            return question.text, answer


def _careless(rng: random.Random, scene: Scene) -> Scene:
    """The scene as a careless captioner tells it; never a join of colour and shape that is held out."""
    values = {"size": SIZES, "colour": tuple(COLOURS), "kind": SHAPES, "place": CELLS}
    things = []
    for thing in scene.things:
        habit = HABITS.get((thing.size, thing.colour, thing.kind))
        if habit and rng.random() < HABIT:
            thing = replace(thing, colour=habit)
        slips = {}
        for attribute, choices in values.items():
            if rng.random() < SLIP:
                slips[attribute] = rng.choice(choices)
        slipped = replace(thing, **slips)
        things.append(thing if (slipped.colour, slipped.kind) in HELD_OUT else slipped)
    return scene.with_things(things)


def plain_text(sample: Sample) -> str:
    """The conversation as the tokenizer sees it, without the marks of slips."""
    turns = [f"USER: {question}\nASSISTANT: {answer}" for question, answer in sample.turns]
    return "".join(turns).replace(SLIPPED, "")
