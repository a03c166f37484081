"""What RewardTrainer does beside its steps: the bar, checkpoints by the clock, the log file."""

import json
import math
import os
import time
from collections.abc import Callable

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback
from transformers.trainer_callback import ProgressCallback

from rovrm.common.intervals import share_in_words


class LiveBar(ProgressCallback):
    """Trainer's bar, with loss, accuracy and margin of the last steps at its end instead of a printed dictionary; of an
    evaluation its accuracy, printed above the bar."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and self.training_bar is not None and logs:
            shown = ("loss", "accuracy", "margin")
            self.training_bar.set_postfix({k: f"{logs[k]:.3f}" for k in shown if k in logs})
            if "eval_accuracy" in logs:
                accuracy = share_in_words(logs["eval_accuracy"], int(logs["eval_examples"]))
                self.training_bar.write(f"step {state.global_step}: held-out accuracy {accuracy}")


class TimedCheckpoints(TrainerCallback):
    """Asks for a checkpoint `first` minutes after the start and `every` minutes after the last one, beside those by
    steps; 0: not at all. Process 0 looks at the clock for all: a save in which one takes no part never ends."""

    def __init__(self, first: float, every: float, clock: Callable[[], float] = time.monotonic):
        self.first, self.every, self.clock = 60 * first, 60 * every, clock

    def on_train_begin(self, args, state, control, **kwargs):
        self.since, self.wait = self.clock(), self.first or self.every

    def on_step_end(self, args, state, control, **kwargs):
        due = bool(self.wait) and self.clock() - self.since >= self.wait
        [due] = broadcast_object_list([due])  # process 0's word
        if due:
            control.should_save = True

    def on_save(self, args, state, control, **kwargs):
        self.since, self.wait = self.clock(), self.every


class LogFile(TrainerCallback):
    """Appends every log to a JSONL file; when a run resumes, what came after its checkpoint is dropped first."""

    def __init__(self, path: str | os.PathLike):
        self.path = path

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero and os.path.exists(self.path):
            with open(self.path) as file:
                kept = [line for line in file if _step_of(line) <= state.global_step]
            with open(self.path, "w") as file:
                file.writelines(kept if state.global_step else [])

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and logs:
            with open(self.path, "a") as file:
                file.write(json.dumps({"step": state.global_step} | logs) + "\n")


def _step_of(line: str) -> float:
    """The step of a log line; infinity for one that was cut off."""
    try:
        return json.loads(line)["step"] if line.endswith("\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf
