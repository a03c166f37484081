"""Speed of per-example gradient features: batched extraction, a training step, and a loop over pairs as in LESS.

    python -m eval.extraction                                             # a small LLaVA with real lengths, CPU
    python -m eval.extraction images=false                                # text pairs, as the text phase's pool has
    python -m eval.extraction size=7b device=cuda dtype=bfloat16 pairs=64 batch_tokens=4096 lora_r=64        # one GPU
    python -m eval.extraction size=7b device=cuda dtype=bfloat16 pairs=64 batch_tokens=8192 lora_r=64 checkpointing=true

Alternated `repeats` times in one run, on the same weights (LoRA with a random B, no dropout) and the same pairs:

    extraction   shared rows in batches, one backward for all pairs of a batch, sketched to `width`
    training     the same batches: forward, loss, backward and a step of AdamW on the adapter, as RewardTrainer takes
    loop         a pair at a time as two separate rows, backward of its loss, every .grad concatenated, and LESS's dense
                 projection, 16 gradients at once, by random signs

The signs (gradients' coordinates x `width`) are drawn once, outside of the clock, and kept. Where they would take more
than `matrix_gb` the loop does not project, and its time is a lower bound: the output says which. Extraction and loop
are first checked, in float32, to give the same gradients before the projection. Images are preprocessed and batches
built outside of the clock; the vision tower runs inside it. Prints pairs per second and ratios, repeat by repeat: the
median, lowest and highest. Wanted: extraction at 0.85 of training's speed or more, and at twice the loop's or more.
"""

import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from unittest.mock import patch

from eval.shared.timing import SpeedConfig, batches_of, examples, make_model
from rovrm.settings.command_line import parse, run
from rovrm.settings.keys import TrainConfig

if TYPE_CHECKING:
    from torch import Tensor

AT_ONCE = 16  # gradients that LESS projects together
LIMITS = {"tiny": 1e-4, "7b": 1e-3}  # how far the two sides' gradients may differ in float32, relative
WANTED = {"training": 0.85, "loop": 2.0}


@dataclass
class ExtractionConfig:
    size: Literal["tiny", "7b"] = "tiny"  # a small LLaVA, or the shapes of LLaVA-1.5-7B
    device: str = "cpu"  # device, such as cpu or cuda
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the frozen weights and the arithmetic
    pairs: int = 8  # pairs of one repeat
    images: bool = True  # pairs about an image, or text alone
    batch_tokens: int = 3000  # padded tokens of one batch of extraction and training, at most
    checkpointing: bool = False  # gradient checkpointing, on all sides
    repeats: int = 7  # alternated repeats
    width: int = 4096  # of a feature
    lora_r: int = 8  # rank of the adapter
    matrix_gb: float = 4.0  # the largest projection that the loop keeps in memory
    seed: int = 0  # seed of weights, texts and projections


