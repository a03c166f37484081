"""Shared-prefix rows against separate rows: every family on the shared list, values and gradients."""

import dataclasses

import pytest
import torch
from families import TEXT_FAMILIES, VISION_FAMILIES
from helpers import noise

from rovrm.common.errors import UserError
from rovrm.data.example import Example
from rovrm.data.images import ImageRef
from rovrm.model import collator as rows
from rovrm.model import modeling
from rovrm.model.batches import LOSS_KEYS
from rovrm.model.loading import load_processor, load_reward_model
from rovrm.training.losses import compare, preference_loss

TOLERANCE = 1e-5
SHARED = [
    "llava", "llava_mistral", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "idefics3",
    "smolvlm", "internvl", "llama", "qwen2", "qwen3",
]  # fmt: skip
SEPARATE = ["gemma3", "paligemma", "mllama", "llava_mistral_sliding"]
ANSWERS = ["A red cup.", "A red cup stands on it.", "", "A", "Two dogs, 3 cats!", "A red cup.", "no", "It is\n\nblue."]


def noise_image(seed: int, size: tuple[int, int] = (64, 48)) -> ImageRef:
    return ImageRef(image=noise(seed, size))


def example(k: int, images: int, seed: int = 0) -> Example:
    """k responses, among them an empty one, prefixes of others and identical ones, about 0 to 2 images."""
    pictures = [noise_image(seed + i, (64, 48) if i == 0 else (40, 80)) for i in range(images)]
    question = [{"role": "user", "content": f"What is on table number {seed}?"}]
    return Example(f"e{seed}", "test", question, ANSWERS[:k], list(range(k)), pictures)


@pytest.fixture(scope="module")
def loaded(family_folder):
    cache = {}

    def load(name):
        if name not in cache:
            folder = str(family_folder(name))
            torch.manual_seed(0)
            model = load_reward_model(folder).eval()
            model.score.weight.data.mul_(0.3 / model.score.weight.data.std() / model.score.weight.shape[1] ** 0.5)
            cache[name] = (model, load_processor(folder))
        return cache[name]

    return load


def rewards_of(model, collator, examples):
    """Rewards per example as differentiable tensors, in response order."""
    batch = collator(examples)
    logits = model(**{k: v for k, v in batch.items() if k not in LOSS_KEYS}).logits
    found = [[None] * len(e.responses) for e in examples]
    for i, owner in enumerate(batch["list_ids"].tolist()):
        for j, response in enumerate(batch["response_ids"][i].tolist()):
            if response >= 0:
                found[owner][response] = logits[i, j]
    return [torch.stack(one) for one in found]


def gradients(model, rewards, examples):
    model.zero_grad()
    loss = torch.zeros(())
    for one, e in zip(rewards, examples, strict=True):
        labels = torch.tensor([e.ranks])
        loss = loss + preference_loss(compare(one[None], labels, torch.zeros(1, dtype=torch.long)), torch.zeros(1))
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def oracle(model, collator, examples):
    """Separate rows, one example at a time: the processor's own batches, image repeated for every response."""
    return [rewards_of(model, collator, [e])[0] for e in examples]


def max_images(name):
    return 0 if name in TEXT_FAMILIES else 2


@pytest.mark.parametrize("name", SHARED)
def test_shared_rows_equal_separate_rows(loaded, name):
    model, processor = loaded(name)
    separate = rows.RewardCollator(processor, model.config, "separate")
    for k, side in ((2, "right"), (4, "left"), (8, "right")):
        examples = [example(k, min(1, max_images(name)), 1), example(k, 0, 2), example(2, max_images(name), 3)]
        shared = rows.RewardCollator(processor, model.config, "auto", padding_side=side)
        assert shared.shared
        for e in examples:  # what the batches are planned by is what they hold
            lengths = shared.lengths(e, [ref.open() for ref in e.images])
            assert shared.cost(lengths) == tuple(shared([e])["input_ids"].shape)
        found, expected = rewards_of(model, shared, examples), oracle(model, separate, examples)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, atol=TOLERANCE, rtol=0)
        spread = torch.cat([one - one.mean() for one in expected])
        assert spread.abs().max() > 100 * TOLERANCE, "the responses are not told apart: the comparison shows nothing"


