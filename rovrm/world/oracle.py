"""Reads any answer about a scene, also in bad grammar, and says exactly what of it is true.

    verdict = judge(scene, "What do you see?", "I see a large red circle in the top left and a dog.")
    verdict.hallucinated, verdict.coverage, verdict.correct      # {("dog", "kind", "dog")}, 0.5, False
    better(scene, prompt, first, second)                         # 1, -1 or 0

The counterpart of AMBER's HalRate and Cover and of CHAIR, with every fact of the scene in the place of an annotator's
list of objects. It shares the vocabulary of rovrm/world/scenes.py and nothing else with what words the right answers.

A fact is a tuple: `(kind, attribute, value)` the thing of this kind has it; `(kind, "kind", kind)` it is there;
`(kind, "not colour", "red")` it has it not; `("some" or "no", (attribute, value), ...)` some or no thing has all these;
`("count", n, (attribute, value), ...)` so many have; `("larger", winner, loser)`. An invented thing is thus as many
false facts as are told of it. Choices where a sentence can be read in two ways:
1. Things are told apart by kind. One without a kind is the thing asked about, else the one that fits it best.
2. "On the left" is true of each place on the left, yet it is no answer to "Where is it?" and covers no fact.
3. Alone, "middle" names the row and "centre" the column, as in the questions; beside another such word they are alike.
4. An answer to "Is there a ring in the hall?" that speaks of "a ring" speaks of one in the hall.
5. Relations ("left of the ring") are judged only where the question compares.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from rovrm.world.reading import Mention, Pair, plain, read
from rovrm.world.scenes import CELLS, Scene, Thing

INTENTS = {  # what is asked: the attribute, or count, compare, exists
    "count": r"\bhow many\b|\bcount (?:all )?the\b|\bnumber of\b",
    "compare": r"\bwhich (?:one )?is\b.*\bor\b",
    "exists": r"\b(?:is|are) there\b|\bthat there (?:is|are)\b|\bdo you (?:find|see) (?:an?|any)\b",
    "owner": r"\bwho\b|\bthe one (?:who|that)\b",
    "colour": r"\bcolou?r\b",
    "place": r"\bwhere\b|\b(?:which|what) place\b",
    "kind": r"\b(?:what|which thing|which one|which object) is\b|\bname the (?:thing|object)\b",
}
KNOWN = {"colour": "kind", "place": "kind", "owner": "kind", "kind": "place"}  # the attribute asked -> the one given
OPPOSITE = {"larger": "smaller", "higher": "lower", "further left": "further right"}
OPPOSITE |= {second: first for first, second in OPPOSITE.items()}
YES = r"\b(?:yes|yeah|yep|indeed)\b|\b(?:it|that) is (?:so|true|right|correct)\b"
NO = (
    r"\bnope\b|\bno\b(?=\s*(?:$|[.,:;!\n]|(?:there|it|that|i)\b))|\b(?:it|that) is (?:wrong|false)\b"
    r"|\bnot(?: so| true| right| correct)?\s*(?:$|[.,:;!\n])"
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """parsed: whether anything was understood as a statement about the scene. facts: all that is stated, each once.
    hallucinated: the false ones. covered: those that are facts of the scene. coverage: share of the scene's things
    that are named by kind (AMBER's Cover). fact_coverage: share of the scene's facts (size, colour, kind and place per
    thing, in notes also the owner) that are stated. mentions: things spoken of, where two mentions that say the same
    are one and two that say different things of one thing are two; hallucinated_mentions: those of them with a false
    fact (together CHAIR_i). correct: the answer states the fact asked for and nothing false; where a description is
    asked for, some fact of the scene and nothing false. worth: what `better` compares."""

    parsed: bool
    facts: frozenset[tuple]
    hallucinated: frozenset[tuple]
    covered: frozenset[tuple]
    coverage: float
    fact_coverage: float
    mentions: int
    hallucinated_mentions: int
    correct: bool
    worth: tuple[bool, bool, int, float]

    @property
    def false(self) -> bool:
        """Whether the answer says something false, or nothing that can be read."""
        return bool(self.hallucinated) or not self.parsed


@dataclass(frozen=True, slots=True)
class _Question:
    """kind: a key of INTENTS, or "describe". asked: what the question itself says of the thing, or the kinds of both
    things. word: that compares."""

    kind: str
    asked: tuple[Pair, ...] = ()
    word: str = ""


def judge(scene: Scene, prompt: str, answer: str) -> Verdict:
    """What `answer` says about `scene`, and whether it is true. prompt: the question as asked; of several paragraphs
    (notes or a caption before it) only the last counts, and one that is no known question asks for a description.
    Takes any text and never raises."""
    question = _question(prompt)
    mentions = [_in_context(mention, question) for mention in read(answer)]
    told = _told(mentions, scene, question)
    facts, true = frozenset().union(*told, _direct(mentions, scene, question, answer)), _facts(scene)
    hallucinated, covered = frozenset(fact for fact in facts if not _holds(fact, scene)), facts & true
    describes, fact_coverage = question.kind == "describe", len(covered) / max(len(true), 1)
    right = bool(covered) if describes else _expected(scene, question) in facts
    correct = right and not hallucinated
    return Verdict(
        parsed=bool(facts),
        facts=facts,
        hallucinated=hallucinated,
        covered=covered,
        coverage=sum(fact[1] == "kind" for fact in covered) / max(len(scene.things), 1),
        fact_coverage=fact_coverage,
        mentions=len(told),
        hallucinated_mentions=sum(bool(said & hallucinated) for said in told),
        correct=correct,
        worth=(correct, bool(facts), -len(hallucinated), fact_coverage * describes),
    )


def better(scene: Scene, prompt: str, first: str, second: str) -> int:
    """1 if the first answer is better, -1 if the second, 0 if they are alike: correct before not, then readable before
    not, then fewer false facts, then, where a description is asked for, more of the scene's facts."""
    one, two = judge(scene, prompt, first).worth, judge(scene, prompt, second).worth
    return (one > two) - (one < two)


# ---- questions -------------------------------------------------------------------------------------------------------


def _question(prompt: str) -> _Question:
    text = " ".join(re.split(r"\n\s*\n", prompt.strip())[-1].lower().split())
    kind = next((kind for kind, pattern in INTENTS.items() if re.search(pattern, text)), "describe")
    mentions = read(text)
    if kind == "compare":
        words = [value for mention in mentions for name, value, _ in mention.said if name == "compare"]
        both = tuple(pair for mention in mentions for pair in mention.pairs() if pair[0] == "kind")
        return _Question(kind, both, words[0]) if words and len(both) == 2 else _Question("describe")
    asked = mentions[0].pairs() if mentions else ()
    unclear = KNOWN[kind] not in dict(asked) if kind in KNOWN else kind == "exists" and not asked
    return _Question("describe") if unclear else _Question(kind, asked)


def _expected(scene: Scene, question: _Question) -> tuple | None:
    """The fact that a right answer states; None where there is none, as of a thing that is not there."""
    kind, asked = question.kind, question.asked
    found = [thing for thing in scene.things if _fits(thing, asked)]
    if kind == "compare":
        (_, one), (_, two) = asked
        either = [(question.word, one, two), (question.word, two, one)]
        return next((fact for fact in either if _holds(fact, scene)), None)
    if kind == "exists":
        return ("some" if found else "no", *asked)
    if kind == "count":
        return ("count", len(found), *asked)
    return (found[0].kind, kind, getattr(found[0], kind)) if found else None


def _in_context(mention: Mention, question: _Question) -> Mention:
    """The mention with the place that the question names and the answer leaves out."""
    place, said, asked = dict(question.asked).get("place"), set(mention.pairs()), set(question.asked)
    named = mention.negated or mention.get("kind")
    meant = question.kind == "kind" and named or question.kind == "exists" and said == asked - {("place", place)}
    if place is None or mention.get("place") or not meant:
        return mention
    return replace(mention, said=[*mention.said, ("place", place, True)])


# ---- mentions -> facts -----------------------------------------------------------------------------------------------


def _told(mentions: list[Mention], scene: Scene, question: _Question) -> set[frozenset[tuple]]:
    """What is said of single things, per mention, as (kind, attribute, value)."""
    told, named = set(), set()
    for mention in mentions:
        if mention.negated or (_counts(mention, question) and not mention.get("kind")):
            continue
        kind = _subject(mention, scene, question, named)
        named.add(kind)
        told.add(mention.facts(kind))
    return told - {frozenset()}


def _counts(mention: Mention, question: _Question) -> bool:
    """Whether the mention says how many there are; "one" does where that is asked for, a lone number nowhere else."""
    if question.kind == "count":
        return mention.number is not None and not (mention.number == 1 and mention.get("kind"))
    return mention.number not in (None, 1) and not mention.loose


def _subject(mention: Mention, scene: Scene, question: _Question, named: set[str]) -> str:
    """The kind of the thing that is spoken of; "thing" where none fits."""
    kind, fits = mention.get("kind"), {}
    if kind is None and question.kind in ("exists", *KNOWN) and (mention.loose or not named):
        meant = [thing.kind for thing in scene.things if _fits(thing, question.asked)]
        kind = dict(question.asked).get("kind") or (meant[0] if meant else None)
    for thing in scene.things if kind is None else ():
        fits[thing.kind] = sum(_holds(fact, scene) for fact in mention.facts(thing.kind)), thing.kind not in named
    best = max(fits, key=lambda kind: fits[kind], default="thing")
    return kind or (best if fits and fits[best][0] else "thing")


def _direct(mentions: list[Mention], scene: Scene, question: _Question, answer: str) -> set[tuple]:
    """The facts about no single thing: that there is none, how many there are, yes and no, and which of two it is."""
    if question.kind == "compare":
        return _winners(mentions, scene, question)
    facts: set[tuple] = set()
    for mention in mentions:
        pairs = mention.pairs()
        if mention.negated and question.kind == "count" and not mention.get("kind"):
            facts.add(("count", 0, *(pairs or question.asked)))
        elif mention.negated:
            facts.add(("no", *pairs))
        elif _counts(mention, question):
            facts.add(("count", mention.number, *(pairs or question.asked)))
        elif question.kind == "exists" and pairs == question.asked:
            facts.add(("some", *pairs))
    if question.kind == "exists":
        words = (("some", YES), ("no", NO))
        facts |= {(word, *question.asked) for word, pattern in words if re.search(pattern, plain(answer))}
    return facts


def _winners(mentions: list[Mention], scene: Scene, question: _Question) -> set[tuple]:
    """(word, winner, loser) for each thing that the answer puts first or, by "not" or the opposite word, second."""
    facts: set[tuple] = set()
    word, (one, two) = question.word, (kind for _, kind in question.asked)
    compared = any(name == "compare" for mention in mentions for name, *_ in mention.said)
    for mention in mentions:
        kind = _subject(mention, scene, question, set())
        other = two if kind == one else one
        said = {value: so for name, value, so in mention.said if name == "compare"}
        if kind == "thing" or (word not in said and OPPOSITE[word] not in said if compared else mention.than):
            continue
        first = said[word] if word in said else not said.get(OPPOSITE[word], mention.negated)
        facts.add((word, kind, other) if first else (word, other, kind))
    return facts if compared or len(facts) == 1 else set()  # who names both and compares nothing puts neither first


# ---- facts and the scene ---------------------------------------------------------------------------------------------


def _facts(scene: Scene) -> frozenset[tuple]:
    """All there is to say: (kind, attribute, value) for each thing."""
    names = ("size", "colour", "kind", "place") + (("owner",) if scene.domain == "notes" else ())
    return frozenset((thing.kind, name, getattr(thing, name)) for thing in scene.things for name in names)


def _holds(fact: tuple, scene: Scene) -> bool:
    head, *rest = fact
    things = {thing.kind: thing for thing in scene.things}
    if head in ("some", "no"):
        return any(_fits(thing, rest) for thing in scene.things) == (head == "some")
    if head == "count":
        return sum(_fits(thing, rest[1:]) for thing in scene.things) == rest[0]
    if head in OPPOSITE:
        ranks = [_rank(things[kind], head) for kind in rest if kind in things]
        return len(ranks) == 2 and ranks[0] > ranks[1]
    name, value = rest
    return head in things and _fits(things[head], [(name.removeprefix("not "), value)]) != name.startswith("not ")


def _fits(thing: Thing, pairs: Iterable[Pair]) -> bool:
    """Whether the thing has all these; a row or a column alone is true of each place in it."""
    mine = {name: getattr(thing, name) for name in ("size", "colour", "kind", "place", "owner")}
    return all(value == mine[name] or (name == "place" and value in mine[name].split()) for name, value in pairs)


def _rank(thing: Thing, word: str) -> int:
    """How far the thing is what the word says."""
    row, column = divmod(CELLS.index(thing.place), 3) if thing.place in CELLS else (0, 0)
    rank = {"larger": int(thing.size == "large"), "higher": -row, "further left": -column}
    return rank[word] if word in rank else -rank[OPPOSITE[word]]
