"""The data of the phases: read, captioned, checked, and split as one into training and held-out examples.

    data = prepare_phases(config, [TEXT, VISUAL], collator, written=[TEXT, VISUAL])
    data[VISUAL].train, data[VISUAL].held_out

Rows that are not used are listed with their reasons in the phase's folder, rejected.jsonl. The split over the phases is
kept in OUT/split.json (rovrm/training/split_file.py).
"""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState

from rovrm.common.errors import BadRows, UserError
from rovrm.common.files import write_jsonl
from rovrm.data.captions import caption_example
from rovrm.data.example import Example
from rovrm.data.loading import Loaded, Usable, load_examples, use_captions
from rovrm.data.messages import text_of
from rovrm.data.splits import EVAL_DATA, HELD_OUT, LEFT_OUT, TRAIN, Part, Sides, members_of, split
from rovrm.model.collator import RewardCollator
from rovrm.settings.keys import CaptionConfig, TrainConfig
from rovrm.settings.phases import CAPTION, TEXT, VISUAL, Phase
from rovrm.training.checks import Checked, check_examples, is_too_bad, record, stop_if_too_bad
from rovrm.training.split_file import BEHIND_RUN, entry_of, is_unsplit, known_rows, write_split

BEHIND = "what an earlier phase, or init_from, was trained on"  # in messages


@dataclass(slots=True)
class PhaseData:
    """What a phase trains on and is measured by. rejected: every row that was skipped, and why; n_long: how many of
    them for their length."""

    train: list[Example]
    held_out: list[Example]
    rejected: list[dict[str, Any]]
    n_long: int = 0


def prepare_phases(
    config: TrainConfig, phases: Sequence[Phase], collator: RewardCollator, written: Collection[Phase] = ()
) -> dict[Phase, PhaseData]:
    """Loads and checks the data of phases, before any model is loaded, and splits them as one.

    What is held out in any of them, or in the phases that stand behind them, trains in none. Too many bad rows stop the
    run, once those of every phase are known. Rows left out for the split are not bad, nor are those that are too long,
    unless long_rows=error.

    Args:
        config: the settings of the run.
        phases: the phases to read.
        collator: measures the rows, as it will batch them.
        written: the phases of which this process writes what became of their rows: the lists in the phase's folder, and
            their part of OUT/split.json.
    """
    for phase in phases:
        _check_section(config, phase)
    unsplit = is_unsplit(config.out)
    # Read before the rows are: a process that is done with checking may write.
    known = {} if unsplit else known_rows(config, say=bool(written))
    if unsplit and written:
        print(
            f"{config.out} was begun by a version that kept no split.json: its phases are split one by one, and what "
            "one holds out may train in another; give another out= for one split over all"
        )
    rows = _read_phases(config, phases, collator, written)
    data, entries = {}, {}
    for together in [[phase] for phase in phases] if unsplit else [phases]:
        parts = {phase.name: rows[phase].as_part() for phase in together}
        sides = split(parts, known, config.eval_fraction, config.seed)
        for phase in together:
            data[phase] = _divide(config, phase, rows[phase], sides[phase.name], phase in written)
            entries[phase] = entry_of(parts[phase.name], sides[phase.name])
    if written and not unsplit and not config.dry_run:
        write_split(config.out, {phase: entries[phase] for phase in phases if phase in written}, known.get(BEHIND_RUN))
    return data


def _check_section(config: TrainConfig, phase: Phase) -> None:
    section = config.section(phase)
    if not section.data:
        raise UserError(f"phase {phase.number} needs data: set {phase.name}.data to a file, a folder or a hub id")
    if not section.eval_data and not 0 < config.eval_fraction < 1:
        raise UserError(
            f"eval_fraction={config.eval_fraction:g} leaves phase {phase.number} nothing to train on or nothing held "
            f"out; give a number between 0 and 1, or {phase.name}.eval_data"
        )


# ---- reading and checking --------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _PhaseRows:
    """The rows of a phase, checked. eval_data: None where a fraction of `data` is held out."""

    data: Checked
    eval_data: Checked | None

    def as_part(self) -> Part:
        data = [members_of(example) for example in self.data.examples]
        if self.eval_data is None:
            return Part(data)
        return Part(data, [members_of(example) for example in self.eval_data.examples])

    @property
    def n_long(self) -> int:
        return len(self.data.long) + (len(self.eval_data.long) if self.eval_data else 0)