@pytest.mark.parametrize("name", SHARED)
def test_gradients_agree(loaded, name):
    model, processor = loaded(name)
    examples = [example(4, min(1, max_images(name)), 1), example(2, max_images(name), 3)]
    shared = rows.RewardCollator(processor, model.config, "shared")
    separate = rows.RewardCollator(processor, model.config, "separate")
    found = gradients(model, rewards_of(model, shared, examples), examples)
    expected = gradients(model, oracle(model, separate, examples), examples)
    assert found.keys() == expected.keys()
    largest = max(g.abs().max().item() for g in expected.values())
    for key, gradient in expected.items():
        torch.testing.assert_close(
            found[key], gradient, atol=TOLERANCE * largest, rtol=0, msg=lambda m, key=key: f"{key}: {m}"
        )
    if max_images(name):
        touched = [
            g for key, g in expected.items() if any(part in key for part in ("projector", "connector", "merger"))
        ]
        assert touched and max(g.abs().max() for g in touched) > 0


@pytest.mark.parametrize("name", [n for n in SHARED + SEPARATE if n in VISION_FAMILIES])
def test_another_image_moves_the_reward(loaded, name):
    model, processor = loaded(name)
    for mode in ("auto", "separate"):
        collator = rows.RewardCollator(processor, model.config, mode)
        one, other = example(2, 1, 1), dataclasses.replace(example(2, 1, 1), images=[noise_image(99)])
        with torch.no_grad():
            change = rewards_of(model, collator, [one])[0] - rewards_of(model, collator, [other])[0]
        seen = (
            change[:1] if name == "llava_mistral_sliding" else change
        )  # its window ends behind a longer answer's image
        assert seen.abs().min() > 100 * TOLERANCE


@pytest.mark.parametrize("name", SEPARATE)
def test_families_off_the_list_fall_back(loaded, name):
    model, processor = loaded(name)
    assert rows.why_not_shared(model.config)
    with pytest.raises(UserError, match="rows=shared is inexact"):
        rows.RewardCollator(processor, model.config, "shared")
    collator = rows.RewardCollator(processor, model.config, "auto")
    examples = [example(2, 1, 1), example(4, 1, 2)]
    with torch.no_grad():
        together, alone = rewards_of(model, collator, examples), oracle(model, collator, examples)
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, atol=TOLERANCE, rtol=0)
    with torch.no_grad():
        text = rewards_of(model, collator, [example(2, 0, 1)])[0]
    assert torch.isfinite(text).all()


def test_eager_attention_takes_the_mask_too(loaded, family_folder):
    model, processor = loaded("llava")
    eager = type(model).from_pretrained(str(family_folder("llava")), attn_implementation="eager").eval()
    eager.load_state_dict(model.state_dict())
    collator = rows.RewardCollator(processor, model.config, "shared")
    examples = [example(4, 1, 1), example(2, 0, 2)]
    with torch.no_grad():
        expected, found = rewards_of(model, collator, examples), rewards_of(eager, collator, examples)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("broken", ["mask", "restart"])
def test_without_mask_or_restart_rewards_differ(loaded, monkeypatch, broken):
    """The comparison above has teeth: it fails without the mask, and without the restart of positions."""
    model, processor = loaded("llava")
    collator = rows.RewardCollator(processor, model.config, "shared")
    examples = [example(4, 1, 1)]
    with torch.no_grad():
        expected = rewards_of(model, collator, examples)[0]
        if broken == "mask":
            causal = lambda segments: torch.ones(*[segments.shape[1]] * 2, dtype=torch.bool).tril()[None, None]  # noqa: E731
            monkeypatch.setattr(modeling, "shared_prefix_mask", causal)
        else:
            padded = rows.pad_rows
            monkeypatch.setattr(
                rows,
                "pad_rows",
                lambda *a: padded(*a) | {"position_ids": torch.arange(padded(*a)["input_ids"].shape[1])[None]},
            )
        found = rewards_of(model, collator, examples)[0]
    assert (found - expected)[1:].abs().max() > 100 * TOLERANCE
    assert (found - expected)[0].abs() < TOLERANCE  # the first response stands where it would stand alone


