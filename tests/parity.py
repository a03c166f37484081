"""Shared rows against separate ones on tiny checkpoints: the comparisons of tests/test_prefix_states.py and
tests/test_prefix_states.py, and the table of both in eval/README.md.

Each `model` is a reward model with its head scaled so that rewards differ by tenths.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from helpers import noise

from rovrm.data.example import Example
from rovrm.data.images import ImageRef
from rovrm.model import modeling
from rovrm.model.batches import LOSS_KEYS
from rovrm.model.collator import RewardCollator
from rovrm.model.loading import PROJECTORS, load_processor, load_reward_model
from rovrm.training.losses import compare, preference_loss

TOLERANCE = 1e-5
ANSWERS = ["A red cup.", "A red cup stands on it.", "", "A", "Two dogs, 3 cats!", "A red cup.", "no", "It is\n\nblue."]


# ---- models and examples ---------------------------------------------------------------------------------------------


def load(folder):
    """The reward model and the processor of a language model's folder."""
    torch.manual_seed(0)
    model = load_reward_model(str(folder)).eval()
    model.score.weight.data.mul_(0.3 / model.score.weight.data.std() / model.score.weight.shape[1] ** 0.5)
    return model, load_processor(str(folder))


def noise_image(seed: int, size: tuple[int, int] = (64, 48)) -> ImageRef:
    return ImageRef(image=noise(seed, size))


def example(k: int, images: int, seed: int = 0) -> Example:
    """k responses, among them an empty one, prefixes of others and identical ones, about 0 to 2 images."""
    pictures = [noise_image(seed + i, (64, 48) if i == 0 else (40, 80)) for i in range(images)]
    question = [{"role": "user", "content": f"What is on table number {seed}?"}]
    return Example(f"e{seed}", "test", question, ANSWERS[:k], list(range(k)), pictures)


def max_images(model) -> int:
    return 0 if getattr(model.config, "vision_config", None) is None else 2


def batches(model, processor, k):
    """Examples of a batch: k answers about one image, two about two images of other sizes, k about a text; the text
    apart where the processor never mixes them."""
    most = max_images(model)
    pictured, text = [example(k, min(1, most), 1), example(2, most, 3)], [example(k, 0, 2)]
    return [pictured + text] if RewardCollator(processor, model.config).mixes_images else [pictured, text]


# ---- rewards and gradients -------------------------------------------------------------------------------------------


def rewards_of(model, collator, examples):
    """Rewards per example as differentiable tensors, in response order."""
    batch = collator(examples)
    rewards = model(**{k: v for k, v in batch.items() if k not in LOSS_KEYS}).logits[:, 0]
    assert len(rewards) == len(batch["labels"]) == sum(len(e.responses) for e in examples)
    return [rewards[batch["list_ids"] == i] for i in range(len(examples))]


def oracle(model, collator, examples):
    """Separate rows, one example at a time: the processor's own batches, image repeated for every response."""
    return [rewards_of(model, collator, [e])[0] for e in examples]


def gradients(model, rewards, examples):
    model.zero_grad()
    loss = torch.zeros(())
    for one, e in zip(rewards, examples, strict=True):
        labels = torch.tensor(e.ranks)
        loss = loss + preference_loss(compare(one, labels, torch.zeros_like(labels)), torch.zeros(1))
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@contextmanager
def checkpointed(model, use_reentrant: bool = False) -> Iterator[None]:
    """In train mode, every layer under activation checkpointing."""
    model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    model.train()
    try:
        yield
    finally:
        model.activation_checkpointing_disable()
        model.eval()


# ---- differences -----------------------------------------------------------------------------------------------------


def reward_difference(model, processor, ks=(1, 2, 4, 8)) -> float:
    """The greatest difference of a reward, over batches with k answers to a prompt."""
    separate, shared = RewardCollator(processor, model.config, "separate"), RewardCollator(processor, model.config)
    assert shared.shared
    greatest, spread = 0.0, 0.0
    for k in ks:
        for examples in batches(model, processor, k):
            for e in examples:  # what the batches are planned by is what they hold
                cost = shared.cost(shared.lengths(e, [ref.open() for ref in e.images]))
                batch = shared([e])
                assert cost[:2] == batch["input_ids"].shape and cost[2:] == batch["answer_input_ids"].shape
            with torch.no_grad():
                found, expected = rewards_of(model, shared, examples), oracle(model, separate, examples)
            greatest = max([greatest, *((a - b).abs().max().item() for a, b in zip(found, expected, strict=True))])
            spread = max([spread, *(one.std(correction=0).item() for one in expected)])
    assert spread > 100 * TOLERANCE, "the responses are not told apart: nothing is shown"
    return greatest


