"""The numbers of a row: ratings of its completions, and what they say about the order of the responses.

ranks_of([7.5, 9, 7.5])                                                             # [1, 0, 1]
agreed_ranks({"rating_chosen": 1, "rating_rejected": 4}, [0, 1])                    # BadRow: worse than rejected
"""

import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from rovrm.data.bad_rows import BadRow

PAIR_SCORES = ("score_chosen", "score_rejected")  # the names in ultrafeedback_binarized
# In the name of a column: a rating (higher is better), or a rank (lower is better).
RATING = re.compile(r"scor|rating|rate(?![a-z])|reward|grade|quality|points|stars|elo(?![a-z])|rank", re.IGNORECASE)
ORDERS = (("ranks", 1), ("rank", 1), ("scores", -1), ("ratings", -1), ("rewards", -1))  # -1 where higher is better
MISREAD, LOW = 10, 2  # an overall score of 10 beside ratings of at most 2 was a 1 that a script read as 10


def ranks_of(scores: Sequence[float]) -> list[int]:
    """Dense ranks, 0 for the highest score; equal scores tie."""
    levels = {score: rank for rank, score in enumerate(sorted(set(scores), reverse=True))}
    return [levels[score] for score in scores]


def rating_in(value: Any) -> float | None:
    """A finite number, also from a text, as which UltraFeedback and VLFeedback store ratings; "N/A" and nonsense give
    None."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):  # the last of a whole number beyond every float
        return None
    return number if math.isfinite(number) else None


def number_in(value: Any) -> float | None:
    """As `rating_in`, but true and false are no numbers."""
    return None if isinstance(value, bool) else rating_in(value)


def numbers_of(row: Mapping[str, Any], column: str, count: int) -> list[float] | None:
    """A column with one number for each of the `count` responses; None where it is null or not there."""
    if row.get(column) is None:
        return None
    values = row[column]
    numbers = [number for number in map(number_in, values) if number is not None]
    if isinstance(values, str) or not len(numbers) == len(values) == count:
        raise BadRow(column, values, f"takes one number for each of the {count} responses; mend the row")
    return numbers


# ---- completions with ratings ----------------------------------------------------------------------------------------


def listed(value: Any) -> list[Any]:
    """A list of dicts, also from the dict of lists as which `datasets` returns a Sequence of dicts."""
    if isinstance(value, Mapping):
        return [dict(zip(value, cells, strict=True)) for cells in zip(*value.values(), strict=True)]
    return list(value)


def rated(completions: list[Any], score: Callable[[Mapping[str, Any]], float | None]) -> tuple[list[Any], list[int]]:
    """The answers of completions with their ranks by score; those whose score is None are dropped."""
    responses, scores = [], []
    for completion in completions:
        number = score(completion)
        if number is not None and completion.get("response") is not None:
            responses.append(completion["response"])
            scores.append(number)
    if len(scores) < 2:
        raise BadRow("completions", completions, f"{len(scores)} of {len(completions)} have ratings, a ranking needs 2")
    return responses, ranks_of(scores)


def mean_rating(completion: Mapping[str, Any], aspects: Iterable[str] | None = None) -> float | None:
    """Mean over the aspects; None when one is missing, since a mean of fewer cannot be compared with the others'."""
    annotations = completion.get("annotations") or {}
    ratings = [rating_in((annotations.get(name) or {}).get("Rating")) for name in aspects or annotations]
    numbers = [rating for rating in ratings if rating is not None]
    return sum(numbers) / len(numbers) if numbers and len(numbers) == len(ratings) else None


def overall_score(completion: Mapping[str, Any]) -> float | None:
    """UltraFeedback's overall score; 1 for a 1 that stands there as 10 (`is_misread`)."""
    return 1.0 if is_misread(completion) else rating_in(completion.get("overall_score"))


def is_misread(completion: Mapping[str, Any]) -> bool:
    """Whether an overall score of 10 stands beside ratings of 1 or 2, as in copies from before the set was repaired."""
    if rating_in(completion.get("overall_score")) != MISREAD:
        return False
    mean = mean_rating(completion)
    if mean is None:
        mean = rating_in(completion.get("fine-grained_score"))
    return mean is not None and mean <= LOW