def test_long_rows_split_and_agree(loaded):
    model, processor = loaded("qwen2_5_vl")
    whole = rows.RewardCollator(processor, model.config, "shared")
    examples = [example(8, 2, 1), example(2, 0, 2)]
    prefix, own = whole.lengths(examples[0], [ref.open() for ref in examples[0].images])
    split = rows.RewardCollator(processor, model.config, "shared", row_tokens=prefix + max(own) + 3)
    assert split(examples)["input_ids"].shape[0] > 2
    assert split.cost((prefix, own))[0] == split(examples)["input_ids"].shape[0] - 1
    with torch.no_grad():
        for one, other in zip(rewards_of(model, split, examples), rewards_of(model, whole, examples), strict=True):
            torch.testing.assert_close(one, other, atol=TOLERANCE, rtol=0)


def test_prefix_is_one_short_of_the_shortest():
    assert rows.shared_prefix_length([[1, 2, 3], [1, 2, 3]]) == 2
    assert rows.shared_prefix_length([[1, 2, 3], [1, 2, 3, 4]]) == 2
    assert rows.shared_prefix_length([[1, 2, 3], [1, 9, 3, 4]]) == 1
    assert rows.shared_prefix_length([[5]]) == 0


def test_row_layout():
    conversations = [[7, 8, 1, 2], [7, 8, 3]]
    row = rows.build_row(conversations, [0, 1], lambda ids: torch.arange(len(ids))[None], 2)
    assert row.input_ids == [7, 8, 1, 2, 3]
    assert row.segment_ids == [0, 0, 1, 1, 2]
    assert row.position_ids.tolist() == [[0, 1, 2, 3, 2]]
    assert row.reward_positions == [3, 4]
    mask = modeling.shared_prefix_mask(torch.tensor([row.segment_ids]))[0, 0].int().tolist()
    assert mask == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1]]


def test_split_responses_respects_the_budget():
    assert rows.split_responses(10, [5, 5, 5], 20) == [[0, 1], [2]]
    assert rows.split_responses(10, [50, 5], 20) == [[0], [1]]
    assert rows.split_responses(10, [1], 5) == [[0]]


def test_image_token_in_a_response_is_refused(loaded):
    model, processor = loaded("llava")
    bad = dataclasses.replace(example(2, 1, 1), responses=["fine", "an <image> here"])
    with pytest.raises(UserError, match="image tokens '<image>' for 1 images"):
        rows.RewardCollator(processor, model.config)([bad])


def test_more_placeholders_than_images_is_refused(loaded):
    model, processor = loaded("llava")
    two = [{"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "?"}]}]
    with pytest.raises(UserError, match="2 image placeholders for 1 images"):
        rows.RewardCollator(processor, model.config)([dataclasses.replace(example(2, 1, 1), prompt=two)])


def test_standard_logits_read_the_last_attended_token(loaded):
    """Without reward positions the logits are (rows, 1) at the last attended token, whatever pads and on which side."""
    model, processor = loaded("llama")
    processor.pad_token = processor.eos_token
    texts = ["one two", "one two three four five"]
    with torch.no_grad():
        alone = [model(**processor([text], return_tensors="pt")).logits[0] for text in texts]
        for side in ("left", "right"):
            batch = processor(texts, return_tensors="pt", padding=True, padding_side=side)
            torch.testing.assert_close(model(**batch).logits, torch.stack(alone), atol=TOLERANCE, rtol=0)
