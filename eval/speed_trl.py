"""RewardTrainer against TRL's on text pairs: same Llama, pairs, rate, optimizer and pairs per step.

Both train a whole Llama with `transformers.Trainer` underneath; what is timed is `train()` without data preparation.
All texts have the same length, so that neither side gains by its bucketing.
"""

import copy
import statistics
import tempfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eval.shared.timing import SpeedConfig


def compare_with_trl(config: "SpeedConfig", prompt: int = 150, response: int = 110, per_step: int = 8) -> None:
    import torch
    from transformers import LlamaConfig

    from eval.shared.timing import WORDS, examples, report
    from rovrm.model import modeling
    from rovrm.tiny_base.base import make_processor

    tokenizer = make_processor([" ".join(WORDS)] * 20, image_size=48, patch_size=16).tokenizer
    tokenizer.chat_template = (
        "{{ bos_token }}{% for message in messages %}"
        "{{ message['role'] + ': ' + message['content'] + ' ' }}{% endfor %}"
        "{{ eos_token }}"
    )
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=8,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    shape.num_labels = 1
    shape._attn_implementation = "sdpa"
    torch.manual_seed(config.seed)
    base = modeling.LlamaForSequenceClassification._from_config(shape)
    data = examples(config, config.text_steps * per_step, 2, images=False, prompt=prompt, response=response, vary=0)
    ours, theirs, losses = [], [], {}
    for _ in range(config.repeats):
        seconds, losses["TRL"] = _run_trl(config, copy.deepcopy(base), tokenizer, data, per_step)
        theirs.append(seconds)
        seconds, losses["rovrm"] = _run_ours(config, copy.deepcopy(base), tokenizer, data, per_step)
        ours.append(seconds)
    print(f"\ntext pairs against TRL's RewardTrainer, {config.text_steps} steps of {per_step} pairs: mean losses "
          f"{losses['TRL']:.5f} and {losses['rovrm']:.5f}")  # fmt: skip
    assert abs(losses["TRL"] - losses["rovrm"]) < 1e-4, "the two trainers do not compute the same loss"
    report("pairs", len(data), theirs, ours, names=("TRL", "rovrm"))


def _common(config: "SpeedConfig", folder: str, per_step: int) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "per_device_train_batch_size": per_step,
        "num_train_epochs": 1,
        "learning_rate": 0.0,  # every step is computed in full, and the epoch's mean loss is the same on both sides
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": config.dtype == "bfloat16",
        "gradient_checkpointing": config.checkpointing,
        "use_cpu": config.device == "cpu",
        "seed": config.seed,
        "max_length": 2048,
        "lr_scheduler_type": "constant",
    }


def _run_trl(config: "SpeedConfig", model: Any, tokenizer: Any, data: list[Any], per_step: int) -> tuple[float, float]:
    """Seconds of TRL's train() and its mean loss. TRL takes the text model's own class, same weights."""
    from datasets import Dataset
    from transformers import LlamaForSequenceClassification
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import RewardTrainer

    native = LlamaForSequenceClassification(model.config)
    native.load_state_dict(model.state_dict())
    rows = [
        {
            "prompt": e.prompt,
            "chosen": [{"role": "assistant", "content": e.responses[0]}],
            "rejected": [{"role": "assistant", "content": e.responses[1]}],
        }
        for e in data
    ]
    with tempfile.TemporaryDirectory() as folder:
        arguments = RewardConfig(**_common(config, folder, per_step), dataloader_pin_memory=False)
        trainer = RewardTrainer(
            native, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
        )
        return _timed_train(trainer)


def _run_ours(config: "SpeedConfig", model: Any, tokenizer: Any, data: list[Any], per_step: int) -> tuple[float, float]:
    """Seconds of our train(); batches hold the same number of pairs, without a token budget that would split them."""
    from rovrm.training.trainer import RewardConfig, RewardTrainer

    with tempfile.TemporaryDirectory() as folder:
        arguments = RewardConfig(**_common(config, folder, per_step), batch_tokens=10**7, dataloader_pin_memory=False)
        return _timed_train(RewardTrainer(model, arguments, data, processing_class=tokenizer))


def _timed_train(trainer: Any) -> tuple[float, float]:
    import time

    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    return seconds, statistics.mean(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
