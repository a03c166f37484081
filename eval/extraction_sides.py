"""Extraction, training and LESS's loop on the same weights and pairs, checked and timed. For eval.extraction."""

import copy
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accelerate import PartialState
from torch import Tensor

from data_selection.gradients import GradientFeatures, lora_layers
from eval.shared.keys import ExtractionConfig
from eval.shared.made_up import make_batches, make_examples, make_reward_model
from eval.shared.timing import alternate
from rovrm.data.example import Example
from rovrm.model.adapters import add_adapter, set_trainable
from rovrm.model.batches import split_batch
from rovrm.selection import extraction as gradients
from rovrm.selection.layers import chosen_layers, layer_groups
from rovrm.settings.keys import TrainConfig
from rovrm.training.losses import compare, preference_loss

LESS_BATCH = 16  # gradients that LESS projects together
CHECKED = 2  # pairs whose gradients are compared
LIMITS = {"tiny": 1e-4, "7b": 1e-3}  # how far the two sides' gradients may differ in float32, relative
WANTED = {"training": 1.3, "loop": 2.5, "same layers": None}  # the least ratio of extraction's speed to the others'


def compare_sides(config: ExtractionConfig) -> None:
    PartialState(cpu=config.device == "cpu")  # where gradient_model puts the model
    torch.backends.cudnn.allow_tf32 = False  # the check is in float32
    torch.manual_seed(config.seed)
    base, processor = make_reward_model(config.size, config.device, config.dtype)
    extracting, training = _two_models(config, base)
    data = make_examples(config.pairs, 2, config.seed, images=config.images)
    batches = _shared_batches(config, base, processor, data, config.batch_tokens)
    pairs = _separate_pairs(config, base, processor, data)
    layers = chosen_layers(config.layers, extracting)
    every, same = list(lora_layers(training)), list(layers)
    coordinates = _coordinates(training, every)
    print(
        f"{sum(weight.numel() for weight in extracting.parameters()) / 1e6:.1f}M parameters, {config.dtype}, "
        f"{config.device}, {torch.get_num_threads()} threads, checkpointing {'on' if config.checkpointing else 'off'}; "
        f"{config.pairs} pairs {'with images' if config.images else 'of text'} in {len(batches)} batches; "
        f"{_coordinates(training, same)} coordinates of {len(same)} LoRA layers of {len(every)}, width {config.width}"
    )
    _check_gradients(config, extracting, training, processor, data[:CHECKED])
    signs = _signs(config, coordinates)
    optimizer = torch.optim.AdamW([weight for weight in training.parameters() if weight.requires_grad], lr=0.0)

    def extract() -> None:
        for batch in batches:
            gradients.batch_features(extracting, batch, features)[0].cpu()

    def train() -> None:
        for batch in batches:
            _loss(config, training, batch).backward()
            optimizer.step()
            optimizer.zero_grad()

    def loop(names: list[str]) -> None:
        waiting = []
        with _training_alone(training, names):
            for i, pair in enumerate(pairs, start=1):
                waiting.append(_gradient(config, training, pair, names))
                if len(waiting) == LESS_BATCH or i == len(pairs) or not signs:
                    for part in signs:
                        (torch.stack(waiting).to(part.dtype) @ part[: len(waiting[0])]).cpu()
                    waiting.clear()

    groups = layer_groups(layers, extracting)
    with GradientFeatures(extracting, layers, config.width, config.seed, groups=groups) as features:
        sides = {"extraction": extract, "training": train, "loop": lambda: loop(every)}
        sides["same layers"] = lambda: loop(same)
        print_results(config, alternate(sides, config.repeats, config.device, warm_up=1))


def print_results(config: ExtractionConfig, seconds: dict[str, list[float]]) -> None:
    """Prints pairs per second of every side, and the ratios of extraction's to the others', repeat by repeat."""

    def print_line(what: str, values: list[float], unit: str = "", wanted: str = "") -> None:
        low, high = min(values), max(values)
        print(f"  {what:<26}{statistics.median(values):>8.2f}{unit} (lowest {low:.2f}, highest {high:.2f}{wanted})")

    print(f"\nmedian of {config.repeats} repeats")
    for name, values in seconds.items():
        print_line(name, [config.pairs / value for value in values], " pairs/s")
    for name, least in WANTED.items():
        ratios = [other / own for own, other in zip(seconds["extraction"], seconds[name], strict=True)]
        print_line(f"extraction / {name}", ratios, wanted=f"; wanted {least:g} or more" if least else "")


# ---- models and batches ----------------------------------------------------------------------------------------------


def _two_models(config: ExtractionConfig, base: Any) -> tuple[Any, Any]:
    """(what `gradient_model` makes, a model that trains): the same tensors but for the adapters, which are equal."""
    # With all tensors in the memo, deepcopy copies the modules around them alone.
    twin = copy.deepcopy(base, {id(tensor): tensor for tensor in (*base.parameters(), *base.buffers())})
    training = add_adapter(twin, "", config.lora_r, 2 * config.lora_r, 0.0)
    for name, layer in lora_layers(training).items():
        if ".lora_B." in name:
            torch.nn.init.normal_(layer.weight, std=0.01)  # zeros, as B begins, would make the gradients of A zero
    set_trainable(training, visual=False, full=False)
    if config.checkpointing:
        training.activation_checkpointing_enable()
    settings = TrainConfig(trainer={"gradient_checkpointing": config.checkpointing})
    with tempfile.TemporaryDirectory() as folder, patch.object(gradients, "base_model", lambda _: base):
        training.save_pretrained(folder, save_embedding_layers=False)
        return gradients.gradient_model(settings, Path(folder)), training.train()


