"""Free text about a scene as tokens: each word that matters, with its sort and the word that stands for it.

    tokenize("There's a big red ring.")      # [..., ("be", "'s"), ("article", "a"), ("size", "large"), ...]

This module knows the vocabulary, rovrm/world/reading.py the grammar.
"""

import re
from typing import NamedTuple

from rovrm.world.scenes import CELLS, COLOURS, ITEMS, OWNERS, ROOMS, SHAPES


class Token(NamedTuple):
    sort: str  # a key of WORDS, or "word" for any other
    word: str


WORDS = {  # sort -> words; those between two semicolons mean the same, and the first of them stands for all
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
REWRITES = (  # (pattern, what it becomes), one after the other, before the text is cut into words
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


def _lexicon() -> dict[str, Token]:
    """Every known word -> its token."""
    lexicon = {str(number): Token("number", str(number)) for number in range(100)}
    for sort, groups in WORDS.items():
        for group in groups.split("; "):
            first, *synonyms = group.split(" ")
            word = first.capitalize() if sort == "owner" else first.replace("_", " ")
            plurals = [first + "s", first + "es"] if sort in ("kind", "generic") else []
            for spelling in (first, *synonyms, *plurals):
                lexicon[spelling] = Token(sort, word)
    return lexicon


LEXICON = _lexicon()


def plain(text: str) -> str:
    """Lower case, with hyphens, contractions and the like undone."""
    text = text.lower()
    for pattern, replacement in REWRITES:
        text = re.sub(pattern, replacement, text)
    return text


def tokenize(text: str) -> list[Token]:
    """The tokens of a text, without fillers. The first one is an end, so that every word has a token before it."""
    tokens = [Token("end", "")]
    for word in re.findall(r"[a-z_]+|'s|[0-9]+|[.,:;!?\n]", plain(text)):
        token = LEXICON.get(word, Token("word", word))
        before = tokens[-1]
        cell = _cell(before.word, token.word) if token.sort == before.sort == "cell" else None
        if word == "one" and before.sort in ("article", "no", "size", "colour"):
            tokens.append(Token("generic", word))  # "the red one" is no number
        elif cell:
            tokens[-1] = Token("place", cell)
        elif token == ("cell", "right") and before.sort not in ("article", "in", "cell"):
            tokens.append(Token("word", token.word))  # "that is right" is no place
        elif token.sort == "filler" or (token.sort == "cell" and token == before):
            continue  # "on the left left side"
        else:
            tokens.append(token)
    return tokens


def _cell(first: str, second: str) -> str | None:
    """The cell that two words name in either order, where `middle` and `centre` may stand for each other."""
    for row, column in ((first, second), (second, first)):
        cell = f"{'middle' if row == 'centre' else row} {'centre' if column == 'middle' else column}"
        if cell in CELLS:
            return cell
    return None
