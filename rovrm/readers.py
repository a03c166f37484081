"""Readers: one raw row of a known preference format -> one Example. Which format it is, is found from the columns.

Each `read_X(row)` is pure and returns `(prompt, responses, ranks)`. Images, ids, captions and margins sit in the same
columns in every format and are read by `read_row`. The schemas are those of the hub cards and of the original code; a
reader's name is what `reader=` takes.
"""

import ast
import json
import math
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import PIL.Image

from rovrm.errors import UserError
from rovrm.examples import Example
from rovrm.images import ImageRef

Read = tuple[Any, list[Any], list[int]]  # prompt (string or messages), responses (strings or messages), ranks

IMAGE_COLUMNS = ("images", "image", "img_path", "image_path")
VIDEO_COLUMNS = ("video", "videos", "video_path")
OPTIONAL = (*IMAGE_COLUMNS, *VIDEO_COLUMNS, "id", "source", "caption", "margin", "ranks", "system")
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
PLACEHOLDER = re.compile(r"<image(?:[ _]?(\d+))?>")
ASPECTS = ("Helpfulness", "Ethical Considerations", "Visual Faithfulness")  # VLFeedback's three ratings


class BadRow(Exception):
    """A row that cannot be read: which field, its value, and why with the remedy. The row is counted, the load goes on."""

    def __init__(self, field: str, value: Any, reason: str):
        super().__init__(f"{field} = {str(value)[:200]!r}: {reason}")
        self.field, self.value, self.reason = field, value, reason


# ---- text ------------------------------------------------------------------------------------------------------------


def normalise(text: str) -> str:
    """Case folded, punctuation removed, white space collapsed: how answers, captions and prompts are compared."""
    kept = (c for c in text.casefold() if not unicodedata.category(c).startswith("P"))
    return " ".join("".join(kept).split())


def text_of(content: str | Sequence[Mapping[str, Any]]) -> str:
    """The text of a message's content without its images. Parts that an image held apart get a line break."""
    if isinstance(content, str):
        return content
    text = ""
    for part in (block["text"] for block in content if block["type"] == "text" and block["text"]):
        text += ("\n" if text and not text[-1].isspace() and not part[0].isspace() else "") + part
    return text


def parse_content(content: Any, field: str) -> str | list[dict[str, Any]]:
    """A message's content with `<image>` and `<image N>` as image blocks in place; a string where there is no image."""
    parts = [content] if isinstance(content, (str, Mapping)) or content is None else list(content)
    blocks = [block for part in parts for block in _parse_part(part, field)]
    return blocks if any(block["type"] == "image" for block in blocks) else text_of(blocks)


def _parse_part(part: Any, field: str) -> list[dict[str, Any]]:
    if isinstance(part, str):
        return _split_placeholders(part, field)
    if not isinstance(part, Mapping):
        raise BadRow(field, part, "content is a string or a list of blocks; mend the row")
    kind = part.get("type") or ("text" if part.get("text") is not None else None)
    if kind == "text" and isinstance(part.get("text"), str):
        return _split_placeholders(part["text"], field)
    if kind in ("image", "image_url"):
        value = next((part[key] for key in ("image", "image_url", "url", "path") if part.get(key) is not None), None)
        value = value.get("url", value) if isinstance(value, Mapping) else value
        return [{"type": "image"} if value is None else {"type": "image", "image": value}]
    raise BadRow(field, part, f"content block of type {kind!r}; only text and image can be scored, drop the row")


def _split_placeholders(text: str, field: str) -> list[dict[str, Any]]:
    if "<video>" in text:
        raise BadRow(field, text, "<video>: video cannot be scored, only images; drop the row")
    blocks: list[dict[str, Any]] = []
    for i, part in enumerate(PLACEHOLDER.split(text)):
        if i % 2:  # the group of a match: the number, or None
            blocks.append({"type": "image"} if part is None else {"type": "image", "number": int(part)})
            continue
        # The line break between a placeholder and its text belongs to the chat template.
        part = part.strip("\n") if "<image" in text and PLACEHOLDER.search(text) else part
        if part:
            blocks.append({"type": "text", "text": part})
    return blocks


