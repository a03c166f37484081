"""One phase, from its data to its folder: load what it starts from, train, evaluate on the held-out rows, write."""

import shlex
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import set_seed

from rovrm.common.errors import UserError
from rovrm.common.files import write_json
from rovrm.common.intervals import wilson95
from rovrm.model.adapters import add_adapter, base_of, brings_head, has_adapter, load_adapter, set_trainable
from rovrm.model.collator import RewardCollator
from rovrm.model.loading import load_reward_model, numeric_type
from rovrm.settings.keys import TrainConfig
from rovrm.settings.phases import VISUAL, Phase
from rovrm.training.callbacks import LogFile
from rovrm.training.memory import adapt_to_memory
from rovrm.training.outputs import doubts, print_warnings, write_phase
from rovrm.training.phase_data import PhaseData
from rovrm.training.plan import settings_of, start_of
from rovrm.training.resume import (
    check_same_data,
    complete_checkpoint,
    epochs_done,
    fingerprint,
    images_mark,
    template_mark,
)
from rovrm.training.setup import Parts, model_parts
from rovrm.training.trainer import RewardConfig, RewardTrainer


class Task:
    """What a run trains: a reward model. A policy differs in these steps (`rovrm.alignment.tuning`)."""

    what = "reward model"
    collator_class: type[RewardCollator] = RewardCollator

    def parts(self, config: TrainConfig, first: Phase) -> Parts:
        """What reading rows needs; raises UserError for a model that cannot be trained."""
        parts = model_parts(config, first)
        start = start_of(config, first)
        if has_adapter(start) and not brings_head(Path(start)):
            raise UserError(
                f"init_from={config.init_from!r} is an adapter without a trained `score`, such as rovrm.dpo writes; "
                "give one of rovrm.train"
            )
        return parts

    def load(self, config: TrainConfig, name: str, dtype: torch.dtype) -> Any:
        """The model of a base or a checkpoint."""
        return load_reward_model(name, dtype, config.tuning == "qlora", config.trust_remote_code)

    def trainer(
        self, config: TrainConfig, phase: Phase, model: Any, arguments: RewardConfig, data: PhaseData, processor: Any
    ) -> RewardTrainer:
        """The trainer of a phase, ready to train."""
        log = LogFile(phase.folder(config.out) / "trainer_log.jsonl")
        return RewardTrainer(model, arguments, data.train, data.held_out, processor, callbacks=[log])

    def describe(self, config: TrainConfig) -> str:
        """What a dry run says first."""
        return f"{self.what}: Plackett-Luce, center_rewards_coefficient={config.center_rewards_coefficient:g}"

    def record(self, metrics: dict[str, float]) -> dict[str, Any]:
        """What phase.json says beyond what every phase's does, from the metrics on the held-out rows."""
        return {}

    def write(self, config: TrainConfig, phase: Phase, trainer: Any, record: dict[str, Any], last: bool) -> None:
        """Writes the folder of a trained phase."""
        write_phase(config, phase, trainer, record, last)

    def what_next(self, folder: str) -> str:
        """What to do with the last phase's folder."""
        return f"score with it: python -m rovrm.score model={shlex.quote(folder)} in=pairs.jsonl out=scores.jsonl"


def run_phase(
    config: TrainConfig,
    phase: Phase,
    data: PhaseData,
    processor: Any,
    arguments: RewardConfig,
    last: bool,
    task: Task,
) -> None:
    """Trains one phase, or goes on with it at its newest checkpoint, and writes its folder.

    Args:
        config: the settings of the run.
        phase: which phase.
        data: its rows.
        processor: of the model that it starts from.
        arguments: the trainer's.
        last: whether it is the last phase of the run, which gets the merged checkpoint.
        task: what is trained.
    """
    state, folder = PartialState(), phase.folder(config.out)
    start = start_of(config, phase)
    checkpoint = complete_checkpoint(folder / "checkpoints", state.is_main_process)
    rows = [*data.train, *data.held_out]
    plan = {"data": fingerprint(rows), "images": images_mark(rows), "processes": state.num_processes}
    plan["template"] = template_mark(processor)
    if checkpoint:
        check_same_data(folder, plan, state.is_main_process)
    if state.is_main_process:
        print(
            f"{phase}: {len(data.train)} examples, {len(data.held_out)} held out, {len(data.rejected)} skipped; from "
            f"{checkpoint or start}; {state.num_processes} processes"
        )
    set_seed(config.seed)
    model = model_of(config, phase, start, task)
    if state.is_main_process:
        write_json(folder / "settings.json", settings_of(config, phase) | {"plan": plan})
    try:
        trainer = task.trainer(config, phase, model, arguments, data, processor)
    except (ImportError, ValueError) as error:
        raise UserError(f"transformers cannot set up the trainer: {error}") from error
    adapt_to_memory(trainer, folder, bool(checkpoint), config.trainer)
    epochs_before = epochs_done(checkpoint)  # read now: training removes old checkpoints, this one too
    began = time.perf_counter()
    trainer.train(resume_from_checkpoint=checkpoint)
    seconds = time.perf_counter() - began
    epochs = (trainer.state.epoch or 0.0) - epochs_before  # those of this process
    record = _record(trainer, data, seconds, epochs, task)
    record["warnings"] = doubts(record, phase.name, arguments.learning_rate)
    task.write(config, phase, trainer, record, last)
    if state.is_main_process and not last:  # the last phase's are printed with those of all
        print_warnings([record])


def _record(trainer: RewardTrainer, data: PhaseData, seconds: float, epochs: float, task: Task) -> dict[str, Any]:
    """What phase.json and summary.json say of a trained phase, its metrics on the held-out rows among it."""
    metrics = trainer.evaluate()
    return {
        "n_train": len(data.train),
        "n_held_out": len(data.held_out),
        "n_skipped": len(data.rejected),
        "n_long": data.n_long,  # of those skipped
        "accuracy": metrics["eval_accuracy"],
        "accuracy_ci95": wilson95(metrics["eval_accuracy"], len(data.held_out)),
        "loss": metrics["eval_loss"],
        "margin": metrics["eval_margin"],
        "reward_mean": metrics["eval_mean_reward"],
        "reward_std": metrics["eval_std_reward"],
        "seconds": seconds,
        "pairs_per_second": len(data.train) * epochs / seconds,
        "shared_rows": trainer.collator.shared,
    } | task.record(metrics)


def model_of(config: TrainConfig, phase: Phase, start: str, task: Task) -> Any:
    """The model of a phase, with what trains set up: the base with an adapter (a fresh one, or the one that the phases
    continue), or all weights of the previous phase's checkpoint."""
    if has_adapter(start):
        model = load_adapter(task.load(config, base_of(Path(start)), _frozen_type(config)), start, trainable=True)
    else:
        model = new_model(config, start, task)
    set_trainable(model, visual=phase == VISUAL, full=config.tuning == "full")
    return model


def new_model(config: TrainConfig, base: str, task: Task) -> Any:
    """The model of a base or a checkpoint, with a fresh adapter on it unless all of it is to train."""
    model: Any = task.load(config, base, _frozen_type(config))
    if config.tuning == "full":
        return model
    return add_adapter(model, base, config.lora_r, config.lora_alpha, config.lora_dropout)


def _frozen_type(config: TrainConfig) -> torch.dtype:
    return torch.float32 if config.tuning == "full" else numeric_type(config.dtype, config.on_cpu)
