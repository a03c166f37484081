"""Turns that a row keeps in two places, as one conversation: shared turns of chosen and rejected beside a prompt, the
history, the system prompt.

    split_turns("What is it?", [user, answer], [user, other])     # ([user], [answer, other])

Where two places say the same, it stands in the conversation once. Same means: but for white space, for image
placeholders, and for a system turn that one of them lacks. Where they say different things the row is refused.
"""

from collections.abc import Mapping
from typing import Any

from rovrm.data.bad_rows import BadRow
from rovrm.data.messages import is_empty, parsed, text_of, to_messages

Messages = list[dict[str, Any]]


def split_turns(prompt: Any, chosen: Any, rejected: Any) -> tuple[Any, list[Any]]:
    """The prompt and the two answers of chosen and rejected: two messages, or two lists of them that begin alike and
    differ in the last one. prompt: of its own column, None for none."""
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise BadRow("rejected", rejected, "chosen and rejected are both texts or both lists of messages; mend the row")
    if isinstance(chosen, Mapping) or isinstance(rejected, Mapping):
        return prompt, [chosen, rejected]
    same = 0  # messages with which both begin; the last of each is its answer
    while same < min(len(chosen), len(rejected)) - 1 and chosen[same] == rejected[same]:
        same += 1
    if len(chosen) - same != 1 or len(rejected) - same != 1:
        where = f"message {same + 1} of {len(chosen)} and {len(rejected)}"
        reason = f"chosen and rejected part at {where}, and may differ in their last message only; "
        raise BadRow("chosen", chosen, reason + "cut both behind the first one that differs, or drop the row")
    turns = list(chosen[:same])
    if turns and prompt is not None:
        turns = _joined(to_messages(prompt), to_messages(turns, "chosen"))
    return turns or prompt, [chosen[-1], rejected[-1]]


def _joined(own: Messages, shared: Messages) -> Messages:
    """The messages of the prompt's column and the shared turns of the answers, each once. Raises BadRow where they are
    different questions."""
    system = [message for message in (*own, *shared) if message["role"] == "system"]
    own, shared = _without_system(own), _without_system(shared)
    longer, shorter = (own, shared) if len(own) >= len(shared) else (shared, own)
    place = _place(shorter, longer)
    if place is not None:
        both = [_one_of(longer[place + i], message) for i, message in enumerate(shorter)]
        turns = longer[:place] + both + longer[place + len(shorter) :]
    elif own[-1]["role"] != shared[0]["role"] and not set(map(_said, own)) & set(map(_said, shared)):
        turns = own + shared  # the column holds what was said before
    else:
        reason = "it differs from the turns with which chosen and rejected begin, and one question can be meant; "
        raise BadRow("prompt", text_of(own[-1]["content"]), reason + "mend the row, or leave the prompt column out")
    return one_system(system) + turns


def _without_system(messages: Messages) -> Messages:
    return [message for message in messages if message["role"] != "system"]


def _place(shorter: Messages, longer: Messages) -> int | None:
    """Where the shorter list stands in the longer one; None where it does not."""
    mine, others = [_said(message) for message in shorter], [_said(message) for message in longer]
    for start in range(len(others) - len(mine) + 1):
        if others[start : start + len(mine)] == mine:
            return start
    return None


def _said(message: Mapping[str, Any]) -> tuple[str, str]:
    """Role and words: what two writings of one message have in common."""
    content = message["content"]
    texts = [content] if isinstance(content, str) else [b["text"] for b in content if b["type"] == "text"]
    return message["role"], " ".join(" ".join(texts).split())


def _one_of(message: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Of two writings of one message the one with its pictures. Raises BadRow where both have some, and they differ."""
    pictures, others = _pictures(message), _pictures(other)
    if pictures and others and pictures != others:
        reason = "the same question has other pictures in chosen and rejected; mend the row, or leave one of them out"
        raise BadRow("prompt", text_of(other["content"]), reason)
    return message if pictures or not others else other


def _pictures(message: Mapping[str, Any]) -> list[Any]:
    content = message["content"]
    return [block for block in content if block["type"] == "image"] if isinstance(content, list) else []


# ---- what stands before the prompt -----------------------------------------------------------------------------------


def one_system(messages: Messages) -> Messages:
    """The system turn of several places, once. Raises BadRow where they say different things."""
    for message in messages[1:]:
        if _said(message) != _said(messages[0]):
            raise BadRow("system", text_of(message["content"]), "the row has another system turn; leave one of them")
    return messages[:1]


def with_system_and_history(row: Mapping[str, Any], messages: Messages) -> Messages:
    """The messages with the system prompt of its columns first, and the turns of `history` before their own."""
    system = [_system(row[name], name) for name in ("system", "system_prompt") if not is_empty(row.get(name))]
    system = [message for message in system if text_of(message["content"]).strip()]
    earlier = [] if is_empty(row.get("history")) else _history(row["history"])
    if not system and not earlier:
        return messages
    of_all = [*system, *(message for message in (*earlier, *messages) if message["role"] == "system")]
    earlier, own = _without_system(earlier), _without_system(messages)
    if _place(earlier, own) == 0:  # the prompt begins with the history
        own = [_one_of(mine, turn) for mine, turn in zip(own, earlier, strict=False)] + own[len(earlier) :]
        earlier = []
    return one_system(of_all) + earlier + own


def _system(value: Any, column: str) -> dict[str, Any]:
    if not isinstance(value, str):
        raise BadRow(column, value, "a system prompt is a text; mend it, or make it the first of the prompt's messages")
    return to_messages([{"role": "system", "content": value}], column)[0]


def _history(value: Any) -> Messages:
    """LLaMA-Factory's history, pairs of a user's and an assistant's text; or a list of messages."""
    turns = parsed(value, "history")
    if not isinstance(turns, (list, tuple)):
        raise BadRow("history", value, "takes a list of [user, assistant] pairs, or of messages; mend the row")
    if all(isinstance(turn, Mapping) for turn in turns):
        messages = to_messages(turns, "history")
    else:
        pairs = [_pair(turn) for turn in turns]
        messages = to_messages([message for pair in pairs for message in pair], "history")
    roles = [message["role"] for message in _without_system(messages)]
    if roles != ["user", "assistant"] * (len(roles) // 2):
        raise BadRow("history", value, "its turns are by user and assistant in turn, the last an answer; mend the row")
    return messages


def _pair(turn: Any) -> list[dict[str, Any]]:
    if not isinstance(turn, (list, tuple)) or len(turn) != 2 or not all(isinstance(text, str) for text in turn):
        raise BadRow("history", turn, "takes a list of [user, assistant] pairs, or of messages; mend the row")
    return [{"role": role, "content": text} for role, text in zip(("user", "assistant"), turn, strict=True)]
