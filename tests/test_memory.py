"""The memory of a training step: predicted as it is measured, and what a run changes so that its batches fit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import output_of, pairs, read_json, read_lines, write_lines
from new_families import NEEDS_TORCHVISION, NEW_FAMILIES
from PIL import Image

from eval import memory as memory_command
from eval.shared.timing import peak_memory
from rovrm import train
from rovrm.data.example import Example
from rovrm.data.images import ImageRef
from rovrm.model.adapters import lora_config, set_trainable
from rovrm.model.loading import load_processor, load_reward_model
from rovrm.training import memory
from rovrm.training.memory import NOTE, StepMemory, adapt_to_memory, largest_batch, step_memory
from rovrm.training.trainer import RewardConfig, RewardTrainer

WORDS = "a small red cup on the wooden table next to an open book".split()


def examples(count: int, answers: int, words: int, pictures: bool) -> list[Example]:
    made = []
    for i in range(count):
        question = [{"role": "user", "content": " ".join(WORDS[: 3 + i % 5])}]
        texts = [" ".join(WORDS[(i + j + n) % len(WORDS)] for n in range(words + j)) for j in range(answers)]
        images = [ImageRef(image=Image.new("RGB", (64, 64), (20 * i, 60, 90)))] if pictures else []
        made.append(Example(f"e{i}", "made", question, texts, list(range(answers)), images))
    return made


@pytest.fixture
def trainer_of(family_folder, tmp_path):
    """Makes a trainer with LoRA, or of the whole model, on a tiny family; options override."""

    def make(rows: list[Example], family: str = "llava", full: bool = False, **options: Any) -> RewardTrainer:
        folder = str(family_folder(family))
        torch.manual_seed(0)
        model: Any = load_reward_model(folder)
        if not full:
            from peft import get_peft_model

            model = get_peft_model(model, lora_config(model, 4, 8, 0.1))
        set_trainable(model, visual=True, full=full)
        arguments = {"output_dir": str(tmp_path / "out"), "use_cpu": True, "report_to": "none", "max_length": 8000}
        return RewardTrainer(model, RewardConfig(**arguments | options), rows, None, load_processor(folder))

    return make


def measured_peak(trainer: RewardTrainer) -> float:
    """Bytes of a step on all examples, the gradients being there already."""
    model: Any = trainer.model
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    model.train()
    batch = trainer.collator(trainer.train_examples)
    return peak_memory(lambda: trainer.compute_loss(model, dict(batch)).backward(), "cpu") * 2**20


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3", "internvl", "mllama", "llama", "qwen3_5"])
def test_two_rows_tell_the_peak_of_a_batch(family, trainer_of):
    if family in NEW_FAMILIES and family in NEEDS_TORCHVISION:
        pytest.skip("needs torchvision")
    trainer = trainer_of(examples(8, 4, 150, family != "llama"), family)
    predicted = step_memory(trainer.model, trainer.collator, trainer.train_examples, "cpu")
    tokens = largest_batch(trainer.train_examples, trainer.collator, trainer.config, 10**6)
    assert predicted.peak(tokens, False) - predicted.fixed == pytest.approx(measured_peak(trainer), rel=0.15)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_peak_at_real_lengths(checkpointing, capsys):
    printed = output_of(capsys, memory_command.main, "examples=4", f"checkpointing={checkpointing}")
    assert float(printed.rsplit("ratio ", 1)[1]) == pytest.approx(1, rel=0.15)


def test_measuring_changes_nothing(trainer_of):
    trainer = trainer_of(examples(4, 2, 10, True))
    model: Any = trainer.model
    model.eval()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    torch.manual_seed(3)
    step_memory(model, trainer.collator, trainer.train_examples, "cpu")
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert drawn == torch.rand(1)
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_what_autocast_keeps_of_weights_does_not_grow_with_the_batch(trainer_of):
    trainer = trainer_of(examples(4, 2, 10, False), "llama", full=True)
    with torch.autocast("cpu", torch.bfloat16):
        cast = step_memory(trainer.model, trainer.collator, trainer.train_examples, "cpu")
    plain = step_memory(trainer.model, trainer.collator, trainer.train_examples, "cpu")
    weights = [module.weight for module in trainer.model.model.layers.modules() if isinstance(module, torch.nn.Linear)]
    assert cast.fixed - plain.fixed == sum(2 * weight.numel() for weight in weights)
    assert cast.token < plain.token


# ---- what a run changes ----------------------------------------------------------------------------------------------

STEP = StepMemory(fixed=1000, token=100.0, checkpointed=20.0)


@pytest.fixture
def adapted(trainer_of, tmp_path, monkeypatch, capsys):
    """Adapts a trainer to so many bytes of free memory; gives the trainer's arguments, the note, and what was said."""

    def adapt(free: float, given: tuple[str, ...] = (), resumed: bool = False, **options: Any):
        monkeypatch.setattr(memory, "step_memory", lambda *args: STEP)
        monkeypatch.setattr(memory, "free_memory", lambda device: free)
        trainer = trainer_of(examples(16, 2, 100, False), "llama", **options)
        adapt_to_memory(trainer, tmp_path, resumed, given)
        note = tmp_path / NOTE
        return trainer, read_json(note) if note.is_file() else None, capsys.readouterr().out

    return adapt


