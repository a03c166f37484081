"""From a raw row to an Example: its format, its images and captions, and every check on the way.

    read_row("trl", {"prompt": "What is this?", "chosen": "A cup.", "rejected": "A dog."}, find_image)

    read = RowReader(rows, columns={})             # the raw rows of a source
    for row in rows.take(range(len(rows))):
        read(row)                                  # [Example], or [BadRow] with the reason

What the columns of a row mean is in rovrm/data/formats.py, how messages are written in rovrm/data/messages.py.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import PIL.Image

from rovrm.common.errors import UserError, described
from rovrm.data.bad_rows import BadRow
from rovrm.data.captions import Captions, with_caption
from rovrm.data.example import Example, pairs_of
from rovrm.data.formats import (
    IMAGE_COLUMNS,
    PAIR_SCORES,
    PROMPT_COLUMNS,
    READERS,
    TEXT_COLUMNS,
    VIDEO_COLUMNS,
    find_reader,
    number_in,
    rating_in,
)
from rovrm.data.images import ImageRef, find_image
from rovrm.data.messages import normalise, place_images, response_text, text_of, to_messages
from rovrm.data.raw_rows import Row, Rows

IMAGE_NAMES = IMAGE_COLUMNS[2:]  # beside another image column they only name its image
IMAGE_SUFFIXES = tuple(".jpg .jpeg .png .webp .gif .bmp .tif .tiff .ppm .pgm .jp2 .avif".split())


# ---- the rows of a source --------------------------------------------------------------------------------------------


class RowReader:
    """Turns the raw rows of one source into examples.

    Args:
        rows: of the source; the format of each of its files is found here, once, from the columns and the first row.
        columns: our name -> theirs, for columns that are called otherwise.
        reader: the format, a name in formats.READERS; None to find it.
        image_root: the folder of relative image paths; None for the data file's folder and its parents.
        captions: from which every example must get one; None for examples as they are.
        images_needed: whether an image file that is not there spoils its row.
        pairs: whether a ranked list becomes all its pairs.

    Raises:
        UserError: for an unknown reader, and where no format fits the columns of a file.
    """

    def __init__(
        self,
        rows: Rows,
        columns: dict[str, str],
        reader: str | None = None,
        image_root: str | None = None,
        captions: Captions | None = None,
        images_needed: bool = True,
        pairs: bool = False,
    ):
        if reader is not None and reader not in READERS:
            raise UserError(f"reader={reader}: no such reader; takes {', '.join(READERS)}")
        self.rows, self.columns, self.captions, self.pairs = rows, columns, captions, pairs
        self.find = functools.partial(find_image, image_root=image_root, must_exist=images_needed)
        self.readers = {file: reader or self._reader_of(file) for file in rows.kinds}

    def __call__(self, row: Row) -> list[Example | BadRow]:
        """The row's example, or each of its pairs, or why it cannot be used."""
        try:
            example = self._example(row)
        except BadRow as error:
            return [error]
        parts = pairs_of(example) if self.pairs else [example]
        return [self._captioned(part) for part in parts]

    def _reader_of(self, file: str | None) -> str:
        columns, first_row = self.rows.kinds[file]
        # As `rename` will leave them: a column of theirs is called as ours, where this file has it.
        theirs = set(self.columns.values())
        ours = {canonical for canonical, name in self.columns.items() if name in columns}
        try:
            return find_reader((set(columns) - theirs) | ours, rename(first_row, self.columns))
        except UserError as error:
            raise UserError(f"{file or self.rows.name}: {error}") from error

    def _example(self, row: Row) -> Example:
        if row.values is None:
            raise BadRow("row", row.raw, row.problem)
        return read_row(
            self.readers[row.data_file],
            rename(row.values, self.columns),
            functools.partial(self.find, data_file=row.data_file),
            location=row.location,
            fallback_id=f"{row.stem}-{row.number}",
            source=row.stem,
        )

    def _captioned(self, example: Example) -> Example | BadRow:
        try:
            return with_caption(example, self.captions) if self.captions else example
        except BadRow as error:
            return error


# ---- one row ---------------------------------------------------------------------------------------------------------


