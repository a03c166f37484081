"""Scored answers of one prompt as preferences: pairs of a better and a worse answer, or one ranked list.

    counts = dict.fromkeys(COUNTED, 0)
    preference_rows(row, RankConfig(...), counts)      # rows for the file that rovrm.rank writes

`row` is a line of bon.jsonl. The docstring of rovrm/rank.py says which answers and pairs are left out; all of them are
counted.
"""

import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from itertools import combinations
from typing import Any, NamedTuple

from rovrm.common.errors import UserError, shown
from rovrm.data.example import Example
from rovrm.data.images import find_image
from rovrm.data.messages import is_blank
from rovrm.data.raw_rows import Row
from rovrm.data.reader import read_row
from rovrm.settings.keys import RankConfig

COUNTED: tuple[str, ...] = (
    "prompts",  # lines with scores
    "errors",  # lines without
    "images",  # lines whose images cannot be embedded
    "without",  # prompts that gave no preference
    "empty",  # answers, and so are the next two
    "not_finite",
    "duplicates",
    "noise",  # pairs less than `margin` apart
    "over_max_pairs",  # pairs
)
Counts = dict[str, int]


class ScoredAnswer(NamedTuple):
    place: int  # among the prompt's candidates, from 0
    text: str
    score: float


class Preference(NamedTuple):
    suffix: str  # of the row's id: the places of a pair; empty for a list
    columns: dict[str, Any]


def preference_rows(row: Row, config: RankConfig, counts: Counts) -> list[dict[str, Any]]:
    """The rows that one input line gives, and what it leaves out added to `counts`.

    Raises:
        UserError: the line is not as rovrm.bon writes it.
    """
    if row.values is None:
        raise UserError(row.problem)
    if row.values.get("error") and not row.values.get("scores"):
        counts["errors"] += 1
        return []
    answers = scored_answers(row.values, counts)
    example = _prompt_of(row, row.values, config)
    if config.output.endswith(".parquet") and not _images_open(example):
        counts["images"] += 1
        return []

    kept = distinct(answers, config.margin, config.similarity)
    if config.strategy == "ranked":
        preferences = _ranked_list(kept, config, counts)
    else:
        preferences = _clear_pairs(kept, config, counts)
    counts["prompts"] += 1
    counts["duplicates"] += len(answers) - len(kept)
    if not preferences:
        counts["without"] += 1

    images = [os.path.abspath(ref.path or "") for ref in example.images]
    return [
        {"id": example.id + suffix, "images": images, "prompt": example.prompt} | columns
        for suffix, columns in preferences
    ]


# ---- reading a line --------------------------------------------------------------------------------------------------


def scored_answers(values: dict[str, Any], counts: Counts) -> list[ScoredAnswer]:
    """The answers that can be compared, best first; equal scores stay in their order."""
    column = "responses" if "responses" in values else "candidates"
    texts = _checked_list(values, column, str)
    scores = _checked_list(values, "scores", (int, float, type(None)))
    if len(texts) != len(scores):
        raise UserError(f"{len(texts)} candidates and {len(scores)} scores; give one score for each")
    answers = []
    for place, (text, score) in enumerate(zip(texts, scores, strict=True)):
        if is_blank(text):
            counts["empty"] += 1
        # null is how JSON writes NaN. An integer may be too large for a float, and NaN is no number up to the largest.
        elif score is None or not abs(score) <= sys.float_info.max:
            counts["not_finite"] += 1
        else:
            answers.append(ScoredAnswer(place, text, float(score)))
    return sorted(answers, key=lambda answer: -answer.score)


def _checked_list(values: dict[str, Any], column: str, types: type | tuple[type, ...]) -> list[Any]:
    """A column that must be a list with items of these types, of which bool is none though Python calls it an int."""
    items, words = values.get(column), "texts" if types is str else "numbers"
    if not isinstance(items, list) or not items:
        raise UserError(f"{column} = {shown(items, 80)!r}; give a list of {words}, as rovrm.bon writes it")
    for item in items:
        if not isinstance(item, types) or isinstance(item, bool):
            raise UserError(f"{column} hold {shown(item, 80)!r}; give {words} only, or drop the row")
    return items


def _prompt_of(row: Row, values: dict[str, Any], config: RankConfig) -> Example:
    """Prompt and images as the trainer will read them. Raises UserError for what the trainer would refuse."""
    find = partial(find_image, image_root=config.image_root or None, data_file=row.data_file)
    without_answers = {"responses": [""], "ranks": None, "scores": None, "margin": None}
    example = read_row("ranked", values | without_answers, find, fallback_id=f"{row.stem}-{row.number}")
    if any(ref.path is None for ref in example.images):
        raise UserError("images = an image inside the row; give its path, by which the preferences will name it")
    return example


