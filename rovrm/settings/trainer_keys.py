"""Which keys of transformers.TrainingArguments may stand under `trainer`, and which are ours."""

import difflib
from dataclasses import fields
from typing import Any

from rovrm.common.errors import refuse
from rovrm.settings.phases import PHASES

# Keys of TrainingArguments that rovrm sets itself, and the key to use instead.
EACH_RATE, EACH_EPOCHS = (", ".join(f"{phase.name}.{key}" for phase in PHASES) for key in ("learning_rate", "epochs"))
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
    "label_smoothing_factor": "the ranking loss has none, leave it out",
    "resume_from_checkpoint": "a run resumes by itself, leave it out",
}


def check_trainer_keys(trainer: dict[str, Any]) -> None:
    """Raises UserError for keys under `trainer` that rovrm sets itself or that TrainingArguments does not know, a line
    for each."""
    if not trainer:
        return
    from transformers import TrainingArguments

    allowed = {f.name: f for f in fields(TrainingArguments) if f.init and f.name not in OWNED}
    looked = [_wrong_trainer_key(key, value, allowed) for key, value in trainer.items()]
    refuse(line for line in looked if line)


def _wrong_trainer_key(key: str, value: Any, allowed: dict[str, Any]) -> str:
    """What is wrong with a key under `trainer`; "" for nothing."""
    if key in OWNED:
        return f"trainer.{key} is set by rovrm: {OWNED[key]}"
    if key not in allowed:
        near = difflib.get_close_matches(str(key), allowed, n=3)
        hint = f"; did you mean {' or '.join(f'trainer.{name}' for name in near)}?" if near else ""
        return f"unknown key trainer.{key} (got {value!r}): no field of TrainingArguments{hint}"
    takes = _takes(str(allowed[key].type))
    fraction = takes == "a whole number" and isinstance(value, float)
    if takes and (isinstance(value, str) or fraction):
        return f"trainer.{key}: got {value!r}, takes {takes}"
    if key == "gradient_accumulation_steps" and value < 1:
        return f"trainer.{key}: got {value!r}, takes a whole number above 0"
    return ""


def _takes(hint: str) -> str:
    """What a field of TrainingArguments takes, from its annotation; empty where a text may be right."""
    if "str" in hint or not any(kind in hint for kind in ("int", "float", "bool")):
        return ""
    return "true or false" if "bool" in hint else "a number" if "float" in hint else "a whole number"
