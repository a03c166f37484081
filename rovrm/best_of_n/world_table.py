"""What best-of-n gains where the truth is known: the table of choices, which rovrm/best_of_n/world_page.py also shows.

    judged = judge_rows(examples, rows)             # of rovrm.bon: prompts about pictures of the world, and bon.jsonl
    choices = compare_choices(judged, rows)
    print_choices(choices)

Every way of choosing one of the n candidates is judged by the oracle on the same scenes: greedy decoding, a candidate
at random (the mean), the shortest, the one the policy itself finds most probable, the reward model's best, and the best
there is. An answer that the oracle cannot read counts as false, and is also counted apart. Intervals are 95 %
bootstrap intervals over prompts, paired.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rovrm.best_of_n.curve import resamples
from rovrm.data.example import Example
from rovrm.data.messages import text_of
from rovrm.world.oracle import Verdict, judge

CHOICES = {
    "greedy": "greedy decoding",
    "mean": "mean of {n} (one at random)",
    "shortest": "shortest of {n}",
    "logprob": "most probable of {n} to the policy",
    "reward": "best of {n} by the reward model",
    "oracle": "best of {n} by the oracle",
}


def compare_choices(judged: list[list[Verdict]], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Rates over prompts by choice, the ratios that matter with intervals, and the accuracy of the reward model on the
    policy's own pairs (two candidates of one prompt that the oracle does not find equal)."""
    n = len(rows[0]["candidates"])
    table: dict[str, dict[str, np.ndarray]] = {name: _rates(judged, rows, pick) for name, pick in _PICKS.items()}
    pairs = [_pair_results(verdicts, row) for verdicts, row in zip(judged, rows, strict=True)]
    false = {name: values["false"] for name, values in table.items()}
    return {
        "n": n,
        "prompts": len(rows),
        "rates": {name: {k: float(v.mean()) for k, v in values.items()} for name, values in table.items()},
        "reward_over_mean": _ratio(false["reward"], false["mean"]),
        "reward_over_greedy": _ratio(false["reward"], false["greedy"]),
        "reward_over_logprob": _ratio(false["reward"], false["logprob"]),
        "all_candidates_false": int(sum(all(v.false for v in verdicts[:-1]) for verdicts in judged)),
        "own_pairs": _pair_accuracy(pairs),
    }


# ---- judging ---------------------------------------------------------------------------------------------------------


def judge_rows(examples: Sequence[Example], rows: Sequence[dict[str, Any]]) -> list[list[Verdict]]:
    """Per prompt the verdicts of the candidates, and last that of the greedy answer."""
    judged = []
    for example, row in zip(examples, rows, strict=True):
        drawing: Any = example.images[0].drawing
        prompt = text_of(example.prompt[-1]["content"])
        judged.append([judge(drawing.scene, prompt, text) for text in [*row["candidates"], row["greedy"]["text"]]])
    return judged


def best_by_oracle(verdicts: Sequence[Verdict]) -> int:
    """The oracle's choice, the first of equal ones."""
    return max(range(len(verdicts)), key=lambda i: verdicts[i].worth)


# (verdicts of candidates and greedy, row) -> which of them are chosen; several stand for their mean
Pick = Callable[[list[Verdict], dict[str, Any]], list[int]]
_PICKS: dict[str, Pick] = {
    "greedy": lambda verdicts, row: [len(verdicts) - 1],
    "mean": lambda verdicts, row: list(range(len(verdicts) - 1)),
    "shortest": lambda verdicts, row: [int(np.argmin([len(text) for text in row["candidates"]]))],
    "logprob": lambda verdicts, row: [int(np.argmax(row["logprobs"]))],
    "reward": lambda verdicts, row: [row["best"]],
    "oracle": lambda verdicts, row: [best_by_oracle(verdicts[:-1])],
}


