"""What two trainers that are timed against each other are both given."""

from typing import Any


def timed_arguments(config: Any, folder: str, per_step: int, epochs: int) -> dict[str, Any]:
    """Keys of transformers.TrainingArguments for a run that is timed.

    Args:
        config: the measurement's settings, with dtype, checkpointing, device and seed.
        folder: of the run.
        per_step: examples of a step.
        epochs: passes over them.
    """
    return {
        "output_dir": folder,
        "per_device_train_batch_size": per_step,
        "num_train_epochs": epochs,
        "learning_rate": 0.0,  # every step is computed in full, and the losses stay comparable
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "bf16": config.dtype == "bfloat16",
        "gradient_checkpointing": config.checkpointing,
        "use_cpu": config.device == "cpu",
        "seed": config.seed,
        "lr_scheduler_type": "constant",
    }
