"""Conversations of random shape over every real chat template: each part of a row stands in the text once, in order;
and /get_reward of the text is /score of the messages, or is refused."""

import base64
import functools
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
from helpers import REAL, encoded, noise, says, write_reward_model
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from rovrm.common.errors import UserError
from rovrm.data.prompts import as_example
from rovrm.model.chat import encode, prepare_template
from rovrm.model.loading import load_processor, load_reward_model
from rovrm.model.scorer import RewardScorer
from rovrm.serving.openrlhf import look_at_template, openrlhf_rows
from rovrm.serving.requests import Refusal, check
from rovrm.settings.keys import ServeConfig

FILES = sorted((REAL / "chat_templates").glob("*/chat_template*.jinja"))
FAMILIES = {  # part of the name of a template -> the tiny family that has its special tokens
    "Idefics3": "idefics3", "SmolVLM": "smolvlm", "InternVL3": "internvl", "Qwen2-VL": "qwen2_vl",
    "Qwen2.5-VL": "qwen2_5_vl", "Qwen2.5-7B": "qwen2", "Qwen3-8B": "qwen3", "Qwen3-VL": "qwen3_vl",
    "Qwen3.5": "qwen3_5", "Qwen3.6": "qwen3_5", "gemma-3": "gemma3", "gemma-4": "gemma4", "llava-1.5": "llava",
    "onevision": "llava_onevision", "mistral": "llava_mistral", "vicuna": "llava_next", "Llama-3.1": "llama",
    "Llama-3.2-3B": "llama", "Llama-3.2-11B": "mllama",
}  # fmt: skip
TEXTS = ("Hi.", "What is it?", "First:\n", "\nand\n", " second:", "Is it red?\n\nOr blue?", "Look: 1 < 2")
needs_templates = pytest.mark.skipif(not FILES, reason="the real chat templates are not there")


def name_of(file: Path) -> str:
    return f"{file.parent.name.split('__')[-1]}/{file.stem}"


@pytest.fixture(scope="module")
def scorer_with(family_folder, tmp_path_factory):
    """The scorer of a tiny reward model with the template of a file, as it would be trained."""

    def make(file: Path) -> RewardScorer:
        family = next(family for part, family in FAMILIES.items() if part in str(file.parent))
        folder = write_reward_model(family_folder(family), tmp_path_factory.mktemp("real"), spread=0.3)
        processor = load_processor(folder)
        processor.chat_template = file.read_text()
        prepare_template(processor)
        return RewardScorer(load_reward_model(folder), processor)

    scorers: dict[Path, RewardScorer] = {}
    return lambda file: scorers.setdefault(file, make(file)) if file not in scorers else scorers[file]


def block(kind: str) -> dict[str, Any]:
    return {"type": "image"} if kind == "image" else {"type": "text", "text": kind}


turn = st.lists(st.sampled_from(["image", *TEXTS]), min_size=1, max_size=4)
shapes = st.fixed_dictionaries(
    {
        "system": st.sampled_from([None, "Be brief.", "Be brief.\nBe kind."]),
        "turns": st.lists(turn, min_size=1, max_size=3),
        "answer": st.sampled_from(["Blue.", "It is\nred.", "1 < 2", "<think>\nHm.\n</think>\n\nBlue."]),
    }
)


def conversation(shape: dict[str, Any]) -> list[dict[str, Any]]:
    messages = [{"role": "system", "content": shape["system"]}] if shape["system"] else []
    for kinds in shape["turns"]:
        messages += [
            {"role": "user", "content": [block(kind) for kind in kinds]},
            {"role": "assistant", "content": "So."},
        ]
    return messages[:-1]


template_of = functools.cache(look_at_template)


def get_reward(scorer: RewardScorer, query: str, prompt: str, images: list[Any]) -> list[float]:
    """What the path /get_reward does with one query."""
    pictures = [base64.b64encode(encoded(image)).decode() for image in images]
    rows = openrlhf_rows([query], [prompt], [pictures], template_of(scorer))
    return scorer.score_batch(check(rows, scorer, ServeConfig(model="tiny")).examples)[0]