def read_row(
    reader: str,
    row: Mapping[str, Any],
    find: Callable[[str], str],
    *,
    location: str = "",
    fallback_id: str = "",
    source: str = "",
) -> Example:
    """One row as an Example, its responses best first.

    Args:
        reader: the row's format, a name in formats.READERS.
        row: its cells by our names of the columns.
        find: the name of an image -> its path; raises UserError where there is none.
        location: where the row stands, for messages.
        fallback_id, source: for rows without these columns.

    Raises:
        BadRow: for a row that cannot be read, whatever is wrong with it.
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
    # 1. What the format alone knows: which columns hold the prompt, the responses and their order.
    prompt, responses, ranks = READERS[reader].read(row)
    # 2. The prompt as messages. The column is found again only so that an error can name it.
    prompt_column = next((name for name in PROMPT_COLUMNS if row.get(name) is not None), "prompt")
    messages = to_messages(prompt, prompt_column)
    system = row.get("system")
    if isinstance(system, str) and system.strip() and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    # 3. The images, and where each stands in the messages. No image of the row may be left over.
    images = images_of(row, messages, find)
    _check_unread(reader, row, images, find)
    messages, images = place_images(messages, images)
    _check_prompt(messages)
    # 4. The responses as texts, best first. The sort is stable: ties keep the row's order.
    ranks = _agreed_ranks(row, ranks)
    texts = [response_text(response) for response in responses]
    best_first = sorted(range(len(texts)), key=lambda i: ranks[i])
    top = min(ranks)
    best = [texts[i] for i in best_first if ranks[i] == top]
    return Example(
        id=_id(row) or fallback_id,
        source=row["source"] if isinstance(row.get("source"), str) and row["source"] else source,
        prompt=messages,
        responses=[texts[i] for i in best_first],
        ranks=[ranks[i] for i in best_first],
        images=images,
        margin=_margin(row),
        caption=_caption(row, best),
        location=location,
    )


def _id(row: Mapping[str, Any]) -> str:
    # RLAIF-V and RLHF-V (the sets with ds_name) call the id idx; elsewhere idx counts within a subset.
    names = ("id", "prompt_id", "idx") if "ds_name" in row else ("id", "prompt_id")
    return next((str(row[name]) for name in names if row.get(name) not in (None, "")), "")


def _margin(row: Mapping[str, Any]) -> float | None:
    value = row.get("margin")
    if value is None:
        return None
    number = None if isinstance(value, (bool, str)) else rating_in(value)
    if number is None:
        raise BadRow("margin", value, "takes a finite number; mend it or leave it out")
    if number < 0:
        raise BadRow("margin", value, "below 0 it lets the worse answer win; give 0 or more, or exchange the answers")
    return number


def _caption(row: Mapping[str, Any], best: Iterable[str]) -> str | None:
    """The row's caption: its first that is none of the best answers, else its first, None for none.

    A caption that is an answer is kept all the same: `with_caption` refuses it, with the reason, where captions count.
    """
    value = row.get("caption")
    captions = [value] if isinstance(value, str) else value or []
    if not isinstance(captions, Sequence) or not all(isinstance(caption, str) for caption in captions):
        raise BadRow("caption", value, "takes a text or a list of texts; mend the row")
    captions = [caption for caption in captions if caption.strip()]
    answers = {normalise(answer) for answer in best}
    for caption in captions:
        if normalise(caption) not in answers:
            return caption
    return captions[0] if captions else None


def _check_prompt(messages: list[dict[str, Any]]) -> None:
    if messages[-1]["role"] == "assistant":
        raise BadRow("prompt", text_of(messages[-1]["content"]), "it ends with the assistant's turn; drop that turn")
    # Content that is no string holds an image: a picture without a question is a prompt too.
    if not any(text_of(m["content"]).strip() or not isinstance(m["content"], str) for m in messages):
        raise BadRow("prompt", "", "the prompt is empty; fill it in or drop the row")


# ---- the order of the responses --------------------------------------------------------------------------------------


def _agreed_ranks(row: Mapping[str, Any], ranks: list[int]) -> list[int]:
    """The ranks, after a look at what else the row says about the order of its responses.

    That is: `ranks` and `rank` (lower is better) and `scores` (higher is better), where they hold a number for each
    response; and the scores of chosen and rejected. Raises BadRow where one of them puts two responses strictly the
    other way round. A tie in one contradicts nothing, since ranks may be finer than scores or coarser; but a chosen and
    a rejected answer with equal scores are a tie, as in ultrafeedback_binarized.
    """
    for column, sign in (("ranks", 1), ("rank", 1), ("scores", -1)):
        values = row[column] if isinstance(row.get(column), (list, tuple)) else []
        numbers = [sign * number for number in map(number_in, values) if number is not None]  # lower is better
        if len(numbers) == len(values) == len(ranks):
            _check_order(column, values, numbers, ranks)
    if "chosen" not in row:
        return ranks
    for chosen, rejected in PAIR_SCORES:
        if row.get(chosen) is None or row.get(rejected) is None:
            continue
        better, worse = _score(row, chosen), _score(row, rejected)
        if better < worse:
            raise BadRow(chosen, better, f"below {rejected} = {worse:g}: the chosen answer scores worse; mend the row")
        if better == worse:
            return [0, 0]
    return ranks


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


def _score(row: Mapping[str, Any], column: str) -> float:
    number = number_in(row[column])
    if number is None:
        raise BadRow(column, row[column], "takes a finite number; mend it or leave it out")
    return number


# ---- the images of a row ---------------------------------------------------------------------------------------------


def images_of(row: Mapping[str, Any], messages: list[dict[str, Any]], find: Callable[[str], str]) -> list[ImageRef]:
    """The row's images; without a column of them those that content blocks carry."""
    column = image_column(row)
    if column is None:
        # OpenAI's way: the image inside the block that stands for it.
        blocks = [block for m in messages if isinstance(m["content"], list) for block in m["content"]]
        column, value = "prompt", [block["image"] for block in blocks if block.get("image") is not None]
    else:
        value = row[column]
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    # An embedded image is known to caption files by the path that stands beside it.
    beside = next((row[name] for name in reversed(IMAGE_NAMES) if isinstance(row.get(name), str)), None)
    return [_image_ref(item, column, find, beside if len(values) == 1 else None) for item in values]


