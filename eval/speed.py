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
import sys
import tempfile
from typing import Any

from eval.shared.timing import SpeedConfig, alternate, batches_of, examples, make_model, report
from rovrm.settings.command_line import parse, run


def speed(argv: list[str]) -> None:
    config = parse(SpeedConfig, argv, "python -m eval.speed")
    os.environ["TQDM_DISABLE"] = "1"
    import torch

    torch.manual_seed(config.seed)
    model, processor = make_model(config)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters, {config.dtype}, {config.device}, "
          f"{torch.get_num_threads()} threads, {config.batch_tokens} tokens a batch")  # fmt: skip
    _compare_scoring(config, model, processor)
    _compare_bon(config, model, processor)
    _compare_training(config, model, processor)
    if config.trl:
        from eval.speed_trl import compare_with_trl

        compare_with_trl(config)


def _compare_scoring(config: SpeedConfig, model: Any, processor: Any) -> None:
    import torch

    from rovrm.model.batches import collect_rewards, split_batch

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

    from rovrm.best_of_n.choose import best_of_n
    from rovrm.data.images import ImageRef
    from rovrm.model.scorer import RewardScorer
    from rovrm.settings.keys import BonConfig

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

    from rovrm.model.adapters import lora_config, set_trainable
    from rovrm.model.batches import split_batch
    from rovrm.training.losses import compare, preference_loss

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


def main(argv: list[str] | None = None) -> int:
    return run(speed, sys.argv[1:] if argv is None else argv, "eval.speed")


if __name__ == "__main__":
    sys.exit(main())