def gradient_differences(model, processor) -> tuple[float, float]:
    """The greatest difference of a gradient of any weight, the vision tower's too, relative to the largest gradient:
    plain, and with every layer checkpointed."""
    examples = [example(4, min(1, max_images(model)), 1), example(2, max_images(model), 3)]
    shared, separate = RewardCollator(processor, model.config), RewardCollator(processor, model.config, "separate")
    expected = gradients(model, oracle(model, separate, examples), examples)
    if max_images(model):
        touched = [g for key, g in expected.items() if set(PROJECTORS) & set(key.split("."))]
        assert touched and max(g.abs().max() for g in touched) > 0
    plain = _distance(gradients(model, rewards_of(model, shared, examples), examples), expected)
    runs = []
    layer = next(m for m in model.get_decoder().modules() if isinstance(m, modeling.GradientCheckpointingLayer))
    inner = next(m for _, m in layer.named_modules() if isinstance(m, torch.nn.Linear))
    hook = inner.register_forward_pre_hook(lambda *_: runs.append(1))
    try:
        with checkpointed(model):
            found = gradients(model, rewards_of(model, shared, examples), examples)
    finally:
        hook.remove()
    assert len(runs) == 4, "each layer runs on the prompts and on the answers, and again for the backward"
    return plain, _distance(found, expected)


def _distance(found, expected) -> float:
    """The greatest difference, relative to the largest value. A gradient may be missing from `found`, where a weight
    cannot matter: of the last layer's images."""
    largest = max(g.abs().max() for g in expected.values())
    zero = torch.zeros(())  # of a weight that has no gradient
    gaps = [(found.get(key, zero) - expected.get(key, zero)).abs().max() for key in found.keys() | expected.keys()]
    assert all(torch.isfinite(gap) for gap in gaps)
    return (max(gaps) / largest).item()


def bfloat16_errors(model, processor) -> tuple[float, float]:
    """The greatest error of a reward under bfloat16, of shared and of separate rows, against separate rows in float32.
    Both are roundings of the same reward; sharing adds no error of its own kind."""
    separate, shared = RewardCollator(processor, model.config, "separate"), RewardCollator(processor, model.config)
    [examples, *_] = batches(model, processor, 4)
    with torch.no_grad():
        exact = torch.cat(oracle(model, separate, examples))
        with torch.autocast("cpu", torch.bfloat16):
            ours = torch.cat(rewards_of(model, shared, examples))
            theirs = torch.cat(oracle(model, separate, examples))
    return (ours - exact).abs().max().item(), (theirs - exact).abs().max().item()


def changes_by_image(model, processor):
    """How another image changes the rewards of two answers: with shared rows, these under checkpointing (for which
    transformers would drop the prompt's state), and separate rows."""
    one, other = example(2, 1, 1), dataclasses.replace(example(2, 1, 1), images=[noise_image(99)])

    def change(rows):
        collator = RewardCollator(processor, model.config, rows)
        return rewards_of(model, collator, [one])[0] - rewards_of(model, collator, [other])[0]

    with checkpointed(model):
        under_checkpointing = change("auto")
    return change("auto"), under_checkpointing, change("separate")


def template_difference(model, processor, template: str) -> float:
    """The greatest difference of a reward under another chat template, of conversations that users have: a former turn,
    two images."""
    ours = processor.chat_template
    turns = [
        {"role": "user", "content": "How many cups are there?"},
        {"role": "assistant", "content": "There are two cups on the table."},
        {"role": "user", "content": "And what is next to them?"},
    ]
    most = max_images(model)
    examples = [dataclasses.replace(example(4, most, 1), prompt=turns), example(2, most, 5)]
    try:
        processor.chat_template = template
        separate, shared = RewardCollator(processor, model.config, "separate"), RewardCollator(processor, model.config)
        with torch.no_grad():
            found, expected = rewards_of(model, shared, examples), oracle(model, separate, examples)
    finally:
        processor.chat_template = ours
    assert all(one.std() > 100 * TOLERANCE for one in expected)
    return max((a - b).abs().max().item() for a, b in zip(found, expected, strict=True))
