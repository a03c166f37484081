"""From a raw row to an Example: its format, its images and captions, and every check on the way.

    read_row("trl", {"prompt": "What is this?", "chosen": "A cup.", "rejected": "A dog."}, find_image)

    read = RowReader(rows, columns={})             # the raw rows of a source
    for row in rows.take(range(len(rows))):
        read(row)                                  # [Example], or [BadRow] with the reason

What the columns of a row mean is in rovrm/data/formats.py, how messages are written in rovrm/data/messages.py; images,
ratings, and columns that nothing reads are in pictures.py, ratings.py and columns.py there.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rovrm.common.errors import UserError, described
from rovrm.data.bad_rows import BadRow
from rovrm.data.captions import Captions, with_caption
from rovrm.data.columns import check_content, rename, unread_columns
from rovrm.data.example import Example, pairs_of
from rovrm.data.formats import PROMPT_COLUMNS, READERS, find_reader
from rovrm.data.images import find_image
from rovrm.data.messages import normalise, place_images, response_text, text_of, to_messages
from rovrm.data.pictures import check_unread, images_of
from rovrm.data.ratings import agreed_ranks, is_misread, listed, rating_in
from rovrm.data.raw_rows import Row, Rows
from rovrm.data.turns import with_system_and_history

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
        self.n_misread = 0  # UltraFeedback's scores that were mended

    def __call__(self, row: Row) -> list[Example | BadRow]:
        """The row's example, or each of its pairs, or why it cannot be used."""
        try:
            example = self._example(row)
        except BadRow as error:
            return [error]
        if self.readers[row.data_file] == "ultrafeedback":
            self.n_misread += sum(map(is_misread, listed((row.values or {}).get("completions") or [])))
        parts = pairs_of(example) if self.pairs else [example]
        return [self._captioned(part) for part in parts]

    def notes(self) -> list[str]:
        """What a user should know of the rows that were read: the columns that nothing reads, and what was mended."""
        notes = []
        unread = {column: None for file in self.readers for column in self._unread(file)}
        if unread:
            notes.append(f"{self.rows.name}: not read: {', '.join(map(str, unread))}")
        if self.n_misread:
            misread = f"{self.n_misread} answers with an overall_score of 10 beside ratings of 1 or 2"
            notes.append(f"{self.rows.name}: {misread} are ranked as 1, as in the repaired data set")
        return notes

    def _unread(self, file: str | None) -> list[str]:
        columns, _ = self.rows.kinds[file]
        theirs = {*self.columns.values(), *self.columns}
        return unread_columns([column for column in columns if column not in theirs], self.readers[file])

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
    # 1. What the format alone knows: which columns hold the prompt, the responses and their order.
    prompt, responses, ranks = READERS[reader].read(row)
    # 2. The prompt as messages. The column is found again only so that an error can name it.
    prompt_column = next((name for name in PROMPT_COLUMNS if row.get(name) is not None), "prompt")
    messages = to_messages(prompt, prompt_column)
    messages = with_system_and_history(row, messages)
    check_content(row, reader, messages, responses)
    # 3. The images, and where each stands in the messages. No image of the row may be left over.
    images = images_of(row, messages, find)
    check_unread(reader, row, images, find)
    messages, images = place_images(messages, images)
    _check_prompt(messages)
    # 4. The responses as texts, best first. The sort is stable: ties keep the row's order.
    ranks = agreed_ranks(row, ranks)
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
