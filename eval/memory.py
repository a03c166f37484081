"""Memory of a training step: predicted by two rows, as a run does before its first step, and measured.

    python -m eval.memory                                                  # a small LLaVA with real lengths, CPU
    python -m eval.memory model=SmolLM2-135M-Instruct batch_tokens=4096    # text, a model of yours
    python -m eval.memory responses=8 response_length=330 checkpointing=true

The step is that of the largest batch: its forward, loss and backward, with the gradients there already. What is
measured is the highest sum of torch's allocations in it. Both figures leave out weights, gradients and Adam's moments.
"""

import sys
import tempfile
from dataclasses import dataclass
from typing import Any, Literal

from rovrm.settings.command_line import parse, run
from rovrm.settings.fields import ABOVE_ZERO, limited


@dataclass
class MemoryConfig:
    model: str = ""  # folder of a text model, base or reward model; empty = a small LLaVA with random weights
    tuning: Literal["lora", "full"] = "lora"  # what trains
    dtype: Literal["float32", "bfloat16"] = "float32"  # arithmetic (autocast)
    device: str = "cpu"  # device, such as cpu or cuda
    examples: int = limited(16, ABOVE_ZERO)  # to plan batches of
    responses: int = limited(2, ABOVE_ZERO)  # of each example
    response_length: int = limited(110, ABOVE_ZERO)  # tokens of a response, about
    batch_tokens: int = limited(16384, ABOVE_ZERO)  # of a batch, at most
    checkpointing: bool = False  # activation checkpointing
    seed: int = 0  # seed of weights and texts


def memory(argv: list[str]) -> None:
    config = parse(MemoryConfig, argv, "python -m eval.memory")
    import torch

    from eval.shared.made_up import make_examples
    from eval.shared.timing import peak_memory
    from rovrm.model.batches import plan_batches
    from rovrm.training.memory import largest_batch, step_memory

    trainer = _trainer(config, make_examples)
    examples, collator, model = trainer.train_examples, trainer.collator, trainer.model
    with trainer.accelerator.autocast():
        predicted = step_memory(model, collator, examples, config.device)
    plan = plan_batches(examples, collator, config.batch_tokens, 8, config.seed)
    limit = config.batch_tokens
    largest = max(plan, key=lambda batch: largest_batch([examples[i] for i in batch], collator, trainer.config, limit))
    batch = trainer._prepare_inputs(collator([examples[i] for i in largest]))
    if config.checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    model.train()

    def step() -> None:
        with trainer.accelerator.autocast():
            trainer.compute_loss(model, dict(batch)).backward()

    tokens = largest_batch(examples, collator, trainer.config, limit)
    mebibytes = (predicted.peak(tokens, config.checkpointing) - predicted.fixed) / 2**20
    measured = peak_memory(step, config.device)
    print(
        f"a batch of {tokens} tokens: predicted {mebibytes:.0f} MiB, measured {measured:.0f} MiB, "
        f"ratio {mebibytes / measured:.3f}"
    )


def _trainer(config: MemoryConfig, make_examples: Any) -> Any:
    """A trainer, on made-up examples."""
    import torch

    from eval.shared.made_up import make_reward_model
    from rovrm.model.adapters import add_adapter, set_trainable
    from rovrm.model.loading import load_processor, load_reward_model
    from rovrm.training.trainer import RewardConfig, RewardTrainer

    torch.manual_seed(config.seed)
    if config.model:
        model, processor = load_reward_model(config.model, torch.float32), load_processor(config.model)
    else:
        model, processor = make_reward_model("tiny", config.device, "float32")
    if config.tuning == "lora":
        model = add_adapter(model, config.model, 16, 32, 0.05)
    set_trainable(model, visual=True, full=config.tuning == "full")
    images, length = not config.model, config.response_length
    data = make_examples(config.examples, config.responses, config.seed, images=images, response_length=length)
    arguments = RewardConfig(
        tempfile.gettempdir(),  # nothing is written
        batch_tokens=config.batch_tokens,
        max_length=8192,
        use_cpu=config.device == "cpu",
        bf16=config.dtype == "bfloat16",
        report_to="none",
        seed=config.seed,
    )
    return RewardTrainer(model, arguments, data, None, processor)


def main(argv: list[str] | None = None) -> int:
    return run(memory, sys.argv[1:] if argv is None else argv, "eval.memory")


if __name__ == "__main__":
    sys.exit(main())