def extraction(argv: list[str]) -> None:
    config = parse(ExtractionConfig, argv, "python -m eval.extraction")

    import torch
    from accelerate import PartialState

    from data_selection.gradients import GradientFeatures, lora_layers
    from rovrm.selection import extraction as gradients

    PartialState(cpu=config.device == "cpu")  # where gradient_model puts the model
    torch.backends.cudnn.allow_tf32 = False  # the check is in float32
    torch.manual_seed(config.seed)
    like = SpeedConfig(size=config.size, device=config.device, dtype=config.dtype, seed=config.seed)
    base, processor = make_model(like)
    extracting, training = _two_models(config, base)
    data = examples(like, config.pairs, 2, images=config.images)
    batches, lone = (
        _batches(config, replace(like, batch_tokens=tokens), base, processor, data, rows)
        for rows, tokens in (("shared", config.batch_tokens), ("separate", 1))  # 1: a pair alone, whatever it takes
    )
    layers = lora_layers(extracting)
    p = sum(layer.weight.numel() for layer in layers.values())
    print(
        f"{sum(weight.numel() for weight in extracting.parameters()) / 1e6:.1f}M parameters, {config.dtype}, "
        f"{config.device}, {torch.get_num_threads()} threads, checkpointing {'on' if config.checkpointing else 'off'}; "
        f"{config.pairs} pairs {'with images' if config.images else 'of text'} in {len(batches)} batches; "
        f"{p} coordinates of {len(layers)} layers, width {config.width}"
    )
    _check(config, like, extracting, training, processor, data[:2])
    signs = _signs(config, p)
    optimizer = torch.optim.AdamW([weight for weight in training.parameters() if weight.requires_grad], lr=0.0)

    def extract() -> None:
        for batch in batches:
            gradients.batch_features(extracting, batch, features)[0].cpu()

    def train() -> None:
        for batch in batches:
            _loss(config, training, batch).backward()
            optimizer.step()
            optimizer.zero_grad()

    def loop() -> None:
        waiting = []
        for i, batch in enumerate(lone, start=1):
            waiting.append(_gradient(config, training, batch))
            if len(waiting) == AT_ONCE or i == len(lone) or not signs:
                for part in signs:
                    (torch.stack(waiting).to(part.dtype) @ part).cpu()
                waiting.clear()

    with GradientFeatures(extracting, layers, config.width, config.seed) as features:
        report(config, alternate(config, {"extraction": extract, "training": train, "loop": loop}))


def _two_models(config: ExtractionConfig, base: Any) -> tuple[Any, Any]:
    """(what `gradient_model` makes, a model that trains): the same tensors but for the adapters, which are equal."""
    import torch

    from data_selection.gradients import lora_layers
    from rovrm.model.adapters import add_adapter, set_trainable
    from rovrm.selection import extraction as gradients

    twin = copy.deepcopy(base, {id(tensor): tensor for tensor in (*base.parameters(), *base.buffers())})
    training = add_adapter(twin, "", config.lora_r, 2 * config.lora_r, 0.0)
    for name, layer in lora_layers(training).items():
        if ".lora_B." in name:
            torch.nn.init.normal_(layer.weight, std=0.01)
    set_trainable(training, visual=False, full=False)
    if config.checkpointing:
        training.activation_checkpointing_enable()
    settings = TrainConfig(trainer={"gradient_checkpointing": config.checkpointing})
    with tempfile.TemporaryDirectory() as folder, patch.object(gradients, "base_model", lambda _: base):
        training.save_pretrained(folder, save_embedding_layers=False)
        return gradients.gradient_model(settings, Path(folder)), training.train()


def _batches(
    config: ExtractionConfig, like: SpeedConfig, model: Any, processor: Any, data: list[Any], rows: str
) -> list[dict[str, Any]]:
    """eval.speed's; it takes every batch in bfloat16 to hold an image, which is cast here instead."""
    import torch

    batches = batches_of(replace(like, dtype="float32"), model, processor, data, rows)
    for batch in batches:
        if config.images:
            batch["pixel_values"] = batch["pixel_values"].to(getattr(torch, config.dtype))
    return batches


def _loss(config: ExtractionConfig, model: Any, batch: dict[str, Any]) -> "Tensor":
    """The mean loss of a batch."""
    import torch

    from rovrm.model.batches import split_batch
    from rovrm.training.losses import compare, preference_loss

    inputs, ours = split_batch(batch)
    with torch.autocast(config.device.split(":")[0], torch.bfloat16, enabled=config.dtype == "bfloat16"):
        logits = model(**inputs).logits
    return preference_loss(compare(logits, ours["labels"], ours["list_ids"]), ours["margins"]) / ours["labels"].numel()


def _gradient(config: ExtractionConfig, model: Any, batch: dict[str, Any]) -> "Tensor":
    """(p,) the gradient of one pair's loss, as LESS takes it."""
    import torch

    from data_selection.gradients import lora_layers

    _loss(config, model, batch).backward()
    grads = [layer.weight.grad for layer in lora_layers(model).values()]
    found = torch.cat([grad.flatten() for grad in grads if grad is not None])
    model.zero_grad()
    return found


