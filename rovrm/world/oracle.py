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

from rovrm.world.reading import Mention, Pair, read
from rovrm.world.scenes import CELLS, Scene, Thing
from rovrm.world.tokens import plain

Fact = tuple  # in one of the forms above

INTENTS = {  # what is asked (an attribute, or count, compare, exists) -> the words by which that shows; the first wins
    "count": r"\bhow many\b|\bcount (?:all )?the\b|\bnumber of\b",
    "compare": r"\bwhich (?:one )?is\b.*\bor\b",
    "exists": r"\b(?:is|are) there\b|\bthat there (?:is|are)\b|\bdo you (?:find|see) (?:an?|any)\b",
    "owner": r"\bwho\b|\bthe one (?:who|that)\b",
    "colour": r"\bcolou?r\b",
    "place": r"\bwhere\b|\b(?:which|what) place\b",
    "kind": r"\b(?:what|which thing|which one|which object) is\b|\bname the (?:thing|object)\b",
}
NAMED_BY = {"colour": "kind", "place": "kind", "owner": "kind", "kind": "place"}  # attribute asked -> the one given
OPPOSITE = {"larger": "smaller", "higher": "lower", "further left": "further right"}
OPPOSITE |= {second: first for first, second in OPPOSITE.items()}
YES = r"\b(?:yes|yeah|yep|indeed)\b|\b(?:it|that) is (?:so|true|right|correct)\b"
NO = (
    r"\bnope\b|\bno\b(?=\s*(?:$|[.,:;!\n]|(?:there|it|that|i)\b))|\b(?:it|that) is (?:wrong|false)\b"
    r"|\bnot(?: so| true| right| correct)?\s*(?:$|[.,:;!\n])"
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an answer says, and how true it is.

    parsed: whether anything was understood as a statement about the scene.
    facts: all that is stated, each once.
    hallucinated: the false ones.
    covered: those that are facts of the scene.
    coverage: share of the scene's things that are named by kind (AMBER's Cover).
    fact_coverage: share of the scene's facts (size, colour, kind and place per thing, in notes also the owner) that are
        stated.
    mentions: things spoken of, where two mentions that say the same are one, and two that say different things of one
        thing are two.
    hallucinated_mentions: those of them with a false fact (together CHAIR_i).
    correct: the answer states the fact asked for and nothing false; where a description is asked for, some fact of the
        scene and nothing false.
    worth: what `better` compares.
    """

    parsed: bool
    facts: frozenset[Fact]
    hallucinated: frozenset[Fact]
    covered: frozenset[Fact]
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


def judge(scene: Scene, prompt: str, answer: str) -> Verdict:
    """What `answer` says about `scene`, and whether it is true. Takes any text and never raises.

    Args:
        scene: the truth.
        prompt: the question as asked; of several paragraphs (notes or a caption before it) only the last counts, and
            one that is no known question asks for a description.
        answer: any text.
    """
    question = _question(prompt)
    mentions = [_with_place(mention, question) for mention in read(answer)]
    facts_by_mention = _facts_by_mention(mentions, scene, question)
    facts = frozenset().union(*facts_by_mention, _general_facts(mentions, scene, question, answer))

    truth = _all_facts(scene)
    covered = facts & truth
    hallucinated = frozenset(fact for fact in facts if not _is_true(fact, scene))
    fact_coverage = len(covered) / max(len(truth), 1)
    if question.kind == "describe":
        correct = bool(covered) and not hallucinated
        detail = fact_coverage
    else:
        correct = _right_fact(scene, question) in facts and not hallucinated
        detail = 0.0  # who is asked for one fact need not tell others
    return Verdict(
        parsed=bool(facts),
        facts=facts,
        hallucinated=hallucinated,
        covered=covered,
        coverage=sum(fact[1] == "kind" for fact in covered) / max(len(scene.things), 1),
        fact_coverage=fact_coverage,
        mentions=len(facts_by_mention),
        hallucinated_mentions=sum(bool(of_mention & hallucinated) for of_mention in facts_by_mention),
        correct=correct,
        worth=(correct, bool(facts), -len(hallucinated), detail),
    )


def better(scene: Scene, prompt: str, first: str, second: str) -> int:
    """1 if the first answer is better, -1 if the second, 0 if they are alike: correct before not, then readable before
    not, then fewer false facts, then, where a description is asked for, more of the scene's facts."""
    first_worth, second_worth = judge(scene, prompt, first).worth, judge(scene, prompt, second).worth
    if first_worth == second_worth:
        return 0
    return 1 if first_worth > second_worth else -1


