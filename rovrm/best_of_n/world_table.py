"""What best-of-n gains where the truth is known: the table of choices, which rovrm/best_of_n/world_page.py also shows.

    verdicts = judge_records(examples, records)      # of rovrm.bon: prompts about pictures of the world, and bon.jsonl
    choices = compare_choices(verdicts, records)
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


def compare_choices(verdicts: list[list[Verdict]], records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What each way of choosing is worth.

    Args:
        verdicts: per prompt those of the candidates, and last that of the greedy answer.
        records: those of bon.jsonl.

    Returns:
        Rates over prompts by choice, the ratios that matter with intervals, and the accuracy of the reward model on the
        policy's own pairs (two candidates of one prompt that the oracle does not find equal).
    """
    measures = {name: _measures(verdicts, records, pick) for name, pick in _PICKS.items()}
    false = {name: by_measure["false"] for name, by_measure in measures.items()}  # (prompts,) each
    pairs = [_pair_results(of_prompt, record) for of_prompt, record in zip(verdicts, records, strict=True)]
    rates = {}
    for name, by_measure in measures.items():
        rates[name] = {measure: float(values.mean()) for measure, values in by_measure.items()}
    return {
        "n": len(records[0]["candidates"]),
        "prompts": len(records),
        "rates": rates,
        "reward_over_mean": _ratio(false["reward"], false["mean"]),
        "reward_over_greedy": _ratio(false["reward"], false["greedy"]),
        "reward_over_logprob": _ratio(false["reward"], false["logprob"]),
        "all_candidates_false": sum(all(verdict.false for verdict in of_prompt[:-1]) for of_prompt in verdicts),
        "own_pairs": _pair_accuracy(pairs),
    }


# ---- judging ---------------------------------------------------------------------------------------------------------


def judge_records(examples: Sequence[Example], records: Sequence[dict[str, Any]]) -> list[list[Verdict]]:
    """Per prompt the verdicts of the candidates, and last that of the greedy answer."""
    verdicts = []
    for example, record in zip(examples, records, strict=True):
        drawing: Any = example.images[0].drawing
        prompt = text_of(example.prompt[-1]["content"])
        texts = [*record["candidates"], record["greedy"]["text"]]
        verdicts.append([judge(drawing.scene, prompt, text) for text in texts])
    return verdicts


def best_by_oracle(verdicts: Sequence[Verdict]) -> int:
    """The oracle's choice, the first of equal ones."""
    return max(range(len(verdicts)), key=lambda i: verdicts[i].worth)


# (verdicts of candidates and greedy, record) -> the places of the chosen ones; several stand for their mean
Pick = Callable[[list[Verdict], dict[str, Any]], list[int]]
_PICKS: dict[str, Pick] = {
    "greedy": lambda verdicts, record: [len(verdicts) - 1],
    "mean": lambda verdicts, record: list(range(len(verdicts) - 1)),
    "shortest": lambda verdicts, record: [int(np.argmin([len(text) for text in record["candidates"]]))],
    "logprob": lambda verdicts, record: [int(np.argmax(record["logprobs"]))],
    "reward": lambda verdicts, record: [record["best"]],
    "oracle": lambda verdicts, record: [best_by_oracle(verdicts[:-1])],
}


def _measures(verdicts: list[list[Verdict]], records: Sequence[dict[str, Any]], pick: Pick) -> dict[str, np.ndarray]:
    """What is true of the chosen answers, per prompt (prompts,): whether they are false (or unreadable), their false
    facts, their coverage of things and of facts, whether they are unreadable."""
    chosen = []
    for of_prompt, record in zip(verdicts, records, strict=True):
        chosen.append([of_prompt[place] for place in pick(of_prompt, record)])

    def mean(value: Callable[[Verdict], float]) -> np.ndarray:
        return np.array([np.mean([value(verdict) for verdict in of_prompt]) for of_prompt in chosen], dtype=float)

    return {
        "false": mean(lambda verdict: verdict.false),
        "false_facts": mean(lambda verdict: len(verdict.hallucinated)),
        "coverage": mean(lambda verdict: verdict.coverage),
        "fact_coverage": mean(lambda verdict: verdict.fact_coverage),
        "unreadable": mean(lambda verdict: not verdict.parsed),
    }


def _pair_results(verdicts: list[Verdict], record: dict[str, Any]) -> list[float]:
    """Per pair of different candidates that the oracle orders: 1 where the rewards order them alike, 0 where the other
    way round, 0.5 where they are equal."""
    answers: dict[str, tuple[float, Verdict]] = {}  # equal texts are one answer
    for text, score, verdict in zip(record["candidates"], record["scores"], verdicts[:-1], strict=True):
        answers[text] = score, verdict
    scored = list(answers.values())
    results = []
    for i, (score, verdict) in enumerate(scored):
        for other_score, other in scored[:i]:
            if verdict.worth == other.worth:
                continue
            lead = score - other_score if verdict.worth > other.worth else other_score - score
            results.append(0.5 + 0.5 * np.sign(lead))
    return results


def _pair_accuracy(pairs: list[list[float]]) -> dict[str, Any]:
    """Accuracy over all pairs, and a bootstrap interval over prompts; None where there is no pair. pairs: by prompt."""
    if not any(pairs):
        return {"pairs": 0, "accuracy": None, "ci95": None}
    right = np.array([sum(of_prompt) for of_prompt in pairs])
    count = np.array([len(of_prompt) for of_prompt in pairs])
    draws = resamples(len(pairs))  # (resamples, prompts)
    drawn = right[draws].sum(1) / np.maximum(count[draws].sum(1), 1)  # a draw of prompts may hold no pair
    low, high = np.quantile(drawn, (0.025, 0.975))
    return {"pairs": int(count.sum()), "accuracy": float(right.sum() / count.sum()), "ci95": [low, high]}


def _ratio(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """Mean of the one over the mean of the other, per prompt (prompts,), with the interval of the ratio; None where the
    other is so seldom above zero that it is not so in every resample."""
    draws = resamples(len(first))  # the same prompts for both, so that the interval is a paired one
    denominators = second[draws].mean(1)
    if not denominators.min() > 0:
        return {"ratio": None, "ci95": None}
    low, high = np.quantile(first[draws].mean(1) / denominators, (0.025, 0.975))
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
        lines.append(_ratio_in_words(choices[f"reward_over_{name}"], other))
    own = choices["own_pairs"]
    if not own["pairs"]:
        lines.append("the oracle finds no candidate better than another: no pair to order")
        return lines
    low, high = own["ci95"]
    lines.append(
        f"the reward model orders {own['accuracy']:.3f} ({low:.3f} to {high:.3f}) of the policy's own {own['pairs']} "
        "pairs as the oracle does"
    )
    return lines


def _ratio_in_words(ratio: dict[str, Any], other: str) -> str:
    if ratio["ratio"] is None:
        return f"too few false answers by {other} to compare the reward model's best with"
    low, high = ratio["ci95"]
    if high < 1:
        how_often = "less often than"
    elif low > 1:
        how_often = "more often than"
    else:
        how_often = "not surely less often than"
    return (
        f"the reward model's best hallucinates {how_often} {other}: {ratio['ratio']:.2f} times as often ({low:.2f} to "
        f"{high:.2f})"
    )