# ---- the order of the responses --------------------------------------------------------------------------------------


def agreed_ranks(row: Mapping[str, Any], ranks: list[int]) -> list[int]:
    """The ranks, after a look at what else the row says about the order of its responses.

    That is: `ranks` and `rank` (lower is better) and `scores`, `ratings` and `rewards` (higher is better), where they
    hold a number for each response; and the ratings of chosen and rejected, in columns of any such name. Raises BadRow
    where one of them puts two responses strictly the other way round. A tie in one contradicts nothing, since ranks may
    be finer than scores or coarser; but a chosen and a rejected answer with equal scores are a tie, as in
    ultrafeedback_binarized.
    """
    for column, sign in ORDERS:
        values = row[column] if isinstance(row.get(column), (list, tuple)) else []
        numbers = [sign * number for number in map(number_in, values) if number is not None]  # lower is better
        if len(numbers) == len(values) == len(ranks):
            _check_order(column, values, numbers, ranks)
    if ranks != [0, 1]:
        return ranks
    for chosen, rejected, better, worse in _pair_ratings(row):
        sign = -1 if "rank" in chosen.lower() else 1
        if sign * better < sign * worse:
            place = f"{'below' if sign > 0 else 'above'} {rejected} = {worse:g}"
            raise BadRow(chosen, better, f"{place}: the chosen answer scores worse; mend the row")
        if better == worse:
            return [0, 0]
    return ranks


def _pair_ratings(row: Mapping[str, Any]) -> Iterator[tuple[str, str, float, float]]:
    """(name, name, rating, rating) of the chosen and the rejected answer, wherever both have one."""
    cells = [(*names, row[names[0]], row[names[1]]) for names in rating_columns(tuple(row))]
    for column, value in row.items():
        if isinstance(value, Mapping) and {"chosen", "rejected"} <= value.keys() and RATING.search(str(column)):
            cells.append((f"{column}.chosen", f"{column}.rejected", value["chosen"], value["rejected"]))
    for chosen, rejected, better, worse in cells:
        if better is not None and worse is not None:
            yield chosen, rejected, _rating(better, chosen), _rating(worse, rejected)


@functools.lru_cache
def rating_columns(columns: tuple[str, ...]) -> list[tuple[str, str]]:
    """The columns that rate chosen and rejected: two names that differ in that word alone, and speak of a rating."""
    pairs = []
    for column in columns:
        name = str(column)
        for word, other in (("chosen", "rejected"), ("Chosen", "Rejected"), ("CHOSEN", "REJECTED")):
            counterpart = name.replace(word, other)
            if word in name and counterpart in columns and RATING.search(name):
                pairs.append((name, counterpart))
    return pairs


def _rating(value: Any, column: str) -> float:
    """The rating in a cell, the mean of several."""
    numbers = [number_in(item) for item in (value if isinstance(value, (list, tuple)) else [value])]
    if not numbers or None in numbers:
        raise BadRow(column, value, "takes a finite number; mend it or leave it out")
    return sum(numbers) / len(numbers)  # type: ignore[arg-type]


def _check_order(column: str, value: Any, numbers: Sequence[float], ranks: Sequence[int]) -> None:
    """Raises BadRow where a response that is ranked strictly above another has the higher number (lower is better)."""
    order = sorted(range(len(ranks)), key=lambda j: ranks[j])
    # Going down the ranks, each response is compared with one alone: the highest number of all ranked strictly above.
    highest = order[0]  # of all responses so far, those of the same rank included
    highest_above: int | None = None
    for last, j in zip(order, order[1:], strict=False):
        if ranks[j] > ranks[last]:
            highest_above = highest
        if highest_above is not None and numbers[highest_above] > numbers[j]:
            remedy = "to order by it set columns.ranks=rank" if column == "rank" else "or leave this column out"
            reason = f"it puts response {j + 1} before response {highest_above + 1}, against the order of the row; "
            raise BadRow(column, value, f"{reason}mend it, {remedy}")
        if numbers[j] > numbers[highest]:
            highest = j
