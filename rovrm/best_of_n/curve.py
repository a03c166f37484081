"""What best-of-n gives for each n up to N, from N scored candidates per prompt.

    expected_best(values, rewards, n)     # (prompts,): the mean value of the best of n, over all sets of n of the N
    standing(text, score, allow_empty)    # which of two candidates is the better one
    mean_ci95(per_prompt)                 # {"value": ..., "ci95": [low, high]}, bootstrap over prompts
    kl_bound(n)                           # nats by which best-of-n may move away from the policy

Taking all sets of n, and not the first n candidates, is unbiased too and varies less (as in WebGPT, Nakano et al.
2021). log n - (n - 1)/n is the Kullback-Leibler divergence usually quoted for best-of-n (Stiennon et al. 2020); Beirami
et al. (2024, arXiv 2401.01879) prove that it is an upper bound.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rovrm.data.messages import is_blank

RESAMPLES = 2000


def kl_bound(n: int) -> float:
    return math.log(n) - (n - 1) / n


def standing(text: str, score: float, allow_empty: bool) -> tuple[bool, float]:
    """The greater, the better a candidate: of the highest score, but one without text stands below all others unless
    that is allowed. Of equal ones the first is the best."""
    return allow_empty or not is_blank(text), score


def expected_best(values: np.ndarray, rewards: np.ndarray, n: int) -> np.ndarray:
    """values, rewards: (prompts, N). The mean of `values` at the candidate of highest reward (the first of equal ones)
    over all sets of n candidates, per prompt: (prompts,). For `rewards` any numbers do that order the candidates."""
    count = rewards.shape[1]
    order = np.argsort(-rewards, axis=1, kind="stable")  # best first, equal ones in their order
    whole = math.comb(count, n)
    weights = [math.comb(count - 1 - place, n - 1) / whole for place in range(count)]
    return np.take_along_axis(values, order, axis=1) @ np.array(weights)


def resamples(prompts: int) -> np.ndarray:
    """(resamples, prompts): the prompts of each bootstrap draw, the same at every call."""
    return np.random.default_rng(0).integers(0, prompts, (RESAMPLES, prompts))


def mean_ci95(per_prompt: Sequence[float] | np.ndarray) -> dict[str, Any]:
    values = np.asarray(per_prompt, dtype=float)
    low, high = np.quantile(values[resamples(len(values))].mean(1), (0.025, 0.975))
    return {"value": float(values.mean()), "ci95": [float(low), float(high)]}


def curve(
    points: Sequence[int],
    rewards: np.ndarray,
    places: np.ndarray,
    false: np.ndarray | None = None,
    worth: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """One record per n: `n`, `reward`, and where the truth is known `false` (how often the best by the
    reward model is false) and `oracle` (the best by the oracle). All arrays: (prompts, N); places: what decides by the
    reward model, higher is better (see `standing`)."""
    records = []
    for n in points:
        record: dict[str, Any] = {"n": n, "reward": mean_ci95(expected_best(rewards, places, n))}
        if false is not None and worth is not None:
            record["false"] = mean_ci95(expected_best(false, places, n))
            record["oracle"] = mean_ci95(expected_best(false, worth, n))
        records.append(record)
    return records


def print_curve(records: Sequence[dict[str, Any]]) -> None:
    known = "false" in records[0]
    print(f"\n{'n':>4}{'reward':>10}{'KL at most':>12}" + (f"{'hallucinates':>28}{'oracle':>10}" if known else ""))
    for record in records:
        bound = f"{record['kl_bound']:.2f}" if "kl_bound" in record else "-"
        line = f"{record['n']:>4}{record['reward']['value']:>10.3f}{bound:>12}"
        if known:
            low, high = record["false"]["ci95"]
            line += f"{record['false']['value']:>12.3f} ({low:.3f} to {high:.3f}){record['oracle']['value']:>10.3f}"
        print(line)


def plot_curve(path: Path, records: Sequence[dict[str, Any]], greedy: float | None = None) -> None:
    """Writes the curve as SVG: reward over n, and where the truth is known hallucinations over n. greedy: how often
    greedy decoding is false."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    panels = [[("reward", "by the reward model", "#1769aa")]]
    if "false" in records[0]:
        panels.append([("false", "by the reward model", "#1769aa"), ("oracle", "by the oracle", "#2e7d32")])
    figure = Figure(figsize=(4.5, 2.9 * len(panels)), layout="constrained")  # below each other: narrow screens too
    for i, lines in enumerate(panels):
        axes = figure.add_subplot(len(panels), 1, i + 1, xlabel="n", ylabel=("reward", "hallucinates")[i])
        axes.set_xscale("log", base=2)
        axes.set_xticks([r["n"] for r in records], [str(r["n"]) for r in records])
        for key, label, colour in lines:
            _draw(axes, records, key, f"best of n {label}", colour)
        if i and greedy is not None:
            axes.axhline(greedy, color="#888", linestyle="--", label="greedy decoding")
        axes.legend(frameon=False)
    with rc_context({"svg.hashsalt": "rovrm", "svg.fonttype": "none"}):  # the same numbers, the same bytes
        FigureCanvasSVG(figure).print_svg(str(path), metadata={"Date": None})


def _draw(axes: Any, records: Sequence[dict[str, Any]], key: str, label: str, colour: str) -> None:
    numbers = [record["n"] for record in records]
    low, high = zip(*(record[key]["ci95"] for record in records), strict=True)
    look = {"marker": "s", "linestyle": ":"} if key == "oracle" else {"marker": "o"}  # told apart without colour too
    axes.plot(numbers, [record[key]["value"] for record in records], color=colour, label=label, **look)
    axes.fill_between(numbers, low, high, color=colour, alpha=0.15)
