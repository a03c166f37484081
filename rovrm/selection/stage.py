"""The selection stage: which rows of a phase are trained on, chosen by their gradients.

It goes backwards, as the paper does: caption rows are chosen against the visual ones, then text rows against the
*chosen* caption rows. For one phase, `_choose` is the whole recipe: warm-up, features, choice, report.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from torch import Tensor

from data_selection.choose import MIN_TARGET, PRICED, STEPS, SelectionError, representative
from data_selection.features import Features
from data_selection.gradients import GradientFeatures
from data_selection.store import Store, StoreError
from rovrm.common.errors import UserError
from rovrm.common.files import read_json, write_json
from rovrm.common.notes import as_note, changed_keys
from rovrm.data.example import Example
from rovrm.model.collator import RewardCollator
from rovrm.selection.extraction import adam_weigh, batch_features, batch_margins, extract, gradient_model, made_from
from rovrm.selection.layers import check_layers, chosen_layers, layer_groups
from rovrm.selection.report import choose_and_report, choose_by_margin
from rovrm.selection.warm_up import MODEL_KEYS, content_marks, warm_up
from rovrm.settings.keys import SelectionConfig, TrainConfig
from rovrm.settings.phases import TEXT, Phase
from rovrm.training.phase_data import PhaseData, prepare_phases
from rovrm.training.plan import needed_phases, selection_folder, selection_settings, target_phase
from rovrm.training.resume import accept_older_note, fingerprint
from rovrm.training.setup import Parts, trainer_arguments

JUDGES = 0.1  # share of the target that takes no part in the choice, and judges it


# ---- before anything is chosen ---------------------------------------------------------------------------------------


def check_selection(config: TrainConfig, phases: list[Phase]) -> None:
    """Raises UserError, before anything is read, for a selection that could not be made."""
    if config.visual.by_selection:
        raise UserError(
            f"visual.select={config.visual.select}: the visual data are what others are chosen against; "
            "set visual.select=random or first"
        )
    for phase in needed_phases(config, phases):
        section, name = config.section(phase), phase.name
        if not section.by_selection:
            continue
        if section.n is None:
            raise UserError(f"{name}.select={section.select} chooses some rows of many; set {name}.n to how many")
        if not config.section(target_phase(config, phase)).data:
            or_caption = " or caption.data" if phase == TEXT else ""
            raise UserError(f"{name}.select={section.select} needs rows to choose against; set visual.data{or_caption}")
        if config.selection.side_price and section.select not in PRICED:
            raise UserError(
                f"selection.side_price={config.selection.side_price:g} goes with {', '.join(PRICED)}, and not with "
                f"{name}.select={section.select}; leave it out"
            )
    unknown = [step for step in config.selection.preprocess or [] if step not in STEPS]
    if unknown:
        raise UserError(f"selection.preprocess has {unknown[0]!r}; takes {', '.join(STEPS)}")
    check_layers(config.selection.layers or "")


def read_phases(
    config: TrainConfig, phases: list[Phase], collator: RewardCollator, main_process: bool
) -> dict[Phase, PhaseData]:
    """The data of phases, and of those that their rows are chosen against. Raises UserError where there are too few
    rows to choose from or against."""
    data = prepare_phases(config, needed_phases(config, phases), collator, phases if main_process else ())
    for phase in data:
        if config.section(phase).by_selection:
            _check_sizes(config, phase, data)
    return data


def _check_sizes(config: TrainConfig, phase: Phase, data: dict[Phase, PhaseData]) -> None:
    section, name, rows = config.section(phase), phase.name, len(data[phase].train)
    if (section.n or 0) > rows:
        raise UserError(
            f"{name}.n={section.n}, but {name}.data leave {rows} rows to choose from; give a smaller n, more data, or "
            f"{name}.select=random {name}.n=null, which takes all"
        )
    target = target_phase(config, phase)
    size = len(data[target].train)
    if config.section(target).by_selection:  # then only the chosen ones are the target
        size = config.section(target).n or size
    judges = _judges(size)
    if size - judges < MIN_TARGET:
        raise UserError(
            f"the {target.name} phase has {size - judges} rows to choose {name} rows against, and {judges} to judge "
            f"the choice; give at least {MIN_TARGET}, by {target.name}.data or {target.name}.n"
        )


# ---- the stage -------------------------------------------------------------------------------------------------------


def select_data(
    config: TrainConfig, data: dict[Phase, PhaseData], phases: list[Phase], parts: Parts
) -> dict[Phase, PhaseData]:
    """The data of each of these phases, with the chosen rows alone to train on where it chooses by gradients."""
    rows: dict[Phase, list[Example]] = {}
    for phase in sorted(data, reverse=True):  # backwards: what is chosen against is there before
        rows[phase] = data[phase].train
        if config.section(phase).by_selection:
            target = rows[target_phase(config, phase)]
            rows[phase] = _select_phase(config, phase, rows[phase], target, parts)
    return {phase: replace(data[phase], train=rows[phase]) for phase in phases}


def _select_phase(
    config: TrainConfig, phase: Phase, pool: list[Example], target: list[Example], parts: Parts
) -> list[Example]:
    """The chosen rows of the pool, in its order."""
    state, folder = PartialState(), selection_folder(config.out, phase)
    settings = selection_settings(config, phase) | {"pool": fingerprint(pool), "rows": fingerprint(target)}
    settings |= {key: getattr(config, key) for key in MODEL_KEYS} | content_marks(config.model, [*pool, *target])
    chosen_before = _is_chosen(folder, settings, state.is_main_process)
    state.wait_for_everyone()  # no process may write before every one has looked
    if not chosen_before:
        aims, judges = _set_aside(target, config.seed)
        if state.is_main_process:
            print(
                f"{phase}: choosing {settings['n']} of {len(pool)} rows by {settings['method']}, against {len(aims)} "
                f"rows of the {target_phase(config, phase).name} phase"
            )
        _choose(config, phase, {"pool": pool, "target": aims, "judges": judges}, parts)
        if state.is_main_process:
            write_json(folder / "settings.json", settings)  # last: the sign that the choice is whole
    elif state.is_main_process:
        print(f"{phase}: its rows were chosen before, in {folder}")
    state.wait_for_everyone()
    return _read_chosen(folder, pool)


def _choose(config: TrainConfig, phase: Phase, examples: dict[str, list[Example]], parts: Parts) -> None:
    """Warm-up, features, and on the main process the choice, written into the selection's folder.

    examples: the rows of the pool, the target and the judges, by these names.
    """
    folder, method = selection_folder(config.out, phase), config.section(phase).select
    config = replace(config, selection=config.selection.of(method))
    selection = config.selection
    adapter = _warm_adapter(config, phase, examples, parts.processor)
    model = gradient_model(config, adapter)
    if selection.representatives == "random" and selection.targets:
        examples["target"] = _draw(examples["target"], selection.targets, f"{config.seed}:targets")
    try:
        if method == "margin":
            margins = _extract_margins(config, folder, adapter, model, examples, parts.collator)
            if PartialState().is_main_process:
                (folder / "settings.json").unlink(missing_ok=True)  # of a choice that is now made anew
                choose_by_margin(config, phase, folder, examples, margins)
            return
        features = _extract_features(config, folder, adapter, model, examples, parts.collator)
        if PartialState().is_main_process:
            (folder / "settings.json").unlink(missing_ok=True)
            if selection.targets and selection.targets < len(examples["target"]):
                stand = representative(features["target"].source, selection.targets, "kmeans", config.seed)
                features["target"] = replace(features["target"], rows=stand)
                examples["target"] = [examples["target"][i] for i in np.sort(stand)]
            choose_and_report(config, phase, folder, examples, features)
    except (SelectionError, StoreError, ArithmeticError, MemoryError) as error:
        raise UserError(f"{phase.name}.select={method}: {error}") from error


def _warm_adapter(config: TrainConfig, phase: Phase, examples: dict[str, list[Example]], processor: Any) -> Path:
    """The folder of the adapter that is warmed up on a part of the target, or of pool and target."""
    selection, folder = config.selection, selection_folder(config.out, phase) / "warmup"
    of_pool = _draw(examples["pool"], selection.warmup_pool, f"{config.seed}:warm-up")
    of_target = _draw(examples["target"], selection.warmup_target, f"{config.seed}:warm-up")
    rows = of_pool + of_target if selection.warmup == "pool+target" else of_target
    arguments = trainer_arguments(
        config,
        phase,
        output_dir=str(folder / "checkpoints"),
        learning_rate=selection.learning_rate,
        num_train_epochs=warm_up_epochs(selection, len(of_pool), len(of_target)),
        max_steps=-1,
        eval_strategy="no",
        load_best_model_at_end=False,
    )
    return warm_up(config, folder, rows, processor, arguments)


def _extract_features(
    config: TrainConfig,
    folder: Path,
    adapter: Path,
    model: Any,
    examples: dict[str, list[Example]],
    collator: RewardCollator,
) -> dict[str, Features]:
    """The features of the rows under each name. Every store is opened before anything is extracted: each may refuse
    what it holds."""
    selection = config.selection
    layers = chosen_layers(selection.layers or "", model)
    groups = layer_groups(layers, model) if selection.balance else None
    stores, weighs = {}, {}
    for name, rows in examples.items():
        adam = selection.gradients == "adam" and name == "pool"
        note = made_from(config, adapter, rows) | {
            key: getattr(selection, key) for key in ("layers", "balance", "width")
        }
        note |= {"gradients": "adam" if adam else "plain", "seed": config.seed}
        stores[name] = _open_store(config, folder / name, rows, note)
        weighs[name] = adam_weigh(adapter) if adam else None
    features = {}
    for name, store in stores.items():
        with GradientFeatures(model, layers, selection.width, config.seed, weighs[name], groups) as gradients:

            def measure(batch: dict[str, Tensor], gradients: GradientFeatures = gradients) -> tuple[Tensor, Tensor]:
                return batch_features(model, batch, gradients)

            extract(collator, examples[name], store, measure, config, f"gradients of the {name}")
        units, norms = store.load()
        features[name] = Features(units, norms)
    return features


def _extract_margins(
    config: TrainConfig,
    folder: Path,
    adapter: Path,
    model: Any,
    examples: dict[str, list[Example]],
    collator: RewardCollator,
) -> dict[str, np.ndarray]:
    """(rows,) the warmed-up model's margins of the rows of the pool and of the judges, by these names."""
    stores = {}
    for name in ("pool", "judges"):
        note = made_from(config, adapter, examples[name])
        stores[name] = _open_store(config, folder / "margins" / name, examples[name], note)
    margins = {}
    for name, store in stores.items():
        extract(
            collator, examples[name], store, lambda batch: batch_margins(model, batch), config, f"margins of the {name}"
        )
        signs, sizes = store.load()
        margins[name] = (signs[:, 0].float() * sizes).numpy()
    return margins


