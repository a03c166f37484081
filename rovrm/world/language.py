"""What is said about scenes: captions, questions in several wordings, and their true answers.

    question = ask(rng, scene, "colour")       # Question(kind="colour", text="What colour is the circle?", ...)
    question.answer(scene)                     # "The circle is red."

A wrong answer is never worded here: it is the true answer to the same question about an edited scene (rovrm/world/
pairs.py), so right and wrong answers have one and the same form.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from rovrm.world.scenes import CELLS, Scene, Thing

KINDS = ("describe", "colour", "shape", "place", "count", "exists", "compare")
NUMBERS = ("zero", "one", "two", "three", "four")
DESCRIBE = {
    "picture": ("Describe the picture.", "What do you see?", "What is in the picture?", "Tell me what is shown."),
    "notes": ("Sum up the notes.", "Who keeps what?", "What do the notes say?", "Tell me what is noted."),
}
DESCRIPTIONS = ("There is ", "I see ", "The picture shows ")
COLOUR = ("What colour is the {kind}?", "Which colour does the {kind} have?", "Name the colour of the {kind}.")
PLACE = ("Where is the {kind}?", "In which place is the {kind}?", "Say where the {kind} is.")
SHAPE = ("What is in the {place}?", "Which thing is in the {place}?", "Name the thing in the {place}.")
OWNER = ("Who has the {kind}?", "Who keeps the {kind}?", "Name the one who has the {kind}.")
COUNT = ("How many {what} are there?", "Count the {what}.", "What is the number of {what}?")
EXISTS = ("Is there {what}?", "Do you find {what}?", "Is it right that there is {what}?")
COMPARE = {  # word -> attribute, and the key by which the first thing wins
    "larger": ("size", lambda thing: thing.size == "large"),
    "higher": ("place", lambda thing: -(CELLS.index(thing.place) // 3)),
    "further left": ("place", lambda thing: -(CELLS.index(thing.place) % 3)),
}


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a scene.

    kind: one of KINDS.
    text: as asked.
    answer: a scene -> the true answer about it, in one wording; None where the question makes no sense there.
    attribute, index: what an edit must change for another answer: this attribute of the thing in this place; for the
        attribute "count" how many there are.
    """

    kind: str
    text: str
    answer: Callable[[Scene], str | None]
    attribute: str
    index: int


def caption(rng: random.Random, scene: Scene) -> str:
    """Every fact of the scene, the things in random order; in other words than any answer."""
    things = list(scene.things)
    rng.shuffle(things)
    if scene.domain == "notes":
        a = the = "{owner}'s "
    else:
        a, the = "A ", "The "
    wording = rng.choice(
        (
            a + "{size} {colour} {kind} is in the {place}.",
            the + "{kind} in the {place} is {size} and {colour}.",
            the + "{size} {kind} in the {place} is {colour}.",
        )
    )
    return " ".join(_fill(wording, thing) for thing in things)


def describe(scene: Scene, things: tuple[Thing, ...] | None = None, wording: int = 0) -> str:
    """All things (or those given) in one sentence, the place of each first. wording: from 0 to 5; notes have two
    different ones, pictures three."""
    things = scene.things if things is None else things
    if scene.domain == "notes":
        verb = ("has", "keeps")[wording % 2]
        pattern, opening = "in the {place} {owner} " + verb + " a {size} {colour} {kind}", ""
    else:
        pattern, opening = "in the {place} a {size} {colour} {kind}", DESCRIPTIONS[wording % 3]
    return _capital(opening + join([_fill(pattern, thing) for thing in things])) + "."


def ask(rng: random.Random, scene: Scene, kind: str) -> Question | None:
    """A question of this kind about the scene, in a random wording; None where the drawn one makes no sense."""
    index = rng.randrange(len(scene.things))
    if kind == "describe":
        return _describe(rng, scene, kind, index)
    if kind == "count":
        return _count(rng, scene, kind, index)
    if kind == "exists":
        return _exists(rng, scene, kind, index)
    if kind == "compare":
        return _compare(rng, scene, kind, index)
    return _one_fact(rng, scene, kind, index)


# ---- one function for each kind of question --------------------------------------------------------------------------

# The wording of the answer is drawn together with the question and kept: the right answer and the one about an edited
# scene then differ in nothing but the fact.


def _describe(rng: random.Random, scene: Scene, kind: str, index: int) -> Question:
    wording = rng.randrange(6)
    attributes = ("size", "colour", "kind", "place") + (("owner",) if scene.domain == "notes" else ())
    text, attribute = rng.choice(DESCRIBE[scene.domain]), rng.choice(attributes)
    return Question(kind, text, lambda other: describe(other, wording=wording), attribute, index)