def _rates(judged: list[list[Verdict]], rows: Sequence[dict[str, Any]], pick: Pick) -> dict[str, np.ndarray]:
    """Per prompt (prompts,): false (or unreadable), false facts, coverage of things and of facts, unreadable."""
    chosen = [[verdicts[i] for i in pick(verdicts, row)] for verdicts, row in zip(judged, rows, strict=True)]

    def mean(value: Callable[[Verdict], float]) -> np.ndarray:
        return np.array([np.mean([value(verdict) for verdict in some]) for some in chosen], dtype=float)

    return {
        "false": mean(lambda v: v.false),
        "false_facts": mean(lambda v: len(v.hallucinated)),
        "coverage": mean(lambda v: v.coverage),
        "fact_coverage": mean(lambda v: v.fact_coverage),
        "unreadable": mean(lambda v: not v.parsed),
    }


def _pair_results(verdicts: list[Verdict], row: dict[str, Any]) -> list[float]:
    """1, 0 or 0.5 (equal rewards) per pair of different candidates that the oracle orders."""
    answers = list(dict(zip(row["candidates"], zip(row["scores"], verdicts, strict=False), strict=True)).values())
    results = []
    for i, (score, verdict) in enumerate(answers):
        for other_score, other in answers[:i]:
            order = (verdict.worth > other.worth) - (verdict.worth < other.worth)
            if order:
                results.append(0.5 + 0.5 * order * np.sign(score - other_score))
    return results


def _pair_accuracy(pairs: list[list[float]]) -> dict[str, Any]:
    """Accuracy over all pairs, and a bootstrap interval over prompts; None where there is no pair."""
    if not any(pairs):
        return {"pairs": 0, "accuracy": None, "ci95": None}
    sums, counts = np.array([sum(some) for some in pairs]), np.array([len(some) for some in pairs])
    draws = resamples(len(pairs))
    low, high = np.quantile(sums[draws].sum(1) / np.maximum(counts[draws].sum(1), 1), (0.025, 0.975))
    return {"pairs": int(counts.sum()), "accuracy": float(sums.sum() / max(counts.sum(), 1)), "ci95": [low, high]}


def _ratio(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """Mean of the one over the mean of the other, per prompt (prompts,), with the interval of the ratio; None where the
    other is so seldom above zero that it is not so in every resample."""
    draws = resamples(len(first))
    below = second[draws].mean(1)
    if not below.min() > 0:
        return {"ratio": None, "ci95": None}
    low, high = np.quantile(first[draws].mean(1) / below, (0.025, 0.975))
    return {"ratio": float(first.mean() / second.mean()), "ci95": [float(low), float(high)]}


# ---- the table -------------------------------------------------------------------------------------------------------


def print_choices(choices: dict[str, Any]) -> None:
    print(f"\n{'answer':<38}{'hallucinates':>13}{'false facts':>13}{'coverage':>10}{'unreadable':>12}")
    for name, rates in choices["rates"].items():
        label = CHOICES[name].format(n=choices["n"])
        print(
            f"{label:<38}{rates['false']:>13.3f}{rates['false_facts']:>13.2f}{rates['coverage']:>10.3f}"
            f"{rates['unreadable']:>12.3f}"
        )
    print("\n" + "\n".join(verdict_lines(choices)))


def verdict_lines(choices: dict[str, Any]) -> list[str]:
    """What the table shows and what it does not, in sentences."""
    lines = [
        f"{choices['prompts']} pictures; in {choices['all_candidates_false']} of them all {choices['n']} candidates "
        "are false: no choice could help there"
    ]
    for name, other in (("mean", "the mean candidate"), ("greedy", "greedy"), ("logprob", "the most probable")):
        found = choices[f"reward_over_{name}"]
        if found["ratio"] is None:
            lines.append(f"too few false answers by {other} to compare the reward model's best with")
            continue
        low, high = found["ci95"]
        told = "less often than" if high < 1 else "more often than" if low > 1 else "not surely less often than"
        lines.append(
            f"the reward model's best hallucinates {told} {other}: {found['ratio']:.2f} times as often "
            f"({low:.2f} to {high:.2f})"
        )
    own = choices["own_pairs"]
    if not own["pairs"]:
        return [*lines, "the oracle finds no candidate better than another: no pair to order"]
    lines.append(
        f"the reward model orders {own['accuracy']:.3f} ({own['ci95'][0]:.3f} to {own['ci95'][1]:.3f}) of the policy's "
        f"own {own['pairs']} pairs as the oracle does"
    )
    return lines
