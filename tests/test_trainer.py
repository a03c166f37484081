"""RewardTrainer: learns, counts, evaluates the same however it is batched, accumulates rightly, resumes bit-equal."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from families import FAMILIES
from helpers import read_lines, refused
from new_families import NEEDS_TORCHVISION, NEW_FAMILIES
from parity import max_images
from peft import get_peft_model
from PIL import Image
from transformers import TrainerCallback, TrainerControl

from rovrm.common.errors import UserError
from rovrm.common.intervals import wilson95
from rovrm.data.example import Example
from rovrm.data.images import ImageRef
from rovrm.data.loading import as_examples
from rovrm.model.adapters import lora_config, set_trainable
from rovrm.model.loading import PROJECTORS, load_processor, load_reward_model
from rovrm.settings.command_line import parse
from rovrm.settings.keys import TrainConfig
from rovrm.settings.phases import VISUAL
from rovrm.training.callbacks import LogFile, TimedCheckpoints
from rovrm.training.setup import trainer_arguments
from rovrm.training.trainer import RewardConfig, RewardTrainer

COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220), "green": (20, 180, 20)}


def colour_pairs(count: int) -> list[Example]:
    """Only the image tells which answer is right."""
    names = list(COLOURS)
    made = []
    for i in range(count):
        right, wrong = names[i % 3], names[(i + 1 + i // 3 % 2) % 3]
        picture = ImageRef(image=Image.new("RGB", (32, 32), COLOURS[right]))
        question = [{"role": "user", "content": "Which colour" + "?" * (1 + i % 4)}]
        made.append(Example(f"c{i}", "colours", question, [f"It is {right}.", f"It is {wrong}."], [0, 1], [picture]))
    return made


def text_pairs(count: int) -> list[Example]:
    question = [{"role": "user", "content": "Say something"}]
    return [Example(f"t{i}", "text", question, [f"good {i}", f"bad {i}"], [0, 1]) for i in range(count)]


@pytest.fixture
def trainer_of(family_folder, tmp_path):
    """Makes a trainer on the tiny LLaVA, on the CPU, silent; options override."""

    def make(train, held_out=None, out="out", callbacks=None, lora=False, model=None, **options):
        folder = str(family_folder("llava"))
        torch.manual_seed(0)
        if model is None:
            model = load_reward_model(folder)
            set_trainable(model, visual=True, full=True)
        arguments = {
            "output_dir": str(tmp_path / out),
            "use_cpu": True,
            "report_to": "none",
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "dataloader_pin_memory": False,
        }
        peft = lora_config(model, 4, 8, 0.1) if lora else None
        return RewardTrainer(
            model, RewardConfig(**arguments | options), train, held_out, load_processor(folder), peft, callbacks
        )

    return make


def logged(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def test_learns_from_images_alone(trainer_of):
    pairs = colour_pairs(48)
    trainer = trainer_of(pairs, pairs[:12], num_train_epochs=6)
    trainer.train()
    assert trainer.evaluate()["eval_accuracy"] >= 0.9
    blank = [
        Example(e.id, e.source, e.prompt, e.responses, e.ranks, [ImageRef(image=Image.new("RGB", (32, 32)))])
        for e in pairs
    ]
    assert trainer.evaluate(blank[:12])["eval_accuracy"] < 0.8  # without the colour the answer cannot be known


def test_first_loss_is_the_mean_over_pairs(trainer_of):
    """The logged loss is the mean Bradley-Terry loss of the pairs of the step, whatever the accumulation."""
    pairs = colour_pairs(8)
    one = trainer_of(pairs, per_device_train_batch_size=8, max_steps=1)
    rewards = one.predict_rewards(one.train_examples)
    expected = -torch.nn.functional.logsigmoid(torch.tensor([a - b for a, b in rewards])).mean().item()
    one.train()
    many = trainer_of(pairs, per_device_train_batch_size=3, gradient_accumulation_steps=3, max_steps=1)
    many.train()
    assert logged(one, "loss")[0] == pytest.approx(expected, abs=1e-5)
    assert logged(many, "loss")[0] == pytest.approx(expected, abs=1e-5)
    assert logged(many, "grad_norm")[0] == pytest.approx(logged(one, "grad_norm")[0], rel=1e-3)


def test_separate_rows_train_alike(trainer_of):
    pairs = colour_pairs(8)
    runs = {}
    for rows in ("shared", "separate"):
        trainer = trainer_of(pairs, rows=rows, per_device_train_batch_size=8, max_steps=3)
        trainer.train()
        runs[rows] = logged(trainer, "loss")
    assert runs["shared"] == pytest.approx(runs["separate"], abs=1e-4)


def test_evaluation_does_not_depend_on_batching(trainer_of):
    pairs = colour_pairs(10) + text_pairs(3)
    metrics = []
    for size, tokens in ((1, 50), (4, 400), (16, 10**6)):
        trainer = trainer_of(pairs, pairs, per_device_eval_batch_size=size, batch_tokens=tokens)
        metrics.append({k: v for k, v in trainer.evaluate().items() if "per_second" not in k})
    for other in metrics[1:]:
        assert other == pytest.approx(metrics[0], abs=1e-5)


def test_metrics_are_logged_under_trls_names(trainer_of, tmp_path):
    log = tmp_path / "log.jsonl"
    trainer = trainer_of(colour_pairs(8), max_steps=2, callbacks=[LogFile(log)])
    trainer.train()
    first = read_lines(log)[0]
    names = {"accuracy", "margin", "mean_reward", "min_reward", "max_reward", "num_tokens", "pairs_per_second", "loss"}
    assert names <= first.keys() and first["step"] == 1
    assert first["min_reward"] <= first["mean_reward"] <= first["max_reward"]
    examples = trainer.train_examples
    expected = sum(sum(e.lengths[1]) + e.lengths[0] for e in examples)
    assert sum(logged(trainer, "num_tokens")) == expected  # two steps of four pairs: every token once


def test_resume_is_bit_equal(trainer_of):
    """With LoRA dropout, several epochs, accumulation and an uneven last step."""
    pairs = colour_pairs(22)
    options = {
        "num_train_epochs": 3,
        "gradient_accumulation_steps": 2,
        "save_strategy": "steps",
        "save_steps": 4,
        "lora": True,
    }
    whole = trainer_of(pairs, pairs[:6], out="whole", **options)
    whole.train()
    for stop in (4, 8):
        again = trainer_of(pairs, pairs[:6], out="again", **options)
        again.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-{stop}")
        for (name, one), (_, other) in zip(whole.model.named_parameters(), again.model.named_parameters(), strict=True):
            assert torch.equal(one, other), name
        assert again.evaluate()["eval_loss"] == whole.evaluate()["eval_loss"]
        assert logged(again, "loss")[-1] == logged(whole, "loss")[-1]


class Clock(TrainerCallback):
    """Each step takes a minute."""

    def __init__(self):
        self.now = 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        self.now += 60

    def __call__(self) -> float:
        return self.now


def test_checkpoints_by_the_clock(trainer_of, monkeypatch):
    """Three minutes after the start, five after each other; the other process's clock, or answer, says nothing."""
    clock = Clock()
    options = {"num_train_epochs": 14, "save_strategy": "steps", "save_steps": 1000, "lora": True}
    trainer = trainer_of(text_pairs(4), callbacks=[clock, TimedCheckpoints(3, 5, clock)], **options)
    trainer.train()
    saved = {int(path.name.split("-")[1]) for path in Path(trainer.args.output_dir).glob("checkpoint-*")}
    assert saved == {3, 8, 13, 14}  # 14: the end
    again = trainer_of(text_pairs(4), **options)
    again.train(resume_from_checkpoint=f"{again.args.output_dir}/checkpoint-8")
    for one, other in zip(trainer.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)

    control, mine = TrainerControl(), TimedCheckpoints(3, 5, clock)
    mine.on_train_begin(None, None, None)
    monkeypatch.setattr(
        "rovrm.training.callbacks.broadcast_object_list", lambda found: [True]
    )  # process 0 finds it is time
    mine.on_step_end(None, None, control)
    assert control.should_save
    control.should_save = False
    clock.now += 1e6
    monkeypatch.setattr("rovrm.training.callbacks.broadcast_object_list", lambda found: [False])
    mine.on_step_end(None, None, control)
    assert not control.should_save


