"""Prompts that are run once, with their answers on their state, against separate rows: values and gradients of every
family that shares. The table of all families:

    python -m pytest -m slow -k table -s tests/test_prefix_states.py
"""

import dataclasses
import os
import shutil
from itertools import zip_longest

import pytest
import torch
from families import FAMILIES, VISION_FAMILIES, has_torchvision
from helpers import REAL, change_json, read_lines
from new_families import NEEDS_TORCHVISION, NEW_FAMILIES, NEW_VISION_FAMILIES
from parity import (
    TOLERANCE,
    bfloat16_errors,
    changes_by_image,
    checkpointed,
    example,
    gradient_differences,
    max_images,
    oracle,
    reward_difference,
    rewards_of,
    template_difference,
)
from transformers import DynamicCache

from rovrm.common.errors import UserError
from rovrm.data.prompts import as_example
from rovrm.model import collator as collators
from rovrm.model import modeling
from rovrm.model.batches import LOSS_KEYS, split_batch
from rovrm.model.chat import prepare_template
from rovrm.model.collator import Cost, RewardCollator, common_prefix_length, why_not_shared
from rovrm.model.loading import load_processor, load_reward_model

SEPARATE = {
    "paligemma": "its whole input sees both ways",
    "idefics2": "a space behind an image",
    "llama4_text": "chunked attention counts the padding",
}
NAMES = [name for name in [*FAMILIES, *NEW_FAMILIES] if name not in SEPARATE]  # of those that share
TEMPLATES = {
    "llava": "llava-hf__llava-1.5-7b-hf",
    "llava_next": "llava-hf__llava-v1.6-mistral-7b-hf",
    "llava_onevision": "llava-hf__llava-onevision-qwen2-7b-ov-hf",
    "qwen2_vl": "Qwen__Qwen2-VL-7B-Instruct",
    "qwen2_5_vl": "Qwen__Qwen2.5-VL-7B-Instruct",
    "qwen3_vl": "Qwen__Qwen3-VL-8B-Instruct",
    "idefics3": "HuggingFaceM4__Idefics3-8B-Llama3",
    "smolvlm": "HuggingFaceTB__SmolVLM2-2.2B-Instruct",
    "internvl": "OpenGVLab__InternVL3-8B-hf",
    "gemma3": "google__gemma-3-4b-it",
    "mllama": "meta-llama__Llama-3.2-11B-Vision-Instruct",
    "llama": "meta-llama__Llama-3.1-8B-Instruct",
    "qwen2": "Qwen__Qwen2.5-7B-Instruct",
    "qwen3": "Qwen__Qwen3-8B",
    "qwen3_5": "Qwen__Qwen3.5-4B",
    "qwen3_5_text": "Qwen__Qwen3.5-0.8B",
    "qwen3_5_moe": "Qwen__Qwen3.6-27B",
    "gemma4": "google__gemma-4-E2B-it",
    "gemma4_moe": "google__gemma-4-E2B-it",
    "gemma4_text": "google__gemma-4-E2B-it",
    "qwen3_vl_moe": "Qwen__Qwen3-VL-8B-Instruct",
}


def possible(names):
    """Names as parameters; those whose image processor this environment lacks are skipped."""
    absent = pytest.mark.skipif(not has_torchvision(), reason="its image processor needs torchvision")
    return [pytest.param(name, marks=absent) if name in NEEDS_TORCHVISION else name for name in names]


SHARED = possible(NAMES)


@pytest.mark.parametrize("name", SHARED)
def test_shared_rows_equal_separate_rows(loaded, name):
    assert reward_difference(*loaded(name), ks=(1, 2, 4)) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARED)
def test_shared_rows_of_many_answers_equal_separate_rows(loaded, name):
    assert reward_difference(*loaded(name), ks=(8,)) < TOLERANCE


@pytest.mark.parametrize("name", SHARED)
def test_gradients_agree(loaded, name):
    assert max(gradient_differences(*loaded(name))) < TOLERANCE


@pytest.mark.parametrize("name", SHARED)
def test_bfloat16_stays_as_near_as_separate_rows_do(loaded, name):
    error, usual = bfloat16_errors(*loaded(name))
    assert error < 3 * usual + 1e-3


