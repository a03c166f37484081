"""The data of the phases: read, captioned, checked, and split as one into training and held-out examples.

OUT/split.json keeps the split, for the phases that come after: by phase and side the members of each row
(rovrm/data/splits.py), and under `init_from` those of the phases that the run continues.
"""

import os
import random
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rovrm.common.errors import BadRows, UserError
from rovrm.common.files import read_json, write_jsonl
from rovrm.data.captions import caption_example
from rovrm.data.example import Example
from rovrm.data.loading import load_examples, use_captions
from rovrm.data.messages import text_of
from rovrm.data.splits import (
    EVAL_DATA,
    HELD_OUT,
    LEFT_OUT,
    SIDES,
    TRAIN,
    Known,
    Members,
    Part,
    Sides,
    members_of,
    split,
)
from rovrm.model.adapters import ADAPTER
from rovrm.model.collator import RewardCollator
from rovrm.settings.keys import CaptionConfig, TrainConfig, by_gradients, section_of
from rovrm.settings.phases import PHASES, phase_folder, phase_numbers
from rovrm.training.checks import Checked, check_examples, record, stop_if_too_bad


@dataclass(slots=True)
class PhaseData:
    train: list[Example]
    held_out: list[Example]
    rejected: list[dict[str, Any]]  # every row that was skipped, and why
    n_long: int = 0  # how many of them for their length


def prepare_phases(
    config: TrainConfig, phases: Sequence[int], collator: RewardCollator, written: Collection[int] = ()
) -> dict[int, PhaseData]:
    """Loads and checks the data of phases before any model is loaded, and splits them as one: what is held out in any
    of them, or in the phases that stand behind them, trains in none.

    written: the phases of which this process writes what became of their rows: `rejected.jsonl` in the phase's folder,
    and the split in OUT/split.json. Too many bad rows stop the run, once those of every phase are known; rows left out
    for the split are not bad, nor are those that are too long, unless long_rows=error.
    """
    for phase in phases:
        _check_section(config, phase)
    alone = _is_unsplit(config.out)
    # Read before the rows are: a process that is done with checking may write.
    known = {} if alone else _known_rows(config, say=bool(written))
    if alone and written:
        print(
            f"{config.out} was begun by a version that kept no split.json: its phases are split one by one, and what "
            "one holds out may train in another; give another out= for one split over all"
        )
    read = _read(config, phases, collator, written)
    data, entries = {}, {}
    for together in [[phase] for phase in phases] if alone else [phases]:
        parts = {PHASES[phase - 1]: _part(read[phase]) for phase in together}
        sides = split(parts, known, config.eval_fraction, config.seed)
        for phase in together:
            name = PHASES[phase - 1]
            data[phase] = _divide(config, phase, read[phase], sides[name], phase in written)
            entries[phase] = _entry(parts[name], sides[name])
    if written and not alone and not config.dry_run:
        _store(config, {phase: entries[phase] for phase in written if phase in entries}, known.get(BEHIND_RUN))
    return data


def _check_section(config: TrainConfig, phase: int) -> None:
    section, name = section_of(config, phase), PHASES[phase - 1]
    if not section.data:
        raise UserError(f"phase {phase} needs data: set {name}.data to a file, a folder or a hub id")
    if not section.eval_data and not 0 < config.eval_fraction < 1:
        raise UserError(
            f"eval_fraction={config.eval_fraction:g} leaves phase {phase} nothing to train on or nothing held out; "
            f"give a number between 0 and 1, or {name}.eval_data"
        )


# ---- one phase -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Read:
    """The good rows of a phase and its rejected ones; eval_data: None where a fraction of `data` is held out."""

    data: Checked
    eval_data: Checked | None