def _read_phases(
    config: TrainConfig, phases: Sequence[Phase], collator: RewardCollator, written: Collection[Phase]
) -> dict[Phase, _PhaseRows]:
    """The rows of the phases. Raises BadRows for all of them together: all can be mended before the next try."""
    checked: dict[tuple[Phase, str], Checked] = {}
    messages: list[str] = []
    for phase in phases:
        for key in ("data", "eval_data") if config.section(phase).eval_data else ("data",):
            try:
                checked[phase, key] = _read_rows(config, phase, key, collator, phase in written)
            except BadRows as error:
                message = f"{phase.name}.{key}: {error}"
                if error.rows and phase in written:
                    path = _list_of_rejected(config.out, phase, key)
                    _write_list(path, error.rows)
                    message += f" (all of them: {path})"
                messages.append(message)
    if messages:
        first, *others = "\n".join(messages).split("\n")
        raise BadRows(first, *others)
    return {phase: _PhaseRows(checked[phase, "data"], checked.get((phase, "eval_data"))) for phase in phases}


def _read_rows(config: TrainConfig, phase: Phase, key: str, collator: RewardCollator, write: bool) -> Checked:
    """Reads and checks `data` or `eval_data` (key) of a phase: the good examples and all rejected rows."""
    section = config.section(phase)
    path = _list_of_rejected(config.out, phase, key)
    limit, limit_key = config.max_bad_fraction, "max_bad_fraction"
    if section.max_bad_fraction is not None:
        limit, limit_key = section.max_bad_fraction, f"{phase.name}.max_bad_fraction"
    looks: list[Checked] = []
    total = 0

    def usable(examples: list[Example]) -> list[Example] | None:
        """Those of the drawn rows that pass every check. Once so many are bad that the run stops, no more are drawn."""
        nonlocal total
        if phase == VISUAL and not looks:
            _check_images(examples, collator, config.model, ", ".join(getattr(section, key)))
        looks.append(_check_rows(config, phase, examples, collator))
        total += len(examples)
        too_bad = is_too_bad(sum(len(look.rejected) for look in looks), total, limit)
        return None if too_bad else looks[-1].examples

    loaded = _load(config, phase, key, usable)
    rejected = loaded.rejected + [row for look in looks for row in look.rejected]
    checked = Checked(loaded.examples, rejected, [row for look in looks for row in look.long])
    if write:
        _write_list(path, checked.skipped)
    stop_if_too_bad(checked.rejected, total + len(loaded.rejected), limit, str(path), limit_key)
    return checked


def _check_rows(config: TrainConfig, phase: Phase, examples: list[Example], collator: RewardCollator) -> Checked:
    """The rows that the phase can train on, in the caption phase with captions in the place of images."""
    section = config.section(phase)
    rejected: list[dict[str, Any]] = []
    if phase in (TEXT, VISUAL):
        examples, rejected = _of_phase(examples, phase)
    pictured = examples  # the examples with their images, which in the caption phase are only hashed for the split
    if isinstance(section, CaptionConfig):
        captioned = use_captions(examples)  # those of the file are in: here rows with none of their own fall out
        rejected, pictured = captioned.rejected, captioned.examples
        examples = [caption_example(example, section.caption_template) for example in pictured]
    checked = check_examples(examples, collator, config.max_length, config.workers, pictured, config.max_pixels)
    if config.long_rows == "skip":
        return Checked(checked.examples, rejected + checked.rejected, checked.long)
    return Checked(checked.examples, rejected + checked.skipped)


def _load(config: TrainConfig, phase: Phase, key: str, usable: Usable) -> Loaded:
    section = config.section(phase)
    # Held-out data are all taken; rows that a selection chooses among are all read.
    all_rows = key == "eval_data" or section.by_selection
    return load_examples(
        getattr(section, key),
        columns=section.columns or None,
        reader=section.reader or None,
        image_root=config.image_root or None,
        n=None if all_rows else section.n,
        select="first" if section.select == "first" else "random",
        seed=config.seed,
        images_needed=phase != CAPTION,
        captions=(section.captions or None) if isinstance(section, CaptionConfig) else None,
        usable=usable,
        say=PartialState().is_main_process,
    )


def _check_images(examples: Sequence[Example], collator: RewardCollator, model: str, sources: str) -> None:
    """The visual phase needs images, and a model that takes them: without either it would train on text in silence."""
    pictured = next((example for example in examples if example.images), None)
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


def _of_phase(examples: Sequence[Example], phase: Phase) -> tuple[list[Example], list[dict[str, Any]]]:
    """The text phase takes rows without images, the visual phase rows with one; the others are refused one by one."""
    kept, refused = [], []
    for example in examples:
        if bool(example.images) == (phase == VISUAL):
            kept.append(example)
        elif example.images:
            reason = "the text phase takes rows without images; give this row to visual.data or caption.data"
            refused.append(record(example, "images", str(example.images[0]), reason))
        else:
            reason = "the visual phase takes rows with images; set visual.columns.image=THEIRS, or give it to text.data"
            refused.append(record(example, "images", "", reason))
    return kept, refused


