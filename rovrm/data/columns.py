"""Columns that no reader reads: those with content of the conversation are refused, others are listed; and columns
that are called otherwise than here.

    check_content({"prompt": "Weather?", "tools": [...], ...}, "plain", messages, ["a", "b"])    # BadRow
    unread_columns(["prompt", "chosen", "rejected", "reason"], "plain")                          # ["reason"]
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from rovrm.common.errors import UserError
from rovrm.data.bad_rows import BadRow
from rovrm.data.formats import BEFORE_PROMPT, OPTIONAL, PROMPT_COLUMNS, READERS, VIDEO_COLUMNS
from rovrm.data.messages import is_empty, normalise, text_of, to_messages
from rovrm.data.ratings import ORDERS, rating_columns

MEDIA = {name: "video" for name in (*VIDEO_COLUMNS, "video_paths", "video_url", "video_urls", "rejected_videos")}
MEDIA |= {name: "audio" for name in ("audio", "audios", "audio_path", "audio_paths", "speech", "rejected_audios")}
# Names under which data sets keep what a model was told besides the prompt, or what it did.
CONTENT = {
    *("context", "contexts", "document", "documents", "passage", "passages", "knowledge", "background", "evidence"),
    *("tools", "tool_calls", "functions", "function_call", "objects", "attachments", "files", "pdf", "pdfs"),
    *("chat_history", "conversation", "conversation_history", "dialogue", "dialog", "previous_turns", "turns"),
    *("system_message", "system_instruction", "sys_prompt", "developer", "hint", "rejected_images"),
}
KEPT = {*PROMPT_COLUMNS, *BEFORE_PROMPT, *CONTENT, *MEDIA}  # what is looked at beside answers, images and numbers
READ_ANYWHERE = {*OPTIONAL, *KEPT, *(name for name, _ in ORDERS), "prompt_id", "idx", "ds_name"}


def check_content(
    row: Mapping[str, Any], reader: str, messages: Sequence[Mapping[str, Any]], answers: Sequence[Any]
) -> None:
    """Raises BadRow for a column with content of the conversation that is in neither messages nor answers: it would be
    dropped."""
    read = columns_of(reader)
    prompts: list[str] = []
    for column, value in row.items():
        name = column.lower() if isinstance(column, str) else ""
        if name in MEDIA and not is_empty(value):
            raise BadRow(column, value, f"{MEDIA[name]} cannot be scored, drop the row")
        if name in CONTENT and name not in read and not is_empty(value):
            reason = "a column that is not read, and that may be part of the conversation; put it into the prompt, "
            raise BadRow(column, value, reason + "or remove the column")
        if name in (*PROMPT_COLUMNS, *BEFORE_PROMPT) and name != column and not is_empty(value):
            raise BadRow(column, value, f"a column that is not read under this name; call it {name}, or remove it")
        if name in PROMPT_COLUMNS and not is_empty(value):
            prompts.append(column)
    if len(prompts) > 1:  # of one alone nothing can be left over
        said = [text_of(message["content"]) for message in messages] + [_words(answer) for answer in answers]
        for column in prompts:
            # What a format cannot do without, it reads, with the answers that may stand in it.
            if column not in READERS[reader].columns and row[column] != row.get("chosen"):
                _check_prompt(column, row[column], said)


def _words(answer: Any) -> str:
    """The text of an answer, as far as it is one; `response_text` refuses others."""
    content = answer.get("content") if isinstance(answer, Mapping) else answer
    return content if isinstance(content, str) else ""


def _check_prompt(column: str, value: Any, said: Sequence[str]) -> None:
    """Raises BadRow where a prompt column says what is said nowhere in the conversation."""
    for message in to_messages(value, column):
        if normalise(text_of(message["content"])) not in normalise("\n".join(said)):
            reason = "a second prompt that is not read; put it into the prompt, or remove the column"
            raise BadRow(column, value, reason)


@functools.lru_cache
def columns_of(reader: str) -> frozenset[str]:
    """The columns that a format names."""
    return frozenset(name for needed in READERS[reader].columns for name in needed.split("|"))


def unread_columns(columns: Sequence[str], reader: str) -> list[str]:
    """Of the columns of a source those that nothing reads."""
    ratings = {name for pair in rating_columns(tuple(columns)) for name in pair}
    read = READ_ANYWHERE | columns_of(reader) | ratings
    return [column for column in columns if column not in read]


# ---- columns of other names ------------------------------------------------------------------------------------------


def check_columns(mapping: Mapping[str, str], present: Sequence[str]) -> None:
    """Raises UserError for a canonical name that no reader knows, and for a column that the data do not have.

    mapping: our name -> theirs. present: the columns of the data.
    """
    known = {*OPTIONAL, *(name for r in READERS.values() for needed in r.columns for name in needed.split("|"))}
    for canonical, theirs in mapping.items():
        if canonical not in known:
            raise UserError(f"columns.{canonical}: no reader knows this name; takes {', '.join(sorted(known))}")
        if theirs not in present:
            has = ", ".join(present)
            raise UserError(f"columns.{canonical}={theirs}: the data have no such column; they have {has}")


def rename(row: Mapping[str, Any], mapping: Mapping[str, str]) -> dict[str, Any]:
    """The row with its columns renamed, by our name -> theirs; a column that has our name already gives way."""
    replaced = {*mapping.values(), *mapping}
    kept = {column: value for column, value in row.items() if column not in replaced}
    return kept | {canonical: row[theirs] for canonical, theirs in mapping.items() if theirs in row}
