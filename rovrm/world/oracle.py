"""Reads any answer about a scene, also in bad grammar, and says exactly what of it is true.

    verdict = judge(scene, "What do you see?", "I see a large red circle in the top left and a dog.")
    verdict.hallucinated, verdict.coverage, verdict.correct      # {("dog", "kind", "dog")}, 0.5, False
    better(scene, prompt, first, second)                         # 1, -1 or 0

The counterpart of AMBER's HalRate and Cover and of CHAIR, with every fact of the scene in the place of an annotator's
list of objects. It shares the vocabulary of rovrm/world/scenes.py and nothing else with what words the right answers.

A fact is a tuple. `(kind, attribute, value)`: the thing of this kind has it; `(kind, "kind", kind)` that it is there.
So an invented thing is as many false facts as are told of it. `(kind, "not colour", "red")`: that it has not.
`("some" | "no", (attribute, value), ...)`: that some or no thing has all these. `("count", n, (attribute, value), ...)`.
`("larger", winner, loser)`. Choices where a sentence can be read in two ways:
1. Things are told apart by kind. One without a kind is the thing asked about, else the one that fits it best.
2. "On the left" is true of each place on the left, yet it is no answer to "Where is it?" and covers no fact.
3. Alone, "middle" names the row and "centre" the column, as in the questions; together with others they are alike.
4. An answer to "Is there a ring in the hall?" that speaks of "a ring" speaks of one in the hall.
5. Relations ("left of the ring", "above it") are judged only where the question compares.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from rovrm.world.scenes import CELLS, COLOURS, ITEMS, OWNERS, ROOMS, SHAPES, Scene, Thing

Pair = tuple[str, str]  # (attribute, value); of a token (sort, value)

_INTENTS = {  # what is asked: the attribute, or count, exists, compare
    "count": r"\bhow many\b|\bcount (?:all )?the\b|\bnumber of\b",
    "compare": r"\bwhich (?:one )?is\b.*\bor\b",
    "exists": r"\b(?:is|are) there\b|\bthat there (?:is|are)\b|\bdo you (?:find|see) (?:an?|any)\b",
    "owner": r"\bwho\b",
    "colour": r"\bcolou?r\b",
    "place": r"\bwhere\b|\b(?:which|what) place\b",
    "kind": r"\b(?:what|which thing|which one|which object) is\b|\bname the (?:thing|object)\b",
}
_YES = r"\b(?:yes|yeah|yep|indeed)\b|\b(?:it|that) is (?:so|true|right|correct)\b"
_NO = (
    r"\bnope\b|\bno\b(?=\s*(?:$|[.,:;!\n]|(?:there|it|that|i)\b))|\b(?:it|that) is (?:wrong|false)\b"
    r"|\bnot(?: so| true| right| correct)?\s*(?:$|[.,:;!\n])"
)




@dataclass(frozen=True, slots=True)
class Verdict:
    """parsed: whether anything was understood as a statement about the scene. facts: all that is stated, each once.
    hallucinated: the false ones. covered: those that are facts of the scene. coverage: share of the scene's things
    that are named by kind (AMBER's Cover). fact_coverage: share of the scene's facts (size, colour, kind and place per
    thing, in notes also the owner) that are stated. mentions: things spoken of, where two sentences that say the same
    are one mention and two that say different things of one kind are two; hallucinated_mentions: those of them with a
    false fact (together CHAIR_i). correct: the answer states the fact asked for and nothing false; where a description
    is asked for, some fact of the scene and nothing false."""

    parsed: bool
    facts: frozenset[tuple]
    hallucinated: frozenset[tuple]
    covered: frozenset[tuple]
    coverage: float
    fact_coverage: float
    mentions: int
    hallucinated_mentions: int
    correct: bool


@dataclass(frozen=True, slots=True)
class _Question:
    """kind: a key of _INTENTS or "describe". asked: what the question itself says of the thing, or of both things."""

    kind: str
    asked: tuple[Pair, ...] = ()
    word: str = ""  # that compares


def judge(scene: Scene, prompt: str, answer: str) -> Verdict:
    """What `answer` says about `scene`, and whether it is true. prompt: the question as asked; of several paragraphs
    (notes or a caption before it) only the last counts, and one that is no known question asks for a description.
    Takes any text and never raises."""
    question, mentions = _question(prompt), _read(answer)
    told = _told(mentions, scene, question)
    facts = frozenset().union(*told, _direct(mentions, scene, question, answer))
    true = _facts(scene)
    hallucinated, covered = frozenset(fact for fact in facts if not _holds(fact, scene)), facts & true
    spoken = {frozenset(part) for part in told if part}
    right = bool(covered) if question.kind == "describe" else _expected(scene, question) in facts
    return Verdict(
        parsed=bool(facts),
        facts=facts,
        hallucinated=hallucinated,
        covered=covered,
        coverage=sum(fact[1] == "kind" for fact in covered) / max(len(scene.things), 1),
        fact_coverage=len(covered) / max(len(true), 1),
        mentions=len(spoken),
        hallucinated_mentions=sum(bool(part & hallucinated) for part in spoken),
        correct=right and not hallucinated,
    )


def better(scene: Scene, prompt: str, first: str, second: str) -> int:
    """1 if the first answer is better, -1 if the second, 0 if they are alike: correct before not, then fewer false facts,
    then, where a description is asked for, more of the scene's facts. So silence is better than a falsehood."""
    describes = _question(prompt).kind == "describe"

    def worth(answer: str) -> tuple[bool, int, float]:
        verdict = judge(scene, prompt, answer)
        return verdict.correct, -len(verdict.hallucinated), verdict.fact_coverage * describes

    one, two = worth(first), worth(second)
    return (one > two) - (one < two)


# ---- questions -------------------------------------------------------------------------------------------------------


def _question(prompt: str) -> _Question:
    text = re.split(r"\n\s*\n", prompt.strip())[-1]
    kind = next((kind for kind, pattern in _INTENTS.items() if re.search(pattern, text.lower())), "describe")
    mentions = [mention for mention in _read(text) if mention.said]
    asked = tuple(mentions[0].pairs()) if mentions else ()
    if kind == "compare":
        words = [value for mention in mentions for name, value, _ in mention.said if name == "compare"]
        both = tuple(pair for mention in mentions for pair in mention.pairs() if pair[0] == "kind")
        return _Question(kind, both, words[0]) if words and len(both) == 2 else _Question("describe")
    needed = {"colour": "kind", "place": "kind", "owner": "kind", "kind": "place"}.get(kind)
    if (needed and needed not in dict(asked)) or (kind == "exists" and not asked):
        return _Question("describe")
    return _Question(kind, asked)


def _expected(scene: Scene, question: _Question) -> tuple | None:
    """The fact that a right answer states; None where there is none, as of a thing that is not there."""
    asked = question.asked
    found = [thing for thing in scene.things if _fits(thing, asked)]
    if question.kind == "compare":
        both = [thing for thing in scene.things if ("kind", thing.kind) in asked]
        ranks = sorted(both, key=lambda thing: _rank(thing, question.word))
        tied = len(both) != 2 or _rank(both[0], question.word) == _rank(both[1], question.word)
        return None if tied else (question.word, ranks[1].kind, ranks[0].kind)
    if question.kind == "exists":
        return ("some" if found else "no", *asked)
    if question.kind == "count":
        return ("count", len(found), *asked)
    return (found[0].kind, question.kind, getattr(found[0], question.kind)) if found else None


# ---- mentions -> facts -----------------------------------------------------------------------------------------------


def _told(mentions: list[_Mention], scene: Scene, question: _Question) -> list[set[tuple]]:
    """Per mention, what it says of its thing: (kind, attribute, value)."""
    told, named = [], set()
    for mention in mentions:
        counted = mention.number is not None and (mention.number != 1 or question.kind == "count")
        if mention.negated or not mention.said or (counted and not mention.get("kind")):
            continue
        if question.kind == "kind" and mention.get("kind") and not mention.get("place"):
            mention.said.append(("place", dict(question.asked)["place"], True))
        if question.kind == "exists":
            mention.said += [(*pair, True) for pair in _implied(mention, question)]
        kind = _subject(mention, scene, question, named)
        named.add(kind)
        said = [(name, value, so) for name, value, so in mention.said if name != "compare"]
        told.append({(kind, name if so else f"not {name}", value) for name, value, so in said})
    return told


def _implied(mention: _Mention, question: _Question) -> list[Pair]:
    """What the mention leaves out of what is asked, where that is the place at most."""
    said, asked = set(mention.pairs()), set(question.asked)
    short = said <= asked and all(name == "place" for name, _ in asked - said)
    return sorted(asked - said) if short and said else []


def _subject(mention: _Mention, scene: Scene, question: _Question, named: set[str]) -> str:
    """The kind of the thing that is spoken of; "thing" where none fits."""
    kind = mention.get("kind")
    if kind:
        return kind
    if question.kind in ("colour", "place", "owner", "kind", "exists") and (mention.loose or not named):
        at = [thing.kind for thing in scene.things if _fits(thing, question.asked)]
        return dict(question.asked).get("kind") or (at[0] if at else "thing")
    pairs = mention.pairs()
    fits = {thing.kind: (sum(_fits(thing, [pair]) for pair in pairs), thing.kind not in named) for thing in scene.things}
    best = max(fits, key=lambda kind: fits[kind], default="thing")
    return best if fits and fits[best][0] else "thing"


def _direct(mentions: list[_Mention], scene: Scene, question: _Question, answer: str) -> set[tuple]:
    """The other facts: that there is none, how many there are, yes and no, and which of two it is."""
    if question.kind == "compare":
        return _winners(mentions, scene, question)
    facts: set[tuple] = set()
    for mention in mentions:
        pairs = tuple(mention.pairs())
        if mention.negated and question.kind == "count" and not mention.get("kind"):
            facts.add(("count", 0, *(pairs or question.asked)))
        elif mention.negated:
            extra = _implied(mention, question) if question.kind == "exists" else []
            extra = [("place", dict(question.asked)["place"])] if question.kind == "kind" and not mention.get("place") else extra
            facts.add(("no", *sorted({*pairs, *extra})))
        elif mention.number is not None and (question.kind == "count" or (mention.number != 1 and pairs)):
            facts.add(("count", mention.number, *(pairs or question.asked)))
    if question.kind == "exists":
        facts |= {("some", *question.asked) for mention in mentions if set(mention.pairs()) == set(question.asked) and not mention.negated}
        facts |= {("some", *question.asked)} if re.search(_YES, _plain(answer)) else set()
        facts |= {("no", *question.asked)} if re.search(_NO, _plain(answer)) else set()
    return facts
