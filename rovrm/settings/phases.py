"""The three phases: their names and numbers, what the command line calls them, their folders."""

from pathlib import Path

from rovrm.common.errors import UserError

PHASES = ("text", "caption", "visual")
PHASE_WORDS = "1, 2, 3, a range 1..3, a list 1,3, or the names text, caption, visual"


def phase_numbers(text: str) -> list[int]:
    """The phases that `1..3`, `1,3`, `2` or `text,visual` stand for, ascending and without repeats."""
    numbers: set[int] = set()
    for part in text.split(","):
        ends = [_phase_number(end, text) for end in part.split("..", maxsplit=1)]
        if ends[0] > ends[-1]:
            raise UserError(f"phase: got {text!r}, a range that runs backwards; takes {PHASE_WORDS}")
        numbers.update(range(ends[0], ends[-1] + 1))
    return sorted(numbers)


def _phase_number(name: str, text: str) -> int:
    name = name.strip()
    if name in PHASES:
        return PHASES.index(name) + 1
    if name in ("1", "2", "3"):
        return int(name)
    raise UserError(f"phase: got {text!r}, takes {PHASE_WORDS}")


def phase_folder(out: str, phase: int) -> Path:
    """`OUT/phase1-text`, `OUT/phase2-caption` or `OUT/phase3-visual`."""
    return Path(out) / f"phase{phase}-{PHASES[phase - 1]}"