# ---- questions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Question:
    """A question as it was understood.

    kind: a key of INTENTS, or "describe".
    about: (attribute, value) of the thing that the question is about, as it says itself; of a comparison the kinds of
        both things.
    word: the word that compares.
    """

    kind: str
    about: tuple[Pair, ...] = ()
    word: str = ""


def _question(prompt: str) -> _Question:
    last_paragraph = re.split(r"\n\s*\n", prompt.strip())[-1]
    text = " ".join(last_paragraph.lower().split())
    kind = "describe"
    for intent, pattern in INTENTS.items():
        if re.search(pattern, text):
            kind = intent
            break
    mentions = read(text)
    if kind == "compare":
        words = [value for mention in mentions for name, value, _ in mention.said if name == "compare"]
        kinds = tuple(pair for mention in mentions for pair in mention.pairs() if pair[0] == "kind")
        return _Question(kind, kinds, words[0]) if words and len(kinds) == 2 else _Question("describe")

    about = mentions[0].pairs() if mentions else ()
    if kind in NAMED_BY and NAMED_BY[kind] not in dict(about):
        return _Question("describe")  # of which thing?
    if kind == "exists" and not about:
        return _Question("describe")
    return _Question(kind, about)


def _right_fact(scene: Scene, question: _Question) -> Fact | None:
    """The fact that a right answer states; None where there is none, as of a thing that is not there."""
    if question.kind == "compare":
        (_, first), (_, second) = question.about
        for fact in ((question.word, first, second), (question.word, second, first)):
            if _is_true(fact, scene):
                return fact
        return None
    fitting = [thing for thing in scene.things if _fits(thing, question.about)]
    if question.kind == "exists":
        return ("some" if fitting else "no", *question.about)
    if question.kind == "count":
        return ("count", len(fitting), *question.about)
    if not fitting:
        return None
    return (fitting[0].kind, question.kind, getattr(fitting[0], question.kind))


def _with_place(mention: Mention, question: _Question) -> Mention:
    """The mention with the place that the question names and the answer leaves out: choice 4, and "A ring." as answer
    to "What is in the hall?"."""
    place = dict(question.about).get("place")
    if place is None or mention.get("place"):
        return mention
    if question.kind == "kind":
        meant = mention.negated or mention.get("kind") is not None
    elif question.kind == "exists":
        meant = set(mention.pairs()) == set(question.about) - {("place", place)}
    else:
        meant = False
    return replace(mention, said=[*mention.said, ("place", place, True)]) if meant else mention


# ---- mentions -> facts -----------------------------------------------------------------------------------------------


def _facts_by_mention(mentions: list[Mention], scene: Scene, question: _Question) -> set[frozenset[Fact]]:
    """What is said of single things, as (kind, attribute, value): a set for each mention, equal ones once."""
    facts_by_mention = set()
    named: set[str] = set()  # the kinds that were spoken of so far
    for mention in mentions:
        if mention.negated or (_states_number(mention, question) and not mention.get("kind")):
            continue
        kind = _subject(mention, scene, question, named)
        named.add(kind)
        facts_by_mention.add(mention.facts(kind))
    return facts_by_mention - {frozenset()}


def _states_number(mention: Mention, question: _Question) -> bool:
    """Whether the mention says how many there are; "one" does where that is asked for, a lone number nowhere else."""
    if question.kind == "count":
        is_article = mention.number == 1 and mention.get("kind")  # one ring: a ring
        return mention.number is not None and not is_article
    return mention.number not in (None, 1) and not mention.loose


def _subject(mention: Mention, scene: Scene, question: _Question, named: set[str]) -> str:
    """The kind of the thing that is spoken of (choice 1); "thing" where none fits. named: kinds spoken of before."""
    kind = mention.get("kind")
    if kind is not None:
        return kind
    if question.kind in ("exists", *NAMED_BY) and (mention.loose or not named):
        about = dict(question.about)
        if about.get("kind"):
            return about["kind"]
        for thing in scene.things:
            if _fits(thing, question.about):
                return thing.kind
    # Of the things that some of what is said is true of: the one of which most is, before all one not yet named.
    best, best_fit = "thing", (0, False)
    for thing in scene.things:
        true_facts = sum(_is_true(fact, scene) for fact in mention.facts(thing.kind))
        fit = (true_facts, thing.kind not in named)
        if true_facts and fit > best_fit:
            best, best_fit = thing.kind, fit
    return best


