"""Chooses a phase's rows among many by their gradients: the selection stage of RoVRM (arXiv 2408.12109).

    python -m rovrm.select phase=1,2 text.select=capped_ot text.n=20000 caption.select=capped_ot caption.n=10000 ...
    python -m rovrm.select recipe=recipes/llava-1.5-7b.yaml

takes the keys of `rovrm.train` or of `rovrm.dpo`, which run the same stage for every phase whose `select` names a
method, and find what this command chose. It goes backwards, as the paper does: the caption phase's rows are chosen
against the visual phase's, then the text phase's against the *chosen* caption rows (against the visual ones where there
are no captions).

For each phase: an adapter is warmed up on rows of the target; every row's gradient by the last quarter of the layers is
sketched to a fixed width; some target rows stand for all; and `n` rows of the pool are chosen (data_selection). A tenth
of the target takes no part in the choice and judges it. Held-out rows of any phase are neither pool nor target. Written
into OUT/selection/phaseN-NAME: warmup/, pool/, target/ and judges/ (features; margins/ with select=margin),
selected.json (ids and row numbers, best first), selected.jsonl (each with its score and the target row nearest to it),
scores.npy, report.json and report.html. The same command goes on where it was stopped; another method, n, preprocessing
or number of targets uses the features that are there.

Departures from the paper: (1) gradients of the reward margin, not of its loss: the same direction, without underflow;
(2) the warm-up sees the target alone, and each of the last layers counts the same; (3) capped transport is what the
recipes ask for. select=paper is the published formula, with the published warm-up and all layers
(data_selection/README.md).
"""

import sys
from contextlib import nullcontext

from rovrm.common.errors import UserError
from rovrm.settings.command_line import parse, run
from rovrm.settings.keys import DpoConfig, TrainConfig
from rovrm.settings.trainer_keys import check_trainer_keys

PROG = "python -m rovrm.select"


def select(argv: list[str]) -> None:
    config = _parsed(argv)
    check_trainer_keys(config.trainer)

    from rovrm.common.files import lock_folder
    from rovrm.training.setup import process_state

    main_process = process_state(config).is_main_process
    with lock_folder(config.out) if main_process else nullcontext():
        select_phases(config, argv, main_process)


def _parsed(argv: list[str]) -> TrainConfig:
    """The settings: those of rovrm.train, or of rovrm.dpo, whose phases choose their rows alike."""
    try:
        return parse(TrainConfig, argv, PROG)
    except UserError:
        try:
            return parse(DpoConfig, argv, PROG)
        except UserError:
            pass
        raise


def select_phases(config: TrainConfig, argv: list[str], main_process: bool) -> None:
    """The selection, in a folder that nobody else writes into."""
    from rovrm.common.disk import room_for
    from rovrm.selection.stage import check_selection, read_phases, select_data
    from rovrm.training.dry_run import print_dry_run
    from rovrm.training.estimates import run_bytes
    from rovrm.training.run import Task
    from rovrm.training.setup import check_services, model_parts, trainer_arguments, with_default

    config = with_default(config, argv, PROG)
    choosing = [phase for phase in config.phases if config.section(phase).by_selection]
    if not choosing:
        raise UserError(
            f"phase={config.phase}: none of them chooses rows by gradients; set text.select=capped_ot text.n=1000, or "
            "the same of caption"
        )
    check_selection(config, choosing)
    check_services(trainer_arguments(config, choosing[0]), main_process)
    parts = model_parts(config, config.phases[0])
    # The phases that do not choose are read too, as training reads them: all phases are split as one.
    phases = [phase for phase in config.phases if config.section(phase).data or phase in choosing]
    data = read_phases(config, phases, parts.collator, main_process)
    if config.dry_run:
        if main_process:
            print_dry_run(config, {phase: data[phase] for phase in choosing}, parts, Task())
        return
    needed = run_bytes(config, parts.model_config, data) if main_process else 0
    with room_for(config.out, needed, "the warm-up and features"):
        select_data(config, data, choosing, parts)


def main(argv: list[str] | None = None) -> int:
    return run(select, sys.argv[1:] if argv is None else argv, "rovrm.select")


if __name__ == "__main__":
    sys.exit(main())
