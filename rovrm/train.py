"""Trains a visual reward model in up to three phases: text, caption and visual preferences (RoVRM, arXiv 2408.12109).

    python -m rovrm.train phase=1..3                                       # the embedded tiny default
    python -m rovrm.train recipe=recipes/llava-1.5-7b.yaml                 # the paper's run
    python -m rovrm.train phase=3 model=llava-hf/llava-1.5-7b-hf visual.data=pairs.jsonl out=runs/mine

Writes into `out`: config.yaml, split.json, summary.json and a folder per phase with `adapter/` (or the full
checkpoint), the processor, checkpoints/, rejected.jsonl, scores.jsonl, trainer_log.jsonl and phase.json; the last phase
also holds the full merged checkpoint. A finished phase is not run again; an interrupted one resumes at its last
complete checkpoint. Each phase continues the one asked for before it; the first starts from the base, or `init_from`.

Departures from the paper: (1) by default LoRA instead of full fine-tuning (`tuning=full` is the paper's); (2) the
prompt and image are encoded once for all responses (same rewards, fewer tokens); (3) a ranked list is one
Plackett-Luce loss also beyond pairs, as in the authors' code, without its overflow; (4) held-out data go by image or
prompt, never by row, and in all phases alike.
"""

import os
import sys
import time
import warnings
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rovrm.config import PHASES, TrainConfig, check_trainer_keys, parse, phase_numbers, run, save, with_rates
from rovrm.errors import UserError

if TYPE_CHECKING:
    from rovrm.phases import PhaseData

PROG = "python -m rovrm.train"


def train(argv: list[str]) -> None:
    config = parse(TrainConfig, argv, PROG)
    phases = phase_numbers(config.phase)
    check_trainer_keys(config.trainer)
    # PEFT asks transformers by an old name; nothing that a user could mend.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")

    from accelerate import PartialState

    from rovrm.checkpoints import load_config, training_processor
    from rovrm.dry_run import optimizer_steps, print_dry_run
    from rovrm.outputs import summarise
    from rovrm.resume import is_finished, lock_folder, say_start, start_of
    from rovrm.room import room_for, run_bytes
    from rovrm.rows import RewardCollator
    from rovrm.select import check_selection, read_phases, select_data

    main_process = process_state(config).is_main_process
    lock = lock_folder(config.out) if main_process else None  # held until the process ends, however it ends
    config = with_default(config, argv)
    todo = [phase for phase in phases if not is_finished(config, phase, main_process)]
    if main_process and phases[0] in todo:
        say_start(config)
    arguments = {phase: trainer_arguments(config, phase) for phase in todo}
    for given in list(arguments.values())[:1]:  # what they share: where to report, and the hub
        check_services(given, main_process)
    model_config = load_config(config.model, config.trust_remote_code)
    _check_start(config, phases, model_config)
    check_selection(config, todo)
    start = start_of(config, (todo or phases)[0])
    processor = training_processor(config.model, start, config.chat_template, config.trust_remote_code, model_config)
    collator = RewardCollator(processor, model_config, config.rows, config.batch_tokens)
    data = read_phases(config, todo, collator, main_process)
    if config.dry_run:
        asked = {phase: data[phase] for phase in todo}
        return print_dry_run(config, asked, collator, model_config) if main_process else None
    steps = {phase: (arguments[phase], optimizer_steps(config, phase, data[phase], collator)) for phase in todo}
    needed = run_bytes(config, model_config, data, steps) if main_process and todo else 0
    with room_for(config.out, needed, "checkpoints and models"):
        if main_process:
            save(config, Path(config.out) / "config.yaml")
        data = select_data(config, data, todo, collator, processor)
        for phase in todo:
            _run_phase(config, phase, data[phase], processor, arguments[phase], last=phase == phases[-1])
            PartialState().wait_for_everyone()
        if main_process:
            summarise(config, phases)
    del lock


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


def with_default(config: TrainConfig, argv: list[str], prog: str = PROG) -> TrainConfig:
    """With what was not given: learning rates by `tuning`; with no model the tiny base shipped in the package, and its
    world's pairs, rates and epochs for every key that neither the command line nor the recipe gives."""
    if config.model:
        return with_rates(config)
    from rovrm.world.default import BASE, SECTIONS, SETTINGS

    if process_state(config).is_main_process:
        print("no model= given: this is the shipped tiny default, which knows a small world of shapes (see README)")
    # Read again: of the first reading nobody can tell a key that was given from one that has its default.
    return with_rates(replace(parse(TrainConfig, argv, prog, SETTINGS | SECTIONS), model=BASE))


# ---- one phase -------------------------------------------------------------------------------------------------------


