"""What train and select set up alike: processes, defaults, the trainer's arguments, the services they report to."""

import os
from dataclasses import replace
from datetime import timedelta
from typing import Any

from rovrm.common.errors import UserError
from rovrm.settings.command_line import parse
from rovrm.settings.keys import TrainConfig, with_rates


def process_state(config: TrainConfig) -> Any:
    """The process group, set up as Trainer would: on the CPU with `trainer.use_cpu=true`, and as patient."""
    from accelerate import PartialState

    patience = timedelta(seconds=config.trainer.get("ddp_timeout", 1800))  # others wait while one chooses rows
    state = PartialState(cpu=bool(config.trainer.get("use_cpu", False)), timeout=patience)
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if state.num_processes != launched:
        raise UserError(
            f"{launched} processes were launched, but each runs alone (it sees {state.num_processes}); "
            "on the CPU launch with torchrun and trainer.use_cpu=true"
        )
    return state


def with_default(config: TrainConfig, argv: list[str], prog: str) -> TrainConfig:
    """With what was not given: learning rates by `tuning`; with no model the tiny base shipped in the package, and its
    world's pairs, rates and epochs for every key that neither the command line nor the recipe gives."""
    if config.model:
        return with_rates(config)
    from rovrm.world.default import BASE, SECTIONS, SETTINGS

    if process_state(config).is_main_process:
        print("no model= given: this is the shipped tiny default, which knows a small world of shapes (see README)")
    # Read again: of the first reading nobody can tell a key that was given from one that has its default.
    return with_rates(replace(parse(TrainConfig, argv, prog, SETTINGS | SECTIONS), model=BASE))


def trainer_arguments(config: TrainConfig, phase: int, **changes: Any) -> Any:
    """The trainer's arguments of a phase, with changes. Raises UserError for what transformers refuses."""
    import torch

    from rovrm.model.loading import numeric_type
    from rovrm.settings.keys import section_of
    from rovrm.settings.phases import phase_folder
    from rovrm.training.trainer import RewardConfig

    section = section_of(config, phase)
    bfloat16 = numeric_type(config.dtype, bool(config.trainer.get("use_cpu", False))) == torch.bfloat16
    by_the_clock = {key: getattr(config, key) for key in ("first_checkpoint_minutes", "checkpoint_minutes")}
    given: dict[str, Any] = {
        "logging_steps": 10,
        "save_steps": 200,
        "save_total_limit": 2,
        "report_to": "none",
        "dataloader_num_workers": config.workers,
        "bf16": bfloat16,
        "warmup_steps": 0.03,  # a share of all steps
        "dataloader_pin_memory": torch.cuda.is_available(),
        "ddp_find_unused_parameters": False,
        **({} if {"save_strategy", "save_steps"} & config.trainer.keys() else by_the_clock),
        **config.trainer,
        "output_dir": str(phase_folder(config.out, phase) / "checkpoints"),
        "learning_rate": section.learning_rate,
        "num_train_epochs": section.epochs,
        "per_device_train_batch_size": config.batch_size,
        "per_device_eval_batch_size": config.batch_size,
        "seed": config.seed,
        "rows": config.rows,
        "batch_tokens": config.batch_tokens,
        "max_length": config.max_length,
        "center_rewards_coefficient": config.center_rewards_coefficient,
        **changes,
    }
    try:
        return RewardConfig(**given)
    except (ValueError, TypeError, OSError, ImportError) as error:
        raise UserError(f"trainer settings are refused by transformers: {error}") from error


def check_services(arguments: Any, main_process: bool) -> None:
    """Raises UserError, before a model is loaded, for a tracker that is not installed and for a hub that cannot be
    reached or does not know the user."""
    from huggingface_hub import HfApi
    from transformers.integrations.integration_utils import get_reporting_integration_callbacks

    try:
        for tracker in get_reporting_integration_callbacks(arguments.report_to):
            tracker()
    except (ValueError, ImportError, RuntimeError) as error:
        raise UserError(f"trainer.report_to={', '.join(arguments.report_to)}: {error}") from error
    if not arguments.push_to_hub or not main_process:
        return
    try:
        HfApi(token=arguments.hub_token).whoami()
    except (OSError, ValueError) as error:  # offline, no token, or one that the hub does not know
        raise UserError(
            f"trainer.push_to_hub=true needs the hub and a login there ({str(error).strip().splitlines()[0]}); log in "
            "with `hf auth login`, or leave it out"
        ) from error
