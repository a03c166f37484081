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

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rovrm.settings.command_line import parse, run, save
from rovrm.settings.keys import TrainConfig
from rovrm.settings.trainer_keys import check_trainer_keys

PROG = "python -m rovrm.train"


def train(argv: list[str]) -> None:
    config = parse(TrainConfig, argv, PROG)
    check_trainer_keys(config.trainer)

    from rovrm.training.run import Task

    train_phases(config, argv, PROG, Task())


def train_phases(config: TrainConfig, argv: list[str], prog: str, task: Any) -> None:
    """A run, in a folder that nobody else writes into: of this command, and of `rovrm.dpo`.

    Args:
        config: the settings, as they were given.
        argv: the words of the command.
        prog: the command's name.
        task: what is trained, a `training.run.Task`.
    """
    from rovrm.common.files import lock_folder
    from rovrm.training.setup import process_state

    main_process = process_state(config).is_main_process
    with lock_folder(config.out) if main_process else nullcontext():
        _run(config, argv, prog, task, main_process)


def _run(config: TrainConfig, argv: list[str], prog: str, task: Any, main_process: bool) -> None:
    from accelerate import PartialState

    from rovrm.common.disk import room_for
    from rovrm.selection.stage import check_selection, read_phases, select_data
    from rovrm.training.dry_run import optimizer_steps, print_dry_run
    from rovrm.training.estimates import run_bytes
    from rovrm.training.outputs import write_summary
    from rovrm.training.plan import is_finished, say_start
    from rovrm.training.run import run_phase
    from rovrm.training.setup import check_services, trainer_arguments, with_default

    config = with_default(config, argv, prog)
    phases = config.phases
    todo = [phase for phase in phases if not is_finished(config, phase, main_process)]
    if main_process and phases[0] in todo:
        say_start(config)

    # Everything that could be wrong is asked for before the weights are loaded: the trainer's arguments, trackers and
    # hub, the model's config, every row of the data, the room on the disk.
    arguments = {phase: trainer_arguments(config, phase) for phase in todo}
    if todo:
        check_services(arguments[todo[0]], main_process)
    parts = task.parts(config, (todo or phases)[0])
    check_selection(config, todo)
    data = read_phases(config, todo, parts.collator, main_process)
    if config.dry_run:
        if main_process:
            print(task.describe(config))
            print_dry_run(config, {phase: data[phase] for phase in todo}, parts, task)
        return
    steps = {phase: optimizer_steps(config, phase, data[phase], parts.collator) for phase in todo}
    needed = run_bytes(config, parts.model_config, data, arguments, steps) if main_process and todo else 0

    with room_for(config.out, needed, "checkpoints and models"):
        if main_process:
            save(config, Path(config.out) / "config.yaml")
        data = select_data(config, data, todo, parts)
        for phase in todo:
            run_phase(config, phase, data[phase], parts.processor, arguments[phase], phase == phases[-1], task)
            PartialState().wait_for_everyone()
        if main_process:
            write_summary(config.out, phases, task.what, task.what_next)


def main(argv: list[str] | None = None) -> int:
    return run(train, sys.argv[1:] if argv is None else argv, "rovrm.train")


if __name__ == "__main__":
    sys.exit(main())