# ---- dividing --------------------------------------------------------------------------------------------------------


def _divide(config: TrainConfig, phase: Phase, rows: _PhaseRows, sides: Sides, write: bool) -> PhaseData:
    """The phase's rows by side. Those left out are listed, counted and printed."""
    name, section = phase.name, config.section(phase)
    train, held_out = [], []
    for example, side in zip(rows.data.examples, sides.data, strict=True):
        if side == TRAIN:
            train.append(example)
        elif side == HELD_OUT:
            held_out.append(example)
    left_out = [_left_out(rows.data.examples[i], whose) for i, whose in sides.because.items()]
    trained_before = []
    if rows.eval_data is not None:
        held_out = []
        for example, side in zip(rows.eval_data.examples, sides.eval_data, strict=True):
            if side == EVAL_DATA:
                held_out.append(example)
            elif side == LEFT_OUT:
                trained_before.append(_trained_before(example))

    if write and rows.n_long:
        where = f"listed in {phase.folder(config.out)}"
        print(f"{name}: {rows.n_long} rows are longer than max_length={config.max_length} tokens: skipped, {where}")
    if write and left_out:
        owners = ", ".join(sorted(set(sides.because.values())))
        _write_list(_list_of_rejected(config.out, phase, "data"), rows.data.skipped + left_out)
        print(f"{name}: {len(left_out)} training rows share an image or prompt with {owners}: left out")
    if write and rows.eval_data is not None and trained_before:
        path = _list_of_rejected(config.out, phase, "eval_data")
        _write_list(path, rows.eval_data.skipped + trained_before)
        count = len(trained_before)
        print(f"{name}: {count} rows of {name}.eval_data share an image or prompt with {BEHIND}: not held out")
    if write and sides.before:
        print(f"{name}: {sides.before} rows share an image or prompt with {BEHIND}: not held out by eval_fraction")

    before = len(trained_before) or sides.before
    _stop_if_empty(config, phase, train, held_out, len(left_out), before, rows.n_long)
    if rows.eval_data is None and section.by_selection and section.n:
        held_out = _as_many_as(section.n, held_out, config.eval_fraction, config.seed)
    skipped = rows.data.skipped + left_out + (rows.eval_data.skipped if rows.eval_data else []) + trained_before
    return PhaseData(train, held_out, skipped, rows.n_long)


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
    phase: Phase,
    train: list[Example],
    held_out: list[Example],
    n_left_out: int,
    n_before: int,
    n_long: int,
) -> None:
    """Raises UserError where a phase has nothing to train on or nothing held out, with what became of its rows."""
    if train and held_out:
        return
    name, what = phase.name, "held out" if train else "to train on"
    fates = f"; {n_before} more share an image or prompt with {BEHIND}" if n_before else ""
    fates += f"; {n_long} more are longer than max_length={config.max_length}, raise it" if n_long else ""
    if config.section(phase).eval_data:
        raise UserError(
            f"{name}.data and {name}.eval_data leave no example {what} ({len(train) + n_left_out} good ones for "
            f"training, {n_left_out} of them share an image or prompt with {name}.eval_data or with what other phases "
            f"hold out; {len(held_out)} held out{fates}); give other data to one of them, or leave {name}.eval_data "
            f"out: eval_fraction then holds out a part of {name}.data"
        )
    shared = f", {n_left_out} more share an image or prompt with other phases' held-out rows" if n_left_out else ""
    raise UserError(
        f"{name}.data leaves no example {what} ({len(train) + len(held_out)} good ones, eval_fraction="
        f"{config.eval_fraction:g}{shared}{fates}); give more data, another eval_fraction, or {name}.eval_data"
    )


def _as_many_as(n: int, held_out: list[Example], eval_fraction: float, seed: int) -> list[Example]:
    """As many of a whole pool's held-out rows as the n chosen ones would have beside them."""
    size = max(1, round(n * eval_fraction / (1 - eval_fraction)))
    places = random.Random(f"{seed}:held-out").sample(range(len(held_out)), min(size, len(held_out)))
    return [held_out[place] for place in sorted(places)]


# ---- lists of rows that are not used ---------------------------------------------------------------------------------


def _list_of_rejected(out: str, phase: Phase, key: str) -> Path:
    """The list of the rows of `data` or `eval_data` (key) that are not used."""
    return phase.folder(out) / ("rejected.jsonl" if key == "data" else "rejected-eval.jsonl")


def _write_list(path: Path, rows: list[dict[str, Any]]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(path, rows)
    except OSError as error:
        why = error.strerror or error
        raise UserError(f"{path} cannot be written ({why}); give another folder with out=") from error
