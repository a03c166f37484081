"""Reads free text about a scene, also in bad grammar, as mentions of things and what is said of each.

    read("There is a red ring, it is not large.")    # [Mention(said=[("colour", "red", True), ("kind", "ring", True),
                                                     #                ("size", "large", False)])]
A mention is a noun phrase ("a large red ring", "no ring", "the red one"), what is said behind it up to the next, and a
place before it ("in the hall is a ring"). This module knows words, not truth: rovrm/world/oracle.py judges.
"""

import re
from dataclasses import dataclass, field

from rovrm.world.scenes import CELLS, COLOURS, ITEMS, OWNERS, ROOMS, SHAPES

Pair = tuple[str, str]  # (attribute, value); of a token (sort, value)

WORDS = {  # sort -> words; those between two semicolons stand for the first of them
    "size": "small little tiny; large big huge giant; medium",
    "colour": "; ".join(COLOURS) + "; purple violet; grey gray; black; white; pink; brown; cyan; gold; silver",
    "kind": "; ".join(SHAPES + ITEMS)
    + "; circle disc disk; dog; cat; bird; horse; fish; animal; person; people; man; woman; boy; girl; child; table"
    "; chair; lamp; bed; car; bus; bike; house; tree; flower; sun; moon; box; pen; phone; bottle; plate; coat; shoe"
    "; window; door; rectangle; oval; diamond; heart; hexagon; pentagon; arrow; cube; sphere",
    "generic": "thing; object; shape; item; figure; something",
    "cell": "top upper; middle; bottom; left; centre center; right",
    "place": "; ".join(ROOMS),
    "owner": "; ".join(OWNERS).lower(),
    "article": "a an another; the this that these those",
    "number": "0 zero; 1 one; 2 two; 3 three; 4 four; 5 five; 6 six; 7 seven; 8 eight; 9 nine; 10 ten",
    "compare": "larger bigger largest biggest; smaller smallest; higher highest above; lower lowest below"
    "; further_left; further_right",
    "no": "no without",
    "nothing": "nothing none",
    "not": "not never neither nor",
    "it": "it they",
    "be": "is was be; are were; 's",
    "have": "has have had keeps keep kept owns own holds hold got does do did who",
    "open": "there i we you",
    "in": "in on at to inside into near",
    "and": "and but while",
    "than": "than",
    "comma": ", :",
    "end": ". ! ? \n ;",
    "filler": "very quite rather really light dark bright pale deep nice solid filled plain single also just only"
    " colour color coloured colored size sized corner side area part row column position located placed drawn shown",
}
REWRITES = (
    (r"[’`]", "'"),
    (r"[-_]", " "),
    (r"\b(?:no one|nobody)\b", "not"),
    (r"n't\b", " not"),
    (r"\bcannot\b", "can not"),
    (r"'s\b", " 's"),
    (r"\b(?:further|farther|more) (?:to the |on the )?(left|right)\b", r"further_\1"),
    (r"\b(left|right) of (?=(?:the|an?|it)\b(?! (?:picture|image|page|grid)))", r"further_\1 than "),
    (r"\b(?:on )?top of (?=(?:the|an?|it)\b(?! (?:picture|image|page|grid)))", "above "),
    (r"\blower (?=left|right|cent|middle)", "bottom "),
    (r"\b(?:nothing|none|no|any) (?:else|other|more)\b(?: (?:things?|objects?|shapes?|items?))?", " "),
)


def _lexicon() -> dict[str, Pair]:
    """word -> (sort, what it stands for)"""
    lexicon = {str(number): ("number", str(number)) for number in range(100)}
    for sort, groups in WORDS.items():
        for group in groups.split("; "):
            first, *others = group.split(" ")
            value = first.capitalize() if sort == "owner" else first.replace("_", " ")
            plurals = [first + "s", first + "es"] if sort in ("kind", "generic") else []
            lexicon |= dict.fromkeys([first, *others, *plurals], (sort, value))
    return lexicon


LEXICON = _lexicon()


@dataclass(slots=True)
class Mention:
    """said: (attribute, value, whether it is so) in order, where a comparison ("larger") is an attribute too. negated:
    "no red ring". loose: with neither a noun nor an article, as "It is red" or a number alone. than: what another is
    compared with. before: whose second place or owner this is, should no noun follow."""

    said: list[tuple[str, str, bool]] = field(default_factory=list)
    negated: bool = False
    loose: bool = False
    than: bool = False
    number: int | None = None
    before: "Mention | None" = None

    def get(self, attribute: str) -> str | None:
        """The first value that is said to be so."""
        return next((value for name, value, so in self.said if name == attribute and so), None)

    def pairs(self) -> tuple[Pair, ...]:
        """(attribute, value) of all that is said to be so, sorted, each once; without comparisons."""
        return tuple(sorted({(name, value) for name, value, so in self.said if so and name != "compare"}))

    def facts(self, kind: str) -> frozenset[tuple[str, str, str]]:
        """(kind, attribute or "not attribute", value) of all that is said, if it is said of this kind of thing."""
        said = [(name if so else f"not {name}", value) for name, value, so in self.said if name != "compare"]
        return frozenset((kind, *pair) for pair in said)