def _general_facts(mentions: list[Mention], scene: Scene, question: _Question, answer: str) -> set[Fact]:
    """The facts about no single thing: that there is none, how many there are, yes and no, and which of two it is."""
    if question.kind == "compare":
        return _comparisons(mentions, scene, question)
    facts: set[Fact] = set()
    for mention in mentions:
        pairs = mention.pairs()
        if mention.negated and question.kind == "count" and not mention.get("kind"):
            facts.add(("count", 0, *(pairs or question.about)))
        elif mention.negated:
            facts.add(("no", *pairs))
        elif _states_number(mention, question):
            facts.add(("count", mention.number, *(pairs or question.about)))
        elif question.kind == "exists" and pairs == question.about:
            facts.add(("some", *pairs))
    if question.kind == "exists":
        if re.search(YES, plain(answer)):
            facts.add(("some", *question.about))
        if re.search(NO, plain(answer)):
            facts.add(("no", *question.about))
    return facts


def _comparisons(mentions: list[Mention], scene: Scene, question: _Question) -> set[Fact]:
    """(word, winner, loser) for each thing that the answer puts first or, by "not" or the opposite word, second."""
    facts: set[Fact] = set()
    word, opposite = question.word, OPPOSITE[question.word]
    (_, first), (_, second) = question.about
    compares = any(name == "compare" for mention in mentions for name, *_ in mention.said)
    for mention in mentions:
        kind = _subject(mention, scene, question, set())
        said = {
            value: so for name, value, so in mention.said if name == "compare"
        }  # comparing word -> whether it is so
        if kind == "thing":
            continue
        if compares and word not in said and opposite not in said:
            continue
        if not compares and mention.than:  # what another is compared with
            continue
        if word in said:
            wins = said[word]
        elif opposite in said:
            wins = not said[opposite]
        else:
            wins = not mention.negated
        other = second if kind == first else first
        facts.add((word, kind, other) if wins else (word, other, kind))
    # An answer that names both things and compares nothing puts neither first.
    return facts if compares or len(facts) == 1 else set()


# ---- facts and the scene ---------------------------------------------------------------------------------------------


def _all_facts(scene: Scene) -> frozenset[Fact]:
    """All there is to say: (kind, attribute, value) for each thing."""
    names = ("size", "colour", "kind", "place") + (("owner",) if scene.domain == "notes" else ())
    return frozenset((thing.kind, name, getattr(thing, name)) for thing in scene.things for name in names)


def _is_true(fact: Fact, scene: Scene) -> bool:
    head, *rest = fact
    if head in ("some", "no"):
        return any(_fits(thing, rest) for thing in scene.things) == (head == "some")
    if head == "count":
        number, *pairs = rest
        return sum(_fits(thing, pairs) for thing in scene.things) == number
    things = {thing.kind: thing for thing in scene.things}
    if head in OPPOSITE:
        winner, loser = rest
        if winner not in things or loser not in things:
            return False
        return _rank(things[winner], head) > _rank(things[loser], head)
    name, value = rest
    if head not in things:
        return False
    fits = _fits(things[head], [(name.removeprefix("not "), value)])
    return fits != name.startswith("not ")


def _fits(thing: Thing, pairs: Iterable[Pair]) -> bool:
    """Whether the thing has all these attributes; a row or a column alone is true of each place in it (choice 2)."""
    for name, value in pairs:
        if value != getattr(thing, name) and not (name == "place" and value in thing.place.split()):
            return False
    return True


def _rank(thing: Thing, word: str) -> int:
    """How far the thing is what the word says; only the order of two things counts."""
    row, column = divmod(CELLS.index(thing.place), 3) if thing.place in CELLS else (0, 0)
    ranks = {"larger": int(thing.size == "large"), "higher": -row, "further left": -column}
    return ranks[word] if word in ranks else -ranks[OPPOSITE[word]]