# ---- messages --------------------------------------------------------------------------------------------------------


def to_messages(prompt: Any, field: str = "prompt") -> list[dict[str, Any]]:
    """A string, or messages in either naming (role/content, from/value), as role/content messages."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": parse_content(prompt, field)}]
    if not isinstance(prompt, Sequence) or not prompt:
        raise BadRow(field, prompt, "a prompt is a text or a list of messages; mend the row")
    return [_message(message, field) for message in prompt]


def _message(message: Any, field: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise BadRow(field, message, "a message is {role, content} or {from, value}; mend the row")
    role = message.get("role", message.get("from"))
    if role not in ROLES:
        raise BadRow(field, role, f"unknown role; takes {', '.join(ROLES)}")
    return {"role": ROLES[role], "content": parse_content(message.get("content", message.get("value")), field)}


def _response_text(response: Any) -> str:
    """The text of an answer given as a string, one message, or a list with one message."""
    if isinstance(response, str):
        return response
    if isinstance(response, Sequence) and len(response) == 1:
        response = response[0]
    if not isinstance(response, Mapping):
        raise BadRow("responses", response, "an answer is a text or one message; drop the row")
    content = response.get("content", response.get("value"))
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or any(block.get("type", "text") != "text" for block in content):
        raise BadRow("responses", response, "an answer holds text only; drop the row")
    return text_of([{"type": "text", "text": block.get("text") or ""} for block in content])


def _place_images(
    messages: list[dict[str, Any]], images: list[ImageRef]
) -> tuple[list[dict[str, Any]], list[ImageRef]]:
    """One block per image, and the images in the order of their blocks; those without one go before the first user's text."""
    order: list[int] = []
    placed: list[dict[str, Any]] = []
    before = plain = 0  # images placed before the first user message, and placeholders without a number so far
    first = next((i for i, message in enumerate(messages) if message["role"] == "user"), None)
    if first is None:
        raise BadRow("prompt", messages, "it has no message by the user; mend the row")
    for i, message in enumerate(messages):
        before = len(order) if i == first else before
        blocks = message["content"] if isinstance(message["content"], list) else []
        for number in [block.get("number") for block in blocks if block["type"] == "image"]:
            plain += number is None
            order.append((plain if number is None else number) - 1)
        clean = [{"type": "image"} if block["type"] == "image" else block for block in blocks]
        placed.append(message | {"content": clean or message["content"]})
    if order and not 0 <= min(order) <= max(order) < len(images):
        have = f"asks for image {max(order) + 1}, but the row has {len(images)}"
        raise BadRow("prompt", text_of(messages[first]["content"]), f"{have}; give the images or drop the placeholder")
    extra = [i for i in range(len(images)) if i not in order]
    if extra:
        content = placed[first]["content"]
        blocks = content if isinstance(content, list) else [{"type": "text", "text": content}]
        placed[first]["content"] = [{"type": "image"} for _ in extra] + blocks
    return placed, [images[i] for i in (*order[:before], *extra, *order[before:])]


# ---- the readers -----------------------------------------------------------------------------------------------------


def ranks_of(scores: Sequence[float]) -> list[int]:
    """Dense ranks, 0 for the highest score; equal scores tie."""
    levels = sorted(set(scores), reverse=True)
    return [levels.index(score) for score in scores]


def _field(row: Mapping[str, Any], *names: str) -> Any:
    """The first of these fields that has a value."""
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise BadRow(names[0], None, f"no value in {' or '.join(names)}; fill it in or drop the row")


def _listed(value: Any) -> list[Any]:
    """A list of dicts, also from the dict of lists as which `datasets` returns a Sequence of dicts."""
    if isinstance(value, Mapping):
        return [dict(zip(value, cells, strict=True)) for cells in zip(*value.values(), strict=True)]
    return list(value)


def _rated(row: Mapping[str, Any], score: Callable[[Mapping[str, Any]], float | None]) -> tuple[list[Any], list[int]]:
    """Answers with their ranks by score; those whose score is None are dropped."""
    completions = _listed(_field(row, "completions"))
    scored = [(c["response"], s) for c in completions if (s := score(c)) is not None and c.get("response") is not None]
    if len(scored) < 2:
        raise BadRow("completions", completions, f"{len(scored)} of {len(completions)} have ratings, a ranking needs 2")
    return [response for response, _ in scored], ranks_of([s for _, s in scored])