def image_column(row: Mapping[str, Any]) -> str | None:
    """The column that holds the row's images: the first of IMAGE_COLUMNS that is neither null nor an empty list."""
    return next((name for name in IMAGE_COLUMNS if not is_empty(row.get(name))), None)


def is_empty(value: Any, kinds: tuple[type, ...] = (list, tuple)) -> bool:
    """Whether a cell is null, or an empty value of one of these kinds. Others, as tensors, are not asked for theirs."""
    return value is None or (isinstance(value, kinds) and not value)


def _image_ref(value: Any, column: str, find: Callable[[str], str], label: str | None) -> ImageRef:
    if isinstance(value, ImageRef):
        return dataclasses.replace(value, label=label) if label and value.label is None else value
    if isinstance(value, PIL.Image.Image):
        return ImageRef(image=value, label=label)
    if isinstance(value, Mapping) and value.get("bytes") is None:  # a data set's cell that holds a path alone
        value = value.get("path")
    if isinstance(value, str) and not value.strip():
        raise BadRow(column, value, "the name is empty; give a path, or null for a row without an image")
    if not isinstance(value, str):
        raise BadRow(column, value, "an image is a path, or embedded in a data set; give one of them, or null for none")
    try:
        return ImageRef(path=find(value), label=value)
    except UserError as error:
        raise BadRow(column, value, str(error)) from error


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


def unread_image(
    row: Mapping[str, Any], texts: Collection[str], images: Sequence[ImageRef], find: Callable[[str], str]
) -> str | None:
    """The first column with an image that is not one of `images`, those that were read; None where there is none.

    Args:
        texts: columns of texts, which are not looked at.
        find: as in `read_row`; a text that ends like an image file is an image where a file is found by it.
    """
    used = image_column(row)
    for column, value in row.items():
        if column in texts or column == used:
            continue
        cells = value if isinstance(value, (list, tuple)) else (value,)
        if any(_is_another_image(cell, column, images, find) for cell in cells):
            return column
    return None


def _is_another_image(cell: Any, column: str, images: Sequence[ImageRef], find: Callable[[str], str]) -> bool:
    if isinstance(cell, str):
        return column not in IMAGE_NAMES and _names_another(cell, images, find)
    if isinstance(cell, PIL.Image.Image):
        return ImageRef(image=cell) not in images
    if isinstance(cell, Mapping):  # as data sets store an image
        return {"bytes", "path"} <= cell.keys() and (cell["bytes"] is not None or cell["path"] is not None)
    return isinstance(cell, ImageRef) and cell not in images


def _names_another(text: str, images: Sequence[ImageRef], find: Callable[[str], str]) -> bool:
    """Whether a text is the path of an image file that is not one of `images`."""
    if not text[-5:].lower().endswith(IMAGE_SUFFIXES):
        return False
    try:
        path = find(text)
    except UserError:
        return False
    if not os.path.isfile(path):  # in the caption phase names are taken unseen
        return False
    # The same file may be named twice, by two ways of writing its path; and an embedded image by its file name.
    files = {os.path.realpath(ref.path) for ref in images if ref.path is not None}
    embedded = {os.path.basename(ref.name) for ref in images if ref.path is None}
    return os.path.realpath(path) not in files and os.path.basename(text) not in embedded


def rename(row: Mapping[str, Any], mapping: Mapping[str, str]) -> dict[str, Any]:
    """The row with its columns renamed, by our name -> theirs; a column that has our name already gives way."""
    replaced = {*mapping.values(), *mapping}
    kept = {column: value for column, value in row.items() if column not in replaced}
    return kept | {canonical: row[theirs] for canonical, theirs in mapping.items() if theirs in row}
