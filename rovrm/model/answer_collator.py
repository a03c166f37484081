"""Batches of a policy in training: those of a reward model, with where the answers begin and their reference."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rovrm.common.errors import UserError
from rovrm.data.example import Example
from rovrm.model.collator import RewardCollator


class AnswerCollator(RewardCollator):
    """Turns examples into one batch for `likelihood.AnswerLikelihood.forward`: what RewardCollator gives, and

        answer_starts (rows of input_ids,): tokens before the answers, padding not counted,
        reference_logps (conversations,): float32, those of the examples; not a number where they have none.

    The answer begins behind what the rendered prompt and the rendered conversations have in common, in tokens, and ends
    with the end of turn that the template writes.
    """

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        batch = super().__call__(examples)
        # Image tokens, which all stand before the answer, are expanded in the batch and one token each here.
        tokens = batch["attention_mask"].sum(1)
        if self.shared:
            tokens = tokens[batch["owners"]] + batch["answer_attention_mask"].sum(1)
        plain, starts = [], []
        for example in examples:
            conversations = self._tokenized(self.chat.conversations(example))
            plain += [len(ids) for ids in conversations]
            starts += [self.answer_start(example, conversations)] * len(conversations)
        of_conversations = torch.tensor(starts) + tokens - torch.tensor(plain)
        first = batch["response_ids"] == 0
        batch["answer_starts"] = of_conversations[first] if self.shared else of_conversations
        reference = [example.reference_logps or [math.nan] * len(example.responses) for example in examples]
        batch["reference_logps"] = torch.tensor([logp for of_example in reference for logp in of_example])
        return batch

    def check_answers(self, example: Example) -> None:
        """Raises UserError where it cannot be told where the answers of an example begin."""
        self.answer_start(example, self._tokenized(self.chat.conversations(example)))

    def answer_start(self, example: Example, conversations: list[list[int]]) -> int:
        """Tokens of the conversations of an example, images as one token each, before its answers.

        Raises:
            UserError: the template writes the prompt otherwise, images and all, where an answer follows it.
        """
        [prompt] = self._tokenized([self.chat.prompt(example)])
        start = min(_common(prompt, ids) for ids in conversations)
        if prompt[:start].count(self.placeholder_id) < len(example.images) or not start:
            raise UserError(
                "the chat template writes a prompt with an answer behind it otherwise than without, so where the "
                "answer begins cannot be told; give another chat_template"
            )
        return start


def _common(one: list[int], other: list[int]) -> int:
    """How many tokens both begin with."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
