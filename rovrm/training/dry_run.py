"""What `python -m rovrm.train dry_run=true` prints: rendered rows, image tokens, lengths, steps and memory."""

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rovrm.model.batches import plan_batches
from rovrm.model.collator import why_not_shared
from rovrm.settings.keys import TrainConfig, by_gradients, section_of
from rovrm.settings.phases import PHASES
from rovrm.training.estimates import parameter_counts
from rovrm.training.phase_data import PhaseData

if TYPE_CHECKING:
    from rovrm.model.collator import RewardCollator


def print_dry_run(
    config: TrainConfig, data: dict[int, PhaseData], collator: "RewardCollator", model_config: Any
) -> None:
    """Everything a run would start with, from the data that it would train on. Nothing is trained; of a run's files
    only the lists of rejected rows are written, by what read the data. Raises UserError for an architecture that cannot
    be a reward model."""
    reason = why_not_shared(model_config)
    print(
        f"model {config.model}: rows are {'shared' if collator.shared else 'separate'}"
        + (f" ({reason})" if reason else "")
    )
    _print_memory(config, model_config)
    for phase, found in data.items():
        print(f"\nphase {phase} ({PHASES[phase - 1]})")
        section = section_of(config, phase)
        if by_gradients(section):
            print(
                f"  {section.select} will choose {section.n} of {len(found.train)} rows; here the first stand for them"
            )
            found = replace(found, train=found.train[: section.n])
        print(f"  {len(found.train)} to train on, {len(found.held_out)} held out, {len(found.rejected)} skipped")
        _print_lengths(found, collator)
        _print_steps(config, phase, found, collator)
        example = found.train[0]
        print(f"  the first example, {example.id} ({example.location}):")
        for rank, text in zip(example.ranks, collator.chat.conversations(example), strict=True):
            print(f"    rank {rank}: {text!r}")


def _print_lengths(found: PhaseData, collator: "RewardCollator") -> None:
    lengths = [e.lengths for e in found.train if e.lengths]
    rows = sorted(collator.cost(length)[1] for length in lengths)
    responses = sorted(own for _, many in lengths for own in many)
    for name, values in (("row", rows), ("response", responses)):
        shown = ", ".join(f"{q}% {values[min(int(q / 100 * len(values)), len(values) - 1)]}" for q in (50, 90, 99))
        print(f"  tokens of a {name}: {shown}, longest {values[-1]}")
    pictured = [e for e in found.train if e.images]
    if pictured:
        counts = sorted(image_tokens(collator, e) for e in pictured[:32])
        print(f"  image tokens of a row ({len(counts)} rows looked at): {counts[0]} to {counts[-1]}")


def image_tokens(collator: "RewardCollator", example: Any) -> int:
    """How many of a row's tokens stand for images."""
    batch = collator([example])
    return int((batch["input_ids"][0] == collator.image_token_id).sum())


def _print_steps(config: TrainConfig, phase: int, found: PhaseData, collator: "RewardCollator") -> None:
    costs = [collator.cost(e.lengths) for e in found.train if e.lengths]
    batches = _batches_of_an_epoch(config, found, collator)
    steps = _steps(config, phase, batches)
    tokens = sum(rows * longest for rows, longest in costs)
    rate = section_of(config, phase).learning_rate or 0.0
    print(f"  {batches} batches an epoch, {tokens} tokens; {steps} optimizer steps in all")
    print(f"  learning rate {rate:g} x {steps} steps = {rate * steps:.2g} (tuning={config.tuning})")


def optimizer_steps(config: TrainConfig, phase: int, found: PhaseData, collator: "RewardCollator") -> int:
    """Of a phase on these rows; of a pool that rows are chosen from, on the first of them."""
    section = section_of(config, phase)
    if by_gradients(section):
        found = replace(found, train=found.train[: section.n])
    return _steps(config, phase, _batches_of_an_epoch(config, found, collator))


def _steps(config: TrainConfig, phase: int, batches: int) -> int:
    from accelerate import PartialState

    world, accumulation = PartialState().num_processes, int(config.trainer.get("gradient_accumulation_steps", 1))
    limit = int(config.trainer.get("max_steps", -1))
    epochs = section_of(config, phase).epochs
    return limit if limit > 0 else math.ceil(math.ceil(batches / (world * accumulation)) * epochs)


def _batches_of_an_epoch(config: TrainConfig, found: PhaseData, collator: "RewardCollator") -> int:
    return len(plan_batches(found.train, collator, config.batch_tokens, config.batch_size, config.seed))


def _print_memory(config: TrainConfig, model_config: Any) -> None:
    """Weights, gradients and Adam's two moments; activations come on top and depend on batch_tokens."""
    total, trained = parameter_counts(config, model_config)
    frozen_bytes = 4 if config.tuning == "full" or config.dtype == "float32" else 0.5 if config.tuning == "qlora" else 2
    gibibytes = (total * frozen_bytes + trained * 12 + (0 if config.tuning == "full" else trained * 4)) / 2**30
    kind = {4: "float32", 2: "bfloat16", 0.5: "4 bits"}[frozen_bytes]
    print(
        f"  {total / 1e6:.1f}M parameters, up to {trained / 1e6:.1f}M trained ({config.tuning}): about {gibibytes:.2f} "
        f"GiB on a GPU for weights ({kind}; what trains is float32), gradients and Adam, activations on top"
    )
