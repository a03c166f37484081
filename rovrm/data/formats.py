"""The preference formats: what the columns of a row mean in each, and which format a row has.

    find_reader(["question", "chosen", "rejected"])                                   # "plain"
    READERS["plain"].read({"question": "What?", "chosen": "A cup.", "rejected": "A dog."})
    # ("What?", ["A cup.", "A dog."], [0, 1]): prompt, responses, ranks

Each `read_X(row)` is pure. Images, ids, captions and margins sit in the same columns in every format and are read by
rovrm/data/reader.py. The schemas are those of the hub cards and of the original code; a reader's name is what `reader=`
takes.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rovrm.common.errors import UserError
from rovrm.data.bad_rows import BadRow
from rovrm.data.messages import MESSAGE_KEYS, check_keys, parsed
from rovrm.data.ratings import PAIR_SCORES, listed, mean_rating, number_in, numbers_of, overall_score, ranks_of, rated
from rovrm.data.turns import split_turns

Read = tuple[Any, list[Any], list[int]]  # prompt (string or messages), responses (strings or messages), ranks

IMAGE_COLUMNS = ("images", "image", "img_path", "image_path")
VIDEO_COLUMNS = ("video", "videos", "video_path")
BEFORE_PROMPT = ("system", "system_prompt", "history")  # what stands before the prompt of any format
# Columns that a row of any format may have.
OPTIONAL = (*IMAGE_COLUMNS, *VIDEO_COLUMNS, "id", "source", "caption", "margin", "ranks", "scores", *BEFORE_PROMPT)
ASPECTS = ("Helpfulness", "Ethical Considerations", "Visual Faithfulness")  # VLFeedback's three ratings


def _field(row: Mapping[str, Any], *names: str) -> Any:
    """The first of these fields that has a value."""
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise BadRow(names[0], None, f"no value in {' or '.join(names)}; fill it in or drop the row")


# ---- the formats -----------------------------------------------------------------------------------------------------


def read_ultrafeedback(row: Mapping[str, Any]) -> Read:
    """openbmb/UltraFeedback: by overall_score; by the mean of the aspects where no completion of the row has one."""
    # Never by both: the two are on different scales.
    completions = listed(_field(row, "completions"))
    scored = any(completion.get("overall_score") is not None for completion in completions)
    return _field(row, "instruction"), *rated(completions, overall_score if scored else mean_rating)


def read_vlfeedback(row: Mapping[str, Any]) -> Read:
    """MMInstruction/VLFeedback: by the mean of the three ratings."""
    return _field(row, "prompt"), *rated(listed(_field(row, "completions")), lambda c: mean_rating(c, ASPECTS))


def read_ultrafeedback_binarized(row: Mapping[str, Any]) -> Read:
    """HuggingFaceH4/ultrafeedback_binarized: a TRL pair with scores, which the reader of the row looks at."""
    for column in PAIR_SCORES:
        _field(row, column)
    return read_trl(row)


def read_plain(row: Mapping[str, Any]) -> Read:
    """prompt | question | instruction (+ input, as in Alpaca files), chosen, rejected. RLAIF-V is this too."""
    chosen, rejected = _field(row, "chosen"), _field(row, "rejected")
    _refuse_texts(chosen, rejected)
    return _prompt_text(row), [chosen, rejected], [0, 1]


def _prompt_text(row: Mapping[str, Any]) -> Any:
    """The prompt; where it is an `instruction`, with the `input` behind it, as Alpaca files write it."""
    prompt = _field(row, "prompt", "question", "instruction", "input", "messages")
    material = row.get("input")
    if prompt is row.get("instruction") and isinstance(material, str) and material.strip():
        return f"{prompt}\n\n{material}"
    return prompt


def read_rlhf_v(row: Mapping[str, Any]) -> Read:
    """openbmb/RLHF-V-Dataset: question, chosen and rejected are a JSON text in `text`."""
    text = parsed(_field(row, "text"), "text")
    if not isinstance(text, Mapping):
        raise BadRow("text", text, 'takes a JSON text {"question", "chosen", "rejected"}; mend the row')
    return read_plain(text)


def _conversation(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    turns = parsed(_field(row, "conversations"), "conversations")
    if not isinstance(turns, Sequence) or not turns or not all(isinstance(turn, Mapping) for turn in turns):
        raise BadRow("conversations", turns, "takes a list of {from, value}; mend the row")
    return list(turns)


def read_llava_human_preference(row: Mapping[str, Any]) -> Read:
    """zhiqings/LLaVA-Human-Preference-10K: the last turn, by gpt, is a placeholder for the two outputs."""
    turns = _conversation(row)
    prompt = turns[:-1] if turns[-1].get("from") in ("gpt", "assistant") else turns
    return prompt, [_field(row, "output_1"), _field(row, "output_2")], _preferred(row)


def read_two_outputs(row: Mapping[str, Any]) -> Read:
    """output_1, output_2 and which is better: 1 or 2, or a float between (LLMBar, AlpacaEval)."""
    return _prompt_text(row), [_field(row, "output_1"), _field(row, "output_2")], _preferred(row)


def _preferred(row: Mapping[str, Any]) -> list[int]:
    """The ranks of output_1 and output_2, by `label` or `preference`."""
    value = _field(row, "label", "preference") if "label" in row else _field(row, "preference", "label")
    number = number_in(value)
    if number is None or not 1 <= number <= 2:
        field = "label" if row.get("label") is not None else "preference"
        raise BadRow(field, value, "takes 1 (output_1 is better), 2, or a number between (1.5 is a tie); mend the row")
    if number == 1.5:
        return [0, 0]
    return [0, 1] if number < 1.5 else [1, 0]


def read_vision_feedback_mix(row: Mapping[str, Any]) -> Read:
    """wangclnlp/vision-feedback-mix-binarized: conversations is a *string*; the last turn has preference_values."""
    turns = _conversation(row)
    check_keys(turns[-1], {*MESSAGE_KEYS, "preference_values"}, "conversations", "the last turn")
    answers = turns[-1].get("preference_values")
    if not isinstance(answers, Sequence) or isinstance(answers, str) or len(answers) < 2:
        raise BadRow("conversations", turns[-1], "the last turn needs preference_values [preferred, dispreferred]")
    return turns[:-1], list(answers), list(range(len(answers)))


def read_rovrm_ranked(row: Mapping[str, Any]) -> Read:
    """The RoVRM authors' JSON: the last turn's value is the list of answers, best to worst."""
    turns = _conversation(row)
    check_keys(turns[-1], MESSAGE_KEYS, "conversations", "the last turn")
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
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        raise BadRow("chosen", chosen, "takes transcripts, two texts; set reader=trl for lists of messages")
    shared = os.path.commonprefix([chosen, rejected])
    end = shared.rfind("\n\nAssistant:")  # of the prompt; -1 for none
    cut = end + len("\n\nAssistant:")
    if end < 0 or not shared.startswith("\n\nHuman:"):
        raise BadRow("chosen", chosen, 'the transcripts share no "\\n\\nHuman: ... \\n\\nAssistant:"; set reader=NAME')
    answers = [chosen[cut:].strip(), rejected[cut:].strip()]
    if any("\n\nHuman:" in answer for answer in answers):
        raise BadRow("chosen", chosen, "the transcripts part before their last answers; drop the row")
    parts = re.split(r"\n\n(Human|Assistant):", shared[:end])  # "", speaker, text, speaker, text, ...
    turns: list[dict[str, Any]] = []
    for speaker, text in zip(parts[1::2], parts[2::2], strict=True):
        role = "user" if speaker == "Human" else "assistant"
        if turns and turns[-1]["role"] == role:  # some transcripts repeat a speaker; chat templates want turns
            turns[-1]["content"] += "\n\n" + text.strip()
        else:
            turns.append({"role": role, "content": text.strip()})
    return turns, answers, [0, 1]


def read_trl(row: Mapping[str, Any]) -> Read:
    """TRL's preference formats: strings or messages, the prompt in its own column or as the answers' shared start."""
    chosen, rejected = _field(row, "chosen"), _field(row, "rejected")
    prompt = next((row[name] for name in (*PROMPT.split("|"), "messages") if row.get(name) is not None), None)
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        _refuse_texts(chosen, rejected)
        return *split_turns(prompt, chosen, rejected), [0, 1]
    if prompt is not None:
        return prompt if row.get("instruction") is not prompt else _prompt_text(row), [chosen, rejected], [0, 1]
    shared = os.path.commonprefix([chosen, rejected])
    shared = shared.removesuffix(" ")  # as in TRL's extract_prompt: the blank belongs to the answers
    return shared, [chosen[len(shared) :], rejected[len(shared) :]], [0, 1]


def read_ms_swift(row: Mapping[str, Any]) -> Read:
    """ms-swift's reward rows: the last of `messages` is the chosen answer; `rejected_response` is a text or messages,
    `rejected_messages` the whole conversation."""
    messages, rejected = _field(row, "messages"), _field(row, "rejected_response", "rejected_messages")
    messages = parsed(messages, "messages")
    if not isinstance(messages, Sequence) or isinstance(messages, str) or len(messages) < 2:
        raise BadRow("messages", messages, "takes the turns of a conversation, the last one the chosen answer; mend it")
    if isinstance(rejected, Sequence) and not isinstance(rejected, str) and len(rejected) > 1:
        return *split_turns(None, messages, rejected), [0, 1]
    return list(messages[:-1]), [messages[-1], rejected], [0, 1]


def _refuse_texts(*answers: Any) -> None:
    """Raises BadRow for several texts where one answer, or a list of messages, is expected."""
    for column, answer in zip(("chosen", "rejected"), answers, strict=True):
        if isinstance(answer, (list, tuple)) and len(answer) > 1 and any(isinstance(item, str) for item in answer):
            reason = f"a list of {len(answer)} texts, where one answer is expected; write all answers as one list "
            raise BadRow(column, answer, reason + "`responses`, best first or with `ranks` beside it")


def read_ranked(row: Mapping[str, Any]) -> Read:
    """prompt, responses and their order: by `ranks` (lower is better, equal is a tie), without them by `scores` (higher
    is better), without both best first. Where both are given, the reader of the row has them agree."""
    responses = _field(row, "responses")
    if isinstance(responses, str) or not isinstance(responses, Sequence):
        raise BadRow("responses", responses, "takes a list of two or more texts; mend the row")
    if not responses:
        raise BadRow("responses", responses, "takes two or more texts, got none; drop the row")
    scores = numbers_of(row, "scores", len(responses))
    ranks = numbers_of(row, "ranks", len(responses))
    if ranks is not None:
        dense_ranks = ranks_of([-rank for rank in ranks])
    elif scores is not None:
        dense_ranks = ranks_of(scores)
    else:
        dense_ranks = list(range(len(responses)))
    return _prompt_text(row), list(responses), dense_ranks


# ---- which reader ----------------------------------------------------------------------------------------------------


class Reader(NamedTuple):
    """A format: how it is told and read.

    columns: those that a row must have; "a|b" stands for either.
    read: a row -> (prompt, responses, ranks).
    fits: a further look at the columns and a row, where other formats have these columns too.
    """

    columns: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], Read]
    fits: Callable[[set[str], Mapping[str, Any]], bool] = lambda columns, row: True


PROMPT = "prompt|question|instruction"
# Ours -> theirs: `response` is a list there, `human_ranking` the rank of each (0 is the best).
VL_REWARDBENCH = {"prompt": "query", "responses": "response", "ranks": "human_ranking"}
PROMPT_COLUMNS = ("conversations", *PROMPT.split("|"), "input", "messages")
TEXT_COLUMNS = {*OPTIONAL, *PROMPT_COLUMNS} - {*IMAGE_COLUMNS}  # a text in these may end as an image's name does


def _is_transcript(columns: set[str], row: Mapping[str, Any]) -> bool:
    """Whether chosen and rejected are whole transcripts, as in hh-rlhf."""
    return not columns & {*PROMPT.split("|")} and str(row.get("chosen", "\n\nHuman:")).startswith("\n\nHuman:")


def _is_trl(columns: set[str], row: Mapping[str, Any]) -> bool:
    """Whether the row holds lists of messages, or two texts that begin with their prompt."""
    if any(isinstance(row.get(name), (list, tuple)) for name in ("prompt", "chosen", "rejected")):
        return True
    # A column that is not known here may hold the prompt, and the two texts none.
    return columns <= {"chosen", "rejected", *OPTIONAL} or (
        "messages" in columns and not columns & {*PROMPT.split("|")}
    )


# From the most to the least particular: the first that fits is taken.
READERS: dict[str, Reader] = {
    "ultrafeedback": Reader(("instruction", "completions"), read_ultrafeedback),
    "ultrafeedback_binarized": Reader(
        ("prompt", "chosen", "rejected", "score_chosen", "score_rejected"), read_ultrafeedback_binarized
    ),
    "rlaif-v": Reader(("ds_name", "image", "question", "chosen", "rejected"), read_plain),
    "rlhf-v": Reader(("ds_name", "image", "text"), read_rlhf_v),
    "llava-human-preference": Reader(("conversations", "output_1", "output_2"), read_llava_human_preference),
    "vlfeedback": Reader(("prompt", "completions"), read_vlfeedback),
    "vision-feedback-mix": Reader(("conversations", "origin_pre_dataset"), read_vision_feedback_mix),
    "sharegpt-ranking": Reader(("conversations", "chosen", "rejected"), read_sharegpt_ranking),
    "rovrm-ranked": Reader(("conversations",), read_rovrm_ranked),
    "ms-swift": Reader(("messages", "rejected_response|rejected_messages"), read_ms_swift),
    "ranked": Reader((f"{PROMPT}|messages", "responses"), read_ranked),
    "two-outputs": Reader((f"{PROMPT}|input", "output_1", "output_2", "label|preference"), read_two_outputs),
    "hh-rlhf": Reader(("chosen", "rejected"), read_hh_rlhf, _is_transcript),
    "trl": Reader(("chosen", "rejected"), read_trl, _is_trl),
    "plain": Reader((PROMPT, "chosen", "rejected"), read_plain),
}


def find_reader(columns: Iterable[str], row: Mapping[str, Any] | None = None) -> str:
    """The name of the reader for these columns; `row`, one of the rows, tells apart formats with the same columns.

    Raises UserError listing the columns, what the nearest readers need, and the remedy.
    """
    present = set(columns)
    for name, reader in READERS.items():
        if not _missing(reader, present) and reader.fits(present, row or {}):
            return name

    def lacking(name: str) -> float:
        return len(_missing(READERS[name], present)) / len(READERS[name].columns)

    nearest = sorted(reversed(READERS), key=lacking)[:3]  # the general formats, the better advice among equals, first
    needs = [_need(name, present) for name in nearest]
    remedy = "Say which column is which with columns.prompt=THEIRS (chosen, rejected alike; in training under the "
    remedy += "phase, as visual.columns.prompt=THEIRS), or name the format: reader=NAME"
    if present >= {*VL_REWARDBENCH.values()}:
        mapping = "&".join(f"columns.{ours}={theirs}" for ours, theirs in VL_REWARDBENCH.items())
        remedy = f"These are rows of VL-RewardBench: read them by SOURCE?{mapping}; to score them, call the columns so"
    columns = ", ".join(sorted(present)) or "(none)"
    raise UserError(f"no reader fits the columns {columns}. Nearest: {'; '.join(needs)}. {remedy}")


def _need(name: str, present: set[str]) -> str:
    missing = ", ".join(_missing(READERS[name], present))
    return f"{name} lacks {missing}" if missing else f"{name} wants other values in them"


def _missing(reader: Reader, present: set[str]) -> list[str]:
    return [needed for needed in reader.columns if not present & set(needed.split("|"))]
