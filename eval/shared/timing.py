"""TODO"""

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

WORDS = "a the cup dog table red blue green is on near left right large small and with two three of".split()


@dataclass
class SpeedConfig:
    size: Literal["tiny", "7b"] = "tiny"  # a small LLaVA, or the shapes of LLaVA-1.5-7B
    device: str = "cpu"  # device, such as cpu or cuda
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the frozen weights and the arithmetic
    pairs: int = 8  # pairs trained on in one repeat
    responses: int = 8  # responses per prompt when scoring
    batch_tokens: int = 3000  # padded tokens of one forward, at most, on both sides
    checkpointing: bool = False  # gradient checkpointing, on both sides
    repeats: int = 7  # alternated repeats
    trl: bool = True  # also compare with TRL's RewardTrainer on text pairs
    text_steps: int = 12  # optimizer steps of that comparison
    seed: int = 0  # seed of weights and texts


def examples(
    config: SpeedConfig, count: int, k: int, images: bool = True, prompt: int = 48, response: int = 110, vary: int = 4
) -> list[Any]:
    """Prompts with k responses; lengths in words, and so in tokens, vary by 1/vary around the given ones (0: never)."""
    import torch
    from PIL import Image

    from rovrm.data.example import Example
    from rovrm.data.images import ImageRef

    rng = random.Random(config.seed)

    def text(length: int) -> str:
        spread = length // vary if vary else 0
        return " ".join(rng.choices(WORDS, k=rng.randint(length - spread, length + spread)))

    made = []
    for i in range(count):
        pixels = torch.randint(
            0, 256, (336, 336, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(i)
        ).numpy()
        pictures = [ImageRef(image=Image.fromarray(pixels))] if images else []
        question = [
            {"role": "user", "content": text(prompt - 20 if images else prompt)}
        ]  # 20 tokens are the template's
        made.append(Example(str(i), "speed", question, [text(response) for _ in range(k)], list(range(k)), pictures))
    return made


def batches_of(config: SpeedConfig, model: Any, processor: Any, data: list[Any], rows: str) -> list[dict[str, Any]]:
    """All batches, collated and on the device."""
    from rovrm.model.batches import batch_loader, plan_batches
    from rovrm.model.collator import RewardCollator

    collator = RewardCollator(processor, model.config, rows, row_tokens=10**9)
    measured = [replace(e, lengths=collator.lengths(e, [ref.open() for ref in e.images])) for e in data]
    plan = plan_batches(measured, collator, config.batch_tokens, len(measured), None)
    loader = batch_loader(measured, plan, collator)
    moved = [{key: value.to(config.device) for key, value in batch.items()} for batch in loader]
    if config.dtype == "bfloat16":
        for batch in moved:
            batch["pixel_values"] = batch["pixel_values"].bfloat16()
    return moved


def alternate(
    config: SpeedConfig, first: Callable[[], None], second: Callable[[], None]
) -> tuple[list[float], list[float]]:
    """Seconds of `repeats` alternated runs of each side."""
    import torch

    def timed(side: Callable[[], None]) -> float:
        start = time.perf_counter()
        side()
        if config.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter() - start

    seconds = [(timed(first), timed(second)) for _ in range(config.repeats)]
    return [a for a, _ in seconds], [b for _, b in seconds]


def report(unit: str, count: int, slow: list[float], fast: list[float], names: tuple[str, str]) -> None:
    """Prints both rates and the ratio, pair by pair of repeats."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    for name, seconds in zip(names, (slow, fast), strict=True):
        print(f"  {name:<22}{count / statistics.median(seconds):>9.2f} {unit}/s")
    print(
        f"  ratio {statistics.median(ratios):.2f} "
        f"(lowest {min(ratios):.2f}, highest {max(ratios):.2f} of {len(ratios)} repeats)"
    )


def make_model(config: SpeedConfig) -> tuple[Any, Any]:
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig

    from rovrm.model import modeling
    from rovrm.tiny_base.base import llava_config, make_processor

    processor = make_processor([" ".join(WORDS)] * 20, image_size=336, patch_size=14)
    if config.size == "7b":
        vision = CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=336,
            patch_size=14,
        )
        text = LlamaConfig()  # the defaults are Llama-7B's, but for the tokenizer's small vocabulary
    else:
        vision = CLIPVisionConfig(
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=336,
            patch_size=14,
        )
        text = LlamaConfig(
            hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=8
        )
    joined = llava_config(vision, text, processor)
    joined._attn_implementation = "sdpa"
    with torch.device(config.device):
        model = modeling.LlavaForSequenceClassification._from_config(joined, dtype=getattr(torch, config.dtype))
    model.score.float()
    return model, processor
