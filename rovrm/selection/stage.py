"""The selection stage: which rows are chosen against which, and whether they were chosen before."""

import random
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rovrm.common.errors import UserError
from rovrm.settings.keys import TrainConfig, by_gradients
from rovrm.settings.phases import PHASES
from rovrm.training.plan import needed_phases, selection_folder, selection_settings, target_phase

if TYPE_CHECKING:
    from rovrm.data.example import Example
    from rovrm.training.phase_data import PhaseData


JUDGES = 0.1  # share of the target that judges


def check_selection(config: TrainConfig, phases: list[int]) -> None:
    """Raises UserError, before anything is read, for a selection that could not be made."""
    import re

    from data_selection.choose import STEPS
    from rovrm.settings.keys import section_of

    if by_gradients(config.visual):
        raise UserError(
            f"visual.select={config.visual.select}: the visual data are what others are chosen against; "
            "set visual.select=random or first"
        )
    for phase in needed_phases(config, phases):
        section, name = section_of(config, phase), PHASES[phase - 1]
        if not by_gradients(section):
            continue
        if section.n is None:
            raise UserError(f"{name}.select={section.select} chooses some rows of many; set {name}.n to how many")
        if not section_of(config, target_phase(config, phase)).data:
            raise UserError(
                f"{name}.select={section.select} needs rows to choose against; set visual.data"
                + (" or caption.data" if phase == 1 else "")
            )
    unknown = [step for step in config.selection.preprocess or [] if step not in STEPS]
    if unknown:
        raise UserError(f"selection.preprocess has {unknown[0]!r}; takes {', '.join(STEPS)}")
    try:
        re.compile(config.selection.layers)
    except re.error as error:
        raise UserError(f"selection.layers={config.selection.layers!r} is no regular expression ({error})") from error


def read_phases(config: TrainConfig, phases: list[int], collator: Any, main_process: bool) -> "dict[int, PhaseData]":
    """The data of phases, and of those whose rows theirs are chosen against. Raises UserError where there are too few
    rows to choose from or against."""
    from rovrm.settings.keys import section_of
    from rovrm.training.phase_data import prepare_phases

    data = prepare_phases(config, needed_phases(config, phases), collator, phases if main_process else ())
    for phase, found in data.items():
        section, name = section_of(config, phase), PHASES[phase - 1]
        if not by_gradients(section):
            continue
        if (section.n or 0) > len(found.train):
            raise UserError(
                f"{name}.n={section.n}, but {name}.data leave {len(found.train)} rows to choose from; give a smaller "
                f"n, more data, or {name}.select=random {name}.n=null, which takes all"
            )
        against = target_phase(config, phase)
        chosen = section_of(config, against).n if by_gradients(section_of(config, against)) else None
        _check_target(config, phase, chosen or len(data[against].train))
    return data


def select_data(
    config: TrainConfig, data: "dict[int, PhaseData]", phases: list[int], collator: Any, processor: Any
) -> "dict[int, PhaseData]":
    """The data of each of these phases, with the chosen rows alone to train on where it chooses by gradients."""
    from rovrm.settings.keys import section_of

    rows: dict[int, list[Example]] = {}
    for phase in sorted(data, reverse=True):  # backwards: what is chosen against is there before
        rows[phase] = data[phase].train
        if by_gradients(section_of(config, phase)):
            target = rows[target_phase(config, phase)]
            rows[phase] = _select_phase(config, phase, rows[phase], target, collator, processor)
    return {phase: replace(data[phase], train=rows[phase]) for phase in phases}


# ---- one phase -------------------------------------------------------------------------------------------------------


def _select_phase(
    config: TrainConfig,
    phase: int,
    pool: "list[Example]",
    target: "list[Example]",
    collator: Any,
    processor: Any,
) -> "list[Example]":
    """The chosen rows of the pool, in its order."""
    from accelerate import PartialState

    from rovrm.common.files import write_json
    from rovrm.selection.warm_up import OF_MODEL, marks_of
    from rovrm.training.resume import fingerprint

    state, folder = PartialState(), selection_folder(config.out, phase)
    settings = selection_settings(config, phase) | {"pool": fingerprint(pool), "rows": fingerprint(target)}
    settings |= {key: getattr(config, key) for key in OF_MODEL} | marks_of(config, [*pool, *target])
    chosen_before = _is_chosen(folder, settings)
    state.wait_for_everyone()
    if not chosen_before:
        aims, judges = _set_aside(target, config.seed)
        if state.is_main_process:
            (folder / "settings.json").unlink(missing_ok=True)
            print(
                f"phase {phase} ({PHASES[phase - 1]}): choosing {settings['n']} of {len(pool)} rows by "
                f"{settings['method']}, against {len(aims)} rows of the {PHASES[target_phase(config, phase) - 1]} phase"
            )
        _choose(config, phase, {"pool": pool, "target": aims, "judges": judges}, collator, processor)
        if state.is_main_process:
            write_json(folder / "settings.json", settings)  # last: the sign that the choice is whole
    elif state.is_main_process:
        print(f"phase {phase} ({PHASES[phase - 1]}): its rows were chosen before, in {folder}")
    state.wait_for_everyone()
    return _read_chosen(folder, pool)


