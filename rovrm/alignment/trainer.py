"""`PolicyTrainer`: RewardTrainer, with the rewards that a policy's own log-probabilities make of its answers.

trainer = PolicyTrainer(model, RewardConfig(output_dir="out"), train_dataset, eval_dataset, processor)
for examples in (trainer.train_examples, trainer.eval_examples):
    set_reference(examples, answer_logps(model, trainer.collator, examples))  # before training it is its own reference
trainer.train()
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rovrm.alignment.objectives import Objective
from rovrm.data.example import Example
from rovrm.model.answer_collator import AnswerCollator
from rovrm.model.likelihood import load_policy_model
from rovrm.training.losses import Comparisons
from rovrm.training.trainer import RewardTrainer


class PolicyTrainer(RewardTrainer):
    """Trains a language model (`rovrm.model.likelihood`) on ranked answers; arguments as RewardTrainer's.

    Dropout is switched off: it would make the policy differ from its reference before anything is learned.
    """

    collator_class = AnswerCollator
    load_model = staticmethod(load_policy_model)

    def __init__(self, *args: Any, objective: Objective | None = None, **kwargs: Any):
        self.objective = objective or Objective()
        super().__init__(*args, **kwargs)
        # Of the last evaluation, one list per example: the log-probabilities and the lengths of its answers.
        self.eval_logps: list[list[float]] = []
        self.eval_tokens: list[list[int]] = []
        for example in (*self.train_examples, *self.eval_examples):
            self.objective.check(example)
        for module in self.model.modules():  # type: ignore[union-attr]
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if isinstance(getattr(module, "attention_dropout", None), float):
                module.attention_dropout = 0.0  # type: ignore[assignment]

    # ---- rewards -----------------------------------------------------------------------------------------------------

    def rewards(self, outputs: Any, ours: dict[str, Tensor]) -> Tensor:
        reference = ours["reference_logps"]
        if self.objective.uses_reference and bool(reference.isnan().any()):
            raise ValueError("some examples have no reference_logps; see set_reference")
        return self.objective.rewards(outputs.logps, outputs.tokens, reference)

    def summed_loss(self, pairs: Comparisons, outputs: Any, ours: dict[str, Tensor]) -> Tensor:
        labels = ours["labels"]
        if self.model.training:  # type: ignore[union-attr]
            self._count_logps(outputs.logps.detach().double(), labels, ours["list_ids"])
        return self.objective.summed_loss(pairs, outputs.logps, outputs.tokens, labels, ours["margins"])

    def predict_rewards(self, examples: Sequence[Example]) -> list[list[float]]:
        def of_batch(outputs: Any, ours: dict[str, Tensor]) -> Tensor:
            return torch.stack([outputs.logps.double(), outputs.tokens.double()], dim=1)

        predicted: Any = self._predict(examples, of_batch)  # by example and response, (logp, tokens)
        self.eval_logps = [[logp for logp, _ in of_example] for of_example in predicted]
        self.eval_tokens = [[int(tokens) for _, tokens in of_example] for of_example in predicted]
        rewards = []
        for example, logps, tokens in zip(examples, self.eval_logps, self.eval_tokens, strict=True):
            reference = torch.tensor(self._reference_of(example))
            rewards.append(self.objective.rewards(torch.tensor(logps), torch.tensor(tokens), reference).tolist())
        return rewards

    def _reference_of(self, example: Example) -> list[float]:
        if self.objective.uses_reference and example.reference_logps is None:
            raise ValueError(f"example {example.id} has no reference_logps; see set_reference")
        return example.reference_logps or [0.0] * len(example.responses)

    # ---- metrics -----------------------------------------------------------------------------------------------------

    def _reset_metrics(self) -> None:
        super()._reset_metrics()
        self._logp_sums = torch.zeros(3, dtype=torch.float64, device=self.args.device)  # best, worst, lists

    def _count_logps(self, logps: Tensor, labels: Tensor, list_ids: Tensor) -> None:
        present = labels != -100
        for number in list_ids[present].unique().tolist():
            of_list = present & (list_ids == number)
            ranks, values = labels[of_list], logps[of_list]
            ends = [
                values[ranks == ranks.min()].mean(),
                values[ranks == ranks.max()].mean(),
                torch.ones_like(values[0]),
            ]
            self._logp_sums += torch.stack(ends)

    def _training_metrics(self) -> dict[str, float]:
        best, worst, lists = self._over_processes(self._logp_sums).sum(dim=0).tolist()
        logged = super()._training_metrics()  # which sets the sums back
        return logged | {"logps_chosen": best / lists, "logps_rejected": worst / lists} if lists else logged

    def metrics(self, examples: Sequence[Example]) -> dict[str, float]:
        """Those of the rewards, with the objective's own loss, and the mean log-probabilities of best and worst."""
        metrics = super().metrics(examples)
        loss = best = worst = 0.0
        for example, logps, tokens in zip(examples, self.eval_logps, self.eval_tokens, strict=True):
            reference, ranks = self._reference_of(example), example.ranks
            loss += self.objective.mean_loss(logps, tokens, reference, ranks, example.margin or 0.0)
            best += _mean(logp for logp, rank in zip(logps, ranks, strict=True) if rank == min(ranks))
            worst += _mean(logp for logp, rank in zip(logps, ranks, strict=True) if rank == max(ranks))
        n = len(examples)
        return metrics | {"loss": loss / n, "logps_chosen": best / n, "logps_rejected": worst / n}


def _mean(values: Any) -> float:
    values = list(values)
    return sum(values) / len(values)
