"""Reads free text about a scene, also in bad grammar, as mentions of things and what is said of each.

    read("There is a red ring, it is not large.")    # [Mention(said=[("colour", "red", True), ("kind", "ring", True),
                                                     #                ("size", "large", False)])]
A mention is a noun phrase ("a large red ring", "no ring", "the red one"), what is said behind it up to the next, and a
place before it ("in the hall is a ring"). This module knows words, not truth: rovrm/world/oracle.py judges.
"""

from dataclasses import dataclass, field

from rovrm.world.tokens import Token, tokenize

Pair = tuple[str, str]  # (attribute, value)


@dataclass(slots=True)
class Mention:
    """A thing that the text speaks of.

    said: (attribute, value, whether it is so) in order, where a comparison ("larger") is an attribute too.
    negated: "no red ring".
    loose: with neither a noun nor an article, as "It is red" or a number alone.
    than: it is what another thing is compared with.
    number: how many, as "two red rings" says.
    before: the mention whose second place or owner this is, should no noun follow.
    """

    said: list[tuple[str, str, bool]] = field(default_factory=list)
    negated: bool = False
    loose: bool = False
    than: bool = False
    number: int | None = None
    before: "Mention | None" = None

    def get(self, attribute: str) -> str | None:
        """The first value that is said to be so."""
        for name, value, so in self.said:
            if name == attribute and so:
                return value
        return None

    def pairs(self) -> tuple[Pair, ...]:
        """(attribute, value) of all that is said to be so, sorted, each once; without comparisons."""
        return tuple(sorted({(name, value) for name, value, so in self.said if so and name != "compare"}))

    def facts(self, kind: str) -> frozenset[tuple[str, str, str]]:
        """(kind, attribute or "not attribute", value) of all that is said, if it is said of this kind of thing."""
        facts = set()
        for name, value, so in self.said:
            if name != "compare":
                facts.add((kind, name if so else f"not {name}", value))
        return frozenset(facts)


def read(text: str) -> list[Mention]:
    """The mentions in any text, in order."""
    reader = _Reader(tokenize(text))
    i = 0
    while i < len(reader.tokens):
        phrase = _noun_phrase(reader.tokens, i)
        if phrase is None:
            reader.take_token(i)
            i += 1
        else:
            reader.take_phrase(phrase)
            i = phrase.end
    # Places that were kept for a thing yet to come go back to the thing before, unless in this text they do come first.
    # From the last one on, since one may have been handed on by another.
    for mention in reversed(reader.mentions):
        if mention.said and mention.said[0][0] not in reader.leading:
            _give_back(mention)
    return [mention for mention in reader.mentions if mention.said or mention.negated or mention.number is not None]


def _give_back(mention: Mention) -> None:
    """No thing came behind a place or an owner: what it says is of the thing before."""
    if mention.before and mention.loose:
        mention.before.said += mention.said
        mention.said = []


# ---- noun phrases ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Phrase:
    """A noun phrase that ends before token `end`. article: "a", "the" or none. loose: a number alone."""

    end: int
    pairs: list[Pair] = field(default_factory=list)
    article: str = ""
    negated: bool = False
    number: int | None = None
    loose: bool = False


def _noun_phrase(tokens: list[Token], start: int) -> _Phrase | None:
    """`a large red ring`, `no ring`, `two`, `the red one`, `a large red`; None where no thing is named."""
    phrase, i = _Phrase(start), start
    if _sort(tokens, i) == "nothing":
        return _Phrase(i + 1, negated=True)
    if _sort(tokens, i) == "no":
        phrase.negated, i = True, i + 1
    if _sort(tokens, i) == "article":
        phrase.article, i = tokens[i].word, i + 1
    if _sort(tokens, i) == "number":
        phrase.number, i = int(tokens[i].word), i + 1
    opened = i > start
    # A place may stand before its noun ("the top left ring"), but "in the top left ring" has lost a comma.
    adjectives = ("size", "colour")
    if opened and tokens[start - 1].sort != "in":
        adjectives = ("size", "colour", "place", "cell")
    while _sort(tokens, i) in adjectives:
        sort, value = tokens[i]
        phrase.pairs.append(("place" if sort == "cell" else sort, value))
        i += 1
        # "a large, red ring": behind a comma or an "and" another adjective may follow
        if opened and _sort(tokens, i) in ("comma", "and") and _sort(tokens, i + 1) in ("size", "colour"):
            i += 1
    return _with_noun(phrase, tokens, i, opened)


