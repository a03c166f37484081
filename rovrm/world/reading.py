"""Reads free text about a scene, also in bad grammar, as mentions of things and what is said of each.

    read("There is a red ring, it is not large.")    # [Mention(said=[("colour", "red", True), ("kind", "ring", True),
                                                     #                ("size", "large", False)])]
A mention is a noun phrase ("a large red ring", "no ring", "the red one"), what is said behind it up to the next one, and
a place before it ("in the hall is a ring"). It knows words, not truth: rovrm/world/oracle.py judges.
"""

import re
from dataclasses import dataclass, field

from rovrm.world.scenes import CELLS, COLOURS, ITEMS, OWNERS, ROOMS, SHAPES

Pair = tuple[str, str]  # (attribute, value); of a token (sort, value)

_SYNONYMS = {
    "size": "small little tiny; large big huge giant; medium",
    "colour": "; ".join(COLOURS) + "; purple violet; grey gray; black; white; pink; brown; cyan; turquoise; gold; silver",
    "kind": "; ".join(SHAPES + ITEMS)
    + "; circle disc disk; dog; cat; bird; horse; fish; animal; person; people; man; woman; boy; girl; child; table"
    "; chair; lamp; bed; car; bus; bike; house; tree; flower; sun; moon; box; pen; phone; bottle; plate; coat; shoe"
    "; window; door; rectangle; oval; diamond; heart; hexagon; pentagon; arrow; cube; sphere",
    "generic": "thing; object; shape; item; figure; something",
    "cell": "top upper; middle; bottom; left; centre center; right",
    "place": "; ".join(ROOMS),
    "owner": "; ".join(name.lower() for name in OWNERS),
    "article": "a an another; the this that these those",
    "number": "0 zero; 1 one; 2 two; 3 three; 4 four; 5 five; 6 six; 7 seven; 8 eight; 9 nine; 10 ten",
    "compare": "larger bigger largest biggest; smaller littler smallest; higher highest above; lower lowest below"
    "; further_left; further_right",
    "no": "no without",
    "nothing": "nothing none nobody",
    "not": "not never neither",
    "nor": "nor",
    "it": "it they",
    "be": "is are was were be; 's",
    "have": "has have had keeps keep kept owns own holds hold got does do did who",
    "open": "there i we you see",
    "in": "in on at to inside into near",
    "and": "and but while",
    "or": "or",
    "than": "than",
    "comma": ", :",
    "end": ". ! ? \n ;",
    "filler": "very quite rather really light dark bright pale deep nice solid filled plain single also just only colour"
    " color coloured colored size sized corner side area part row column position located placed drawn shown",
}
_NUMBERS = range(11)
_REWRITES = (
    (r"[’`]", "'"),
    (r"[-_]", " "),
    (r"n't\b", " not"),
    (r"\bcannot\b", "can not"),
    (r"'s\b", " 's"),
    (r"\b(?:further|farther|more) (?:to the |on the )?(left|right)\b", r"further_\1"),
    (r"\b(?:left|right|top|bottom) of (?=(?:the|an?|it)\b(?! (?:picture|image|page|grid)))", "beside "),
    (r"\blower (?=left|right|cent|middle)", "bottom "),
    (r"\b(?:nothing|none|no|any) (?:else|other|more)\b(?: (?:things?|objects?|shapes?|items?))?", " "),
)
_OPPOSITE = {"larger": "smaller", "higher": "lower", "further left": "further right"}
_OPPOSITE |= {second: first for first, second in _OPPOSITE.items()}


def _lexicon() -> dict[str, Pair]:
    """word -> (sort, what it stands for). Of the words that stand for one thing, the first is it."""
    words = {}
    for sort, groups in _SYNONYMS.items():
        for group in groups.split("; "):
            alike = group.split(" ")
            value = alike[0].replace("_", " ")
            for word in alike:
                words[word] = (sort, value.capitalize() if sort == "owner" else value)
                if sort in ("kind", "generic"):
                    words[word + "s"] = words[word + "es"] = words[word]
    return words | {str(number): ("number", str(number)) for number in _NUMBERS}


_LEXICON = _lexicon()