def _open_store(config: TrainConfig, folder: Path, rows: list[Example], note: dict[str, Any]) -> Store:
    """The store of some rows' features. Raises StoreError where the folder holds others."""
    try:
        store = Store(folder, [example.id for example in rows], note, marks=content_marks(config.model, rows))
    except StoreError as error:
        whole = folder.parent.parent if folder.parent.name == "margins" else folder.parent
        what = str(error).partition("; give another folder")[0]
        raise StoreError(f"{what}; give another out=, or remove {whole} to select anew") from error
    if store.unmarked and PartialState().is_main_process:
        print(f"{folder}: made by a version that did not note images and the weights of the base: taken as unchanged")
    return store


def warm_up_epochs(selection: SelectionConfig, pool: int, target: int) -> float:
    """Passes of a warm-up that has so many rows of the pool and of the target to draw on. Without `selection.epochs`
    it is shown as many rows, with repeats, as one pass over both would show it."""
    if selection.epochs is not None:
        return selection.epochs
    return 1.0 if selection.warmup == "pool+target" else (pool + target) / target


# ---- draws -----------------------------------------------------------------------------------------------------------


def _judges(target: int) -> int:
    return max(1, round(JUDGES * target))


def _set_aside(target: list[Example], seed: int) -> tuple[list[Example], list[Example]]:
    """(rows to choose against, rows to judge by)"""
    places = set(random.Random(f"{seed}:judges").sample(range(len(target)), _judges(len(target))))
    aims = [example for place, example in enumerate(target) if place not in places]
    return aims, [target[place] for place in sorted(places)]


def _draw(examples: Sequence[Example], size: int, seed: str) -> list[Example]:
    """At most `size` of the examples, in their order."""
    places = random.Random(seed).sample(range(len(examples)), min(size, len(examples)))
    return [examples[place] for place in sorted(places)]


# ---- what was chosen before ------------------------------------------------------------------------------------------


def _is_chosen(folder: Path, settings: dict[str, Any], say: bool) -> bool:
    """Whether the folder holds this very choice. Another choice among the same features is made anew; features of
    something else are refused where they are (rovrm/selection/extraction.py, data_selection/store.py)."""
    path = folder / "settings.json"
    if not path.is_file():
        return False
    try:
        noted = read_json(path)
    except UserError:  # cut off: then the choice is made again
        return False
    now = as_note(settings)
    return not changed_keys(accept_older_note(noted, now, folder, say), now)


def _read_chosen(folder: Path, pool: list[Example]) -> list[Example]:
    places = read_json(folder / "selected.json")["indices"]
    return [pool[place] for place in sorted(places)]