@pytest.mark.parametrize("name", TEMPLATES)
def test_real_chat_templates(loaded, name):
    file = REAL / "chat_templates" / TEMPLATES[name] / "chat_template.jinja"
    if not file.is_file():
        pytest.skip("the real chat templates are not there")
    assert template_difference(*loaded(name), file.read_text()) < TOLERANCE


@pytest.mark.parametrize("name", possible([*VISION_FAMILIES, *NEW_VISION_FAMILIES]))
def test_another_image_moves_the_reward(loaded, name):
    for change in changes_by_image(*loaded(name)):
        # the window of sliding Mistral ends behind a longer answer's image
        seen = change[:1] if name == "llava_mistral_sliding" else change
        assert seen.abs().min() > 100 * TOLERANCE


@pytest.mark.parametrize("name", SEPARATE)
def test_families_off_the_list_fall_back(loaded, name):
    model, processor = loaded(name)
    assert SEPARATE[name] in why_not_shared(model.config)
    with pytest.raises(UserError, match="rows=shared is inexact"):
        RewardCollator(processor, model.config, "shared")
    separate = RewardCollator(processor, model.config)
    examples = [example(k, min(1, max_images(model)), k) for k in (2, 4)]
    with torch.no_grad():
        together, alone = rewards_of(model, separate, examples), oracle(model, separate, examples)
        [text] = rewards_of(model, separate, [example(2, 0, 1)])
    assert not separate.shared and torch.isfinite(text).all()
    torch.testing.assert_close(torch.cat(together), torch.cat(alone), atol=TOLERANCE, rtol=0)


def test_why_they_are_separate(loaded, monkeypatch):
    """Were they shared, chunks would be counted from the padding on, and a word behind an image be another token."""
    monkeypatch.setattr(collators, "why_not_shared", lambda config: None)
    model, processor = loaded("llama4_text")
    asked = [[{"role": "user", "content": text}] for text in ("What?", "What is on the long table in the picture?")]
    examples = [dataclasses.replace(example(4, 0, 1), prompt=prompt) for prompt in asked]
    separate, shared = RewardCollator(processor, model.config, "separate"), RewardCollator(processor, model.config)
    with torch.no_grad():
        expected = oracle(model, separate, examples)
        alone, together = oracle(model, shared, examples), rewards_of(model, shared, examples)
    torch.testing.assert_close(torch.cat(alone), torch.cat(expected), atol=TOLERANCE, rtol=0)
    assert (torch.cat(together) - torch.cat(expected)).abs().max() > 100 * TOLERANCE
    model, processor = loaded("idefics2")
    table = dataclasses.replace(example(2, 1, 1), prompt=[{"role": "user", "content": "table or book?"}])
    with pytest.raises(UserError, match="changes the text behind an image"):
        RewardCollator(processor, model.config)([table])


