"""What `python -m rovrm.train dry_run=true` prints: rendered rows, image tokens, lengths, steps and memory."""

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from rovrm.data.example import Example
from rovrm.model.adapters import set_trainable
from rovrm.model.batches import plan_batches
from rovrm.model.collator import RewardCollator, why_not_shared
from rovrm.settings.keys import TrainConfig
from rovrm.settings.phases import VISUAL, Phase
from rovrm.training.estimates import parameter_counts
from rovrm.training.memory import free_memory, in_words, largest_batch, step_memory
from rovrm.training.phase_data import PhaseData
from rovrm.training.run import Task, new_model
from rovrm.training.setup import Parts, trainer_arguments

QUANTILES = (50, 90, 99)  # per cent of the lengths that are printed
LOOKED_AT = 32  # rows whose image tokens are counted


def print_dry_run(config: TrainConfig, data: dict[Phase, PhaseData], parts: Parts, task: Task) -> None:
    """Prints everything a run would start with, from the data that it would train on.

    Nothing is trained; of a run's files only the lists of rejected rows are written, by what read the data. Raises
    UserError for an architecture that cannot be a reward model.
    """
    model_config, collator = parts.model_config, parts.collator
    reason = why_not_shared(model_config)
    rows = "shared" if collator.shared else "separate"
    print(f"model {config.model}: rows are {rows}" + (f" ({reason})" if reason else ""))
    _print_memory(config, model_config)
    model = _loaded(config, task)
    training_collator = task.collator_class(parts.processor, model_config, config.rows)
    for phase, phase_data in data.items():
        print(f"\n{phase}")
        section = config.section(phase)
        if section.by_selection:
            count = len(phase_data.train)
            print(f"  {section.select} will choose {section.n} of {count} rows; here the first stand for them")
        phase_data = _as_trained(config, phase, phase_data)
        counts = f"{len(phase_data.train)} to train on, {len(phase_data.held_out)} held out"
        print(f"  {counts}, {len(phase_data.rejected)} skipped")
        _print_lengths(phase_data.train, collator)
        _print_steps(config, phase, phase_data.train, collator)
        if model is not None:
            _print_step_memory(config, phase, phase_data.train, model, training_collator)
        _print_example(phase_data.train[0], collator)


def _as_trained(config: TrainConfig, phase: Phase, data: PhaseData) -> PhaseData:
    """The data with as many rows as will be trained on: where rows are yet to be chosen, the first stand for them."""
    section = config.section(phase)
    return replace(data, train=data.train[: section.n]) if section.by_selection else data


def _print_example(example: Example, collator: RewardCollator) -> None:
    print(f"  the first example, {example.id} ({example.location}):")
    for rank, text in zip(example.ranks, collator.chat.conversations(example), strict=True):
        print(f"    rank {rank}: {text!r}")


def _print_lengths(examples: list[Example], collator: RewardCollator) -> None:
    lengths = [example.lengths for example in examples if example.lengths]
    prefixes = sorted(prefix for prefix, _ in lengths)
    responses = sorted(tokens for _, of_example in lengths for tokens in of_example)
    for name, values in (("prompt", prefixes), ("response", responses)):
        shares = []
        for quantile in QUANTILES:
            place = min(int(quantile / 100 * len(values)), len(values) - 1)
            shares.append(f"{quantile}% {values[place]}")
        print(f"  tokens of a {name}: {', '.join(shares)}, longest {values[-1]}")
    pictured = [example for example in examples if example.images]
    if pictured:
        counts = sorted(image_tokens(collator, example) for example in pictured[:LOOKED_AT])
        print(f"  image tokens of a prompt ({len(counts)} rows looked at): {counts[0]} to {counts[-1]}")


def image_tokens(collator: RewardCollator, example: Example) -> int:
    """How many of a row's tokens stand for images."""
    batch = collator([example])
    return int((batch["input_ids"][0] == collator.image_token_id).sum())


# ---- steps -----------------------------------------------------------------------------------------------------------


