"""RewardTrainer against TRL's on text pairs: same Llama, pairs, rate, optimizer and pairs per step. For eval.speed.

Both train a whole Llama with `transformers.Trainer` underneath; what is timed is `train()` without data preparation.
All texts have the same length, so that neither side gains by its bucketing.
"""

import copy
import statistics
import tempfile
import time
from typing import Any

import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForSequenceClassification, PrinterCallback

from eval.shared.arguments import timed_arguments
from eval.shared.keys import SpeedConfig
from eval.shared.made_up import WORDS, make_examples
from eval.shared.timing import print_rates
from rovrm.data.example import Example
from rovrm.model import modeling
from rovrm.tiny_base.base import make_processor
from rovrm.training import trainer as rovrm_trainer

PER_STEP = 8  # pairs
PROMPT_LENGTH, RESPONSE_LENGTH = 150, 110  # tokens
LIMIT = 1e-4  # how far the two sides' mean losses may differ
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ message['role'] + ': ' + message['content'] + ' ' }}{% endfor %}"
    "{{ eos_token }}"
)


def compare_with_trl(config: SpeedConfig) -> None:
    tokenizer = make_processor([" ".join(WORDS)] * 20, image_size=48, patch_size=16).tokenizer
    tokenizer.chat_template = CHAT_TEMPLATE
    torch.manual_seed(config.seed)
    base = modeling.LlamaForSequenceClassification._from_config(_llama(tokenizer))
    data = make_examples(
        config.text_steps * PER_STEP,
        2,
        config.seed,
        images=False,
        prompt_length=PROMPT_LENGTH,
        response_length=RESPONSE_LENGTH,
        vary=0,
    )
    seconds: dict[str, list[float]] = {"TRL": [], "rovrm": []}
    losses: dict[str, float] = {}
    for _ in range(config.repeats):
        for name, train in (("TRL", _train_with_trl), ("rovrm", _train_with_rovrm)):
            took, losses[name] = train(config, copy.deepcopy(base), tokenizer, data)
            seconds[name].append(took)
    print(
        f"\ntext pairs against TRL's RewardTrainer, {config.text_steps} steps of {PER_STEP} pairs: mean losses "
        f"{losses['TRL']:.5f} and {losses['rovrm']:.5f}"
    )
    assert abs(losses["TRL"] - losses["rovrm"]) < LIMIT, "the two trainers do not compute the same loss"
    print_rates("pairs", len(data), seconds)


def _llama(tokenizer: Any) -> LlamaConfig:
    config = LlamaConfig(
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
    config.num_labels = 1
    config._attn_implementation = "sdpa"
    return config


def _common_arguments(config: SpeedConfig, folder: str) -> dict[str, Any]:
    """What both trainers are given."""
    return timed_arguments(config, folder, PER_STEP, 1) | {"logging_steps": 1, "max_length": 2048}


def _train_with_trl(config: SpeedConfig, model: Any, tokenizer: Any, data: list[Example]) -> tuple[float, float]:
    """Seconds of TRL's train() and its mean loss. TRL takes the text model's own class, same weights."""
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import RewardTrainer

    native = LlamaForSequenceClassification(model.config)
    native.load_state_dict(model.state_dict())
    rows = []
    for example in data:
        better, worse = ([{"role": "assistant", "content": text}] for text in example.responses)
        rows.append({"prompt": example.prompt, "chosen": better, "rejected": worse})
    with tempfile.TemporaryDirectory() as folder:
        trainer = RewardTrainer(
            native,
            args=RewardConfig(**_common_arguments(config, folder)),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        return _timed_train(trainer)


def _train_with_rovrm(config: SpeedConfig, model: Any, tokenizer: Any, data: list[Example]) -> tuple[float, float]:
    """Seconds of our train() and its mean loss; batches hold the same number of pairs, without a token budget that
    would split them."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = rovrm_trainer.RewardConfig(**_common_arguments(config, folder), batch_tokens=10**7)
        return _timed_train(rovrm_trainer.RewardTrainer(model, arguments, data, processing_class=tokenizer))


def _timed_train(trainer: Any) -> tuple[float, float]:
    trainer.remove_callback(PrinterCallback)
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    return seconds, statistics.mean(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