def _run_phase(config: TrainConfig, phase: int, data: "PhaseData", processor: Any, arguments: Any, last: bool) -> None:
    """Trains one phase, evaluates it on the held-out examples, and writes its folder."""
    from transformers import set_seed

    from rovrm.intervals import wilson95
    from rovrm.outputs import doubts, print_warnings, write_json, write_phase
    from rovrm.phases import phase_folder
    from rovrm.resume import (
        check_same_plan,
        complete_checkpoint,
        epochs_done,
        fingerprint,
        images_mark,
        settings_of,
        start_of,
    )
    from rovrm.trainer import LogFile, RewardTrainer

    folder = phase_folder(config.out, phase)
    main_process, processes = process_state(config).is_main_process, process_state(config).num_processes
    start = start_of(config, phase)
    checkpoint = complete_checkpoint(folder / "checkpoints", main_process)
    rows = [*data.train, *data.held_out]
    same = {"data": fingerprint(rows), "images": images_mark(rows), "processes": processes}
    if checkpoint:
        check_same_plan(folder, same)
    if main_process:
        print(
            f"phase {phase} ({PHASES[phase - 1]}): {len(data.train)} examples, {len(data.held_out)} held out, "
            f"{len(data.rejected)} skipped; from {checkpoint or start}; {processes} processes"
        )
    set_seed(config.seed)
    model = _model_for(config, phase, start)
    if main_process:
        write_json(folder / "settings.json", settings_of(config, phase) | {"plan": same})
    try:
        trainer = RewardTrainer(
            model, arguments, data.train, data.held_out, processor, callbacks=[LogFile(folder / "trainer_log.jsonl")]
        )
    except (ImportError, ValueError) as error:
        raise UserError(f"transformers cannot set up the trainer: {error}") from error
    began = time.perf_counter()
    epochs_before = epochs_done(checkpoint)
    trainer.train(resume_from_checkpoint=checkpoint)
    training_seconds = time.perf_counter() - began
    metrics = {key.removeprefix("eval_"): value for key, value in trainer.evaluate().items()}
    pairs = len(data.train) * ((trainer.state.epoch or 0.0) - epochs_before)
    record = {
        "n_train": len(data.train),
        "n_held_out": len(data.held_out),
        "n_skipped": len(data.rejected),
        "n_long": data.n_long,  # of those skipped
        "accuracy": metrics["accuracy"],
        "accuracy_ci95": wilson95(metrics["accuracy"], len(data.held_out)),
        "loss": metrics["loss"],
        "margin": metrics["margin"],
        "reward_mean": metrics["mean_reward"],
        "reward_std": metrics["std_reward"],
        "seconds": training_seconds,
        "pairs_per_second": pairs / training_seconds,
        "shared_rows": trainer.collator.shared,
    }
    record["warnings"] = doubts(record, PHASES[phase - 1], arguments.learning_rate)
    write_phase(config, phase, trainer, record, last)
    if main_process and not last:  # the last phase's are printed with those of all
        print_warnings([record])


def _check_start(config: TrainConfig, phases: list[int], model_config: Any) -> None:
    """Raises UserError for a model or an `init_from` that nothing could be trained from."""
    from rovrm.checkpoints import base_of, four_bit, load_config, reward_class
    from rovrm.resume import start_of

    if config.tuning == "qlora":
        four_bit()
    reward_class(config.model, model_config)
    longest = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    if longest and config.max_length > longest:
        raise UserError(f"max_length={config.max_length} is more than the {longest} tokens that {config.model!r} reads")
    start = start_of(config, phases[0])
    adapter = os.path.isfile(os.path.join(start, "adapter_config.json"))
    if adapter and config.tuning == "full":
        raise UserError(f"tuning=full cannot start from the adapter {start!r}; merge it first: python -m rovrm.merge")
    if not config.init_from:
        return
    try:
        found = load_config(base_of(Path(start)) if adapter else start, config.trust_remote_code)
    except UserError as error:
        raise UserError(f"init_from={config.init_from!r}: {error}") from error
    if found.architectures[0].split("For")[0] != model_config.architectures[0].split("For")[0]:
        raise UserError(
            f"init_from={config.init_from!r} is a {found.architectures[0]}, model={config.model!r} a "
            f"{model_config.architectures[0]}; both must be of one family"
        )


def _model_for(config: TrainConfig, phase: int, start: str) -> Any:
    """The model of a phase with what trains set up: the base with an adapter (fresh, or the one that the phases
    continue), or all weights of the previous phase's checkpoint."""
    import torch

    from rovrm.checkpoints import (
        add_adapter,
        base_of,
        load_adapter,
        load_reward_model,
        numeric_type,
        set_trainable,
    )

    full, from_adapter = config.tuning == "full", os.path.isfile(os.path.join(start, "adapter_config.json"))
    dtype = torch.float32 if full else numeric_type(config.dtype, bool(config.trainer.get("use_cpu", False)))
    base = base_of(Path(start)) if from_adapter else start
    model: Any = load_reward_model(base, dtype, config.tuning == "qlora", config.trust_remote_code)
    if from_adapter:
        model = load_adapter(model, start, trainable=True)
    elif not full:
        model = add_adapter(model, base, config.lora_r, config.lora_alpha, config.lora_dropout)
    set_trainable(model, visual=phase == 3, full=full)
    return model


def trainer_arguments(config: TrainConfig, phase: int, **changes: Any) -> Any:
    """The trainer's arguments of a phase, with changes. Raises UserError for what transformers refuses."""
    import torch

    from rovrm.checkpoints import numeric_type
    from rovrm.phases import phase_folder, section_of
    from rovrm.trainer import RewardConfig

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


def main(argv: list[str] | None = None) -> int:
    return run(train, sys.argv[1:] if argv is None else argv, "rovrm.train")


if __name__ == "__main__":
    sys.exit(main())