def _print_steps(config: TrainConfig, phase: Phase, examples: list[Example], collator: RewardCollator) -> None:
    tokens = sum(collator.cost(example.lengths).tokens for example in examples if example.lengths)
    batches = _batches_of_an_epoch(config, examples, collator)
    steps = _steps(config, phase, batches)
    rate = config.section(phase).learning_rate or 0.0
    print(f"  {batches} batches an epoch, {tokens} tokens; {steps} optimizer steps in all")
    print(f"  learning rate {rate:g} x {steps} steps = {rate * steps:.2g} (tuning={config.tuning})")


def optimizer_steps(config: TrainConfig, phase: Phase, data: PhaseData, collator: RewardCollator) -> int:
    """The optimizer steps of a phase on these rows; of a pool that rows are chosen from, on the first of them."""
    examples = _as_trained(config, phase, data).train
    return _steps(config, phase, _batches_of_an_epoch(config, examples, collator))


def _steps(config: TrainConfig, phase: Phase, batches: int) -> int:
    limit = int(config.trainer.get("max_steps", -1))
    if limit > 0:
        return limit
    accumulation = int(config.trainer.get("gradient_accumulation_steps", 1))
    steps_of_an_epoch = math.ceil(batches / (PartialState().num_processes * accumulation))
    return math.ceil(steps_of_an_epoch * config.section(phase).epochs)


def _batches_of_an_epoch(config: TrainConfig, examples: list[Example], collator: RewardCollator) -> int:
    return len(plan_batches(examples, collator, config.batch_tokens, config.batch_size, config.seed))


# ---- memory ----------------------------------------------------------------------------------------------------------


def _print_memory(config: TrainConfig, model_config: Any) -> None:
    """Prints the memory of weights, gradients and Adam's two moments."""
    total, trained = parameter_counts(config, model_config)
    kind, frozen_bytes = _frozen_weights(config)
    trained_bytes = 12  # float32: gradient and two moments
    if config.tuning != "full":
        trained_bytes += 4  # and its own weight, beside the frozen ones
    gibibytes = (total * frozen_bytes + trained * trained_bytes) / 2**30
    print(
        f"  {total / 1e6:.1f}M parameters, up to {trained / 1e6:.1f}M trained ({config.tuning}): about {gibibytes:.2f} "
        f"GiB on a GPU for weights ({kind}; what trains is float32), gradients and Adam, activations on top"
    )


def _loaded(config: TrainConfig, task: Task) -> Any:
    """The model as phases train it, to be measured; None, which is said, where it is too large for this machine or not
    here yet."""
    if not os.path.isdir(config.model):
        print("  activations: a run measures them before its first step; a dry run where model= is a folder")
        return None
    files = Path(config.model).glob("*.safetensors")
    device = torch.device("cuda" if torch.cuda.is_available() and not config.on_cpu else "cpu")
    if sum(file.stat().st_size for file in files) > free_memory(device):
        print("  activations: not measured, the weights alone do not fit into this machine's memory")
        return None
    return new_model(config, config.model, task).to(device)


def _print_step_memory(
    config: TrainConfig, phase: Phase, examples: list[Example], model: Any, collator: RewardCollator
) -> None:
    set_trainable(model, visual=phase == VISUAL, full=config.tuning == "full")
    device = next(model.parameters()).device
    arguments = trainer_arguments(config, phase)
    with torch.autocast(device.type, torch.bfloat16, enabled=arguments.bf16):
        memory = step_memory(model, collator, examples, device)
    tokens = largest_batch(examples, collator, arguments, config.batch_tokens)
    print(f"  {in_words(memory, tokens, bool(arguments.activation_checkpointing))}")


def _frozen_weights(config: TrainConfig) -> tuple[str, float]:
    """(their type, bytes of one) for the weights that are loaded."""
    if config.tuning == "full" or config.dtype == "float32":
        return "float32", 4
    if config.tuning == "qlora":
        return "4 bits", 0.5
    return "bfloat16", 2
