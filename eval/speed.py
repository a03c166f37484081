"""Shared-prefix rows against separate rows, and RewardTrainer against TRL's, side by side in one run.

    python -m eval.speed                                               # a small LLaVA with real lengths, CPU
    python -m eval.speed size=7b device=cuda dtype=bfloat16 pairs=64   # LLaVA-1.5-7B shapes, random weights, one GPU
    python -m eval.speed trl=false                                     # rows only

Prints pairs (or responses) per second of both sides and their ratio: the median, lowest and highest of `repeats`
alternated repeats. Both sides have the same model, examples, bucketing, dtype, checkpointing and tokens per batch, and
are first checked to give the same rewards. Images are preprocessed and batches built outside of the clock (not in
the lines about rovrm.bon, which read image files); the vision tower runs inside it. Lengths are those of RLAIF-V with
LLaVA-1.5: 576 image tokens, 48 of prompt, about 110 of response.
"""

import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from rovrm.config import parse, run

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


def speed(argv: list[str]) -> None:
    config = parse(SpeedConfig, argv, "python -m eval.speed")
    os.environ["TQDM_DISABLE"] = "1"
    import torch

    torch.manual_seed(config.seed)
    model, processor = _model(config)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters, {config.dtype}, {config.device}, "
          f"{torch.get_num_threads()} threads, {config.batch_tokens} tokens a batch")  # fmt: skip
    _compare_scoring(config, model, processor)
    _compare_bon(config, model, processor)
    _compare_training(config, model, processor)
    if config.trl:
        from eval.speed_trl import compare_with_trl

        compare_with_trl(config)


def _model(config: SpeedConfig) -> tuple[Any, Any]:
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig

    from rovrm import modeling
    from rovrm.world.base import llava_config, make_processor

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


def examples(
    config: SpeedConfig, count: int, k: int, images: bool = True, prompt: int = 48, response: int = 110, vary: int = 4
) -> list[Any]:
    """Prompts with k responses; lengths in words, and so in tokens, vary by 1/vary around the given ones (0: never)."""
    import torch
    from PIL import Image

    from rovrm.examples import Example
    from rovrm.images import ImageRef

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
    from rovrm.batches import PlannedBatches, batch_loader, plan_batches
    from rovrm.rows import RewardCollator

    collator = RewardCollator(processor, model.config, rows, row_tokens=10**9)
    lengths = [collator.lengths(e, [ref.open() for ref in e.images]) for e in data]
    plan = plan_batches([collator.cost(x) for x in lengths], [False] * len(data), config.batch_tokens, len(data), None)
    loader = batch_loader(PlannedBatches(data, plan), collator, workers=0, pin_memory=False)
    moved = [{key: value.to(config.device) for key, value in batch.items()} for batch in loader]
    if config.dtype == "bfloat16":
        for batch in moved:
            batch["pixel_values"] = batch["pixel_values"].bfloat16()
    return moved


def _compare_scoring(config: SpeedConfig, model: Any, processor: Any) -> None:
    import torch

    from rovrm.batches import collect_rewards, split_batch

    model.eval()
    data = examples(config, max(2, config.pairs // 2), config.responses)
    sides = {rows: batches_of(config, model, processor, data, rows) for rows in ("separate", "shared")}
    found: dict[str, dict[int, dict[int, float]]] = {rows: {} for rows in sides}

    def score(rows: str) -> None:
        with torch.inference_mode():
            for batch in sides[rows]:
                inputs, ours = split_batch(batch)
                collect_rewards(ours, model(**inputs).logits, found[rows])

    score("separate")
    score("shared")
    gaps = [abs(found["shared"][i][j] - r) for i, rewards in found["separate"].items() for j, r in rewards.items()]
    limit = 1e-4 if config.dtype == "float32" else 0.1
    print(f"\nscoring k={config.responses}: {len(gaps)} rewards differ by at most {max(gaps):.1e} (limit {limit:g})")
    assert max(gaps) < limit, "the two sides do not compute the same rewards"
    report(
        "responses",
        len(gaps),
        *alternate(config, lambda: score("separate"), lambda: score("shared")),
        names=("separate rows", "shared rows"),
    )


def _compare_bon(config: SpeedConfig, model: Any, processor: Any) -> None:
    """What rovrm.bon does with the candidates of a file."""
    from pathlib import Path

    from rovrm.bon import best_of_n
    from rovrm.config import BonConfig
    from rovrm.images import ImageRef
    from rovrm.scorer import RewardScorer

    data = examples(config, max(2, config.pairs // 2), config.responses)
    scorers = {rows: RewardScorer(model, processor, rows) for rows in ("separate", "shared")}
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for example in data:
            file = Path(folder) / f"{example.id}.png"
            example.images[0].open().save(file)
            example.images = [ImageRef(path=str(file))]

        settings = BonConfig(out=folder, batch_tokens=config.batch_tokens)

        def choose(rows: str) -> None:
            records = best_of_n(scorers[rows], data, settings, None, 0)
            found[rows] = [score for record in records for score in record["scores"]]

        choose("separate")
        choose("shared")
        gap = max(abs(a - b) for a, b in zip(found["separate"], found["shared"], strict=True))
        print(f"\nbest of {config.responses} through rovrm.bon: rewards differ by at most {gap:.1e}")
        assert gap < (1e-4 if config.dtype == "float32" else 0.1), "the two sides do not compute the same rewards"
        report(
            "candidates",
            len(found["shared"]),
            *alternate(config, lambda: choose("separate"), lambda: choose("shared")),
            names=("separate rows", "shared rows"),
        )


def _compare_training(config: SpeedConfig, model: Any, processor: Any) -> None:
    import torch
    from peft import get_peft_model

    from rovrm.batches import split_batch
    from rovrm.checkpoints import lora_config, set_trainable
    from rovrm.losses import compare, preference_loss

    adapted: Any = get_peft_model(model, lora_config(model, r=16, alpha=32, dropout=0.0))
    set_trainable(adapted, visual=True, full=False)
    if config.checkpointing:
        adapted.gradient_checkpointing_enable({"use_reentrant": False})
    adapted.train()
    data = examples(config, config.pairs, 2)
    sides = {rows: batches_of(config, adapted, processor, data, rows) for rows in ("separate", "shared")}
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=0.0)
    losses: dict[str, float] = {}

    def train(rows: str) -> None:
        losses[rows] = 0.0
        for batch in sides[rows]:
            inputs, ours = split_batch(batch)
            with torch.autocast(config.device.split(":")[0], torch.bfloat16, enabled=config.dtype == "bfloat16"):
                logits = adapted(**inputs).logits
            loss = preference_loss(compare(logits, ours["labels"], ours["list_ids"]), ours["margins"]) / (
                2 * config.pairs
            )
            loss.backward()
            losses[rows] += loss.item()
        optimizer.step()
        optimizer.zero_grad()

    train("separate")
    train("shared")
    gap = abs(losses["shared"] - losses["separate"])
    print(
        f"\ntraining pairs (LoRA, forward, backward, step): losses {losses['separate']:.6f} and {losses['shared']:.6f}"
    )
    assert gap < (1e-4 if config.dtype == "float32" else 0.05), "the two sides do not compute the same loss"
    report(
        "pairs",
        config.pairs,
        *alternate(config, lambda: train("separate"), lambda: train("shared")),
        names=("separate rows", "shared rows"),
    )


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


def main(argv: list[str] | None = None) -> int:
    return run(speed, sys.argv[1:] if argv is None else argv, "eval.speed")


if __name__ == "__main__":
    sys.exit(main())