def _choose(
    config: TrainConfig, phase: int, examples: "dict[str, list[Example]]", collator: Any, processor: Any
) -> None:
    """Warm-up, features, and on the main process the choice, written into the selection's folder."""
    import numpy as np
    from accelerate import PartialState

    from data_selection.choose import SelectionError, representative
    from data_selection.features import Features
    from data_selection.gradients import GradientFeatures
    from data_selection.store import Store, StoreError
    from rovrm.selection.extraction import adam_weigh, extract, gradient_model, made_from
    from rovrm.selection.report import choose_and_report
    from rovrm.selection.warm_up import chosen_layers, marks_of, warm_up
    from rovrm.training.setup import trainer_arguments

    wanted, folder = config.selection, selection_folder(config.out, phase)
    arguments = trainer_arguments(
        config,
        phase,
        output_dir=str(folder / "warmup" / "checkpoints"),
        learning_rate=wanted.learning_rate,
        num_train_epochs=wanted.epochs,
        max_steps=-1,
        eval_strategy="no",
        load_best_model_at_end=False,
    )
    warm = _draw(examples["pool"], wanted.warmup_pool, f"{config.seed}:warm-up")
    warm += _draw(examples["target"], wanted.warmup_target, f"{config.seed}:warm-up")
    adapter = warm_up(config, folder / "warmup", warm, processor, arguments)
    model = gradient_model(config, adapter)
    layers = chosen_layers(config, model)
    if wanted.representatives == "random" and wanted.targets:
        examples["target"] = _draw(examples["target"], wanted.targets, f"{config.seed}:targets")
    adam = {name: wanted.gradients == "adam" and name == "pool" for name in examples}
    found: dict[str, Features] = {}
    try:
        stores = {  # all of them before anything is extracted: each may refuse what it holds
            name: Store(
                folder / name,
                [e.id for e in rows],
                made_from(config, adapter, rows, adam[name]),
                marks=marks_of(config, rows),
            )
            for name, rows in examples.items()
        }
        unmarked = [name for name, store in stores.items() if store.unmarked]
        if unmarked and PartialState().is_main_process:
            print(
                f"{folder}: the features in {', '.join(unmarked)} were made by a version that did not note images and "
                "the weights of the base: taken as unchanged"
            )
        for name, store in stores.items():
            weigh = adam_weigh(adapter) if adam[name] else None
            features = GradientFeatures(model, layers, wanted.width, config.seed, weigh)
            extract(model, collator, examples[name], store, features, config, name)
            units, norms = store.load()
            found[name] = Features(units, norms)
        if PartialState().is_main_process:
            if wanted.targets and wanted.targets < len(found["target"]):
                stand = representative(found["target"].source, wanted.targets, "kmeans", config.seed)
                found["target"] = replace(found["target"], rows=stand)
                examples["target"] = [examples["target"][i] for i in np.sort(stand)]
            choose_and_report(config, phase, folder, examples, found)
    except (SelectionError, StoreError, ArithmeticError, MemoryError) as error:
        raise UserError(f"{PHASES[phase - 1]}.select={getattr(config, PHASES[phase - 1]).select}: {error}") from error


def _check_target(config: TrainConfig, phase: int, size: int) -> None:
    from data_selection.choose import MIN_TARGET

    against, judges = PHASES[target_phase(config, phase) - 1], _judges(size)
    if size - judges < MIN_TARGET:
        raise UserError(
            f"the {against} phase has {size - judges} rows to choose {PHASES[phase - 1]} rows against, and "
            f"{judges} to judge the choice; give at least {MIN_TARGET}, by {against}.data or {against}.n"
        )


def _judges(target: int) -> int:
    return max(1, round(JUDGES * target))


def _set_aside(target: "list[Example]", seed: int) -> "tuple[list[Example], list[Example]]":
    """(rows to choose against, rows to judge by)"""
    judges = set(random.Random(f"{seed}:judges").sample(range(len(target)), _judges(len(target))))
    return [e for i, e in enumerate(target) if i not in judges], [target[i] for i in sorted(judges)]


def _draw(examples: "list[Example]", size: int, seed: str) -> "list[Example]":
    drawn = random.Random(seed).sample(range(len(examples)), min(size, len(examples)))
    return [examples[i] for i in sorted(drawn)]


# ---- what was chosen before ------------------------------------------------------------------------------------------


def _is_chosen(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether the folder holds this very choice. Another choice among the same features is made anew; features of
    something else are refused where they are (rovrm.selection.extraction, data_selection.store)."""
    import json

    from rovrm.training.resume import changed_keys

    path = folder / "settings.json"
    if not path.is_file():
        return False
    try:
        before = json.loads(path.read_text())
    except ValueError:
        return False
    return not changed_keys(before, json.loads(json.dumps(settings)), folder)


def _read_chosen(folder: Path, pool: "list[Example]") -> "list[Example]":
    from rovrm.common.files import read_json

    chosen = read_json(folder / "selected.json")["indices"]
    return [pool[i] for i in sorted(chosen)]