def _read(
    config: TrainConfig, phases: Sequence[int], collator: RewardCollator, written: Collection[int]
) -> dict[int, _Read]:
    """The rows of the phases. Raises BadRows for all of them together: all can be mended before the next try."""
    found: dict[tuple[int, str], Checked] = {}
    bad: list[str] = []
    for phase in phases:
        for key in ("data", "eval_data") if section_of(config, phase).eval_data else ("data",):
            try:
                found[phase, key] = _load(config, phase, key, collator, phase in written)
            except BadRows as error:
                bad.append(f"{PHASES[phase - 1]}.{key}: {error}")
                if error.rows and phase in written:
                    _write(_listed(config, phase, key), error.rows)
                    bad[-1] += f" (all of them: {_listed(config, phase, key)})"
    if bad:
        first, *others = "\n".join(bad).split("\n")
        raise BadRows(first, *others)
    return {phase: _Read(found[phase, "data"], found.get((phase, "eval_data"))) for phase in phases}


def _part(read: _Read) -> Part:
    eval_data = None if read.eval_data is None else [members_of(e) for e in read.eval_data.examples]
    return Part([members_of(e) for e in read.data.examples], eval_data)


def _divide(config: TrainConfig, phase: int, read: _Read, sides: Sides, write: bool) -> PhaseData:
    """The phase's rows by side. Those left out are listed, counted and printed."""
    section, name = section_of(config, phase), PHASES[phase - 1]
    examples = read.data.examples
    train = [e for e, side in zip(examples, sides.data, strict=True) if side == TRAIN]
    held_out = [e for e, side in zip(examples, sides.data, strict=True) if side == HELD_OUT]
    left = [_left_out(examples[i], whose) for i, whose in sides.because.items()]
    dropped = []
    if read.eval_data is not None:
        pairs = list(zip(read.eval_data.examples, sides.eval_data, strict=True))
        held_out = [e for e, side in pairs if side == EVAL_DATA]
        dropped = [_trained_before(e) for e, side in pairs if side == LEFT_OUT]
    n_long = len(read.data.long) + (len(read.eval_data.long) if read.eval_data else 0)
    if write and n_long:
        where = f"listed in {_listed(config, phase, 'data').parent}"
        print(f"{name}: {n_long} rows are longer than max_length={config.max_length} tokens: skipped, {where}")
    if write and left:
        whose = ", ".join(sorted(set(sides.because.values())))
        _write(_listed(config, phase, "data"), read.data.skipped + left)
        print(f"{name}: {len(left)} training rows share an image or prompt with {whose}: left out")
    if write and read.eval_data is not None and dropped:
        _write(_listed(config, phase, "eval_data"), read.eval_data.skipped + dropped)
        print(f"{name}: {len(dropped)} rows of {name}.eval_data share an image or prompt with {BEHIND}: not held out")
    if write and sides.before:
        print(f"{name}: {sides.before} rows share an image or prompt with {BEHIND}: not held out by eval_fraction")
    _stop_if_empty(config, phase, train, held_out, len(left), len(dropped) or sides.before, n_long)
    if read.eval_data is None and by_gradients(section) and section.n:
        held_out = _as_many_as(section.n, held_out, config)
    skipped = read.data.skipped + left + (read.eval_data.skipped if read.eval_data else []) + dropped
    return PhaseData(train, held_out, skipped, n_long)


BEHIND = "what an earlier phase, or init_from, was trained on"


def _left_out(example: Example, whose: str) -> dict[str, Any]:
    what = "image" if example.hashes else "prompt"
    reason = f"{whose} has the same {what}, directly or through other rows: left out of training"
    return record(example, what, text_of(example.prompt[-1]["content"]), reason)


def _trained_before(example: Example) -> dict[str, Any]:
    what = "image" if example.hashes else "prompt"
    reason = f"the same {what} is in {BEHIND}: not held out; give eval_data of other images and prompts"
    return record(example, what, text_of(example.prompt[-1]["content"]), reason)


