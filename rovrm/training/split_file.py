"""OUT/split.json: which rows trained and which were held out, for the phases and runs that come after.

By phase and side it lists the members of each row (rovrm/data/splits.py), and under `init_from` those of the phases
that the run continues.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from rovrm.common.files import read_json, write_jsonl
from rovrm.data.splits import SIDES, Known, Members, Part, Sides
from rovrm.model.adapters import ADAPTER
from rovrm.settings.keys import TrainConfig
from rovrm.settings.phases import PHASES, Phase

Entry = dict[str, list[Members]]  # the distinct rows of a phase, by side

# What a run of init_from leaves: its key in split.json, and whose rows these are, in words.
BEFORE, BEHIND_RUN = "init_from", "the run of init_from"


def split_file(out: str) -> Path:
    return Path(out) / "split.json"


def is_unsplit(out: str) -> bool:
    """Whether a run was begun before runs kept their split."""
    return not split_file(out).is_file() and any(Path(out).glob("phase*/settings.json"))


def known_rows(config: TrainConfig, say: bool) -> Known:
    """The rows that are split already: of the phases asked for that are finished, and of what `init_from` comes from.

    say: whether this process prints.
    """
    known: Known = {}
    finished = [phase for phase in config.phases if (phase.folder(config.out) / "phase.json").is_file()]
    entries = read_json(split_file(config.out)) if finished else {}
    for phase in finished:
        if phase.folder_name in entries:
            known[f"the {phase.name} phase"] = entries[phase.folder_name]
    if not config.init_from:
        return known
    out, last = _run_of(config.init_from)
    if not split_file(out).is_file():
        if say:
            print(
                f"init_from={config.init_from} has no split.json beside it: what it was trained on, and what was held "
                "out from it, is not known here"
            )
        return known
    entries = read_json(split_file(out))
    behind = [BEFORE, *(phase.folder_name for phase in PHASES if last is not None and phase <= last)]
    known[BEHIND_RUN] = _join(entries[name] for name in behind if name in entries)
    return known


def _run_of(init_from: str) -> tuple[str, Phase | None]:
    """The run folder and the phase of a phase folder (or of its adapter/). For another folder, the folder itself."""
    folder = Path(os.path.abspath(init_from))
    if folder.name == ADAPTER:
        folder = folder.parent
    for phase in PHASES:
        if folder.name == phase.folder_name:
            return str(folder.parent), phase
    return str(folder), None


def entry_of(part: Part, sides: Sides) -> Entry:
    """What split.json keeps of a phase: its distinct rows by side."""
    rows = [*part.data, *(part.eval_data or [])]
    side_of_row = [*sides.data, *sides.eval_data]
    return _join({side: [row]} for row, side in zip(rows, side_of_row, strict=True))


def write_split(out: str, entries: dict[Phase, Entry], behind: Entry | None) -> None:
    """Adds the split of phases to OUT/split.json, and what stands behind the run."""
    path = split_file(out)
    stored = read_json(path) if path.is_file() else {}
    for phase, entry in entries.items():
        stored[phase.folder_name] = entry
    if behind is not None:
        stored[BEFORE] = _join([stored.get(BEFORE, {}), behind])
    write_jsonl(path, [stored])


def _join(entries: Iterable[Entry]) -> Entry:
    """The rows of several entries, each once, in the order of their first mention."""
    joined: dict[str, dict[tuple[str, ...], None]] = {side: {} for side in SIDES}
    for entry in entries:
        for side in SIDES:
            for row in entry.get(side, []):
                joined[side][tuple(row)] = None
    return {side: [list(row) for row in rows] for side, rows in joined.items()}
