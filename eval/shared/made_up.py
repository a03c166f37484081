"""Made-up models, examples and batches to time: the lengths are those of real data, weights and words are random.

For instance:

    model, processor = make_reward_model("tiny", "cpu", "float32")
    data = make_examples(8, responses=2, seed=0)
    batches = make_batches(model, processor, data, rows="shared", batch_tokens=3000, device="cpu", dtype="float32")
"""

import copy
import random
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from transformers import CLIPVisionConfig, LlamaConfig

from rovrm.data.example import Example
from rovrm.data.images import ImageRef
from rovrm.model import modeling
from rovrm.model.batches import batch_loader, plan_batches
from rovrm.model.collator import RewardCollator
from rovrm.tiny_base.base import llava_config, make_processor

WORDS = "a the cup dog table red blue green is on near left right large small and with two three of".split()
IMAGE_SIZE, PATCH_SIZE = 336, 14  # pixels, LLaVA-1.5's: 576 image tokens
TEMPLATE_TOKENS = 20  # of a prompt with an image, besides the words


def make_reward_model(size: str, device: str, dtype: str) -> tuple[Any, Any]:
    """(reward model with random weights, its processor). size: tiny or 7b, which has the shapes of LLaVA-1.5-7B. The
    tokenizer knows one token for each of WORDS."""
    processor = make_processor([" ".join(WORDS)] * 20, image_size=IMAGE_SIZE, patch_size=PATCH_SIZE)
    if size == "7b":
        vision = CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=IMAGE_SIZE,
            patch_size=PATCH_SIZE,
        )
        text = LlamaConfig()  # the defaults are Llama-7B's, but for the tokenizer's small vocabulary
    else:
        vision = CLIPVisionConfig(
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=IMAGE_SIZE,
            patch_size=PATCH_SIZE,
        )
        text = LlamaConfig(
            hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=8
        )
    config = llava_config(vision, text, processor)
    config._attn_implementation = "sdpa"
    with torch.device(device):
        model = modeling.LlavaForSequenceClassification._from_config(config, dtype=getattr(torch, dtype))
    model.score.float()
    return model, processor


def write_policy(folder: str, size: str, dtype: str) -> Any:
    """Writes a language model with random weights, of the sizes of `make_reward_model`, and returns its processor."""
    from transformers import LlavaForConditionalGeneration

    reward_model, processor = make_reward_model(size, "cpu", dtype)
    settings = copy.deepcopy(reward_model.config)
    del reward_model
    LlavaForConditionalGeneration._from_config(settings, dtype=getattr(torch, dtype)).save_pretrained(folder)
    processor.save_pretrained(folder)
    return processor


def make_examples(
    count: int,
    responses: int,
    seed: int,
    images: bool = True,
    prompt_length: int = 48,
    response_length: int = 110,
    vary: int = 4,
) -> list[Example]:
    """Prompts with ranked responses of random words.

    Args:
        count: examples.
        responses: of each example.
        seed: of the words; pictures depend on their number alone.
        images: whether each prompt has one.
        prompt_length, response_length: in tokens; with an image the template's tokens are part of the prompt's.
        vary: lengths vary by 1/vary around these; 0 for never.
    """
    rng = random.Random(seed)

    def text(length: int) -> str:
        spread = length // vary if vary else 0
        return " ".join(rng.choices(WORDS, k=rng.randint(length - spread, length + spread)))

    examples = []
    for i in range(count):
        question = text(prompt_length - TEMPLATE_TOKENS if images else prompt_length)
        examples.append(
            Example(
                id=str(i),
                source="speed",
                prompt=[{"role": "user", "content": question}],
                responses=[text(response_length) for _ in range(responses)],
                ranks=list(range(responses)),
                images=[ImageRef(image=_noise(i))] if images else [],
            )
        )
    return examples


def _noise(seed: int) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=torch.uint8, generator=generator)
    return Image.fromarray(pixels.numpy())


def make_batches(
    model: Any, processor: Any, data: list[Example], rows: str, batch_tokens: int, device: str, dtype: str
) -> list[dict[str, Any]]:
    """All batches of the examples, collated and on the device.

    Args:
        model, processor: what `make_reward_model` made, or an adapter on it.
        data: the examples.
        rows: shared or separate.
        batch_tokens: padded tokens of a batch, at most; an example that takes more has a batch to itself.
        device: where the batches go.
        dtype: of the images' pixels.
    """
    collator = RewardCollator(processor, model.config, rows)
    measured = []
    for example in data:
        lengths = collator.lengths(example, [ref.open() for ref in example.images])
        measured.append(replace(example, lengths=lengths))
    plan = plan_batches(measured, collator, batch_tokens, len(measured), None)
    batches = []
    for batch in batch_loader(measured, plan, collator):
        on_device = {key: value.to(device) for key, value in batch.items()}
        if "pixel_values" in on_device:
            on_device["pixel_values"] = on_device["pixel_values"].to(getattr(torch, dtype))
        batches.append(on_device)
    return batches