def _rating(value: Any) -> float | None:
    """UltraFeedback and VLFeedback store ratings as strings; "N/A" and nonsense give None."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _mean_rating(completion: Mapping[str, Any], aspects: Iterable[str] | None = None) -> float | None:
    """Mean over the aspects; None when one is missing, since a mean of fewer cannot be compared with the others'."""
    annotations = completion.get("annotations") or {}
    ratings = [_rating((annotations.get(name) or {}).get("Rating")) for name in aspects or annotations]
    known = [rating for rating in ratings if rating is not None]
    return sum(known) / len(known) if known and len(known) == len(ratings) else None


def read_ultrafeedback(row: Mapping[str, Any]) -> Read:
    """openbmb/UltraFeedback: by overall_score; by the mean of the aspects where no completion of the row has one."""
    if any(c.get("overall_score") is not None for c in _listed(_field(row, "completions"))):
        return _field(row, "instruction"), *_rated(row, lambda c: _rating(c.get("overall_score")))
    return _field(row, "instruction"), *_rated(row, _mean_rating)


def read_vlfeedback(row: Mapping[str, Any]) -> Read:
    """MMInstruction/VLFeedback: by the mean of the three ratings."""
    return _field(row, "prompt"), *_rated(row, lambda c: _mean_rating(c, ASPECTS))


def read_ultrafeedback_binarized(row: Mapping[str, Any]) -> Read:
    """HuggingFaceH4/ultrafeedback_binarized: a TRL pair whose equal scores are a tie."""
    prompt, responses, ranks = read_trl(row)
    return prompt, responses, [0, 0] if _field(row, "score_chosen") == _field(row, "score_rejected") else ranks


def read_plain(row: Mapping[str, Any]) -> Read:
    """prompt | question | instruction (+ input, as in Alpaca files), chosen, rejected. RLAIF-V is this too."""
    return _prompt_text(row), [_field(row, "chosen"), _field(row, "rejected")], [0, 1]


def _prompt_text(row: Mapping[str, Any]) -> Any:
    prompt = _field(row, "prompt", "question", "instruction", "input")
    both = prompt is row.get("instruction") and isinstance(row.get("input"), str) and row["input"].strip()
    return f"{prompt}\n\n{row['input']}" if both else prompt


def read_rlhf_v(row: Mapping[str, Any]) -> Read:
    """openbmb/RLHF-V-Dataset: question, chosen and rejected are a JSON text in `text`."""
    text = _parsed(_field(row, "text"), "text")
    if not isinstance(text, Mapping):
        raise BadRow("text", text, 'takes a JSON text {"question", "chosen", "rejected"}; mend the row')
    return read_plain(text)


def _parsed(value: Any, field: str) -> Any:
    """JSON, or the Python literal that str() makes of it, when a list or dict is stored as a string."""
    if not isinstance(value, str):
        return value
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    raise BadRow(field, value, "a text that should hold a JSON value does not; mend the row")


