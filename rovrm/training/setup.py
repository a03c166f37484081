"""What train and select set up alike, before any data are read or a model is loaded."""

import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from huggingface_hub import HfApi
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from rovrm.common.errors import UserError
from rovrm.model.adapters import base_of, has_adapter, training_processor
from rovrm.model.chat import prepare_template
from rovrm.model.collator import RewardCollator
from rovrm.model.loading import four_bit, load_config, numeric_type, reward_class
from rovrm.settings.command_line import parse
from rovrm.settings.keys import DpoConfig, TrainConfig, with_rates
from rovrm.settings.phases import Phase
from rovrm.training.plan import start_of
from rovrm.training.trainer import RewardConfig


def process_state(config: TrainConfig) -> PartialState:
    """The process group, set up as Trainer would: on the CPU with `trainer.use_cpu=true`, and as patient."""
    patience = timedelta(seconds=config.trainer.get("ddp_timeout", 1800))  # others wait while one chooses rows
    state = PartialState(cpu=config.on_cpu, timeout=patience)
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if state.num_processes != launched:
        raise UserError(
            f"{launched} processes were launched, but each runs alone (it sees {state.num_processes}); "
            "on the CPU launch with torchrun and trainer.use_cpu=true"
        )
    return state


def with_default(config: TrainConfig, argv: list[str], prog: str) -> TrainConfig:
    """The settings with what was not given: learning rates by `tuning`; with no model the tiny base shipped in the
    package, and its world's pairs, rates and epochs for every key that neither the command line nor the recipe gives.
    """
    if config.model:
        return with_rates(config)
    from rovrm.world.default import BASE, POLICY_SECTIONS, SECTIONS, SETTINGS

    if process_state(config).is_main_process:
        print("no model= given: this is the shipped tiny default, which knows a small world (rovrm/world/README.md)")
    # Read again: of the first reading nobody can tell a key that was given from one that has its default.
    sections = POLICY_SECTIONS if isinstance(config, DpoConfig) else SECTIONS
    return with_rates(replace(parse(type(config), argv, prog, SETTINGS | sections), model=BASE))


# ---- the model's config, its processor, the collator -----------------------------------------------------------------


class Parts(NamedTuple):
    """What reading and measuring rows needs of a model whose weights are not loaded yet."""

    model_config: Any
    processor: Any
    collator: RewardCollator


def model_parts(config: TrainConfig, first: Phase, policy: bool = False) -> Parts:
    """The model's config, processor and collator, for a run whose first phase is `first`.

    policy: whether a language model is trained, and not a reward model: it is saved with a chat template as it was,
    which is prepared anew for each phase.

    The processor, with its chat template, is that of what the first phase starts from. Raises UserError for a model or
    an `init_from` that nothing could be trained from.
    """
    model_config = load_config(config.model, config.trust_remote_code)
    start = start_of(config, first)
    _check_start(config, start, model_config)
    processor = training_processor(config.model, start, config.chat_template, config.trust_remote_code, model_config)
    if policy:
        prepare_template(processor)
    collator = RewardCollator(processor, model_config, config.rows)
    return Parts(model_config, processor, collator)


def _check_start(config: TrainConfig, start: str, model_config: Any) -> None:
    if config.tuning == "qlora":
        four_bit()
    reward_class(config.model, model_config)
    longest = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    if longest and config.max_length > longest:
        raise UserError(f"max_length={config.max_length} is more than the {longest} tokens that {config.model!r} reads")
    if has_adapter(start) and config.tuning == "full":
        raise UserError(f"tuning=full cannot start from the adapter {start!r}; merge it first: python -m rovrm.merge")
    if config.init_from:
        _check_same_family(config, start, model_config)


def _check_same_family(config: TrainConfig, start: str, model_config: Any) -> None:
    try:
        start_config = load_config(base_of(Path(start)) if has_adapter(start) else start, config.trust_remote_code)
    except UserError as error:
        raise UserError(f"init_from={config.init_from!r}: {error}") from error
    start_name, model_name = start_config.architectures[0], model_config.architectures[0]
    if start_name.split("For")[0] != model_name.split("For")[0]:
        raise UserError(
            f"init_from={config.init_from!r} is a {start_name}, model={config.model!r} a {model_name}; both must be of "
            "one family"
        )


# ---- the trainer -----------------------------------------------------------------------------------------------------


def trainer_arguments(config: TrainConfig, phase: Phase, **changes: Any) -> RewardConfig:
    """The trainer's arguments of a phase, with changes. Raises UserError for what transformers refuses."""
    section = config.section(phase)
    arguments: dict[str, Any] = {  # what a user may set under `trainer.`
        "logging_steps": 10,
        "save_steps": 200,
        "save_total_limit": 2,
        "report_to": "none",
        "warmup_steps": 0.03,  # a share of all steps
        "dataloader_pin_memory": torch.cuda.is_available(),
        "ddp_find_unused_parameters": False,
    }
    if not {"save_strategy", "save_steps"} & config.trainer.keys():  # who plans checkpoints plans all of them
        arguments["first_checkpoint_minutes"] = config.first_checkpoint_minutes
        arguments["checkpoint_minutes"] = config.checkpoint_minutes
    arguments |= config.trainer
    arguments |= {  # what rovrm's own keys say
        "output_dir": str(phase.folder(config.out) / "checkpoints"),
        "learning_rate": section.learning_rate,
        "num_train_epochs": section.epochs,
        "per_device_train_batch_size": config.batch_size,
        "per_device_eval_batch_size": config.batch_size,
        "dataloader_num_workers": config.workers,
        "bf16": numeric_type(config.dtype, config.on_cpu) == torch.bfloat16,
        "seed": config.seed,
        "rows": config.rows,
        "batch_tokens": config.batch_tokens,
        "max_length": config.max_length,
        "center_rewards_coefficient": config.center_rewards_coefficient,
    }
    try:
        return RewardConfig(**arguments | changes)
    except (ValueError, TypeError, OSError, ImportError) as error:
        if arguments["bf16"] and "bf16" in str(error):  # a key that is ours, under another name
            raise UserError(f"dtype={config.dtype}: {error} Leave dtype out: auto takes what there is") from error
        raise UserError(f"trainer settings are refused by transformers: {error}") from error


def check_services(arguments: RewardConfig, main_process: bool) -> None:
    """Raises UserError, before a model is loaded, for a tracker that is not installed and for a hub that cannot be
    reached or does not know the user."""
    try:
        for tracker in get_reporting_integration_callbacks(arguments.report_to):
            tracker()
    except (ValueError, ImportError, RuntimeError) as error:
        raise UserError(f"trainer.report_to={', '.join(arguments.report_to or ())}: {error}") from error
    if not arguments.push_to_hub or not main_process:
        return
    try:
        HfApi(token=arguments.hub_token).whoami()
    except (OSError, ValueError) as error:  # offline, no token, or one that the hub does not know
        raise UserError(
            f"trainer.push_to_hub=true needs the hub and a login there ({str(error).strip().splitlines()[0]}); log in "
            "with `hf auth login`, or leave it out"
        ) from error
