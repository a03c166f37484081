"""What best-of-n gives for each n up to N, from N scored candidates per prompt.

    expected_best(values, rewards, n)           # (prompts,): mean value of the best of n, over all sets of n of the N
    standing(text, score, allow_empty)          # which of two candidates is the better one
    best_place(texts, scores, allow_empty)      # which of them all is the best
    mean_ci95(per_prompt)                       # {"value": ..., "ci95": [low, high]}, bootstrap over prompts
    kl_bound(n)                                 # nats by which best-of-n may move away from the policy

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

RESAMPLES = 2000  # bootstrap draws of one interval


def kl_bound(n: int) -> float:
    """Nats by which the best of n may at most move away from the policy that the n are sampled from."""
    return math.log(n) - (n - 1) / n


def standing(text: str, score: float, allow_empty: bool) -> tuple[bool, float]:
    """The greater, the better a candidate. One without text stands below all that have any, whatever their scores,
    unless that is allowed. Of equal ones the first is the best."""
    return allow_empty or not is_blank(text), score


def best_place(texts: Sequence[str], scores: Sequence[float], allow_empty: bool) -> int:
    """The place of the best candidate, the first of equal ones."""
    return max(range(len(texts)), key=lambda i: standing(texts[i], scores[i], allow_empty))


def expected_best(values: np.ndarray, rewards: np.ndarray, n: int) -> np.ndarray:
    """The mean of `values` at the best of n candidates, over all sets of n of the N.

    Args:
        values: (prompts, N), what is asked of the best.
        rewards: (prompts, N), any numbers that order the candidates; of equal ones the first is the best.
        n: the size of the sets, at most N.

    Returns:
        (prompts,)
    """
    count = rewards.shape[1]
    order = np.argsort(-rewards, axis=1, kind="stable")  # best first, equal ones in their order
    # The candidate at place i is the best of a set where the other n - 1 are among the count - 1 - i behind it.
    sets = math.comb(count, n)
    weights = np.array([math.comb(count - 1 - place, n - 1) / sets for place in range(count)])
    return np.take_along_axis(values, order, axis=1) @ weights


def resamples(prompts: int) -> np.ndarray:
    """(resamples, prompts): the prompts of each bootstrap draw, the same at every call."""
    return np.random.default_rng(0).integers(0, prompts, (RESAMPLES, prompts))


def mean_ci95(per_prompt: Sequence[float] | np.ndarray) -> dict[str, Any]:
    """The mean over prompts, and its 95 % bootstrap interval."""
    values = np.asarray(per_prompt, dtype=float)
    low, high = np.quantile(values[resamples(len(values))].mean(1), (0.025, 0.975))
    return {"value": float(values.mean()), "ci95": [float(low), float(high)]}


def curve(
    sizes: Sequence[int],
    rewards: np.ndarray,
    ranks: np.ndarray,
    false: np.ndarray | None = None,
    worth: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """One point per size n: `n`, `reward`, and where the truth is known `false` and `oracle`. All arrays: (prompts, N).

    Args:
        sizes: the n of the points.
        rewards: of the reward model.
        ranks: what the reward model chooses by, higher is better: its rewards but for empty answers (see `standing`).
        false: 1 where the answer says something false; the point's `false` is how often the chosen one does.
        worth: what the oracle chooses by, higher is better; the point's `oracle` is how often its choice is false.
    """
    points = []
    for n in sizes:
        point: dict[str, Any] = {"n": n, "reward": mean_ci95(expected_best(rewards, ranks, n))}
        if false is not None and worth is not None:
            point["false"] = mean_ci95(expected_best(false, ranks, n))
            point["oracle"] = mean_ci95(expected_best(false, worth, n))
        points.append(point)
    return points


def print_curve(points: Sequence[dict[str, Any]]) -> None:
    truth_known = "false" in points[0]
    header = f"\n{'n':>4}{'reward':>10}{'KL at most':>12}"
    if truth_known:
        header += f"{'hallucinates':>28}{'oracle':>10}"
    print(header)
    for point in points:
        bound = f"{point['kl_bound']:.2f}" if "kl_bound" in point else "-"
        line = f"{point['n']:>4}{point['reward']['value']:>10.3f}{bound:>12}"
        if truth_known:
            low, high = point["false"]["ci95"]
            line += f"{point['false']['value']:>12.3f} ({low:.3f} to {high:.3f}){point['oracle']['value']:>10.3f}"
        print(line)


# ---- the plot --------------------------------------------------------------------------------------------------------


def plot_curve(path: Path, points: Sequence[dict[str, Any]], greedy: float | None = None) -> None:
    """Writes the curve as SVG: reward over n, and where the truth is known hallucinations over n. greedy: how often
    greedy decoding is false."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    truth_known = "false" in points[0]
    panels = 2 if truth_known else 1  # below each other: narrow screens too
    figure = Figure(figsize=(4.5, 2.9 * panels), layout="constrained")

    axes = _axes(figure, panels, 1, "reward", points)
    _draw_line(axes, points, "reward", "best of n by the reward model", "#1769aa", marker="o")
    axes.legend(frameon=False)
    if truth_known:
        axes = _axes(figure, panels, 2, "hallucinates", points)
        _draw_line(axes, points, "false", "best of n by the reward model", "#1769aa", marker="o")
        # Another marker and line style: told apart without colour too.
        _draw_line(axes, points, "oracle", "best of n by the oracle", "#2e7d32", marker="s", linestyle=":")
        if greedy is not None:
            axes.axhline(greedy, color="#888", linestyle="--", label="greedy decoding")
        axes.legend(frameon=False)

    with rc_context({"svg.hashsalt": "rovrm", "svg.fonttype": "none"}):  # the same numbers, the same bytes
        FigureCanvasSVG(figure).print_svg(str(path), metadata={"Date": None})


def _axes(figure: Any, panels: int, place: int, label: str, points: Sequence[dict[str, Any]]) -> Any:
    axes = figure.add_subplot(panels, 1, place, xlabel="n", ylabel=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks([point["n"] for point in points], [str(point["n"]) for point in points])
    return axes


def _draw_line(axes: Any, points: Sequence[dict[str, Any]], key: str, label: str, colour: str, **style: str) -> None:
    """A line through the points' values, and their intervals as a band."""
    sizes = [point["n"] for point in points]
    axes.plot(sizes, [point[key]["value"] for point in points], color=colour, label=label, **style)
    low = [point[key]["ci95"][0] for point in points]
    high = [point[key]["ci95"][1] for point in points]
    axes.fill_between(sizes, low, high, color=colour, alpha=0.15)