def _with_noun(phrase: _Phrase, tokens: list[Token], i: int, opened: bool) -> _Phrase | None:
    """The phrase whose noun, if it has one, would be token i. opened: it began with no, an article or a number."""
    sort = _sort(tokens, i)
    if sort == "kind":
        phrase.pairs.append(("kind", tokens[i].word))
        phrase.end = i + 1
        if _sort(tokens, i + 1) == "generic":  # "a ring shape"
            phrase.end += 1
        return phrase
    if sort == "generic":
        phrase.end = i + 1
        return phrase
    phrase.end = i
    if opened and any(name != "place" for name, _ in phrase.pairs):  # "a large red", whose noun was lost
        return phrase
    phrase.loose = phrase.number is not None
    return phrase if phrase.loose else None


def _sort(tokens: list[Token], i: int) -> str:
    return tokens[i].sort if i < len(tokens) else "end"


# ---- grammar ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Reader:
    """The state of reading a text from left to right.

    mentions: those so far.
    current: where predicates go, within a sentence.
    last: what "it" stands for.
    front: a place or an owner, maybe of the next thing.
    leading: which of the two came before their things in this text.
    linked: "it is" or "the ring is" was just read.
    apart: "there" or "I" was, so that "is" links nothing.
    denied: behind a "not".
    than: behind a "than".
    gap: the comma or "and" just read.
    group: the things joined by these.
    shared: "are" was read behind the group.
    owner: of the next mention.
    keeper: also of the mentions behind that ("Ann has a cup, a hat").
    """

    tokens: list[Token]
    mentions: list[Mention] = field(default_factory=list)
    current: Mention | None = None
    last: Mention | None = None
    front: Mention | None = None
    leading: set[str] = field(default_factory=set)
    linked: bool = False
    apart: bool = False
    denied: bool = False
    than: bool = False
    gap: str = ""
    group: list[Mention] = field(default_factory=list)
    shared: bool = False
    owner: str = ""
    keeper: str = ""

    def take_phrase(self, phrase: _Phrase) -> None:
        """A phrase becomes a new mention, or goes to the current one: "the ring is a ...", "in the hall a ..."."""
        mention, denied = self.current, self.denied or phrase.negated
        fronted = self._is_front(phrase.article)
        if mention and not fronted and self.linked and (phrase.article == "a" or not mention.get("kind")):
            # "the ring is a large one", "it is the ring": what is said of the current mention
            mention.said += [(*pair, not denied) for pair in phrase.pairs]
        else:
            # "in the hall a ring": the thing of a place that came first; anything else is a mention of its own
            if mention is None or not fronted:
                mention = self._new_mention(than=self.than)
            self.leading |= {name for name, *_ in mention.said}
            if self.keeper and phrase.article != "the" and not mention.get("owner"):
                mention.said.append(("owner", self.keeper, True))
            mention.said += [(*pair, True) for pair in phrase.pairs]
            mention.negated, mention.loose = denied, phrase.loose
        if phrase.number is not None:
            mention.number = phrase.number
        self.denied, self.linked, self.than, self.gap = denied, False, False, ""

    def take_token(self, i: int) -> None:
        """One token that begins no noun phrase."""
        sort, word = self.tokens[i]
        links = sort == "be" and self.current is not None and not self.apart
        self.linked = links or (self.linked and sort == "not")
        self.shared = self.shared or (links and word == "are")
        if sort in ("size", "colour", "place", "cell", "compare"):
            self._take_predicate("place" if sort == "cell" else sort, word)
        elif sort == "owner":
            self._take_owner(i)
        elif sort == "it":
            self._take_it()
        elif sort == "open":
            self.apart, self.keeper = True, ""
        elif sort == "end":
            if self.current:
                _give_back(self.current)
            self.current, self.owner, self.keeper, self.apart, self.shared = None, "", "", False, False
        # "than" holds over articles and unknown words, "not" up to the next part of the sentence.
        self.than = sort == "than" or (self.than and sort in ("article", "word"))
        self.denied = sort == "not" or (self.denied and sort not in ("end", "comma", "and", "open", "it"))
        if sort not in ("in", "article"):
            self.gap = sort if sort in ("comma", "and") else ""

    def _new_mention(self, loose: bool = False, than: bool = False, before: Mention | None = None) -> Mention:
        mention = Mention(loose=loose, than=than, before=before)
        if self.owner:
            mention.said.append(("owner", self.owner, True))
        self.current = self.last = mention
        self.mentions.append(mention)
        self.group = [*self.group, mention] if self.gap else [mention]
        self.owner, self.apart, self.shared = "", False, False
        return mention

    def _is_front(self, article: str = "") -> bool:
        """Whether the current mention is but a place or an owner, whose thing may follow: "In the hall Ann has". In bad
        grammar, some of what is said of the thing may have come too: "In the hall large a", "In the hall a large in".
        article: of the phrase that follows."""
        mention = self.current
        if mention is None or mention is not self.front or mention.get("kind") or self.gap == "and":
            return False
        if {name for name, *_ in mention.said} <= {"place", "owner"}:
            return True
        return not self.gap and (mention.loose or not article)

    def _take_predicate(self, attribute: str, value: str) -> None:
        """A predicate goes to the current mention, or to all that share it.

        A place or an owner may also be that of a thing yet to come ("a ring in the top left and in the top right a
        star"). It is, if two of three signs say so: the current mention has one already, a comma or "and" came, and in
        this text they come first.
        """
        mention = self.current
        if mention is None or self.owner:
            mention = self.front = self._new_mention(loose=True)
        elif attribute in ("place", "owner"):
            signs = (mention.get(attribute) is not None, self.gap != "", attribute in self.leading)
            if signs.count(True) >= 2:
                mention = self.front = self._new_mention(loose=True, before=mention)
        for one in self.group if self.shared else [mention]:
            one.said.append((attribute, value, one.negated or not self.denied))

    def _take_it(self) -> None:
        """It: what was spoken of last, else what is asked about."""
        mention = self.current or self.last or self._new_mention(loose=True)
        if self.owner:
            mention.said.append(("owner", self.owner, True))
        self.current, self.owner, self.apart = mention, "", False

    def _take_owner(self, i: int) -> None:
        """A name goes with the thing behind it ("Ann's cup", "Ann has it"), else with that before ("it is Ann's")."""
        name = self.tokens[i].word
        ahead = self.tokens[: i + 9]  # a few tokens ahead are enough
        j = i + 1
        skipped = {"have", "not", "article"}
        while j < len(ahead) and not _noun_phrase(ahead, j):
            if ahead[j].sort not in skipped and ahead[j].word not in ("'s", name):
                break
            if ahead[j].sort == "have":  # and behind "has" what bad grammar leaves there: "Ann has a in large red cup"
                skipped |= {"in", "word"}
            j += 1
        self.keeper = ""
        if _sort(ahead, j) not in ("size", "colour", "it") and not _noun_phrase(ahead, j):
            self._take_predicate("owner", name)
            return
        if self._is_front():
            self._take_predicate("owner", name)
        else:
            self.owner, self.current = name, None
        if any(token.sort == "have" for token in ahead[i:j]):
            self.keeper = name