@dataclass(slots=True)
class _Mention:
    """said: (attribute, value, whether it is so) in order. negated: "no red circle". loose: neither noun nor article of
    its own, as in "It is red". than: what something is compared with. before: whose second place this may be."""

    said: list[tuple[str, str, bool]] = field(default_factory=list)
    negated: bool = False
    loose: bool = False
    than: bool = False
    number: int | None = None
    before: "_Mention | None" = None

    def get(self, attribute: str) -> str | None:
        return next((value for name, value, so in self.said if name == attribute and so), None)

    def pairs(self) -> list[Pair]:
        return sorted({(name, value) for name, value, so in self.said if so and name != "compare"})


# ---- words -----------------------------------------------------------------------------------------------------------


def _plain(text: str) -> str:
    text = text.lower()
    for pattern, by in _REWRITES:
        text = re.sub(pattern, by, text)
    return text


def _tokens(text: str) -> list[Pair]:
    found: list[Pair] = []
    for word in re.findall(r"[a-z_]+|'s|[0-9]+|[.,:;!?\n]", _plain(text)):
        sort, value = _LEXICON.get(word, ("word", word))
        cell = _cell(found[-1][1], value) if sort == "cell" and found and found[-1][0] == "cell" else None
        if cell:
            found[-1] = ("place", cell)
        elif (sort, value) == ("cell", "right") and (not found or found[-1][0] not in ("article", "in", "cell")):
            found.append(("word", value))  # "that is right"
        elif sort != "filler":
            found.append((sort, value))
    return found


def _cell(first: str, second: str) -> str | None:
    """The cell that two words name in either order, where `middle` and `centre` may stand for each other."""
    for row, column in ((first, second), (second, first)):
        cell = f"{'middle' if row == 'centre' else row} {'centre' if column == 'middle' else column}"
        if cell in CELLS:
            return cell
    return None


# ---- grammar: tokens -> mentions -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Phrase:
    """A noun phrase that ends before token `end`; `definite` behind "the"."""

    end: int
    pairs: tuple[Pair, ...]
    article: str
    negated: bool
    number: int | None


def _phrase(tokens: list[Pair], start: int) -> _Phrase | None:
    """`a large red circle`, `no red circle`, `two`, `the red one`, `a large red`; None where no thing is named."""
    i, article, number, pairs = start, "", None, []
    sorts = [sort for sort, _ in tokens] + ["end", "end"]
    negated = sorts[i] in ("no", "nothing")
    if sorts[i] == "nothing":
        return _Phrase(i + 1, (), "a", True, None)
    i += negated
    if sorts[i] == "article":
        article, i = tokens[i][1], i + 1
    if sorts[i] == "number":
        number, i = int(tokens[i][1]), i + 1
    opened = i > start  # only behind an article or the like may commas part the adjectives
    cells = ("place", "cell") if opened and (start == 0 or sorts[start - 1] != "in") else ()  # "in the top left"
    while True:
        if sorts[i] in ("size", "colour", *cells):
            pairs.append(("place" if sorts[i] == "cell" else sorts[i], tokens[i][1]))
        elif not (opened and pairs and sorts[i] in ("comma", "and") and sorts[i + 1] in ("size", "colour")):
            break
        i += 1
    return _closed(tokens, i, pairs, article, negated, number, opened)


def _closed(
    tokens: list[Pair], i: int, pairs: list[Pair], article: str, negated: bool, number: int | None, opened: bool
) -> _Phrase | None:
    """The phrase whose noun would be token i."""
    sort, value = tokens[i] if i < len(tokens) else ("end", "")
    noun = sort in ("kind", "generic") or ((sort, value) == ("number", "1") and bool(pairs))
    if sort == "kind":
        pairs = [*pairs, (sort, value)]
        i += i + 1 < len(tokens) and tokens[i + 1][0] == "generic"  # "a circle shape"
    if number == 1 and article and not noun and not pairs:
        number, noun, i = None, True, i - 1  # "the one"
    described = any(name != "place" for name, _ in pairs)
    if not (noun or number is not None or (opened and described)):
        return None
    return _Phrase(i + noun, tuple(pairs), article, negated, number)


@dataclass(slots=True)
class _Reader:
    """current: the mention that predicates go to, within a sentence; last: the one "it" stands for. linked: "it is" or
    "the circle is" was just read. gap: the comma or "and" just read. owner: of the next mention; keeper: of those that
    follow ("Ann has a cup and a hat")."""

    tokens: list[Pair]
    mentions: list[_Mention] = field(default_factory=list)
    current: _Mention | None = None
    last: _Mention | None = None
    denied: bool = False
    linked: bool = False
    apart: bool = False
    than: bool = False
    gap: str = ""
    owner: str = ""
    keeper: str = ""