def needed(trainer: RewardTrainer, checkpointing: bool) -> float:
    arguments = trainer.config
    tokens = largest_batch(trainer.train_examples, trainer.collator, arguments, arguments.batch_tokens)
    return STEP.peak(tokens, checkpointing)


def test_with_room_nothing_changes(adapted):
    trainer, note, printed = adapted(1e9)
    assert note == {}
    assert trainer.config.batch_tokens == 16384 and not trainer.config.activation_checkpointing
    assert "memory of a step beside the weights: " in printed and "1.0 GB are free" in printed
    assert "fit" not in printed


def test_checkpointing_comes_first(adapted):
    room = needed(adapted(1e9)[0], True) / 0.9 + 1
    trainer, note, printed = adapted(room)
    assert note == {"activation_checkpointing": True} and trainer.config.activation_checkpointing
    assert trainer.config.batch_tokens == 16384
    assert "that does not fit: activation checkpointing is on" in printed


def test_then_smaller_batches(adapted):
    room = needed(adapted(1e9)[0], True) / 2
    trainer, note, printed = adapted(room)
    assert note == {"activation_checkpointing": True, "batch_tokens": trainer.config.batch_tokens}
    assert needed(trainer, True) <= 0.9 * room
    assert f"batch_tokens is {trainer.config.batch_tokens} and not 16384" in printed


def test_what_the_user_has_set_stays(adapted):
    trainer, note, printed = adapted(2000.0, ("activation_checkpointing",), batch_tokens=4000)
    assert note == {} and trainer.config.batch_tokens == 4000 and not trainer.config.activation_checkpointing
    assert "that may not fit: lower batch_tokens" in printed


def test_the_longest_row_is_not_cut(adapted):
    trainer, note, _ = adapted(10.0)
    longest = max(trainer.collator.cost(example.lengths).tokens for example in trainer.train_examples)
    assert note["batch_tokens"] == longest


def test_a_resumed_run_keeps_its_batches(adapted):
    _, note, _ = adapted(2000.0)
    trainer, same, printed = adapted(1e9, resumed=True)
    assert same == note and trainer.config.batch_tokens == note["batch_tokens"] and not printed
    (Path(trainer.config.output_dir).parent / NOTE).unlink()
    trainer, none, _ = adapted(2000.0, resumed=True)  # begun by a version that wrote no note
    assert none is None and trainer.config.batch_tokens == 16384


def test_a_run_under_checkpointing_gives_the_same_rewards(family_folder, tmp_path, monkeypatch, capsys):
    data = write_lines(tmp_path / "pairs.jsonl", *pairs(24))
    rewards = {}
    for name, free in (("plain", 1e12), ("short", 1.0)):
        monkeypatch.setattr(memory, "free_memory", lambda device, free=free: free)
        out = tmp_path / name
        words = [
            "phase=1",
            f"model={family_folder('llama')}",
            f"text.data={data}",
            f"out={out}",
            "trainer.use_cpu=true",
        ]
        printed = output_of(
            capsys, train.main, *words, "batch_size=1", "eval_fraction=0.25", "workers=0", "trainer.use_cpu=true"
        )
        rewards[name] = read_lines(out / "phase1-text" / "scores.jsonl")
        assert ("activation checkpointing is on" in printed) == (name == "short")
    assert rewards["plain"] == rewards["short"]


def test_the_memory_of_a_control_group(tmp_path):
    assert memory._group_memory(tmp_path) == float("inf")
    (tmp_path / "memory.current").write_text("600\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 100\n")
    for limit, left in (("max", float("inf")), ("1000", 500)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        assert memory._group_memory(tmp_path) == left
