"""The preference loss over ranked lists: Plackett-Luce, of which Bradley-Terry is the case of two.

For responses ranked best first the paper's loss (RoVRM, arXiv 2408.12109) is -sum_i (r_i - logsumexp_{j>=i} r_j). Here
response i competes with those of *strictly* worse rank, so tied responses are not compared with each other, and a list
without ties gives the paper's sum. Everything is float32 and goes through log-sum-exp.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(slots=True)
class Comparisons:
    """The flat view of a batch: n responses of all its lists, and who must beat whom."""

    rewards: Tensor  # (n,) float32
    list_ids: Tensor  # (n,)
    better: Tensor  # (n, n) true where the row's response ranks above the column's, in the same list
    size: Tensor  # (n,) responses in the list that a response belongs to


def compare(rewards: Tensor, labels: Tensor, list_ids: Tensor) -> Comparisons:
    """rewards, labels, list_ids: (conversations,); labels are ranks (0 best), and -100 for what is left out."""
    present = labels != -100
    ranks, owners = labels[present], list_ids[present]
    same = owners[:, None] == owners[None, :]
    return Comparisons(rewards[present].float(), owners, same & (ranks[:, None] < ranks[None, :]), same.sum(dim=1))


def preference_loss(pairs: Comparisons, margins: Tensor, center_rewards_coefficient: float = 0.0) -> Tensor:
    """The batch's summed loss; divide it by the number of responses (present labels) to get the mean.

    A list's loss is the mean over its comparison stages (responses that beat at least one other), counted once per
    response: for pairs the quotient is exactly the mean Bradley-Terry loss, and a list of k weighs as k responses.
    margins: (lists,), by which a better response must beat a worse one. center_rewards_coefficient weighs
    (sum of the pair's rewards)^2 (Eisenstein et al. 2023, as in TRL), for lists 4 * (mean reward)^2.
    """
    r = pairs.rewards
    if r.numel() == 0:  # a batch that only fills up: zero, with a gradient of zeros
        return r.sum()
    loss = _stage_losses(pairs, margins).sum()
    if center_rewards_coefficient:
        mean = (_same_list(pairs) @ r) / pairs.size
        loss = loss + center_rewards_coefficient * (4 * mean.square()).sum()
    return loss


def _stage_losses(pairs: Comparisons, margins: Tensor) -> Tensor:
    """(n,) a response's stage loss, so weighed that they sum to the list's mean stage loss times its responses."""
    r, better = pairs.rewards, pairs.better
    # Stage i of Plackett-Luce: response i is drawn first among itself and those below it. A margin is added to what it
    # must beat, and everything else is masked out of the sum.
    itself = torch.eye(len(r), dtype=torch.bool, device=r.device)
    rivals = r[None, :] + margins.to(r)[pairs.list_ids][:, None] * better  # (n, n)
    rivals = rivals.masked_fill(~(better | itself), float("-inf"))
    # The last responses of a list beat nobody: they are no stage, and their term would be 0 anyway.
    stages = better.any(dim=1).to(r)  # (n,)
    terms = (torch.logsumexp(rivals, dim=1) - r) * stages
    return terms * pairs.size / (_same_list(pairs) @ stages).clamp(min=1)


def _same_list(pairs: Comparisons) -> Tensor:
    return (pairs.list_ids[:, None] == pairs.list_ids[None, :]).to(pairs.rewards)


def list_losses(pairs: Comparisons, margins: Tensor) -> Tensor:
    """(lists,) each list's own mean stage loss, differentiable."""
    of_lists = torch.nn.functional.one_hot(pairs.list_ids, len(margins)).T.to(pairs.rewards)  # (lists, n)
    return of_lists @ (_stage_losses(pairs, margins) / pairs.size)


def ascents(pairs: Comparisons, margins: Tensor) -> tuple[Tensor, Tensor]:
    """(objective, slope), both (lists,): the gradient of a list's loss is -slope times the gradient of its objective.

    A pair's objective is its reward difference, whose gradient does not vanish where the model is sure; the slope is
    then sigmoid(margin - difference). A longer list's is minus its loss, and the slope 1.
    """
    of_lists = torch.nn.functional.one_hot(pairs.list_ids, len(margins)).T.to(pairs.rewards)
    difference = of_lists @ ((pairs.rewards[:, None] - pairs.rewards[None, :]) * pairs.better).sum(1)
    is_pair = of_lists.sum(1) == 2
    objective = torch.where(is_pair, difference, -list_losses(pairs, margins))
    slope = torch.where(is_pair, torch.sigmoid(margins.to(difference) - difference), 1.0)
    return objective, slope.detach()


def batch_sums(pairs: Comparisons) -> Tensor:
    """float64 (5,): lists with a comparison; their summed accuracy and margin; responses; summed reward.

    accuracy of a list: the share of its comparisons won, a tie counts half; margin: their mean reward difference.
    """
    r = pairs.rewards.detach().double()
    difference = r[:, None] - r[None, :]
    won = ((difference > 0).double() + 0.5 * (difference == 0).double()) * pairs.better
    in_list = (pairs.list_ids[:, None] == pairs.list_ids[None, :]).double()
    count = in_list @ pairs.better.sum(dim=1).double()  # comparisons in the list of each response
    weight = (count > 0).double() / count.clamp(min=1)
    lists = ((count > 0).double() / pairs.size).sum()
    accuracy, margin = (won.sum(dim=1) * weight).sum(), ((difference * pairs.better).sum(dim=1) * weight).sum()
    return torch.stack([lists, accuracy, margin, torch.tensor(float(len(r))).to(r), r.sum()])


def ranking_metrics(
    rewards: list[list[float]], ranks: list[list[int]], margins: list[float | None]
) -> dict[str, float]:
    """Metrics of whole lists, each weighing the same, in the order given and so the same however they were batched.

    loss: mean over lists of the list's mean stage loss. accuracy, margin: see `batch_sums`. Rewards over all responses.
    """
    loss = accuracy = margin = 0.0
    for list_rewards, list_ranks, list_margin in zip(rewards, ranks, margins, strict=True):
        ids = torch.zeros(len(list_ranks), dtype=torch.long)
        pairs = compare(torch.tensor(list_rewards, dtype=torch.float64), torch.tensor(list_ranks), ids)
        loss += preference_loss(pairs, torch.tensor([list_margin or 0.0])).item() / len(list_rewards)
        _, won, difference, _, _ = batch_sums(pairs).tolist()
        accuracy, margin = accuracy + won, margin + difference
    flat = [reward for list_rewards in rewards for reward in list_rewards]
    n = len(rewards)
    mean = sum(flat) / len(flat)
    return {
        "loss": loss / n,
        "accuracy": accuracy / n,
        "margin": margin / n,
        "mean_reward": mean,
        "min_reward": min(flat),
        "max_reward": max(flat),
        "std_reward": (sum((r - mean) ** 2 for r in flat) / len(flat)) ** 0.5,
    }