def _stop_if_empty(
    config: TrainConfig,
    phase: int,
    train: list[Example],
    held_out: list[Example],
    left: int,
    before: int,
    n_long: int,
) -> None:
    if train and held_out:
        return
    name, what = PHASES[phase - 1], "held out" if train else "to train on"
    known = f"; {before} more share an image or prompt with {BEHIND}" if before else ""
    known += f"; {n_long} more are longer than max_length={config.max_length}, raise it" if n_long else ""
    if section_of(config, phase).eval_data:
        raise UserError(
            f"{name}.data and {name}.eval_data leave no example {what} ({len(train) + left} good ones for training, "
            f"{left} of them share an image or prompt with {name}.eval_data or with what other phases hold out; "
            f"{len(held_out)} held out{known}); give other data to one of them, or leave {name}.eval_data out: "
            f"eval_fraction then holds out a part of {name}.data"
        )
    shared = f", {left} more share an image or prompt with other phases' held-out rows" if left else ""
    raise UserError(
        f"{name}.data leaves no example {what} ({len(train) + len(held_out)} good ones, eval_fraction="
        f"{config.eval_fraction:g}{shared}{known}); give more data, another eval_fraction, or {name}.eval_data"
    )


def _as_many_as(n: int, held_out: list[Example], config: TrainConfig) -> list[Example]:
    """As many of a whole pool's held-out rows as the n chosen ones would have beside them."""
    size = max(1, round(n * config.eval_fraction / (1 - config.eval_fraction)))
    drawn = random.Random(f"{config.seed}:held-out").sample(range(len(held_out)), min(size, len(held_out)))
    return [held_out[i] for i in sorted(drawn)]


def _load(config: TrainConfig, phase: int, key: str, collator: RewardCollator, write: bool) -> Checked:
    """Reads and checks `data` or `eval_data` of a phase: the good examples and all rejected rows."""
    section = section_of(config, phase)
    sources: list[str] = getattr(section, key)
    # Held-out data are all taken; rows that rovrm.select chooses among are all read.
    n = None if key == "eval_data" or by_gradients(section) else section.n
    loaded = load_examples(
        sources,
        columns=section.columns or None,
        reader=section.reader or None,
        image_root=config.image_root or None,
        n=n,
        select="first" if section.select == "first" else "random",
        seed=config.seed,
        images_needed=phase != 2,
        captions=(section.captions or None) if isinstance(section, CaptionConfig) else None,
    )
    total = len(loaded.examples) + len(loaded.rejected)
    examples, rejected = loaded.examples, list(loaded.rejected)
    if phase == 3:
        _check_images(examples, collator, config.model, ", ".join(sources))
    if phase != 2:
        examples, others = _of_phase(examples, phase)
        rejected += others
    pictured = examples
    if isinstance(section, CaptionConfig):
        captioned = use_captions(examples)  # those of the file are in: here rows with none of their own fall out
        rejected += captioned.rejected
        pictured = captioned.examples
        examples = [caption_example(example, section.caption_template) for example in pictured]
    checked = check_examples(examples, collator, config.max_length, config.workers, pictured, config.max_pixels)
    rejected += checked.rejected if config.long_rows == "skip" else checked.skipped
    found = Checked(checked.examples, rejected, checked.long if config.long_rows == "skip" else [])
    listed = _listed(config, phase, key)
    if write:
        _write(listed, found.skipped)
    own = section.max_bad_fraction
    limit, name = (config.max_bad_fraction, "") if own is None else (own, f"{PHASES[phase - 1]}.")
    stop_if_too_bad(rejected, total, limit, str(listed), f"{name}max_bad_fraction")
    return found


def _listed(config: TrainConfig, phase: int, key: str) -> Path:
    """The list of the rows of `data` or `eval_data` that are not used."""
    return phase_folder(config.out, phase) / ("rejected.jsonl" if key == "data" else "rejected-eval.jsonl")


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(path, rows)
    except OSError as error:
        why = error.strerror or error
        raise UserError(f"{path} cannot be written ({why}); give another folder with out=") from error


def _check_images(examples: Sequence[Example], collator: RewardCollator, model: str, sources: str) -> None:
    """The visual phase needs images, and a model that takes them: without either it would train on text in silence."""
    pictured = next((e for e in examples if e.images), None)
    if pictured is None:
        raise UserError(
            f"visual.data={sources}: no row has an image; name the column with visual.columns.image=THEIRS, "
            "or give rows without images to text.data"
        )
    if collator.image_token_id < 0:
        raise UserError(
            f"model {model!r} takes no images, but {sources} has rows with images (the first: {pictured.location}); "
            "give a vision-language model, or train with phase=1 and text.data"
        )


