"""A calibrator for `rovrm.csr` in the world that knows the truth: what calibration could do at best."""

from collections.abc import Sequence
from typing import Any

from eval.shared.judging import verdict_of


class OracleCalibrator:
    """Worth of an answer: the true facts it states less FALSE times the false ones; of a step what it adds to that."""

    FALSE = 5  # a thing has four facts: one false fact outweighs naming the thing

    def scores(self, examples: Sequence[Any], partials: Sequence[Sequence[Any]]) -> list[list[float]]:
        """Per prompt a number for each partial answer, as `rovrm.alignment.calibrators.Calibrator`."""
        return [
            [self._worth(example, partial.whole) - self._worth(example, partial.before) for partial in of_prompt]
            for example, of_prompt in zip(examples, partials, strict=True)
        ]

    def _worth(self, example: Any, text: str) -> float:
        verdict = verdict_of(example, text)
        return float(len(verdict.covered) - self.FALSE * len(verdict.hallucinated))
