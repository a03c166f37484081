"""The three phases of RoVRM: text, caption and visual preferences, in this order."""

from dataclasses import dataclass
from pathlib import Path

from rovrm.common.errors import UserError


@dataclass(frozen=True, order=True)
class Phase:
    """A training phase. Phases compare by the order in which they run, and print as `phase 1 (text)`.

    Args:
        number: 1, 2 or 3, as `phase=` takes it.
        name: `text`, `caption` or `visual`: also the section of the settings that the phase has to itself.
    """

    number: int
    name: str

    def __str__(self) -> str:
        return f"phase {self.number} ({self.name})"

    @property
    def folder_name(self) -> str:
        return f"phase{self.number}-{self.name}"

    def folder(self, out: str) -> Path:
        """`OUT/phase1-text`, `OUT/phase2-caption` or `OUT/phase3-visual`."""
        return Path(out) / self.folder_name


TEXT, CAPTION, VISUAL = PHASES = (Phase(1, "text"), Phase(2, "caption"), Phase(3, "visual"))
PHASE_WORDS = "1, 2, 3, a range 1..3, a list 1,3, or the names text, caption, visual"


def parse_phases(text: str) -> list[Phase]:
    """The phases that `1..3`, `1,3`, `2` or `text,visual` stand for, in the order in which they run."""
    phases: set[Phase] = set()
    for part in text.split(","):
        first, _, last = part.partition("..")
        start = _parse_phase(first, text)
        end = _parse_phase(last, text) if ".." in part else start
        if start > end:
            raise UserError(f"phase: got {text!r}, a range that runs backwards; takes {PHASE_WORDS}")
        phases.update(phase for phase in PHASES if start <= phase <= end)
    return sorted(phases)


def _parse_phase(word: str, text: str) -> Phase:
    for phase in PHASES:
        if word.strip() in (phase.name, str(phase.number)):
            return phase
    raise UserError(f"phase: got {text!r}, takes {PHASE_WORDS}")