def _read(text: str) -> list[_Mention]:
    reader, i = _Reader(_tokens(text)), 0
    while i < len(reader.tokens):
        phrase = _phrase(reader.tokens, i)
        if phrase is None:
            _step(reader, i)
            i += 1
        else:
            _enter(reader, phrase)
            i = phrase.end
    for mention in reader.mentions:
        if mention.before and not mention.get("kind"):  # no thing came behind: it was a second place of the one before
            mention.before.said += mention.said
            mention.said = []
    return reader.mentions


def _new(reader: _Reader, **given) -> _Mention:
    reader.current = reader.last = _Mention(**given)
    reader.mentions.append(reader.current)
    if reader.owner:
        reader.current.said.append(("owner", reader.owner, True))
    reader.owner, reader.apart = "", False
    return reader.current


def _enter(reader: _Reader, phrase: _Phrase) -> None:
    """The noun phrase becomes a new mention, or goes to the current one: "it is a ...", "in the top left is a ..."."""
    mention, denied = reader.current, reader.denied or phrase.negated
    equal = reader.linked and (phrase.article == "a" or not (mention and mention.get("kind")))
    bare = mention is not None and mention.loose and {name for name, *_ in mention.said} == {"place"}
    if mention and equal:
        mention.said += [(name, value, not denied) for name, value in phrase.pairs]
    else:
        if not (mention and bare and reader.gap != "and" and not reader.owner):
            mention = _new(reader, negated=denied, than=reader.than)
            if reader.keeper and phrase.article != "the" and not mention.get("owner"):
                mention.said.append(("owner", reader.keeper, True))
        mention.said += [(name, value, True) for name, value in phrase.pairs]
        mention.negated, mention.loose = denied, False
    mention.number = mention.number if phrase.number is None else phrase.number
    reader.denied, reader.linked, reader.than, reader.gap = denied, False, False, ""


def _attach(reader: _Reader, attribute: str, value: str) -> None:
    """A predicate goes to the current mention. A second place behind a gap may belong to a thing that is yet to come:
    "a ring in the top left and in the top right a star"."""
    mention = reader.current
    if mention is None or reader.owner:
        mention = _new(reader, loose=True)
    elif attribute == "place" and reader.gap and mention.get("place"):
        mention = _new(reader, loose=True, before=mention)
    mention.said.append((attribute, value, mention.negated or not reader.denied))


def _step(reader: _Reader, i: int) -> None:
    """One token that begins no noun phrase."""
    sort, value = reader.tokens[i]
    linked, reader.linked = reader.linked, False
    if sort in ("size", "colour", "place", "cell", "compare"):
        _attach(reader, "place" if sort == "cell" else sort, value)
    elif sort == "owner":
        _own(reader, i)
    elif sort == "it":
        _point(reader)
    elif sort == "be":
        reader.linked = reader.current is not None and not reader.apart
    elif sort == "end":
        reader.current, reader.owner, reader.keeper = None, "", ""
    elif sort == "open":
        reader.apart, reader.keeper = True, ""
    elif sort == "not":
        reader.linked = linked
    reader.than = sort == "than" or (reader.than and sort in ("article", "word"))
    reader.denied = sort in ("not", "nor") or (reader.denied and sort not in ("end", "comma", "and", "open", "it"))
    if sort not in ("in", "article"):
        reader.gap = sort if sort in ("comma", "and") else ""


def _point(reader: _Reader) -> None:
    """It: what was spoken of last, else what is asked about."""
    mention = reader.current or reader.last or _new(reader, loose=True)
    reader.current, reader.apart = mention, False
    if reader.owner:
        mention.said.append(("owner", reader.owner, True))
        reader.owner = ""


def _own(reader: _Reader, i: int) -> None:
    """A name belongs to the thing behind it ("Ann's cup", "Ann has it") or else to the one before ("the cup is Ann's")."""
    name, tokens, j = reader.tokens[i][1], reader.tokens, i + 1
    while j < len(tokens) and (tokens[j][0] in ("have", "not") or tokens[j] == ("be", "'s")):
        j += 1
    if j < len(tokens) and (_phrase(tokens, j) or tokens[j][0] in ("size", "colour", "it")):
        reader.owner, reader.current = name, None
        reader.keeper = name if any(sort == "have" for sort, _ in tokens[i:j]) else ""
    else:
        _attach(reader, "owner", name)
