"""Answers step by step: n candidates for the next sentence of every partial answer, from the state behind it.

A step ends behind a delimiter that white space or the end of the answer follows, so "3.5" does not end it, nor does
"Mr."; or at the end of the answer; or at its cap, which is noted. What follows is looked at by sampling the next token:
white space before it, and the token is dropped, since the next step samples it anew from the same distribution.
Candidates are sampled; the log-probability that is kept is that of the policy itself, at temperature 1.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from rovrm.model.beams import Beams

SENTENCES = (".", "!", "?")
ABBREVIATIONS = re.compile(  # and initials
    r"(?:\b(?i:mr|mrs|ms|dr|prof|st|vs|etc|fig|jr|sr|approx|inc|ltd|e\.g|i\.e|a\.m|p\.m)|\b[A-Z])\.$"
)
CLOSING = "\"')]}”’»*_"  # which may stand between a sentence's end and the white space


@dataclass(frozen=True)
class StepRules:
    """How steps are sampled, and where they end.

    Args:
        delimiters: what ends a step, where white space or the end of the answer follows.
        tokens: of one step, at most.
        temperature, top_p: of sampling.
    """

    delimiters: tuple[str, ...] = SENTENCES
    tokens: int = 70
    temperature: float = 1.0
    top_p: float = 1.0


@dataclass(frozen=True, slots=True)
class Step:
    """One candidate for the next step of a partial answer.

    row: of `Beams`, where its state is.
    parent: the row that it continues.
    tokens: its token ids, end of sequence included.
    text: what they add to the answer.
    logprob: the sum of their log-probabilities in nats.
    ended: `delimiter`, `eos` where the answer ends with it, or `cap`.
    """

    row: int
    parent: int
    tokens: tuple[int, ...]
    text: str
    logprob: float
    ended: Literal["delimiter", "eos", "cap"]


def sample_steps(
    beams: Beams,
    answers: Sequence[Sequence[int]],
    n: int,
    rules: StepRules,
    tokenizer: Any,
    eos: set[int],
    generator: torch.Generator,
) -> tuple[Beams, list[Step]]:
    """n candidates for the next step of every row.

    Args:
        beams: a row for each partial answer.
        answers: their token ids so far, behind the prompt.
        eos: the tokens that end an answer.

    Returns:
        (the rows of all candidates, n for each of the given ones; the candidates in this order)
    """
    parents = [row for row in range(len(answers)) for _ in range(n)]
    beams = beams.select(parents)
    growing = [_Growing(answers[parent], tokenizer, rules) for parent in parents]
    device = beams.mask.device
    while True:
        tokens, logps = _draw(beams.logits, rules, generator)
        live = []
        for step, token, logp in zip(growing, tokens.tolist(), logps.tolist(), strict=True):
            live.append(step.take(token, logp, eos))
        if not any(live):
            break
        beams.append(tokens, torch.tensor(live, device=device))
    steps = []
    for row, (step, parent) in enumerate(zip(growing, parents, strict=True)):
        assert step.ended is not None
        steps.append(Step(row, parent, tuple(step.tokens), step.text(), step.logprob, step.ended))
    return beams, steps


def _draw(logits: torch.Tensor, rules: StepRules, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens, log-probabilities at temperature 1), both (rows,)."""
    logps = logits.log_softmax(-1)
    weights = (logits / rules.temperature).softmax(-1)
    if rules.top_p < 1:
        ordered, index = weights.sort(dim=-1, descending=True)
        beyond = ordered.cumsum(-1) - ordered >= rules.top_p
        weights = weights.scatter(1, index, ordered.masked_fill(beyond, 0.0))
    tokens = torch.multinomial(weights.cpu(), 1, generator=generator)[:, 0].to(logits.device)
    return tokens, logps.gather(1, tokens[:, None])[:, 0]


class _Growing:
    """A step while it is sampled."""

    def __init__(self, before: Sequence[int], tokenizer: Any, rules: StepRules):
        self.before, self.tokenizer, self.rules = list(before), tokenizer, rules
        self.start = self._decoded(self.before)
        self.tokens: list[int] = []
        self.logprob = 0.0
        self.ended: Literal["delimiter", "eos", "cap"] | None = None
        self.pending = False  # the text ends with a delimiter, and what follows is not known

    def take(self, token: int, logp: float, eos: set[int]) -> bool:
        """Takes or drops a sampled token. Returns whether the model is to be run on it: whether the step goes on."""
        if self.ended:
            return False
        if token in eos:
            self.tokens.append(token)
            self.logprob += logp
            self.ended = "eos"
            return False
        if self.pending and (self.text()[-1:].isspace() or self._follows_white_space(token)):
            self.ended = "delimiter"  # the token belongs to the next step, which samples it anew
            return False
        if len(self.tokens) >= self.rules.tokens:
            self.ended = "cap"
            return False
        self.tokens.append(token)
        self.logprob += logp
        self.pending = self._at_delimiter()
        return True

    def text(self) -> str:
        return self._decoded(self.before + self.tokens)[len(self.start) :]

    def _decoded(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    def _follows_white_space(self, token: int) -> bool:
        """Whether white space stands before what a token adds, or is what it adds."""
        now = self._decoded(self.before + self.tokens)
        return self._decoded([*self.before, *self.tokens, token])[len(now) :][:1].isspace()

    def _at_delimiter(self) -> bool:
        text = self.text()
        if "\n" in self.rules.delimiters and text.strip() and text.endswith("\n"):
            return True
        bare = text.rstrip(CLOSING)
        if not any(bare.endswith(delimiter) for delimiter in self.rules.delimiters) or not bare.strip():
            return False
        return not (bare.endswith(".") and ABBREVIATIONS.search(bare))
