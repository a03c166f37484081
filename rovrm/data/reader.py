"""One raw row to one Example: its format's reader, its images, and everything that is checked on the way."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rovrm.common.errors import UserError, described
from rovrm.data.example import Example
from rovrm.data.formats import (
    PAIR_SCORES,
    PROMPT_COLUMNS,
    READERS,
    TEXT_COLUMNS,
    VIDEO_COLUMNS,
    find_reader,
    listed,
    number_in,
    rating_in,
)
from rovrm.data.images import ImageRef
from rovrm.data.messages import (
    IMAGE_COLUMNS,
    BadRow,
    captions_of,
    images_of,
    pick_caption,
    place_images,
    response_text,
    text_of,
    to_messages,
    unread_image,
)

# ---- a row -----------------------------------------------------------------------------------------------------------


def read_row(
    reader: str,
    row: Mapping[str, Any],
    find: Callable[[str], str],
    *,
    location: str = "",
    fallback_id: str = "",
    source: str = "",
) -> Example:
    """One raw row as an Example, its responses best first.

    reader: a name in READERS. find: turns an image name into a path, or raises UserError. fallback_id, source: for rows
    without these columns. Raises BadRow for a row that cannot be read, whatever is wrong with it.
    """
    try:
        return _example(reader, row, find, location, fallback_id, source)
    except (BadRow, UserError):
        raise
    except Exception as error:  # a row may hold anything anywhere; what nobody thought of must not end the command
        reason = f"not the shape of {reader} ({described(error)}); mend the row or set reader=NAME"
        raise BadRow("row", row, reason) from error


def _example(
    reader: str, row: Mapping[str, Any], find: Callable[[str], str], location: str, fallback_id: str, source: str
) -> Example:
    for column in VIDEO_COLUMNS:
        if row.get(column):
            raise BadRow(column, row[column], "video cannot be scored; drop the row or give frames as images")
    prompt, responses, ranks = READERS[reader].read(row)
    messages = to_messages(prompt, next((name for name in PROMPT_COLUMNS if row.get(name) is not None), "prompt"))
    if isinstance(row.get("system"), str) and row["system"].strip() and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": row["system"]})
    images = images_of(row, messages, find)
    _check_unread(reader, row, images, find)
    messages, images = place_images(messages, images)
    _check_prompt(messages)
    ranks = _judged(row, ranks)
    texts = [response_text(response) for response in responses]
    order = sorted(range(len(texts)), key=lambda i: ranks[i])
    first = min(ranks)
    best = [text for text, rank in zip(texts, ranks, strict=True) if rank == first]
    return Example(
        id=_id(row) or fallback_id,
        source=row["source"] if isinstance(row.get("source"), str) and row["source"] else source,
        prompt=messages,
        responses=[texts[i] for i in order],
        ranks=[ranks[i] for i in order],
        images=images,
        margin=_margin(row),
        caption=pick_caption(captions_of(row), best),
        location=location,
    )


def answers_of(row: Mapping[str, Any]) -> tuple[Any, list[Any]]:
    """Prompt and answers of a row in any known format, as training reads them, the answers in the row's own order.

    Raises UserError where no format fits its columns, BadRow where the row is not of that format's shape.
    """
    given = {column: value for column, value in row.items() if value is not None}
    name = find_reader(given, given)
    try:
        prompt, answers, _ = READERS[name].read(given)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise BadRow("row", row, f"not the shape of {name} ({described(error)}); mend the row") from error
    if "completions" in READERS[name].columns and len(answers) != len(listed(given["completions"])):
        reason = "some have no rating, and training passes them over; give those to score as `responses`"
        raise BadRow("completions", row["completions"], reason)
    return prompt, answers


def _check_unread(reader: str, row: Mapping[str, Any], images: Sequence[ImageRef], find: Callable[[str], str]) -> None:
    """Raises BadRow for an image that no column given to the reader holds: it would be dropped in silence."""
    texts = {name for needed in READERS[reader].columns for name in needed.split("|") if name not in IMAGE_COLUMNS}
    column = unread_image(row, texts | TEXT_COLUMNS, images, find)
    if column is None:
        return
    remedy = f"call it image, or set visual.columns.image={column} (behind a source: ?columns.image={column})"
    if images:
        remedy = "put all images of a row into one list `images`, or remove this column"
    raise BadRow(column, row[column], f"an image in a column that is not read; {remedy}")


def _check_prompt(messages: list[dict[str, Any]]) -> None:
    if messages[-1]["role"] == "assistant":
        raise BadRow("prompt", text_of(messages[-1]["content"]), "it ends with the assistant's turn; drop that turn")
    if not any(text_of(m["content"]).strip() or not isinstance(m["content"], str) for m in messages):
        raise BadRow("prompt", "", "the prompt is empty; fill it in or drop the row")


def _judged(row: Mapping[str, Any], ranks: list[int]) -> list[int]:
    """The ranks, after a look at what else the row says about the order of its responses.

    `ranks`, `rank` (lower is better) and `scores` (higher is better) with a number for each response, and the scores of
    chosen and rejected. Raises BadRow where one of them puts two responses strictly the other way round. A tie in one
    contradicts nothing, since ranks may be finer than scores or coarser; but a chosen and a rejected answer with equal
    scores are a tie, as in ultrafeedback_binarized.
    """
    for column, sign in (("ranks", 1), ("rank", 1), ("scores", -1)):
        values = row[column] if isinstance(row.get(column), (list, tuple)) else []
        numbers = [sign * number for number in map(number_in, values) if number is not None]
        if len(numbers) == len(values) == len(ranks):
            _check_order(column, values, numbers, ranks)
    for chosen, rejected in PAIR_SCORES if "chosen" in row else ():
        if row.get(chosen) is None or row.get(rejected) is None:
            continue
        better, worse = _score(row, chosen), _score(row, rejected)
        if better < worse:
            raise BadRow(chosen, better, f"below {rejected} = {worse:g}: the chosen answer scores worse; mend the row")
        if better == worse:
            return [0, 0]
    return ranks


def _check_order(column: str, value: Any, numbers: Sequence[float], ranks: Sequence[int]) -> None:
    order = sorted(range(len(ranks)), key=lambda j: ranks[j])
    highest = before = order[0]  # responses with the highest number: of all so far, and of those ranked above j
    for last, j in zip(order, order[1:], strict=False):
        before = highest if ranks[j] > ranks[last] else before
        if ranks[j] > ranks[before] and numbers[before] > numbers[j]:
            remedy = "to order by it set columns.ranks=rank" if column == "rank" else "or leave this column out"
            reason = f"it puts response {j + 1} before response {before + 1}, against the order of the row; mend it, "
            raise BadRow(column, value, reason + remedy)
        highest = j if numbers[j] > numbers[highest] else highest


def _score(row: Mapping[str, Any], column: str) -> float:
    number = number_in(row[column])
    if number is None:
        raise BadRow(column, row[column], "takes a finite number; mend it or leave it out")
    return number


def _id(row: Mapping[str, Any]) -> str:
    # RLAIF-V and RLHF-V (the sets with ds_name) call the id idx; elsewhere idx counts within a subset.
    names = ("id", "prompt_id", "idx") if "ds_name" in row else ("id", "prompt_id")
    return next((str(row[name]) for name in names if row.get(name) not in (None, "")), "")


def _margin(row: Mapping[str, Any]) -> float | None:
    value = row.get("margin")
    number = None if isinstance(value, (bool, str)) else rating_in(value)
    if value is not None and number is None:
        raise BadRow("margin", value, "takes a finite number; mend it or leave it out")
    if number is not None and number < 0:
        raise BadRow("margin", value, "below 0 it lets the worse answer win; give 0 or more, or exchange the answers")
    return number
