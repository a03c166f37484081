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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rovrm.common.errors import UserError
from rovrm.settings.command_line import parse, run, save
from rovrm.settings.keys import TrainConfig
from rovrm.settings.phases import PHASES, phase_numbers
from rovrm.settings.trainer_keys import check_trainer_keys
from rovrm.training.setup import check_services, process_state, trainer_arguments, with_default

if TYPE_CHECKING:
    from rovrm.training.phase_data import PhaseData


PROG = "python -m rovrm.train"


def train(argv: list[str]) -> None:
    config = parse(TrainConfig, argv, PROG)
    phases = phase_numbers(config.phase)
    check_trainer_keys(config.trainer)
    # PEFT asks transformers by an old name; nothing that a user could mend.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")

    from accelerate import PartialState

    from rovrm.common.disk import room_for
    from rovrm.common.files import lock_folder
    from rovrm.model.adapters import training_processor
    from rovrm.model.collator import RewardCollator
    from rovrm.model.loading import load_config
    from rovrm.selection.stage import check_selection, read_phases, select_data
    from rovrm.training.dry_run import optimizer_steps, print_dry_run
    from rovrm.training.estimates import run_bytes
    from rovrm.training.outputs import summarise
    from rovrm.training.plan import is_finished, say_start, start_of

    main_process = process_state(config).is_main_process
    lock = lock_folder(config.out) if main_process else None  # held until the process ends, however it ends
    config = with_default(config, argv, PROG)
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


# ---- one phase -------------------------------------------------------------------------------------------------------


def _run_phase(config: TrainConfig, phase: int, data: "PhaseData", processor: Any, arguments: Any, last: bool) -> None:
    """Trains one phase, evaluates it on the held-out examples, and writes its folder."""
    from transformers import set_seed

    from rovrm.common.files import write_json
    from rovrm.common.intervals import wilson95
    from rovrm.settings.phases import phase_folder
    from rovrm.training.callbacks import LogFile
    from rovrm.training.outputs import doubts, print_warnings, write_phase
    from rovrm.training.plan import settings_of, start_of
    from rovrm.training.resume import check_same_plan, complete_checkpoint, epochs_done, fingerprint, images_mark
    from rovrm.training.trainer import RewardTrainer

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
    from rovrm.model.adapters import base_of
    from rovrm.model.loading import four_bit, load_config, reward_class
    from rovrm.training.plan import start_of

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

    from rovrm.model.adapters import add_adapter, base_of, load_adapter, set_trainable
    from rovrm.model.loading import load_reward_model, numeric_type

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


def main(argv: list[str] | None = None) -> int:
    return run(train, sys.argv[1:] if argv is None else argv, "rovrm.train")


if __name__ == "__main__":
    sys.exit(main())