def _of_phase(examples: Sequence[Example], phase: int) -> tuple[list[Example], list[dict[str, Any]]]:
    """The text phase takes rows without images, the visual phase rows with one; the others are refused one by one."""
    kept, refused = [], []
    for example in examples:
        if bool(example.images) == (phase == 3):
            kept.append(example)
        elif example.images:
            reason = "the text phase takes rows without images; give this row to visual.data or caption.data"
            refused.append(record(example, "images", str(example.images[0]), reason))
        else:
            reason = "the visual phase takes rows with images; set visual.columns.image=THEIRS, or give it to text.data"
            refused.append(record(example, "images", "", reason))
    return kept, refused


# ---- what stands behind a run ----------------------------------------------------------------------------------------


# What a run of init_from leaves: its key in split.json, and whose it is in words.
BEFORE, BEHIND_RUN = "init_from", "the run of init_from"


def _split_file(out: str) -> Path:
    return Path(out) / "split.json"


def _is_unsplit(out: str) -> bool:
    """Whether a run was begun before runs kept their split."""
    return not _split_file(out).is_file() and any(Path(out).glob("phase*/settings.json"))


def _known_rows(config: TrainConfig, say: bool) -> Known:
    """The rows of the phases asked for that are finished, by the phase's name, and of what `init_from` comes from."""
    finished = [p for p in phase_numbers(config.phase) if (phase_folder(config.out, p) / "phase.json").is_file()]
    stored = _stored(config.out) if finished else {}
    known = {
        f"the {PHASES[p - 1]} phase": stored[name] for p in finished if (name := phase_folder("", p).name) in stored
    }
    if not config.init_from:
        return known
    run, last = _run_of(config.init_from)
    if not _split_file(run).is_file():
        if say:
            print(
                f"init_from={config.init_from} has no split.json beside it: what it was trained on, and what was held "
                "out from it, is not known here"
            )
        return known
    stored = _stored(run)
    behind = [phase_folder("", p).name for p in range(1, last + 1)]
    return known | {BEHIND_RUN: _joined(stored[name] for name in (BEFORE, *behind) if name in stored)}


def _run_of(init_from: str) -> tuple[str, int]:
    """The run folder and the number of a phase folder (or of its adapter/); elsewhere its parent, and 0."""
    folder = Path(os.path.abspath(init_from))
    folder = folder.parent if folder.name == ADAPTER else folder
    number = next((p for p in (1, 2, 3) if folder.name == phase_folder("", p).name), 0)
    return str(folder.parent if number else folder), number


def _stored(out: str) -> Known:
    return read_json(_split_file(out))


def _entry(part: Part, sides: Sides) -> dict[str, list[Members]]:
    """The distinct rows of a phase by side, as split.json keeps them."""
    rows = [*zip(part.data, sides.data, strict=True), *zip(part.eval_data or [], sides.eval_data, strict=True)]
    return _joined({side: [row]} for row, side in rows)


def _joined(entries: Iterable[dict[str, list[Members]]]) -> dict[str, list[Members]]:
    joined: dict[str, dict[tuple[str, ...], None]] = {side: {} for side in SIDES}
    for entry in entries:
        for side in SIDES:
            joined[side].update(dict.fromkeys(tuple(row) for row in entry.get(side, [])))
    return {side: [list(row) for row in found] for side, found in joined.items()}


def _store(
    config: TrainConfig, entries: dict[int, dict[str, list[Members]]], behind: dict[str, list[Members]] | None
) -> None:
    """Adds the split of phases, and what stands behind them, to OUT/split.json."""
    path = _split_file(config.out)
    before = _stored(config.out) if path.is_file() else {}
    found = before | {phase_folder("", phase).name: entry for phase, entry in entries.items()}
    if behind is not None:
        found[BEFORE] = _joined([before.get(BEFORE, {}), behind])
    _write(path, [found])