def read(text: str) -> list[Mention]:
    """The mentions in any text, in order."""
    reader, i = _Reader(_tokens(text)), 0
    while i < len(reader.tokens):
        phrase = _phrase(reader.tokens, i)
        if phrase is None:
            _step(reader, i)
        else:
            _enter(reader, phrase)
        i = i + 1 if phrase is None else phrase.end
    for mention in reversed(reader.mentions):
        if mention.said and mention.said[0][0] not in reader.leading:
            _return(mention)
    return [mention for mention in reader.mentions if mention.said or mention.negated or mention.number is not None]


def plain(text: str) -> str:
    """Lower case, with hyphens, contractions and the like undone."""
    text = text.lower()
    for pattern, by in REWRITES:
        text = re.sub(pattern, by, text)
    return text


# ---- text -> tokens --------------------------------------------------------------------------------------------------


def _tokens(text: str) -> list[Pair]:
    found: list[Pair] = [("end", "")]
    for word in re.findall(r"[a-z_]+|'s|[0-9]+|[.,:;!?\n]", plain(text)):
        sort, value = LEXICON.get(word, ("word", word))
        before, last = found[-1]
        if word == "one" and before in ("article", "no", "size", "colour"):
            found.append(("generic", word))
        elif sort == before == "cell" and (cell := _cell(last, value)):
            found[-1] = ("place", cell)
        elif (sort, value) == ("cell", "right") and before not in ("article", "in", "cell"):
            found.append(("word", value))  # "that is right"
        elif sort != "filler" and not (sort == "cell" and found[-1] == (sort, value)):
            found.append((sort, value))
    return found


def _cell(first: str, second: str) -> str | None:
    """The cell that two words name in either order, where `middle` and `centre` may stand for each other."""
    for row, column in ((first, second), (second, first)):
        cell = f"{'middle' if row == 'centre' else row} {'centre' if column == 'middle' else column}"
        if cell in CELLS:
            return cell
    return None


# ---- noun phrases ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Phrase:
    """A noun phrase that ends before token `end`. article: "a", "the" or none."""

    end: int
    pairs: list[Pair] = field(default_factory=list)
    article: str = ""
    negated: bool = False
    number: int | None = None
    loose: bool = False


def _phrase(tokens: list[Pair], start: int) -> _Phrase | None:
    """`a large red ring`, `no ring`, `two`, `the red one`, `a large red`; None where no thing is named."""
    phrase, i = _Phrase(start), start
    if _sort(tokens, i) == "nothing":
        return _Phrase(i + 1, negated=True)
    if _sort(tokens, i) == "no":
        phrase.negated, i = True, i + 1
    if _sort(tokens, i) == "article":
        phrase.article, i = tokens[i][1], i + 1
    if _sort(tokens, i) == "number":
        phrase.number, i = int(tokens[i][1]), i + 1
    opened = i > start
    # A place may stand before its noun ("the top left ring"), but "in the top left ring" has lost a comma.
    names = ("size", "colour", "place", "cell") if opened and tokens[start - 1][0] != "in" else ("size", "colour")
    while _sort(tokens, i) in names:
        sort, value = tokens[i]
        phrase.pairs.append(("place" if sort == "cell" else sort, value))
        i += 2 if opened and _sort(tokens, i + 1) in ("comma", "and") and _sort(tokens, i + 2) in names[:2] else 1
    return _closed(phrase, tokens, i, opened)


def _closed(phrase: _Phrase, tokens: list[Pair], i: int, opened: bool) -> _Phrase | None:
    """The phrase whose noun, if it has one, would be token i."""
    sort = _sort(tokens, i)
    phrase.end = i + (sort in ("kind", "generic"))
    described = opened and any(name != "place" for name, _ in phrase.pairs)
    if sort == "kind":
        phrase.pairs.append(tokens[i])
        phrase.end += _sort(tokens, i + 1) == "generic"  # "a ring shape"
    elif sort != "generic" and not described:
        phrase.loose = phrase.number is not None
        return phrase if phrase.loose else None
    return phrase


def _sort(tokens: list[Pair], i: int) -> str:
    return tokens[i][0] if i < len(tokens) else "end"


# ---- grammar ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Reader:
    """current: where predicates go, within a sentence; last: what "it" stands for. linked: "it is" or "the ring is" was
    just read; apart: "there" or "I" was, so that "is" links nothing. front: a place or owner, maybe of the next thing;
    leading: which of the two came before their things in this text. denied: behind a "not". gap: the comma or "and"
    just read. group: things joined by these; shared: "are" was read behind it. owner: of the next mention; keeper: also
    of those behind it ("Ann has a cup, a hat")."""

    tokens: list[Pair]
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