def _signs(config: ExtractionConfig, p: int) -> "list[Tensor]":
    """(p, width) random signs in blocks of columns, as BasicProjector of TRAK draws them; empty where too large."""
    import torch

    kind = getattr(torch, config.dtype)
    size = p * config.width * kind.itemsize / 1e9
    if size > config.matrix_gb:
        print(
            f"loop: NOT projected, so its time is a lower bound: the signs would take {size:.1f} GB, "
            f"more than matrix_gb={config.matrix_gb:g}"
        )
        return []
    print(f"loop: projected by {p} x {config.width} signs, kept in {size:.1f} GB")
    generator = torch.Generator(config.device).manual_seed(config.seed)
    columns = [min(128, config.width - start) for start in range(0, config.width, 128)]
    where: dict[str, Any] = {"device": config.device, "generator": generator, "dtype": torch.int8}
    return [torch.randint(0, 2, (p, count), **where).to(kind) * 2 - 1 for count in columns]


def _check(
    config: ExtractionConfig, like: SpeedConfig, extracting: Any, training: Any, processor: Any, data: list[Any]
) -> None:
    """All coordinates of the gradients of some pairs: the loop's are -slope times those of extraction. In
    float32 whatever `dtype` is: with random weights the gradients of a pair's two rewards nearly cancel (to some 3 %),
    and bfloat16 leaves little of the rest."""
    import torch

    from data_selection.gradients import GradientFeatures, lora_layers
    from rovrm.selection import extraction as gradients

    exact = replace(config, dtype="float32")
    kinds = {weight: weight.dtype for weight in (*extracting.parameters(), *training.parameters())}
    for weight in kinds:
        weight.data = weight.data.float()
    [batch] = _batches(exact, replace(like, batch_tokens=10**9), training, processor, data, "shared")
    with GradientFeatures(extracting, lora_layers(extracting), width=0) as features:
        _, slopes = gradients.batch_features(extracting, batch, features)
        ours = -slopes[:, None] * torch.cat([features.parts[name] for name in features.layers], 1)
    lone = _batches(exact, replace(like, batch_tokens=1), training, processor, data, "separate")
    alone = {one["example_ids"].item(): one for one in lone}
    theirs = torch.stack([_gradient(exact, training, alone[i]) for i in batch["example_ids"].tolist()])
    for weight, kind in kinds.items():
        weight.data = weight.data.to(kind)
    error = ((ours - theirs).norm(dim=1) / theirs.norm(dim=1)).max().item()
    limit = LIMITS[config.size]
    print(f"gradients of {len(data)} pairs, unprojected, in float32: the sides differ by {error:.1e} (limit {limit:g})")
    assert error < limit, "extraction and loop do not compute the same gradients"


def alternate(config: ExtractionConfig, sides: dict[str, Callable[[], None]]) -> dict[str, list[float]]:
    """Seconds of `repeats` runs of each side, taking turns, after one that does not count."""
    import torch

    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(config.repeats + 1):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            if config.device.startswith("cuda"):
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    return {name: found[1:] for name, found in seconds.items()}


def report(config: ExtractionConfig, seconds: dict[str, list[float]]) -> None:
    """Prints pairs per second of every side, and the ratios of extraction's to the others', repeat by repeat."""

    def line(what: str, values: list[float], unit: str = "", wanted: str = "") -> None:
        low, high = min(values), max(values)
        print(f"  {what:<22}{statistics.median(values):>8.2f}{unit} (lowest {low:.2f}, highest {high:.2f}{wanted})")

    print(f"\nmedian of {config.repeats} repeats")
    for name, found in seconds.items():
        line(name, [config.pairs / s for s in found], " pairs/s")
    for name, least in WANTED.items():
        ratios = [other / own for own, other in zip(seconds["extraction"], seconds[name], strict=True)]
        line(f"extraction / {name}", ratios, wanted=f"; wanted {least:g} or more")


def main(argv: list[str] | None = None) -> int:
    return run(extraction, sys.argv[1:] if argv is None else argv, "eval.extraction")


if __name__ == "__main__":
    sys.exit(main())