def test_checkpoints_by_the_clock_are_the_default_of_training_alone(trainer_of, tmp_path):
    def asked(*given: str):
        config = parse(TrainConfig, [f"out={tmp_path}", "model=x", "visual.learning_rate=1", *given], "train")
        arguments = trainer_arguments(config, VISUAL)
        return arguments.first_checkpoint_minutes, arguments.checkpoint_minutes

    assert asked() == (5, 30) and asked("first_checkpoint_minutes=1", "checkpoint_minutes=0") == (1, 0)
    assert asked("trainer.save_steps=9") == asked("trainer.save_strategy=epoch") == (0, 0)
    for minutes, there in ((0.0, False), (1.0, True)):
        callbacks = trainer_of(text_pairs(4), first_checkpoint_minutes=minutes).callback_handler.callbacks
        assert any(isinstance(one, TimedCheckpoints) for one in callbacks) is there


def test_no_average_of_the_resumed_steps_is_logged(trainer_of, tmp_path, capsys):
    log = tmp_path / "log.jsonl"
    trainer_of(text_pairs(8), callbacks=[LogFile(log)], max_steps=2).train()
    assert "train_loss" not in log.read_text() + capsys.readouterr().out
    assert "train_runtime" in log.read_text()


def test_accuracy_is_logged_with_its_interval(trainer_of):
    pairs = colour_pairs(12)
    found = trainer_of(pairs, pairs).evaluate()
    assert [found["eval_accuracy_low"], found["eval_accuracy_high"]] == wilson95(found["eval_accuracy"], 12)
    assert found["eval_examples"] == 12


