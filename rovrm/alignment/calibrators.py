"""What scores a step of an answer by the image: CLIP, our reward model, or both.

calibrators = make_calibrators(config)                 # by name
calibrators["clip"].scores(examples, partials)         # per prompt a number for each partial answer; higher is better

clip    max(100 cos(image, step), 0), as in CSR (arXiv 2405.14622, section 3.2), of the newest step alone
rovrm   r(answer with the step) - r(answer before it): over an answer's steps that sums up to the whole answer's
        reward. The reward of no answer at all, the same for all answers to a prompt, counts as 0
"""

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import torch

from rovrm.common.errors import UserError
from rovrm.data.example import Example
from rovrm.model.loading import usable_device
from rovrm.settings.keys import CsrConfig

KNOWN = 100_000  # rewards that are remembered


class Partial(NamedTuple):
    """An answer up to a step. before: without the step. step: its text. whole: with it."""

    before: str
    step: str
    whole: str


class Calibrator(Protocol):
    """What scores partial answers."""

    def scores(self, examples: Sequence[Example], partials: Sequence[Sequence[Partial]]) -> list[list[float]]:
        """Per prompt a number for each partial answer."""
        ...


class RewardCalibrator:
    """Increments of a reward model. scorer: a RewardScorer."""

    def __init__(self, scorer: Any):
        self.scorer = scorer
        self.known: dict[tuple[str, str], float] = {}  # rewards of partial answers, by prompt's id and text

    def scores(self, examples: Sequence[Example], partials: Sequence[Sequence[Partial]]) -> list[list[float]]:
        if len(self.known) > KNOWN:  # of prompts that are done
            self.known.clear()
        to_score = []
        for example, of_prompt in zip(examples, partials, strict=True):
            texts = {text for partial in of_prompt for text in (partial.before, partial.whole) if text}
            missing = sorted(text for text in texts if (example.id, text) not in self.known)
            if missing:
                to_score.append(replace(example, responses=missing, ranks=[0] * len(missing), lengths=None))
        for example, rewards in zip(to_score, self.scorer.score_batch(to_score), strict=True):
            self.known |= {(example.id, text): r for text, r in zip(example.responses, rewards, strict=True)}
        return [
            [self._of(example, partial.whole) - self._of(example, partial.before) for partial in of_prompt]
            for example, of_prompt in zip(examples, partials, strict=True)
        ]

    def _of(self, example: Example, text: str) -> float:
        return self.known[(example.id, text)] if text else 0.0


class ClipCalibrator:
    """Cosines of a CLIP model. truncated: how many steps were longer than it reads, and cut."""

    def __init__(self, name: str, device: str = ""):
        from transformers import AutoProcessor, CLIPModel

        try:
            model: Any = CLIPModel.from_pretrained(name)
            self.model: Any = model.eval().to(usable_device(device))
            self.processor = AutoProcessor.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise UserError(
                f"clip={name!r} is no CLIP model ({str(error).splitlines()[0]}); name a folder or hub id"
            ) from error
        self.truncated = 0

    @torch.inference_mode()
    def scores(self, examples: Sequence[Example], partials: Sequence[Sequence[Partial]]) -> list[list[float]]:
        found = []
        for example, of_prompt in zip(examples, partials, strict=True):
            if not of_prompt:
                found.append([])
                continue
            images = self._unit(self._image_features([ref.open() for ref in example.images]))  # (images, d)
            texts = self._unit(self._text_features([partial.step or " " for partial in of_prompt]))  # (steps, d)
            cosines = (texts @ images.T).mean(1)
            found.append((100 * cosines).clamp_min(0).tolist())
        return found

    def _image_features(self, images: list[Any]) -> torch.Tensor:
        inputs = self.processor(images=images, return_tensors="pt").to(self.model.device)
        return _tensor(self.model.get_image_features(**inputs))

    def _text_features(self, texts: list[str]) -> torch.Tensor:
        longest = self.model.config.text_config.max_position_embeddings
        lengths = [len(ids) for ids in self.processor.tokenizer(texts)["input_ids"]]
        self.truncated += sum(length > longest for length in lengths)
        inputs = self.processor.tokenizer(
            texts, padding=True, truncation=True, max_length=longest, return_tensors="pt"
        ).to(self.model.device)
        return _tensor(self.model.get_text_features(**inputs))

    def _unit(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(rows.float(), dim=1)


def joined(scores: Sequence[Sequence[float]]) -> list[float]:
    """One number for each partial answer of a prompt from those of each calibrator: of several the mean, each in
    standard deviations from its mean over these partial answers."""
    if len(scores) == 1:
        return list(scores[0])
    return [statistics.fmean(values) for values in zip(*map(_standardised, scores), strict=True)]


def _standardised(values: Sequence[float]) -> list[float]:
    spread = statistics.pstdev(values) if values else 0.0
    return [(value - statistics.fmean(values)) / spread if spread else 0.0 for value in values]


def _tensor(output: Any) -> torch.Tensor:
    """transformers 5 wraps the features of some CLIP models in an output."""
    return output if isinstance(output, torch.Tensor) else output.pooler_output


def make_calibrators(config: CsrConfig) -> dict[str, Calibrator]:
    """The calibrators of the settings by name. Raises UserError for a model that is not there."""
    made: dict[str, Calibrator] = {}
    if config.calibrator in ("rovrm", "both"):
        from rovrm.model.scorer import RewardScorer

        scorer = RewardScorer.from_pretrained(
            config.model, device=config.device or None, dtype=config.dtype, trust_remote_code=config.trust_remote_code
        )
        made["rovrm"] = RewardCalibrator(scorer)
    if config.calibrator in ("clip", "both"):
        made["clip"] = ClipCalibrator(config.clip, config.device)
    return made