def _shared_batches(
    config: ExtractionConfig, model: Any, processor: Any, data: list[Example], batch_tokens: int
) -> list[dict[str, Any]]:
    """The batches of extraction and training, which run each prompt once."""
    return make_batches(model, processor, data, "shared", batch_tokens, config.device, config.dtype)


def _separate_pairs(config: ExtractionConfig, model: Any, processor: Any, data: list[Example]) -> list[dict[str, Any]]:
    """The batches of the loop: a pair each, as two rows."""
    return make_batches(model, processor, data, "separate", 1, config.device, config.dtype)


# ---- LESS ------------------------------------------------------------------------------------------------------------


def _loss(config: ExtractionConfig, model: Any, batch: dict[str, Any]) -> Tensor:
    """The mean loss of a batch."""
    model_inputs, loss_inputs = split_batch(batch)
    labels = loss_inputs["labels"]
    with torch.autocast(config.device.split(":")[0], torch.bfloat16, enabled=config.dtype == "bfloat16"):
        logits = model(**model_inputs).logits[:, 0]
    return preference_loss(compare(logits, labels, loss_inputs["list_ids"]), loss_inputs["margins"]) / labels.numel()


@contextmanager
def _training_alone(model: Any, names: list[str]) -> Iterator[None]:
    """Only these layers train, so that nothing below them is run backward."""
    before = [weight for weight in model.parameters() if weight.requires_grad]
    model.requires_grad_(False)
    for name, layer in lora_layers(model).items():
        layer.weight.requires_grad_(name in names)
    yield
    for weight in before:
        weight.requires_grad_()


def _coordinates(model: Any, names: list[str]) -> int:
    return sum(layer.weight.numel() for name, layer in lora_layers(model).items() if name in names)


def _gradient(config: ExtractionConfig, model: Any, pair: dict[str, Any], names: list[str]) -> Tensor:
    """(coordinates,) the gradient of one pair's loss by some layers, as LESS takes it."""
    _loss(config, model, pair).backward()
    layers: Any = lora_layers(model)
    gradient = torch.cat([layers[name].weight.grad.flatten() for name in names])
    model.zero_grad()
    return gradient


def _signs(config: ExtractionConfig, coordinates: int) -> list[Tensor]:
    """(coordinates, width) random signs in blocks of columns, as BasicProjector of TRAK draws them; empty where they
    would take too much memory."""
    dtype = getattr(torch, config.dtype)
    size = coordinates * config.width * dtype.itemsize / 1e9
    if size > config.matrix_gb:
        print(
            f"loop: NOT projected, so its time is a lower bound: the signs would take {size:.1f} GB, "
            f"more than matrix_gb={config.matrix_gb:g}"
        )
        return []
    print(f"loop: projected by {coordinates} x {config.width} signs, kept in {size:.1f} GB")
    generator = torch.Generator(config.device).manual_seed(config.seed)
    signs = []
    for start in range(0, config.width, 128):
        shape = (coordinates, min(128, config.width - start))
        bits = torch.randint(0, 2, shape, device=config.device, generator=generator, dtype=torch.int8)
        signs.append(bits.to(dtype) * 2 - 1)
    return signs


# ---- the check -------------------------------------------------------------------------------------------------------


def _check_gradients(
    config: ExtractionConfig, extracting: Any, training: Any, processor: Any, data: list[Example]
) -> None:
    """All coordinates of the layers' gradients of some pairs, not balanced: the loop's must be -slope times those of
    extraction.

    In float32 whatever `dtype` is: with random weights the gradients of a pair's two rewards nearly cancel (to some
    3 %), and bfloat16 leaves little of the rest.
    """
    exact = replace(config, dtype="float32")
    dtypes = {weight: weight.dtype for weight in (*extracting.parameters(), *training.parameters())}
    for weight in dtypes:
        weight.data = weight.data.float()
    # extraction: the gradients of the margin, all pairs in one batch
    [batch] = _shared_batches(exact, training, processor, data, batch_tokens=10**9)
    with GradientFeatures(extracting, chosen_layers(config.layers, extracting), width=0) as features:
        _, slopes = gradients.batch_features(extracting, batch, features)
        ours = -slopes[:, None] * torch.cat([features.parts[name] for name in features.layers], 1)
    # the loop: the gradients of the loss, in the order of the batch
    pairs = {pair["example_ids"].item(): pair for pair in _separate_pairs(exact, training, processor, data)}
    names = list(features.layers)
    with _training_alone(training, names):
        theirs = torch.stack([_gradient(exact, training, pairs[i], names) for i in batch["example_ids"].tolist()])
    for weight, dtype in dtypes.items():
        weight.data = weight.data.to(dtype)
    error = ((ours - theirs).norm(dim=1) / theirs.norm(dim=1)).max().item()
    limit = LIMITS[config.size]
    print(f"gradients of {len(data)} pairs, unprojected, in float32: the sides differ by {error:.1e} (limit {limit:g})")
    assert error < limit, "extraction and loop do not compute the same gradients"