def test_gradient_checkpointing_changes_nothing(trainer_of):
    losses = []
    for on in (False, True):
        trainer = trainer_of(colour_pairs(8), max_steps=3, gradient_checkpointing=on)
        trainer.train()
        losses.append(logged(trainer, "loss"))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_trl_rows_are_taken_as_they_are(trainer_of, tmp_path):
    """TRL's vision preference format, as a list of dicts and as a Dataset with images inside."""
    from datasets import Dataset

    rows = [
        {
            "images": [Image.new("RGB", (32, 32), COLOURS["red"])],
            "prompt": [{"role": "user", "content": "Which colour?"}],
            "chosen": [{"role": "assistant", "content": "red"}],
            "rejected": [{"role": "assistant", "content": "blue"}],
        }
        for _ in range(4)
    ]
    for data in (rows, Dataset.from_list(rows)):
        trainer = trainer_of(data, max_steps=1)
        assert len(trainer.train_examples) == 4 and len(trainer.train_examples[0].images) == 1
        trainer.train()


UNTRAINED = {*NEEDS_TORCHVISION, "llama4_text"}  # PEFT takes no router that returns two tensors
LATER = [pytest.param(name, marks=pytest.mark.slow) for name in sorted(NEW_FAMILIES) if name not in UNTRAINED]