def _one_fact(rng: random.Random, scene: Scene, kind: str, index: int) -> Question:
    """What colour, where, what (or who, in notes): one attribute of one thing, which another attribute names."""
    thing = scene.things[index]
    if kind == "shape" and scene.domain == "notes" and rng.random() < 0.5:  # notes also ask for the owner
        wording = rng.choice(("{owner} has the {kind}.", "It is {owner}.", "{owner}."))
        return _about(rng.choice(OWNER), wording, kind, "owner", "kind", thing, index)
    if kind == "colour":
        questions, wordings = COLOUR, ("The {kind} is {colour}.", "It is {colour}.", "{colour}.")
        attribute, named_by = "colour", "kind"
    elif kind == "place":
        questions, wordings = PLACE, ("The {kind} is in the {place}.", "It is in the {place}.", "In the {place}.")
        attribute, named_by = "place", "kind"
    else:
        questions, wordings = SHAPE, ("There is a {size} {colour} {kind}.", "It is a {size} {kind}.", "A {kind}.")
        attribute, named_by = "kind", "place"
    return _about(rng.choice(questions), rng.choice(wordings), kind, attribute, named_by, thing, index)


def _about(text: str, wording: str, kind: str, attribute: str, named_by: str, thing: Thing, index: int) -> Question:
    """A question for one attribute of the thing that another attribute, `named_by`, names."""

    def answer(scene: Scene) -> str | None:
        for candidate in scene.things:
            if getattr(candidate, named_by) == getattr(thing, named_by):
                return _fill(wording, candidate)
        return None

    return Question(kind, _fill(text, thing), answer, attribute, index)


def _count(rng: random.Random, scene: Scene, kind: str, index: int) -> Question:
    size = rng.choice(("", "small ", "large "))
    text = rng.choice(COUNT).format(what=f"{size}things")
    wording = rng.choice(("I count {n}.", "The answer is {n}.", "{n}."))

    def answer(other: Scene) -> str:
        counted = [thing for thing in other.things if not size or thing.size == size.strip()]
        return _capital(wording.format(n=NUMBERS[len(counted)]))

    return Question(kind, text, answer, "size" if size else "count", index)


def _exists(rng: random.Random, scene: Scene, kind: str, index: int) -> Question:
    """About a thing that is there (the edit takes it away); half of the time pairs.py exchanges scene and edit."""
    named = rng.choice((("kind", "place"), ("size", "kind"), ("colour", "kind"), ("size", "colour", "kind")))
    thing = scene.things[index]
    words = " ".join(getattr(thing, name) for name in named if name != "place")
    words += f" in the {thing.place}" if "place" in named else ""
    text = rng.choice(EXISTS).format(what=f"{article(words)} {words}")
    yes, no = rng.choice(
        (("Yes, there is {a} {w}.", "No, there is no {w}."), ("Yes.", "No."), ("Yes, it is so.", "No, it is not."))
    )

    def answer(other: Scene) -> str:
        there = any(all(getattr(t, name) == getattr(thing, name) for name in named) for t in other.things)
        return (yes if there else no).format(w=words, a=article(words))

    return Question(kind, text, answer, rng.choice(named), index)


def _compare(rng: random.Random, scene: Scene, kind: str, index: int) -> Question | None:
    """None where the two things are alike."""
    words = ["larger", "higher", "further left"] if scene.domain == "picture" else ["larger"]  # rooms have no order
    word = rng.choice(words)
    attribute, key = COMPARE[word]
    first = scene.things[index]
    second = rng.choice([thing for thing in scene.things if thing is not first])
    if key(first) == key(second):
        return None
    text = f"Which is {word}, the {first.kind} or the {second.kind}?"
    wording = rng.choice(("The {kind} is " + word + ".", "It is the {kind}.", "The {kind}."))

    def answer(other: Scene) -> str | None:
        both = [thing for thing in other.things if thing.kind in (first.kind, second.kind)]
        if len(both) != 2 or key(both[0]) == key(both[1]):
            return None
        return _fill(wording, max(both, key=key))

    return Question(kind, text, answer, attribute, index)


# ---- words -----------------------------------------------------------------------------------------------------------


def _fill(wording: str, thing: Thing) -> str:
    """The wording with the thing's attributes in it; a capital in front where it is a sentence or begins with one of
    the attributes."""
    filled = wording.format(size=thing.size, colour=thing.colour, kind=thing.kind, place=thing.place, owner=thing.owner)
    return _capital(filled) if wording.startswith("{") or wording[-1:] in ".?" else filled


def article(words: str) -> str:
    return "an" if words[0] in "aeiou" else "a"


def join(parts: list[str]) -> str:
    """`a, b and c`"""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