def test_eager_attention(loaded, family_folder):
    model, processor = loaded("llava")
    eager = type(model).from_pretrained(str(family_folder("llava")), attn_implementation="eager").eval()
    eager.load_state_dict(model.state_dict())
    collator = RewardCollator(processor, model.config, "shared")
    examples = [example(4, 1, 1), example(2, 0, 2)]
    with torch.no_grad():
        expected, found = rewards_of(model, collator, examples), rewards_of(eager, collator, examples)
    torch.testing.assert_close(torch.cat(found), torch.cat(expected), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("broken", ["positions", "owners", "padding"])
def test_the_comparison_has_teeth(loaded, broken):
    """It fails where answers begin at position 0, go on from another's prompt, or see the padding of a prompt."""
    model, processor = loaded("llava")
    collator = RewardCollator(processor, model.config, "shared")
    batch = collator([example(4, 1, 1), example(4, 0, 2)])
    inputs = {k: v for k, v in batch.items() if k not in LOSS_KEYS}
    with torch.no_grad():
        expected = model(**inputs).logits
        if broken == "positions":
            inputs["answer_position_ids"] = torch.arange(inputs["answer_input_ids"].shape[1])[None].expand(8, -1)
        elif broken == "owners":
            inputs["owners"] = 1 - inputs["owners"]
        else:
            inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
        found = model(**inputs).logits
    assert (found - expected).abs().max() > 100 * TOLERANCE


def test_a_state_is_left_as_it_was(loaded):
    """Many forwards may go on from one state, in any order: none sees what another added."""
    model, processor = loaded("llama")
    prefix, answers = torch.arange(40, 60)[None], [torch.arange(70, 75)[None], torch.arange(80, 83)[None]]
    state = modeling.PrefixCache(model.config)

    def hidden(ids):
        mask, position = torch.ones(1, 20 + ids.shape[1]), 20 + torch.arange(ids.shape[1])[None]
        return model.model(
            ids,
            attention_mask=mask,
            position_ids=position,
            past_key_values=state.of(torch.tensor([0])),
            use_cache=False,
        ).last_hidden_state

    with torch.no_grad():
        model.model(prefix, past_key_values=state, use_cache=False)
        first = [hidden(ids) for ids in answers]
        again = [hidden(ids) for ids in reversed(answers)][::-1]
        for ids, one, other in zip(answers, first, again, strict=True):
            plain = DynamicCache(config=model.config)
            model.model(prefix, past_key_values=plain)
            expected = model.model(ids, past_key_values=plain).last_hidden_state
            torch.testing.assert_close(one, expected, atol=TOLERANCE, rtol=0)
            assert torch.equal(one, other)


def test_reentrant_checkpointing_is_refused(loaded):
    model, processor = loaded("llama")
    with (
        checkpointed(model, use_reentrant=True),
        pytest.raises(ValueError, match="use_reentrant=True loses the gradients of the prompt; set"),
    ):
        rewards_of(model, RewardCollator(processor, model.config), [example(2, 0)])


def test_prefix_is_two_short_of_the_shortest():
    assert common_prefix_length([[1, 2, 3, 4], [1, 2, 3, 4]]) == 2
    assert common_prefix_length([[1, 2, 3, 4], [1, 2, 3, 4, 5]]) == 2
    assert common_prefix_length([[1, 2, 3, 4], [1, 9, 3, 4]]) == 1
    assert common_prefix_length([[5]]) == common_prefix_length([[5, 6]]) == 0


def test_cost_counts_padding_and_copies():
    short, long = Cost(1, 100, 2, 10), Cost(1, 160, 4, 30)
    assert short.tokens == 100 + 2 * (10 + 12)
    assert short.joined(long) == Cost(2, 160, 6, 30)
    assert short.joined(long).tokens == 2 * 160 + 6 * (30 + 20)


def test_split_respects_the_budget(loaded):
    model, processor = loaded("llama")
    shared, separate = RewardCollator(processor, model.config), RewardCollator(processor, model.config, "separate")
    assert shared.split((16, [5, 5, 5]), 16 + 2 * 7) == [[0, 1], [2]]
    assert shared.split((16, [50, 5]), 20) == [[0], [1]]
    assert shared.split((10, [1]), 5) == [[0]]
    assert separate.split((10, [5, 5, 5]), 30) == [[0, 1], [2]]
    assert separate.split((10, [5, 20, 5]), 45) == [[0], [1], [2]]


def test_conversations_that_share_nothing_are_refused(loaded, monkeypatch):
    """When they are measured, before any training: a prompt of padding alone has no state to go on from."""
    model, processor = loaded("llama")
    collator = RewardCollator(processor, model.config)
    monkeypatch.setattr(collator, "_tokenized", lambda texts: [[4, 2, 3], [5, 2, 3]])
    with pytest.raises(UserError, match="share no token; write a prompt, or set rows=separate"):
        collator.lengths(example(2, 0), [])


def test_image_token_in_a_response_is_refused(loaded):
    model, processor = loaded("llava")
    bad = dataclasses.replace(example(2, 1, 1), responses=["fine", "an <image> here"])
    with pytest.raises(UserError, match="an answer holds text only"):
        RewardCollator(processor, model.config)([bad])


def test_more_placeholders_than_images_is_refused(loaded):
    model, processor = loaded("llava")
    two = [{"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "?"}]}]
    with pytest.raises(UserError, match="2 image placeholders for 1 images"):
        RewardCollator(processor, model.config)([dataclasses.replace(example(2, 1, 1), prompt=two)])


def test_standard_logits_read_the_last_attended_token(loaded):
    """Of whole conversations, whatever pads and on which side."""
    model, processor = loaded("llama")
    processor.pad_token = processor.eos_token
    texts = ["one two", "one two three four five"]
    with torch.no_grad():
        alone = [model(**processor([text], return_tensors="pt")).logits[0] for text in texts]
        for side in ("left", "right"):
            batch = processor(texts, return_tensors="pt", padding=True, padding_side=side)
            torch.testing.assert_close(model(**batch).logits, torch.stack(alone), atol=TOLERANCE, rtol=0)


def test_the_decoder_of_a_text_model_is_its_backbone(loaded):
    """Of Llama 4 too, whose base class looks for another name."""
    for name in ("llama4_text", "gemma4_text"):
        model, _ = loaded(name)
        assert model.get_decoder() is model.model


def test_attention_is_never_flash(loaded, family_folder, tmp_path):
    """Not even where a config asks for it; eager where the class has no other."""
    assert loaded("gemma2")[0].config._attn_implementation == "eager"
    folder = shutil.copytree(family_folder("llama4_text"), tmp_path / "flash")
    change_json(folder / "config.json", attn_implementation="flash_attention_2")
    assert load_reward_model(str(folder)).config._attn_implementation == "sdpa"


@pytest.mark.slow
def test_table(loaded):
    """Prints what eval/README.md shows of every family that shares, two families a line."""
    rows = []
    for name in [name for name in NAMES if has_torchvision() or name not in NEEDS_TORCHVISION]:
        model, processor = loaded(name)
        figures = [reward_difference(model, processor), *gradient_differences(model, processor)]
        assert max(figures) < TOLERANCE
        shared, separate = bfloat16_errors(model, processor)
        rows.append(" | ".join([name, *(f"{value:.0e}" for value in figures), f"{shared:.3f} ({separate:.3f})"]))
    print("\n|" + 2 * " family | rewards | gradients | checkpointed | bfloat16 |" + "\n|" + 10 * "---|")
    for left, right in zip_longest(rows[::2], rows[1::2], fillvalue=" | " * 4):
        print(f"| {left} | {right} |")


@pytest.mark.slow
@pytest.mark.skipif("ROVRM_SMOLLM2" not in os.environ or not REAL.is_dir(), reason="needs real weights and answers")
def test_real_weights():
    """Prints what eval/README.md shows of SmolLM2-135M-Instruct, whose folder ROVRM_SMOLLM2 names."""
    folder = os.environ["ROVRM_SMOLLM2"]
    processor = load_processor(folder)
    prepare_template(processor)
    rows = read_lines(REAL / "text_prefs" / "alpaca_eval_gpt4turbo.jsonl")[:8]
    answers = [[row["output_1"], row["output_2"], row["output_1"][:200]] for row in rows]
    examples = [
        as_example({"prompt": row["instruction"], "responses": texts}, i)
        for i, (row, texts) in enumerate(zip(rows, answers, strict=True))
    ]
    rewards = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = load_reward_model(folder, dtype).eval()
        torch.manual_seed(1)
        model.score.weight.data.normal_(0, 0.02)
        for kind in ("separate", "shared"):
            collator = RewardCollator(processor, model.config, kind)
            batches = [split_batch(collator(examples[i : i + 4]))[0] for i in (0, 4)]
            with torch.no_grad():
                rewards[dtype, kind] = torch.cat([model(**batch).logits[:, 0] for batch in batches])
    exact = rewards[torch.float32, "separate"]
    errors = {key: (of_kind - exact).abs() for key, of_kind in rewards.items()}
    for (dtype, kind), error in errors.items():
        print(f"{kind} rows in {dtype}: greatest {error.max():.1e}, mean {error.mean():.1e}")
    assert errors[torch.float32, "shared"].max() < 1e-5
    assert errors[torch.bfloat16, "shared"].mean() < 1.5 * errors[torch.bfloat16, "separate"].mean()