@pytest.mark.parametrize("name", [*sorted(FAMILIES), *LATER])
def test_every_family_trains(family_folder, tmp_path, name):
    """Two LoRA steps with image and text batches: finite loss; the language model's adapter and the projector move."""
    folder = str(family_folder(name))
    base, processor = load_reward_model(folder), load_processor(folder)
    model = cast(Any, get_peft_model(base, lora_config(base, 4, 8, 0.0)))
    set_trainable(model, visual=True, full=False)
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    pairs = colour_pairs(4) + text_pairs(2) if max_images(base) else text_pairs(4)
    arguments = RewardConfig(
        str(tmp_path), use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True, logging_steps=1,
        per_device_train_batch_size=3, learning_rate=1e-2, num_train_epochs=1, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = RewardTrainer(model, arguments, pairs, pairs, processor)
    trainer.train()
    assert all(0 < loss < 20 for loss in logged(trainer, "loss"))
    moved = {n for n, p in model.named_parameters() if n in before and not torch.equal(p, before[n])}
    assert any("lora_B" in n for n in moved) and any("score" in n for n in moved)
    assert not max_images(base) or any(part in PROJECTORS for n in moved for part in n.split("."))
    assert len(trainer.predict_rewards(trainer.eval_examples)) == len(pairs)


def test_bad_rows_stop_the_trainer(trainer_of):
    pairs = text_pairs(3)
    pairs[1].responses[1] = pairs[1].responses[0]
    with pytest.raises(UserError, match="1 of 3 rows cannot be trained on; the first, t1.*identical"):
        trainer_of(pairs)


def test_a_loss_that_is_not_finite_stops_the_run(trainer_of, family_folder):
    model = load_reward_model(str(family_folder("llava")))
    model.score.weight.data.fill_(float("nan"))
    trainer = trainer_of(text_pairs(4), model=model)
    with pytest.raises(UserError, match="the loss is nan at step 1"):
        trainer.train()


def test_whatever_trains_is_float32(trainer_of, family_folder):
    model = load_reward_model(str(family_folder("llava")), torch.bfloat16)
    trainer = trainer_of(text_pairs(4), model=model, lora=True)
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    assert trained and all(p.dtype == torch.float32 for p in trained)


def test_a_cut_off_log_is_taken_up(trainer_of, tmp_path):
    log = tmp_path / "log.jsonl"
    pairs, options = colour_pairs(8), {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    trainer_of(pairs, callbacks=[LogFile(log)], **options).train()
    log.write_text(log.read_text() + '{"step": 2, "lo')
    again = trainer_of(pairs, callbacks=[LogFile(log)], **options)
    again.train(resume_from_checkpoint=f"{again.args.output_dir}/checkpoint-1")
    assert [entry["step"] for entry in read_lines(log)] == [1, 2, 2]


def test_center_coefficient_pulls_rewards_to_zero(trainer_of):
    means = []
    for weight in (0.0, 1.0):
        trainer = trainer_of(text_pairs(8), text_pairs(8), num_train_epochs=10, center_rewards_coefficient=weight)
        trainer.train()
        means.append(abs(trainer.evaluate()["eval_mean_reward"]))
    assert means[1] < 0.2 and means[1] < means[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU that runs bfloat16")
def test_bfloat16_without_a_gpu_names_our_key(tmp_path):
    config = parse(TrainConfig, [f"out={tmp_path}", "model=x", "visual.learning_rate=1", "dtype=bfloat16"], "train")
    with pytest.raises(UserError, match="^dtype=bfloat16: .*Leave dtype out"):
        trainer_arguments(config, VISUAL)


@pytest.mark.parametrize(
    ("name", "value"),
    [("train_sampling_strategy", "group_by_length"), ("dataloader_drop_last", True), ("label_smoothing_factor", 0.1)],
)
def test_an_argument_that_would_do_nothing_is_refused(tmp_path, name, value):
    argument = {name: value}
    refused(lambda: RewardConfig(str(tmp_path), use_cpu=True, **argument), name, "would do nothing", "leave it out")


@pytest.mark.parametrize("say", [True, False])
def test_columns_that_are_not_read_are_listed_by_one_process(caplog, say):
    as_examples([{"prompt": "Q", "chosen": "a", "rejected": "b", "reason": "why"}], say=say)
    assert ("not read: reason" in caplog.text) == say
