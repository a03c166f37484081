"""The data of one phase: read, captioned, checked, and split by group into training and held-out examples."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rovrm.checks import Checked, check_examples, stop_if_too_bad
from rovrm.config import PHASES, CaptionConfig, PhaseConfig, TrainConfig
from rovrm.data import caption_example, group_keys, hold_out, load_examples, use_captions, write_jsonl
from rovrm.errors import UserError
from rovrm.examples import Example
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
    """Loads and checks a phase's data before any model is loaded. Bad rows are listed in the phase folder's
    `rejected.jsonl` (by the process that may `write`), and too many of them stop the run."""
    section, name = section_of(config, phase), PHASES[phase - 1]
    if not section.data:
        raise UserError(f"phase {phase} needs data: set {name}.data to a file, a folder or a hub id")
    checked, keys = _load(config, phase, section.data, section.n, collator, write, "rejected.jsonl")
    if section.eval_data:
        held_out, held_keys = _load(config, phase, section.eval_data, None, collator, write, "rejected-eval.jsonl")
        held = set(held_keys)
        train = [e for e, key in zip(checked.examples, keys, strict=True) if key not in held]
        data = PhaseData(train, held_out.examples, checked.rejected + held_out.rejected)
        _say_dropped(len(checked.examples) - len(train), name, write)
    else:
        out = hold_out(keys, config.eval_fraction, config.seed)
        pairs = list(zip(checked.examples, out, strict=True))
        data = PhaseData([e for e, h in pairs if not h], [e for e, h in pairs if h], checked.rejected)
    for part, what in ((data.train, "to train on"), (data.held_out, "held out")):
        if not part:
            raise UserError(
                f"{name}.data leaves no example {what} ({len(checked.examples)} good ones, "
                f"eval_fraction={config.eval_fraction:g}); give more data, another eval_fraction, or {name}.eval_data"
            )
    return data


def _load(
    config: TrainConfig, phase: int, sources: list[str], n: int | None, collator: RewardCollator, write: bool, file: str
) -> tuple[Checked, list[str]]:
    """Reads and checks sources: the good examples with their split groups, and all rejected rows."""
    section = section_of(config, phase)
    loaded = load_examples(
        sources,
        columns=section.columns or None,
        reader=section.reader or None,
        image_root=config.image_root or None,
        n=n,
        select=section.select,
        seed=config.seed,
    )
    total = len(loaded.examples) + len(loaded.rejected)
    examples, pictured, rejected = loaded.examples, loaded.examples, list(loaded.rejected)
    if phase == 1:
        examples, pictured, with_images = _without_images(examples)
        rejected += with_images
    if isinstance(section, CaptionConfig):
        captioned = use_captions(examples, section.captions or None)
        rejected += captioned.rejected
        pictured = captioned.examples
        examples = [caption_example(example, section.caption_template) for example in pictured]
    checked = check_examples(examples, collator, config.max_length, config.workers, pictured)
    rejected += checked.rejected
    listed = phase_folder(config.out, phase) / file
    if write:
        listed.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(listed, rejected)
    stop_if_too_bad(rejected, total, config.max_bad_fraction, str(listed))
    keys = group_keys(checked.examples, checked.hashes)
    return Checked(checked.examples, checked.hashes, rejected), keys


def _without_images(examples: Sequence[Example]) -> tuple[list[Example], list[Example], list[dict[str, Any]]]:
    """The text phase takes rows without images; the others are refused one by one."""
    kept = [e for e in examples if not e.images]
    rejected = [
        {
            "location": e.location,
            "id": e.id,
            "field": "images",
            "value": str(e.images[0]),
            "reason": "the text phase takes rows without images; use visual.data or caption.data",
        }
        for e in examples
        if e.images
    ]
    return kept, kept, rejected


def _say_dropped(count: int, name: str, write: bool) -> None:
    if count and write:
        print(f"{name}: {count} training rows share an image or prompt with {name}.eval_data and are left out")
