"""What a policy is trained by: a reward that its own log-probabilities make of each answer, and the loss over rewards.

    sigmoid   r = beta (log pi - log pi_ref)       Bradley-Terry; of ranked lists Plackett-Luce (DPO, arXiv 2305.18290)
    ipo       r = (log pi - log pi_ref) / tokens   (r_w - r_l - 1 / (2 beta))^2                 (IPO, arXiv 2310.12036)
    simpo     r = beta log pi / tokens             Bradley-Terry with the margin gamma         (SimPO, arXiv 2405.14734)
    orpo      r = log p - log(1 - p), where p = pi^(1 / tokens)
              beta times Bradley-Terry, and the chosen answer's mean negative log-likelihood    (ORPO, arXiv 2403.07691)

`ipo` divides by tokens as TRL does, after the authors of the paper. `sft_weight` adds that times the chosen answer's
mean negative log-likelihood to any of them, so that it does not become less likely itself.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rovrm.common.errors import UserError
from rovrm.data.example import Example
from rovrm.training.losses import Comparisons, compare, preference_loss

LOSS_TYPES = ("sigmoid", "ipo", "simpo", "orpo")


@dataclass(frozen=True)
class Objective:
    """A loss over log-probabilities; see the module's docstring for its formulas.

    Args:
        loss_type: one of LOSS_TYPES.
        beta: weight of the log-probabilities in sigmoid and simpo, of the odds' loss in orpo; in ipo 1 / (2 beta) is
            the difference aimed at.
        gamma: of simpo, by how much the better reward is to exceed the worse.
        sft_weight: of the chosen answer's mean negative log-likelihood.
    """

    loss_type: str = "sigmoid"
    beta: float = 0.1
    gamma: float = 0.0
    sft_weight: float = 0.0

    def check(self, example: Example) -> None:
        """Raises UserError for an example that this loss cannot take."""
        if self.loss_type == "ipo" and (len(example.responses) != 2 or example.margin):
            what = f"{len(example.responses)} responses" if len(example.responses) != 2 else "a margin"
            raise UserError(
                f"{example.location or example.id}: loss_type=ipo takes pairs without a margin, and this row has "
                f"{what}; take loss_type=sigmoid, or give pairs (FILE?pairs=true)"
            )

    @property
    def uses_reference(self) -> bool:
        return self.loss_type in ("sigmoid", "ipo")

    def rewards(self, logps: Tensor, tokens: Tensor, reference: Tensor) -> Tensor:
        """(conversations,) rewards. logps, reference: (conversations,) log pi and log pi_ref of whole answers; tokens:
        their lengths."""
        if self.loss_type == "sigmoid":
            return self.beta * (logps - reference)
        tokens = tokens.clamp(min=1)
        if self.loss_type == "ipo":
            return (logps - reference) / tokens
        if self.loss_type == "simpo":
            return self.beta * logps / tokens
        mean = logps / tokens
        return mean - torch.log1p(-mean.exp().clamp(max=1 - 1e-6))  # log odds of the mean token

    def summed_loss(self, pairs: Comparisons, logps: Tensor, tokens: Tensor, labels: Tensor, margins: Tensor) -> Tensor:
        """The batch's loss, of which a list counts once per response, as in `losses.preference_loss`.

        Args:
            pairs: of the rewards.
            logps, tokens, labels: (conversations,), with the labels that `losses.compare` takes.
            margins: (lists,), by which better rewards are to exceed worse ones.
        """
        if self.loss_type == "ipo":
            difference = pairs.rewards[:, None] - pairs.rewards[None, :]
            squares = (difference - 1 / (2 * self.beta)).square() * pairs.better
            loss = 2 * squares.sum()  # a pair has two responses
        else:
            gamma = self.gamma if self.loss_type == "simpo" else 0.0
            loss = preference_loss(pairs, margins + gamma)
            loss = self.beta * loss if self.loss_type == "orpo" else loss
        weight = self.sft_weight + (1.0 if self.loss_type == "orpo" else 0.0)
        if weight:
            loss = loss + weight * _chosen_likelihood(pairs, logps, tokens, labels)
        return loss

    def mean_loss(self, logps: list[float], tokens: list[int], reference: list[float], ranks: list[int], margin: float):
        """The loss of one whole list."""
        values, lengths = torch.tensor(logps, dtype=torch.float64), torch.tensor(tokens)
        labels = torch.tensor(ranks)
        rewards = self.rewards(values, lengths, torch.tensor(reference, dtype=torch.float64))
        pairs = compare(rewards, labels, torch.zeros(len(ranks), dtype=torch.long))
        return self.summed_loss(pairs, values, lengths, labels, torch.tensor([margin])).item() / len(ranks)


def _chosen_likelihood(pairs: Comparisons, logps: Tensor, tokens: Tensor, labels: Tensor) -> Tensor:
    """The mean negative log-likelihood of a token of each list's best answers, once per response of the list."""
    present = labels != -100
    best = (labels[present] == 0).to(pairs.rewards)
    per_token = -logps[present] / tokens[present].clamp(min=1)
    same = (pairs.list_ids[:, None] == pairs.list_ids[None, :]).to(pairs.rewards)
    return (per_token * best / (same @ best).clamp(min=1) * pairs.size).sum()