def _conversation(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    turns = _parsed(_field(row, "conversations"), "conversations")
    if not isinstance(turns, Sequence) or not turns or not all(isinstance(turn, Mapping) for turn in turns):
        raise BadRow("conversations", turns, "takes a list of {from, value}; mend the row")
    return list(turns)


def read_llava_human_preference(row: Mapping[str, Any]) -> Read:
    """zhiqings/LLaVA-Human-Preference-10K: the last turn, by gpt, is a placeholder for the two outputs."""
    turns = _conversation(row)
    prompt = turns[:-1] if ROLES.get(turns[-1].get("from", "")) == "assistant" else turns
    return prompt, [_field(row, "output_1"), _field(row, "output_2")], _preferred(row)


def read_two_outputs(row: Mapping[str, Any]) -> Read:
    """output_1, output_2 and which is better: 1 or 2, or a float between (LLMBar, AlpacaEval)."""
    return _prompt_text(row), [_field(row, "output_1"), _field(row, "output_2")], _preferred(row)


def _preferred(row: Mapping[str, Any]) -> list[int]:
    value = _field(row, "label", "preference") if "label" in row else _field(row, "preference", "label")
    number = None if isinstance(value, bool) else _rating(value)
    if number is None or not 1 <= number <= 2:
        field = "label" if row.get("label") is not None else "preference"
        raise BadRow(field, value, "takes 1 (output_1 is better), 2, or a number between (1.5 is a tie); mend the row")
    return [0, 0] if number == 1.5 else [0, 1] if number < 1.5 else [1, 0]


def read_vision_feedback_mix(row: Mapping[str, Any]) -> Read:
    """wangclnlp/vision-feedback-mix-binarized: conversations is a *string*; the last turn has preference_values."""
    turns = _conversation(row)
    answers = turns[-1].get("preference_values")
    if not isinstance(answers, Sequence) or isinstance(answers, str) or len(answers) < 2:
        raise BadRow("conversations", turns[-1], "the last turn needs preference_values [preferred, dispreferred]")
    return turns[:-1], list(answers), list(range(len(answers)))


def read_rovrm_ranked(row: Mapping[str, Any]) -> Read:
    """The RoVRM authors' JSON: the last turn's value is the list of answers, best to worst."""
    turns = _conversation(row)
    answers = turns[-1].get("value")
    if not isinstance(answers, Sequence) or isinstance(answers, str) or len(answers) < 2:
        raise BadRow("conversations", turns[-1], "the last turn's value is the list of two or more answers, best first")
    return turns[:-1], list(answers), list(range(len(answers)))


def read_sharegpt_ranking(row: Mapping[str, Any]) -> Read:
    """LLaMA-Factory's ShareGPT ranking file: conversations, and chosen and rejected as one message each."""
    return _conversation(row), [_field(row, "chosen"), _field(row, "rejected")], [0, 1]


def read_hh_rlhf(row: Mapping[str, Any]) -> Read:
    """Anthropic/hh-rlhf: two transcripts; the prompt is what they share up to the last "Assistant:"."""
    chosen, rejected = _field(row, "chosen"), _field(row, "rejected")
    shared = os.path.commonprefix([chosen, rejected])
    cut = shared.rfind("\n\nAssistant:") + len("\n\nAssistant:")
    if cut < len("\n\nAssistant:") or not shared.startswith("\n\nHuman:"):
        raise BadRow("chosen", chosen, 'the transcripts share no "\\n\\nHuman: ... \\n\\nAssistant:"; set reader=NAME')
    answers = [chosen[cut:].strip(), rejected[cut:].strip()]
    if any("\n\nHuman:" in answer for answer in answers):
        raise BadRow("chosen", chosen, "the transcripts part before their last answers; drop the row")
    parts = re.split(r"\n\n(Human|Assistant):", shared[: cut - len("\n\nAssistant:")])
    turns: list[dict[str, Any]] = []
    for speaker, text in zip(parts[1::2], parts[2::2], strict=True):
        role = "user" if speaker == "Human" else "assistant"
        if turns and turns[-1]["role"] == role:  # some transcripts repeat a speaker; chat templates want turns
            turns[-1]["content"] += "\n\n" + text.strip()
        else:
            turns.append({"role": role, "content": text.strip()})
    return turns, answers, [0, 1]


def read_trl(row: Mapping[str, Any]) -> Read:
    """TRL's preference formats: strings or messages, the prompt in its own column or as the start both answers share."""
    chosen, rejected = _field(row, "chosen"), _field(row, "rejected")
    prompt = row.get("prompt")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is not None:
            return prompt, [chosen, rejected], [0, 1]
        shared = os.path.commonprefix([chosen, rejected])
        shared = shared.removesuffix(" ")  # as in TRL's extract_prompt: the blank belongs to the answers
        return shared, [chosen[len(shared) :], rejected[len(shared) :]], [0, 1]
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise BadRow("rejected", rejected, "chosen and rejected are both strings or both lists of messages; mend the row")
    if isinstance(chosen, Mapping) or isinstance(rejected, Mapping):
        return prompt, [chosen, rejected], [0, 1]
    same = 0
    while same < min(len(chosen), len(rejected)) - 1 and chosen[same] == rejected[same]:
        same += 1
    if len(chosen) - same != 1 or len(rejected) - same != 1:
        raise BadRow("chosen", chosen, "chosen and rejected may differ in their last message only; drop the row")
    return _with_turns(prompt, list(chosen[:same])), [chosen[-1], rejected[-1]], [0, 1]


def _with_turns(prompt: Any, turns: list[Any]) -> Any:
    """The explicit prompt and the shared turns, where the turns may repeat the prompt (ultrafeedback_binarized)."""
    if not turns or prompt is None:
        return turns or prompt
    messages, shared = to_messages(prompt), to_messages(turns)
    at = next((i for i in range(len(shared)) if shared[i : i + len(messages)] == messages), None)
    return turns if at is not None else [*([prompt] if isinstance(prompt, Mapping) else messages), *turns]


def read_ranked(row: Mapping[str, Any]) -> Read:
    """prompt, responses and, unless they are best first, ranks (lower is better, equal is a tie)."""
    responses = _field(row, "responses")
    if isinstance(responses, str) or not isinstance(responses, Sequence):
        raise BadRow("responses", responses, "takes a list of two or more texts; mend the row")
    ranks = row.get("ranks") if row.get("ranks") is not None else range(len(responses))
    numbers = [None if isinstance(rank, bool) else _rating(rank) for rank in ranks]
    known = [-number for number in numbers if number is not None]
    if len(known) != len(responses) or len(numbers) != len(responses):
        raise BadRow("ranks", list(ranks), f"takes one number for each of the {len(responses)} responses; mend the row")
    return _prompt_text(row), list(responses), ranks_of(known)


# ---- which reader ----------------------------------------------------------------------------------------------------


class Reader(NamedTuple):
    """columns: what it needs ("a|b": either). read: the function. fits: a further look at columns and a row, if any."""

    columns: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], Read]
    fits: Callable[[set[str], Mapping[str, Any]], bool] = lambda columns, row: True


