"""Which keys of transformers.TrainingArguments may stand under `trainer`, which are ours, and which hold text."""

import difflib
from dataclasses import Field, fields
from typing import Any

from rovrm.common.errors import refuse
from rovrm.settings.phases import PHASES

EACH_RATE = ", ".join(f"{phase.name}.learning_rate" for phase in PHASES)
EACH_EPOCHS = ", ".join(f"{phase.name}.epochs" for phase in PHASES)
# Keys of TrainingArguments that would do nothing, and why; `RewardConfig` refuses them too.
WITHOUT_EFFECT = {
    "label_smoothing_factor": "the ranking loss has none, leave it out",
    "train_sampling_strategy": "batches hold rows of like lengths already, leave it out",
    "dataloader_drop_last": "every row trains once an epoch, in batches filled up to batch_tokens, leave it out",
}
# Keys of TrainingArguments that rovrm sets itself, and what to do instead.
OWNED = {
    "output_dir": "set out instead",
    "per_device_train_batch_size": "set batch_size and batch_tokens instead",
    "per_device_eval_batch_size": "set batch_size and batch_tokens instead",
    "learning_rate": f"set {EACH_RATE} instead",
    "num_train_epochs": f"set {EACH_EPOCHS} instead",
    "seed": "set seed instead",
    "remove_unused_columns": "the collator needs every column, leave it out",
    "label_names": "the collator names the labels, leave it out",
    "bf16": "set dtype instead",
    "fp16": "set dtype instead",
    "dataloader_num_workers": "set workers instead",
    "average_tokens_across_devices": "the loss is per response over all devices, leave it out",
    **WITHOUT_EFFECT,
    "resume_from_checkpoint": "a run resumes by itself, leave it out",
}
# Typed as text by TrainingArguments, and yet false switches them off.
SWITCHES = ("fsdp", "debug")


def holds_text(key: str) -> bool:
    """Whether `no` under this key of `trainer` is a text, as it is for `save_strategy`, and does not mean false.

    It imports transformers, which takes seconds.
    """
    arguments = _arguments()
    if key not in arguments or key in SWITCHES:
        return False
    annotation = str(arguments[key].type)
    # A mapping may also be given as a text, the name of a file, as `deepspeed` is; there `no` means none.
    return "str" in annotation and not any(word in annotation for word in ("bool", "False", "dict"))


def check_trainer_keys(trainer: dict[str, Any]) -> None:
    """Raises UserError for keys under `trainer` that rovrm sets itself or that TrainingArguments does not know, and
    for values that cannot be right, with a line for each."""
    if not trainer:
        return
    mistakes = [_mistake(key, value) for key, value in trainer.items()]
    refuse(mistake for mistake in mistakes if mistake)


def _arguments() -> dict[str, Field]:
    """The fields of TrainingArguments that can be set."""
    from transformers import TrainingArguments

    return {f.name: f for f in fields(TrainingArguments) if f.init}


def _mistake(key: str, value: Any) -> str:
    """What is wrong with a key under `trainer`, or "" where nothing is."""
    if key in OWNED:
        return f"trainer.{key} is set by rovrm: {OWNED[key]}"
    allowed = _arguments().keys() - OWNED.keys()
    if key not in allowed:
        names = difflib.get_close_matches(str(key), sorted(allowed), n=3)
        hint = f"; did you mean {' or '.join(f'trainer.{name}' for name in names)}?" if names else ""
        return f"unknown key trainer.{key} (got {value!r}): no field of TrainingArguments{hint}"
    takes = _takes(str(_arguments()[key].type))
    is_fraction = takes == "a whole number" and isinstance(value, float)
    if takes and (isinstance(value, str) or is_fraction):
        return f"trainer.{key}: got {value!r}, takes {takes}"
    if key == "gradient_accumulation_steps" and value < 1:
        return f"trainer.{key}: got {value!r}, takes a whole number above 0"
    return ""


def _takes(annotation: str) -> str:
    """What a field of TrainingArguments takes, in words; "" where a text may be right."""
    if "str" in annotation:
        return ""
    if "bool" in annotation:
        return "true or false"
    if "float" in annotation:
        return "a number"
    return "a whole number" if "int" in annotation else ""
