"""Speed and memory of DPO on pairs about images: `rovrm.dpo`'s trainer against TRL's DPOTrainer, in one run.

    python -m eval.speed_dpo                                           # a small LLaVA with real lengths, CPU
    python -m eval.speed_dpo epochs=3                                  # the reference is computed once
    python -m eval.speed_dpo size=7b device=cuda dtype=bfloat16 pairs=64 per_step=8 checkpointing=true        # one GPU

The same weights, LoRA adapter, pairs and pairs per step on both sides; the learning rate is 0, so that every step is
computed in full. What is timed is `train()` with all it takes: image files are opened and processed in it, and rovrm's
reference is computed in it, once, where TRL computes it at every step. First both sides must give the same loss of a
policy that differs from its reference. Lengths are those of RLAIF-V with LLaVA-1.5: 576 image tokens, 48 of prompt,
about 110 of response, so that tokens alone allow 1.74 for one epoch and 2.24 for three. Prints pairs per second and
their ratio: the median, lowest and highest of `repeats` alternated repeats; and the memory of a step at its peak.
"""

import copy
import os
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from rovrm.settings.command_line import parse, run
from rovrm.settings.fields import ABOVE_ZERO, limited

LIMIT = 1e-4  # how far the two sides' losses may differ


@dataclass
class DpoSpeedConfig:
    size: Literal["tiny", "7b"] = "tiny"  # a small LLaVA, or the shapes of LLaVA-1.5-7B
    device: str = "cpu"  # device, such as cpu or cuda
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the frozen weights and the arithmetic
    pairs: int = limited(16, ABOVE_ZERO)  # pairs of an epoch
    per_step: int = limited(4, ABOVE_ZERO)  # pairs of a step
    epochs: int = limited(1, ABOVE_ZERO)  # passes over the pairs
    response_length: int = limited(110, ABOVE_ZERO)  # tokens of a response, about; RLAIF-V's 110, LLaVA's own 330
    lora_r: int = limited(16, ABOVE_ZERO)  # rank of the adapter
    checkpointing: bool = False  # gradient checkpointing, on both sides
    repeats: int = limited(5, ABOVE_ZERO)  # alternated repeats
    seed: int = 0  # seed of weights and texts


def speed_dpo(argv: list[str]) -> None:
    config = parse(DpoSpeedConfig, argv, "python -m eval.speed_dpo")
    os.environ |= {"TQDM_DISABLE": "1", "KINETO_LOG_LEVEL": "5"}  # the latter's profiler counts memory

    import torch

    from eval.shared.made_up import make_examples, write_policy
    from eval.shared.timing import alternate, peak_memory, print_rates
    from rovrm.alignment.reference import answer_logps, set_reference

    torch.manual_seed(config.seed)
    with tempfile.TemporaryDirectory() as folder:
        processor = write_policy(folder, config.size, config.dtype)
        data = make_examples(config.pairs, 2, config.seed, response_length=config.response_length)
        trainers = {"TRL": _trl(config, folder, processor, data), "rovrm": _rovrm(config, folder, processor, data)}
        _check_losses(config, trainers, data)

        def train(name: str) -> None:
            trainer = trainers[name]
            if name == "rovrm":
                examples = trainer.train_examples
                set_reference(examples, answer_logps(trainer.model, trainer.collator, examples, 10**7, config.per_step))
            trainer.train()

        sides = {"TRL": lambda: train("TRL"), "rovrm": lambda: train("rovrm")}
        seconds = alternate(sides, config.repeats, config.device, warm_up=1)
        print(f"\nDPO with LoRA, {config.epochs} epochs of {config.pairs} pairs, {config.per_step} in a step")
        print_rates("pairs", config.epochs * config.pairs, seconds)
        peaks = []
        for name, trainer in trainers.items():
            batch = _batch(trainer, name, data[: config.per_step])
            peaks.append(f"{peak_memory(partial(_one_step, trainer, batch), config.device):.0f}")
        print(f"  memory of a step at its peak, beyond the weights: {' and '.join(peaks)} MiB")


def _arguments(config: DpoSpeedConfig) -> dict[str, Any]:
    """What both trainers are given."""
    from eval.shared.arguments import timed_arguments

    return timed_arguments(config, tempfile.mkdtemp(), config.per_step, config.epochs) | {"logging_strategy": "no"}


def _adapted(config: DpoSpeedConfig, model: Any) -> Any:
    """The model with an adapter whose B is not zero, the same for both sides."""
    import torch

    from data_selection.gradients import lora_layers
    from rovrm.model.adapters import add_adapter, set_trainable

    adapted = add_adapter(model, "", config.lora_r, 2 * config.lora_r, 0.0)
    generator = torch.Generator().manual_seed(config.seed)
    for layer in lora_layers(adapted).values():
        layer.weight.data = 0.02 * torch.randn(layer.weight.shape, generator=generator)
    set_trainable(adapted, visual=True, full=False)
    return adapted


def _trl(config: DpoSpeedConfig, folder: str, processor: Any, data: list[Any]) -> Any:
    import torch
    from datasets import Dataset
    from transformers import LlavaForConditionalGeneration, PrinterCallback
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    dtype = getattr(torch, config.dtype)
    model = _adapted(config, LlavaForConditionalGeneration.from_pretrained(folder, dtype=dtype))
    arguments = DPOConfig(**_arguments(config), max_length=None, precompute_ref_log_probs=False)
    rows = Dataset.from_list([_row(example) for example in data])
    trainer = DPOTrainer(model, args=arguments, train_dataset=rows, processing_class=processor)
    trainer.remove_callback(PrinterCallback)
    return trainer


def _row(example: Any) -> dict[str, Any]:
    better, worse = ([{"role": "assistant", "content": text}] for text in example.responses)
    images = [ref.open() for ref in example.images]
    return {"images": images, "prompt": copy.deepcopy(example.prompt), "chosen": better, "rejected": worse}


def _rovrm(config: DpoSpeedConfig, folder: str, processor: Any, data: list[Any]) -> Any:
    import torch
    from transformers import PrinterCallback

    from rovrm.alignment.trainer import PolicyTrainer
    from rovrm.model.likelihood import load_policy_model
    from rovrm.training.trainer import RewardConfig

    model = _adapted(config, load_policy_model(folder, getattr(torch, config.dtype)))
    arguments = RewardConfig(
        **_arguments(config), per_device_eval_batch_size=config.per_step, batch_tokens=10**7, max_length=4096
    )
    trainer = PolicyTrainer(model, arguments, data, None, processor)
    trainer.remove_callback(PrinterCallback)
    return trainer


def _check_losses(config: DpoSpeedConfig, trainers: dict[str, Any], data: list[Any]) -> None:
    """Raises AssertionError where the two sides' losses of some pairs differ; the reference is the adapter's start, of
    which both have moved by as much."""
    import torch

    from data_selection.gradients import lora_layers
    from rovrm.alignment.reference import answer_logps, set_reference

    ours = trainers["rovrm"]
    set_reference(ours.train_examples, answer_logps(ours.model, ours.collator, ours.train_examples))
    losses = {}
    for name, trainer in trainers.items():
        layers = lora_layers(trainer.model).items()
        weights = [layer.weight for layer_name, layer in layers if ".ref" not in layer_name]
        for weight in weights:
            weight.data += 0.01
        batch = _batch(trainer, name, data[:2])
        trainer.model.train()
        with torch.no_grad():
            losses[name] = trainer.compute_loss(trainer.model, batch).item()
        for weight in weights:
            weight.data -= 0.01
    print("losses of two pairs: " + ", ".join(f"{name} {loss:.6f}" for name, loss in losses.items()))
    assert abs(losses["TRL"] - losses["rovrm"]) < LIMIT, "the two trainers do not compute the same loss"


def _batch(trainer: Any, name: str, data: list[Any]) -> dict[str, Any]:
    import torch

    if name == "TRL":
        batch = trainer.data_collator([_row(example) for example in data])
    else:
        batch = trainer.collator(trainer.train_examples[: len(data)]) | {"example_ids": torch.arange(len(data))}
    return trainer._prepare_inputs(batch)


def _one_step(trainer: Any, batch: dict[str, Any]) -> None:
    trainer.model.train()
    trainer.compute_loss(trainer.model, batch).backward()
    trainer.model.zero_grad()


def main(argv: list[str] | None = None) -> int:
    return run(speed_dpo, sys.argv[1:] if argv is None else argv, "eval.speed_dpo")


if __name__ == "__main__":
    sys.exit(main())