PROMPT = "prompt|question|instruction"


def _is_transcript(columns: set[str], row: Mapping[str, Any]) -> bool:
    unnamed = not columns & {"prompt", "question", "instruction"}
    return unnamed and str(row.get("chosen", "\n\nHuman:")).startswith("\n\nHuman:")


def _is_trl(columns: set[str], row: Mapping[str, Any]) -> bool:
    listed = any(isinstance(row.get(name), (list, tuple)) for name in ("prompt", "chosen", "rejected"))
    return listed or not columns & {"prompt", "question", "instruction"}


# From the most to the least particular: the first that fits is taken.
READERS: dict[str, Reader] = {
    "ultrafeedback": Reader(("instruction", "completions"), read_ultrafeedback),
    "ultrafeedback_binarized": Reader(
        ("prompt", "chosen", "rejected", "score_chosen", "score_rejected"), read_ultrafeedback_binarized
    ),
    "rlaif-v": Reader(("ds_name", "image", "question", "chosen", "rejected"), read_plain),
    "rlhf-v": Reader(("ds_name", "image", "text"), read_rlhf_v),
    "llava-human-preference": Reader(
        ("conversations", "output_1", "output_2", "preference"), read_llava_human_preference
    ),
    "vlfeedback": Reader(("prompt", "completions"), read_vlfeedback),
    "vision-feedback-mix": Reader(("conversations", "origin_pre_dataset"), read_vision_feedback_mix),
    "sharegpt-ranking": Reader(("conversations", "chosen", "rejected"), read_sharegpt_ranking),
    "rovrm-ranked": Reader(("conversations",), read_rovrm_ranked),
    "ranked": Reader((PROMPT, "responses"), read_ranked),
    "two-outputs": Reader((f"{PROMPT}|input", "output_1", "output_2", "label|preference"), read_two_outputs),
    "hh-rlhf": Reader(("chosen", "rejected"), read_hh_rlhf, _is_transcript),
    "trl": Reader(("chosen", "rejected"), read_trl, _is_trl),
    "plain": Reader((PROMPT, "chosen", "rejected"), read_plain),
}
