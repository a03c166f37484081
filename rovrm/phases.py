"""The data of one phase: read, captioned, checked, and split by group into training and held-out examples."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rovrm.checks import Checked, check_examples, record, stop_if_too_bad
from rovrm.config import PHASES, CaptionConfig, PhaseConfig, TrainConfig, by_gradients
from rovrm.data import caption_example, group_keys, hold_out, load_examples, use_captions, write_jsonl
from rovrm.errors import UserError
from rovrm.examples import Example
from rovrm.messages import text_of
from rovrm.rows import RewardCollator


@dataclass(slots=True)
class PhaseData:
    train: list[Example]
    held_out: list[Example]
    rejected: list[dict[str, Any]]


def phase_folder(out: str, phase: int) -> Path:
    """`OUT/phase1-text`, `OUT/phase2-caption` or `OUT/phase3-visual`."""
    return Path(out) / f"phase{phase}-{PHASES[phase - 1]}"


def section_of(config: TrainConfig, phase: int) -> PhaseConfig:
    return (config.text, config.caption, config.visual)[phase - 1]


def prepare_phase(config: TrainConfig, phase: int, collator: RewardCollator, write: bool) -> PhaseData:
    """Loads and checks a phase's data before any model is loaded. Rows that are not used are listed in the phase
    folder's `rejected.jsonl` (by the process that may `write`), and too many bad ones among them stop the run."""
    section, name = section_of(config, phase), PHASES[phase - 1]
    if not section.data:
        raise UserError(f"phase {phase} needs data: set {name}.data to a file, a folder or a hub id")
    if not section.eval_data and not 0 < config.eval_fraction < 1:
        raise UserError(
            f"eval_fraction={config.eval_fraction:g} leaves phase {phase} nothing to train on or nothing held out; "
            f"give a number between 0 and 1, or {name}.eval_data"
        )
    n = None if by_gradients(section) else section.n  # rows that rovrm.select chooses among are all read
    checked = _load(config, phase, section.data, n, collator, write, "rejected.jsonl")
    if section.eval_data:
        held_out = _load(config, phase, section.eval_data, None, collator, write, "rejected-eval.jsonl")
        train, shared = _apart(checked, held_out, name)
        if write and shared:
            _write(_listed(config, phase, "rejected.jsonl"), checked.rejected + shared)
            print(f"{name}: {len(shared)} training rows share an image or prompt with {name}.eval_data: left out")
        data = PhaseData(train, held_out.examples, checked.rejected + shared + held_out.rejected)
    else:
        out = hold_out(group_keys(checked.examples, checked.hashes), config.eval_fraction, config.seed)
        pairs = list(zip(checked.examples, out, strict=True))
        data = PhaseData([e for e, h in pairs if not h], [e for e, h in pairs if h], checked.rejected)
        if by_gradients(section) and section.n:
            data.held_out = _as_many_as(section.n, data.held_out, config)
    _stop_if_empty(data, len(checked.examples), section, name, config.eval_fraction)
    return data


def _stop_if_empty(data: PhaseData, good: int, section: PhaseConfig, name: str, eval_fraction: float) -> None:
    if data.train and data.held_out:
        return
    what = "held out" if data.train else "to train on"
    if section.eval_data:
        raise UserError(
            f"{name}.data and {name}.eval_data leave no example {what} ({good} good ones for training, "
            f"{good - len(data.train)} of them share an image or prompt with {name}.eval_data); give other data to "
            f"one of them, or leave {name}.eval_data out: eval_fraction then holds out a part of {name}.data"
        )
    raise UserError(
        f"{name}.data leaves no example {what} ({good} good ones, eval_fraction={eval_fraction:g}); "
        f"give more data, another eval_fraction, or {name}.eval_data"
    )


def _as_many_as(n: int, held_out: list[Example], config: TrainConfig) -> list[Example]:
    """As many of a whole pool's held-out rows as the n chosen ones would have beside them."""
    size = max(1, round(n * config.eval_fraction / (1 - config.eval_fraction)))
    drawn = random.Random(f"{config.seed}:held-out").sample(range(len(held_out)), min(size, len(held_out)))
    return [held_out[i] for i in sorted(drawn)]


def _apart(checked: Checked, held_out: Checked, name: str) -> tuple[list[Example], list[dict[str, Any]]]:
    """The training examples that share no group with the held-out ones, and a record of each of the others."""
    examples, hashes = checked.examples + held_out.examples, checked.hashes + held_out.hashes
    # Of both at once: a row with two images may join what would be two groups within either.
    keys = group_keys(examples, hashes)
    held = set(keys[len(checked.examples) :])
    train, shared = [], []
    for example, key in zip(checked.examples, keys, strict=False):
        if key not in held:
            train.append(example)
            continue
        what = "image" if key.startswith("image:") else "prompt"
        reason = f"{name}.eval_data has the same {what}, directly or through other rows: left out of training"
        shared.append(record(example, what, text_of(example.prompt[-1]["content"]), reason))
    return train, shared


def _load(
    config: TrainConfig, phase: int, sources: list[str], n: int | None, collator: RewardCollator, write: bool, file: str
) -> Checked:
    """Reads and checks sources: the good examples with their images' hashes, and all rejected rows."""
    section = section_of(config, phase)
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
    checked = check_examples(examples, collator, config.max_length, config.workers, pictured)
    rejected += checked.rejected
    listed = _listed(config, phase, file)
    if write:
        _write(listed, rejected)
    stop_if_too_bad(rejected, total, config.max_bad_fraction, str(listed))
    return Checked(checked.examples, checked.hashes, rejected)


def _listed(config: TrainConfig, phase: int, file: str) -> Path:
    return phase_folder(config.out, phase) / file


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