def _images_open(example: Example) -> bool:
    try:
        for ref in example.images:
            ref.open()
    except UserError:
        return False
    return True


# ---- near-duplicates -------------------------------------------------------------------------------------------------


def distinct(answers: Sequence[ScoredAnswer], margin: float, similarity: float) -> list[ScoredAnswer]:
    """The answers, best first, without copies of better ones.

    A copy has the same text as a better answer that is kept, or a text at least `similarity` alike (case and white
    space aside) and a reward that is not `margin` lower.
    """
    folded = {answer.place: " ".join(answer.text.casefold().split()) for answer in answers}

    def is_copy(answer: ScoredAnswer, better: ScoredAnswer) -> bool:
        if answer.text.strip() == better.text.strip():
            return True
        if apart(better, answer, margin):  # a near-copy with a clearly lower reward is the best contrast there is
            return False
        return likeness(folded[better.place], folded[answer.place]) >= similarity

    kept: list[ScoredAnswer] = []
    for answer in answers:
        if not any(is_copy(answer, better) for better in kept):
            kept.append(answer)
    return kept


def apart(better: ScoredAnswer, worse: ScoredAnswer, margin: float) -> bool:
    """Whether the rewards differ by more than noise; equal ones never do, even with a margin of 0."""
    return better.score > worse.score and better.score - worse.score >= margin


def likeness(a: str, b: str) -> float:
    """2 LCS / (len(a) + len(b)) of two texts, not both empty; LCS: characters of the longest common subsequence.

    Bit-parallel (Hyyro 2004): a row of the textbook's table is one integer, so that long answers take milliseconds
    where difflib's ratio, a lower bound of this one, takes a second.
    """
    places: dict[str, int] = defaultdict(int)  # character -> bit i is set where it is a[i]
    for i, character in enumerate(a):
        places[character] |= 1 << i
    # A zero at bit i of the row says that the LCS of a[: i + 1] is one longer than that of a[:i], with what was read of
    # b: the zeros count the LCS. The addition's carry moves the zero above each run of ones down to the lowest match in
    # the run; in the highest run, which has none above it, a new zero appears and the carry falls off the end.
    row = full = (1 << len(a)) - 1
    for character in b:
        hits = row & places.get(character, 0)
        row = (row + hits | row - hits) & full
    zeros = len(a) - row.bit_count()
    return 2 * zeros / (len(a) + len(b))


# ---- preferences -----------------------------------------------------------------------------------------------------


def _clear_pairs(kept: list[ScoredAnswer], config: RankConfig, counts: Counts) -> list[Preference]:
    """The pairs of best_worst or all_pairs that are `margin` apart, the clearest first."""
    if config.strategy == "all_pairs":
        pairs = list(combinations(kept, 2))  # best first in every pair, since `kept` is
    elif len(kept) > 1:
        pairs = [(kept[0], kept[-1])]
    else:
        pairs = []
    clear = [(better, worse) for better, worse in pairs if apart(better, worse, config.margin)]
    clear.sort(key=lambda pair: pair[1].score - pair[0].score)
    within_limit = clear[: config.max_pairs]
    counts["noise"] += len(pairs) - len(clear)
    counts["over_max_pairs"] += len(clear) - len(within_limit)
    return [Preference(f"-{better.place}-{worse.place}", _pair(better, worse)) for better, worse in within_limit]


def _pair(better: ScoredAnswer, worse: ScoredAnswer) -> dict[str, Any]:
    # No column `margin`: rovrm's readers take it as a Bradley-Terry margin.
    return {
        "chosen": [{"role": "assistant", "content": better.text}],
        "rejected": [{"role": "assistant", "content": worse.text}],
        "score_chosen": better.score,
        "score_rejected": worse.score,
    }


def text_blocks(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A message's content as blocks with the keys `type` and `text`, as Arrow wants them: one type."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [{"type": block["type"], "text": block.get("text")} for block in content]


def _ranked_list(kept: list[ScoredAnswer], config: RankConfig, counts: Counts) -> list[Preference]:
    """One list of all, or none where all share one rank."""
    first_of_rank: list[ScoredAnswer] = []
    ranks = []
    for answer in kept:
        # Measured from the first of a rank and not from the neighbour: else a rank could grow as wide as you like.
        if not first_of_rank or apart(first_of_rank[-1], answer, config.margin):
            first_of_rank.append(answer)
        ranks.append(len(first_of_rank) - 1)
    for rank in range(len(first_of_rank)):
        size = ranks.count(rank)
        counts["noise"] += size * (size - 1) // 2  # pairs that share the rank
    if len(first_of_rank) < 2:
        return []
    texts, scores = [answer.text for answer in kept], [answer.score for answer in kept]
    return [Preference("", {"responses": texts, "ranks": ranks, "scores": scores})]