@needs_templates
@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_a_rendered_conversation_is_scored_as_its_messages(scorer_with, file: Path):
    scorer = scorer_with(file)
    chat = scorer.collator.chat
    same: list[str] = []

    @settings(max_examples=7, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(shape=shapes)
    def agrees(shape: dict[str, Any]) -> None:
        messages = conversation(shape)
        count = sum(kinds.count("image") for kinds in shape["turns"])
        images = [noise(i, (40, 32)) for i in range(count)]
        row = {"prompt": messages, "responses": [shape["answer"]], "images": images}
        [measured] = scorer.measure([row])
        assume(not isinstance(measured, UserError))  # what the template cannot write
        expected = scorer.score_batch([measured])[0]
        [text] = chat.conversations(measured)
        rendered = (text[: text.rindex(shape["answer"])], chat.prompt(measured))
        for prompt in rendered:
            for end in ("", chat.ending(), f"{chat.ending()}{scorer.collator.tokenizer.pad_token}\n"):
                found = get_reward(scorer, prompt + shape["answer"] + end, prompt, images)
                assert found == pytest.approx(expected, abs=1e-5), (prompt, text)
        same.append(text)

    agrees()
    assert len(same) >= 3
    assert not reads_pictures(scorer) or any(chat.image_text() in text for text in same)


# ---- every part once -------------------------------------------------------------------------------------------------

spaces = st.sampled_from(["", "\n", "\n\n", " "])
part = st.one_of(st.just("image"), st.tuples(spaces, st.booleans(), spaces))  # of a text: whether it has two lines
several = st.lists(part, min_size=1, max_size=4)
rows = st.fixed_dictionaries(
    {
        "system": st.one_of(st.none(), st.lists(part, min_size=1, max_size=2)),
        "turns": st.lists(several, max_size=4),
        "roles": st.sampled_from([["user", "assistant"]] * 3 + [["user", "user"], ["assistant", "user"]]),  # in turn
        "pictured": st.sampled_from(["all", "all", "user", ""]),  # whose pictures stay
        "question": several,
        "named": st.booleans(),  # whether blocks hold their pictures, and no column does
        "in_text": st.booleans(),  # whether pictures are placeholders in one text
    }
)


def filled(shape: dict[str, Any]) -> tuple[dict[str, Any], list[str], list[Any], list[range]]:
    """A row of this shape in which no word stands twice, its words, its pictures, and how many pictures may stand
    before each word: those of the turns before, and any of its own turn, which templates may put in front."""
    words: list[str] = []
    before: list[range] = []
    pictures: list[Any] = []

    def content(role: str, parts: list[Any]) -> Any:
        if shape["pictured"] not in ("all", role):
            parts = [("", False, "") if kind == "image" else kind for kind in parts]
        blocks: list[dict[str, Any]] = []
        may_stand = range(len(pictures), len(pictures) + parts.count("image") + 1)
        for kind in parts:
            if kind == "image":
                pictures.append(PICTURES[len(pictures)])
                blocks.append({"type": "image"} | ({"image": pictures[-1]} if shape["named"] else {}))
                continue
            space, two_lines, behind = kind
            for _ in range(1 + two_lines):
                words.append(f"word{len(words)}x")
                before.append(may_stand)
            blocks.append({"type": "text", "text": space + "\n".join(words[-1 - two_lines :]) + behind})
        if shape["in_text"] and not shape["named"]:
            return "".join(block.get("text", "<image>") for block in blocks)
        return blocks

    turns = [("system", shape["system"])] if shape["system"] else []
    turns += [*zip(itertools.cycle(shape["roles"]), shape["turns"]), ("user", shape["question"])]  # noqa: B905
    prompt = [{"role": role, "content": content(role, parts)} for role, parts in turns]
    answers = [f"word{len(words)}x\nand", "Other."]
    column = {} if shape["named"] or not pictures else {"images": list(pictures)}
    return {"prompt": prompt, "chosen": answers[0], "rejected": answers[1]} | column, words, pictures, before


PICTURES = [noise(i, (40, 32)) for i in range(24)]


@needs_templates
@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_every_part_of_a_row_stands_in_the_text_once_and_in_order(scorer_with, file: Path):
    scorer = scorer_with(file)
    chat = scorer.collator.chat
    token = look_at_template(scorer).placeholder
    read: list[int] = []

    @settings(max_examples=55, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(shape=rows)
    def stands_once(shape: dict[str, Any]) -> None:
        row, words, pictures, before = filled(shape)
        try:
            example = as_example(row)
            texts = chat.conversations(example)
        except UserError:
            return
        assert [ref.image for ref in example.images] == pictures
        assert re.findall(r"word\d+x", texts[0]) == [*words, row["chosen"].split()[0]]
        assert texts[1].count("Other.") == 1
        if not pictures:
            assert not token or token not in texts[0]
            read.append(0)
            return
        pieces = re.split(r"word\d+x", texts[0])
        seen = list(itertools.accumulate(piece.count(chat.image_text()) for piece in pieces))
        assert seen[-1] == len(pictures)
        assert all(count in may_stand for count, may_stand in zip(seen, before, strict=False))
        read.append(len(pictures))

    stands_once()
    assert len(read) >= 5 and 0 in read
    assert not reads_pictures(scorer) or max(read) >= 2


def reads_pictures(scorer: RewardScorer) -> bool:
    """Whether the template writes the model's token for an image: InternVL's first script writes another."""
    template = look_at_template(scorer)
    return bool(template.placeholder) and template.placeholder in template.image


@needs_templates
@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_no_prompt_is_wrapped_twice(scorer_with, file: Path):
    """What holds a part of the template and is not a whole prompt in it is refused; a plain question is wrapped."""
    scorer = scorer_with(file)
    chat, template = scorer.collator.chat, look_at_template(scorer)
    [measured] = scorer.measure([{"prompt": "What is it?", "responses": ["Blue."]}])
    whole = chat.prompt(measured)
    opening = next(text for text in template.openings if whole.rstrip().endswith(text))
    for prompt in (whole.rstrip().removesuffix(opening), f"{whole} Well", f"{whole}Blue. And?"):
        with pytest.raises(Refusal) as caught:
            openrlhf_rows([f"{prompt} Blue."], [prompt], None, template)
        assert says(str(caught.value), "prompts[0]", "not in this model's chat template")
    for images in ([], [noise(0, (40, 32))] if reads_pictures(scorer) else []):
        plain = get_reward(scorer, "What is it? Blue.", "What is it?", images)
        assert plain == pytest.approx(scorer.score("What is it?", ["Blue."], images=images), abs=1e-5)


@needs_templates
@pytest.mark.parametrize("name", ["Qwen2.5-VL", "llava-1.5", "InternVL3", "gemma-3"])
def test_a_rendered_prompt_with_data_sets_placeholders_or_the_wrong_count(scorer_with, name: str):
    scorer = scorer_with(next(f for f in FILES if name in str(f) and f.stem == "chat_template"))
    chat = scorer.collator.chat
    [measured] = scorer.measure([{"prompt": "First: {} second: {}?", "responses": ["Blue."]}])
    prompt, pictures = chat.prompt(measured), [noise(0, (40, 32)), noise(1, (32, 40))]
    by_name, by_token = (prompt.format(text, text) for text in ("<image>", chat.image_text()))
    found, expected = (get_reward(scorer, f"{p} Blue.", p, pictures) for p in (by_name, by_token))
    assert found == pytest.approx(expected, abs=1e-5)
    swapped = get_reward(scorer, f"{by_name} Blue.", by_name, pictures[::-1])
    assert abs(swapped[0] - found[0]) > 1e-4
    for given_pictures in ([], pictures[:1], [*pictures, noise(2)]):
        with pytest.raises(Refusal, match="2 (image placeholders|places) for"):
            get_reward(scorer, f"{by_name} Blue.", by_name, given_pictures)
    numbered = prompt.format("<image 2>", "<image 1>")
    with pytest.raises(Refusal, match="holds '<image 2>'; send <image>"):
        get_reward(scorer, f"{numbered} Blue.", numbered, pictures)


@pytest.mark.parametrize(
    "family", ["llava", "llava_next", "qwen2_5_vl", "internvl", "gemma3", "idefics3", "smolvlm", "mllama"]
)
def test_a_query_decoded_from_the_tokens_of_a_policy(family_folder, tmp_path, family):
    """It holds every token of a picture, and those that the processor adds around: read as one picture, or refused."""
    folder = write_reward_model(family_folder(family), tmp_path, spread=0.3)
    scorer = RewardScorer(load_reward_model(folder), load_processor(folder))
    blocks = [block(kind) for kind in ("image", "What is it?")]
    messages = [*conversation({"system": None, "turns": [["Hi."]]}), {"role": "assistant", "content": "So."}]
    messages.append({"role": "user", "content": blocks})
    picture = noise(0, (40, 32))
    [measured] = scorer.measure([{"prompt": messages, "responses": ["Blue."], "images": [picture]}])
    prompt = scorer.collator.chat.prompt(measured)
    batch = encode(scorer.processor, [prompt], [[picture]])
    decoded = scorer.collator.tokenizer.decode(batch["input_ids"][0], skip_special_tokens=False)
    try:
        found = get_reward(scorer, f"{decoded} Blue.", decoded, [picture])
    except Refusal:
        assert family in ("internvl", "gemma3", "idefics3", "smolvlm")
    else:
        assert found == pytest.approx(scorer.score(messages, ["Blue."], images=picture), abs=1e-5)
