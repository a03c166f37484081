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
    """text: as asked. answer(scene): the true answer about a scene, in one wording; None where the question makes no
    sense there. attribute, index: what an edit must change for another answer (attribute "count": how many)."""

    kind: str
    text: str
    answer: Callable[[Scene], str | None]
    attribute: str
    index: int


def caption(rng: random.Random, scene: Scene) -> str:
    """Every fact of the scene, the things in random order; in other words than any answer."""
    things = list(scene.things)
    rng.shuffle(things)
    a, the = ("{owner}'s ", "{owner}'s ") if scene.domain == "notes" else ("A ", "The ")
    wording = rng.choice(
        (
            a + "{size} {colour} {kind} is in the {place}.",
            the + "{kind} in the {place} is {size} and {colour}.",
            the + "{size} {kind} in the {place} is {colour}.",
        )
    )
    return " ".join(_fill(wording, thing) for thing in things)


def describe(scene: Scene, things: tuple[Thing, ...] | None = None, wording: int = 0) -> str:
    """All things (or those given) in one sentence, the place of each first."""
    things = scene.things if things is None else things
    if scene.domain == "notes":
        verb = ("has", "keeps")[wording % 2]
        told = join([_fill("in the {place} {owner} " + verb + " a {size} {colour} {kind}", thing) for thing in things])
        return _capital(told) + "."
    told = join([_fill("in the {place} a {size} {colour} {kind}", thing) for thing in things])
    return ("There is ", "I see ", "The picture shows ")[wording % 3] + told + "."


def article(words: str) -> str:
    return "an" if words[0] in "aeiou" else "a"


def join(parts: list[str]) -> str:
    """`a, b and c`"""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def ask(rng: random.Random, scene: Scene, kind: str) -> Question | None:
    """A question of this kind about the scene, in a random wording; None where the drawn one makes no sense."""
    index = rng.randrange(len(scene.things))
    if kind == "describe":
        wording = rng.randrange(6)
        attributes = ("size", "colour", "kind", "place") + (("owner",) if scene.domain == "notes" else ())
        text, attribute = rng.choice(DESCRIBE[scene.domain]), rng.choice(attributes)
        return Question(kind, text, lambda s: describe(s, wording=wording), attribute, index)
    return {"count": _count, "exists": _exists, "compare": _compare}.get(kind, _one_fact)(rng, scene, kind, index)


def _one_fact(rng: random.Random, scene: Scene, kind: str, index: int) -> Question:
    """What colour, where, what (or who, in notes): one attribute of one thing, which another attribute names."""
    thing = scene.things[index]
    if kind == "shape" and scene.domain == "notes" and rng.random() < 0.5:
        wording = rng.choice(("{owner} has the {kind}.", "It is {owner}.", "{owner}."))
        return _about(rng.choice(OWNER), wording, kind, "owner", "kind", thing, index)
    questions, asked, known, wordings = {
        "colour": (COLOUR, "colour", "kind", ("The {kind} is {colour}.", "It is {colour}.", "{colour}.")),
        "place": (
            PLACE,
            "place",
            "kind",
            ("The {kind} is in the {place}.", "It is in the {place}.", "In the {place}."),
        ),
        "shape": (
            SHAPE,
            "kind",
            "place",
            ("There is a {size} {colour} {kind}.", "It is a {size} {kind}.", "A {kind}."),
        ),
    }[kind]
    return _about(rng.choice(questions), rng.choice(wordings), kind, asked, known, thing, index)


def _about(text: str, wording: str, kind: str, asked: str, known: str, thing: Thing, index: int) -> Question:
    def answer(scene: Scene) -> str | None:
        found = [t for t in scene.things if getattr(t, known) == getattr(thing, known)]
        return _fill(wording, found[0]) if found else None

    return Question(kind, _fill(text, thing), answer, asked, index)


def _count(rng: random.Random, scene: Scene, kind: str, index: int) -> Question:
    size = rng.choice(("", "small ", "large "))
    text = rng.choice(COUNT).format(what=f"{size}things")
    wording = rng.choice(("I count {n}.", "The answer is {n}.", "{n}."))

    def answer(s: Scene) -> str:
        number = sum(not size or thing.size == size.strip() for thing in s.things)
        return _capital(wording.format(n=NUMBERS[number]))

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
    wanted = [(name, getattr(thing, name)) for name in named]

    def answer(s: Scene) -> str:
        there = any(all(getattr(t, name) == value for name, value in wanted) for t in s.things)
        return (yes if there else no).format(w=words, a=article(words))

    return Question(kind, text, answer, rng.choice(named), index)


def _compare(rng: random.Random, scene: Scene, kind: str, index: int) -> Question | None:
    words = ["larger", "higher", "further left"] if scene.domain == "picture" else ["larger"]
    word = rng.choice(words)
    attribute, key = COMPARE[word]
    first = scene.things[index]
    second = rng.choice([thing for thing in scene.things if thing is not first])
    if key(first) == key(second):
        return None
    text = f"Which is {word}, the {first.kind} or the {second.kind}?"
    wording = rng.choice(("The {kind} is " + word + ".", "It is the {kind}.", "The {kind}."))

    def answer(s: Scene) -> str | None:
        two = [t for t in s.things if t.kind in (first.kind, second.kind)]
        if len(two) != 2 or key(two[0]) == key(two[1]):
            return None
        return _fill(wording, max(two, key=key))

    return Question(kind, text, answer, attribute, index)


def _fill(wording: str, thing: Thing) -> str:
    filled = wording.format(size=thing.size, colour=thing.colour, kind=thing.kind, place=thing.place, owner=thing.owner)
    return _capital(filled) if wording.startswith("{") or wording[-1:] in ".?" else filled


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