def _new(reader: _Reader, **given) -> Mention:
    mention = Mention(**given)
    if reader.owner:
        mention.said.append(("owner", reader.owner, True))
    reader.current = reader.last = mention
    reader.mentions.append(mention)
    reader.group = [*reader.group, mention] if reader.gap else [mention]
    reader.owner, reader.apart, reader.shared = "", False, False
    return mention


def _enter(reader: _Reader, phrase: _Phrase) -> None:
    """The phrase becomes a new mention, or goes to the current one: "the ring is a ...", "in the hall a ..."."""
    mention, denied = reader.current, reader.denied or phrase.negated
    fronted = _is_front(reader, phrase.article)
    if mention and not fronted and reader.linked and (phrase.article == "a" or not mention.get("kind")):
        mention.said += [(*pair, not denied) for pair in phrase.pairs]
    else:
        if mention is None or not fronted:
            mention = _new(reader, than=reader.than)
        reader.leading |= {name for name, *_ in mention.said}
        if reader.keeper and phrase.article != "the" and not mention.get("owner"):
            mention.said.append(("owner", reader.keeper, True))
        mention.said += [(*pair, True) for pair in phrase.pairs]
        mention.negated, mention.loose = denied, phrase.loose
    mention.number = mention.number if phrase.number is None else phrase.number
    reader.denied, reader.linked, reader.than, reader.gap = denied, False, False, ""


def _attach(reader: _Reader, attribute: str, value: str) -> None:
    """A predicate goes to the current mention. A second place or owner behind a gap may be that of a thing yet to come
    ("a ring in the top left and in the top right a star"); where they come first in this text, so may one without any
    gap, or the first one behind a gap."""
    mention, leads = reader.current, attribute in reader.leading
    if mention is None or reader.owner:
        mention = reader.front = _new(reader, loose=True)
    elif attribute in ("place", "owner") and bool(mention.get(attribute)) + bool(reader.gap) + leads > 1:
        mention = reader.front = _new(reader, loose=True, before=mention)
    for one in reader.group if reader.shared else [mention]:
        one.said.append((attribute, value, one.negated or not reader.denied))


def _is_front(reader: _Reader, article: str = "") -> bool:
    """Whether the current mention is but a place or an owner, whose thing may follow: "In the hall Ann has". In bad
    grammar, some of what is said of the thing may have come too: "In the hall large a", "In the hall a large in"."""
    mention = reader.current
    if mention is None or mention is not reader.front or mention.get("kind") or reader.gap == "and":
        return False
    bare = {name for name, *_ in mention.said} <= {"place", "owner"}
    return bare or (not reader.gap and (mention.loose or not article))


def _return(mention: Mention) -> None:
    """No thing came: what it says is of the thing before."""
    if mention.before and mention.loose:
        mention.before.said += mention.said
        mention.said = []


def _step(reader: _Reader, i: int) -> None:
    """One token that begins no noun phrase."""
    sort, value = reader.tokens[i]
    links = sort == "be" and reader.current is not None and not reader.apart
    reader.linked = links or (reader.linked and sort == "not")
    reader.shared = reader.shared or (links and value == "are")
    if sort in ("size", "colour", "place", "cell", "compare"):
        _attach(reader, "place" if sort == "cell" else sort, value)
    elif sort == "owner":
        _own(reader, i)
    elif sort == "it":
        _point(reader)
    elif sort == "open":
        reader.apart, reader.keeper = True, ""
    elif sort == "end":
        _return(reader.current or Mention())
        reader.current, reader.owner, reader.keeper, reader.apart, reader.shared = None, "", "", False, False
    reader.than = sort == "than" or (reader.than and sort in ("article", "word"))
    reader.denied = sort == "not" or (reader.denied and sort not in ("end", "comma", "and", "open", "it"))
    if sort not in ("in", "article"):
        reader.gap = sort if sort in ("comma", "and") else ""


def _point(reader: _Reader) -> None:
    """It: what was spoken of last, else what is asked about."""
    mention = reader.current or reader.last or _new(reader, loose=True)
    if reader.owner:
        mention.said.append(("owner", reader.owner, True))
    reader.current, reader.owner, reader.apart = mention, "", False


def _own(reader: _Reader, i: int) -> None:
    """A name goes with the thing behind it ("Ann's cup", "Ann has it"), else with the one before ("it is Ann's")."""
    name, tokens, j = reader.tokens[i][1], reader.tokens[: i + 9], i + 1  # a few tokens ahead are enough
    skipped = {"have", "not", "article"}  # and behind "has" what bad grammar leaves there: "Ann has a in large red cup"
    while j < len(tokens) and not _phrase(tokens, j) and (_sort(tokens, j) in skipped or tokens[j][1] in ("'s", name)):
        skipped |= {"in", "word"} if tokens[j][0] == "have" else set()
        j += 1
    reader.keeper = ""
    if _sort(tokens, j) in ("size", "colour", "it") or _phrase(tokens, j):
        if _is_front(reader):
            _attach(reader, "owner", name)
        else:
            reader.owner, reader.current = name, None
        reader.keeper = name if any(sort == "have" for sort, _ in tokens[i:j]) else ""
    else:
        _attach(reader, "owner", name)
