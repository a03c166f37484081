"""The summary of rovrm.bon: what the choice is worth, with intervals, in print, in summary.json and as a curve.

    summarise(config, examples, rows)     # rows: those of bon.jsonl, one per example

Intervals are 95 % bootstrap intervals over prompts.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rovrm.best_of_n.curve import curve, kl_bound, mean_ci95, plot_curve, print_curve, standing
from rovrm.common.errors import UserError
from rovrm.common.files import write_json
from rovrm.data.example import Example
from rovrm.settings.keys import BonConfig
from rovrm.training.outputs import print_phases

NEXT = """
Next, with your own data: look at it, train on it (without dry_run=true), and choose answers with what you trained:
  python -m rovrm.train phase=3 model=llava-hf/llava-1.5-7b-hf visual.data=pairs.jsonl out=runs/mine dry_run=true
  python -m rovrm.bon --n 8 model=runs/mine/phase3-visual policy=llava-hf/llava-1.5-7b-hf data=prompts.jsonl out=bon"""


def summarise(config: BonConfig, examples: list[Example], rows: list[dict[str, Any]]) -> None:
    """Writes and prints the rewards of the best, the mean, the first, a random and the greedy candidate, and the curve;
    with the world's own prompts also what is true in them."""
    out, failed = Path(config.out), [row for row in rows if "error" in row]
    if len(failed) == len(rows):
        raise UserError(
            f"not one of the {len(rows)} prompts could be used (see {out / 'bon.jsonl'}): {rows[0]['error']}"
        )
    examples = [example for example, row in zip(examples, rows, strict=True) if "error" not in row]
    rows = [row for row in rows if "error" not in row]
    counts = [len(row["candidates"]) for row in rows]
    summary: dict[str, Any] = {"n": max(counts), "n_min": min(counts), "prompts": len(rows)}
    summary |= {"failed": len(failed), "reward": _rewards_by_choice(rows, config.seed), "flagged": _flagged(rows)}
    if any("names" in row for row in rows):
        summary["names"] = _by_name(rows)
    if all("greedy" in row and e.images and e.images[0].drawing for e, row in zip(examples, rows, strict=True)):
        from rovrm.best_of_n.world_page import write_report
        from rovrm.best_of_n.world_table import compare_choices, judge_rows, print_choices

        judged = judge_rows(examples, rows)
        summary["choices"] = compare_choices(judged, rows)
        summary["curve"] = _curve(config, rows, judged)
        plot_curve(out / "curve.svg", summary["curve"], summary["choices"]["rates"]["greedy"]["false"])
        phases = Path(config.model).parent / "summary.json"
        if phases.is_file():
            print_phases(json.loads(phases.read_text()))
        print_choices(summary["choices"])
        page = write_report(out, config.model, examples, rows, judged, summary["choices"])
        print(f"\nreport: {page}")
    else:
        summary["curve"] = _curve(config, rows, None)
        plot_curve(out / "curve.svg", summary["curve"])
    _print_rewards(summary)
    _print_flagged(summary["flagged"], config.max_new_tokens)
    if failed:
        print(f"{len(failed)} prompts could not be used, the first: {failed[0]['error']}")
    print_curve(summary["curve"])
    if summary["n_min"] < summary["n"]:
        print(f"(of the {summary['n_min']} to {summary['n']} candidates the table takes the first {summary['n_min']})")
    write_json(out / "summary.json", summary)
    print(f"\ncandidates and scores: {out / 'bon.jsonl'}")
    if not config.policy and summary.get("choices"):
        print(NEXT)


def _rewards_by_choice(rows: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    kinds = {
        "best": [row["scores"][row["best"]] for row in rows],
        "mean": [sum(row["scores"]) / len(row["scores"]) for row in rows],
        "first": [row["scores"][0] for row in rows],
        "random": [row["scores"][rng.integers(len(row["scores"]))] for row in rows],
    }
    if "greedy" in rows[0]:
        kinds["greedy"] = [row["greedy"]["score"] for row in rows]
    return {name: mean_ci95(values) for name, values in kinds.items()}


def _flagged(rows: list[dict[str, Any]]) -> dict[str, int]:
    flagged = {
        "empty": sum(len(row["empty"]) for row in rows),
        "repeated": sum(len(row["repeated"]) for row in rows),
        "best_is_empty": sum(row["best"] in row["empty"] for row in rows),
    }
    if "greedy" in rows[0]:
        flagged |= {
            "cut": sum(len(row.get("cut", [])) for row in rows),
            "best_is_cut": sum(row["best"] in row.get("cut", []) for row in rows),
            "cut_unknown": sum("cut" not in row for row in rows),  # lines of a run before it was noted
        }
    return flagged


def _by_name(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Per name the number of candidates, how often one of them is the best, and their mean reward."""
    named = [(name, score, i == row["best"]) for row in rows for i, (name, score) in enumerate(_named(row))]
    count = Counter(name for name, *_ in named)
    best = Counter(name for name, _, is_best in named if is_best)
    return {
        name: {"candidates": n, "best": best[name], "mean_reward": math.fsum(s for m, s, _ in named if m == name) / n}
        for name, n in count.most_common()
    }


def _named(row: dict[str, Any]) -> Iterator[tuple[str, float]]:
    return zip(row.get("names") or [""] * len(row["scores"]), row["scores"], strict=True)


def _curve(config: BonConfig, rows: list[dict[str, Any]], judged: Any) -> list[dict[str, Any]]:
    """The curve up to the smallest number of candidates of any prompt. Its KL bounds hold for samples of one policy,
    not for answers of several."""
    most = min(len(row["candidates"]) for row in rows)
    points = config.n if len(config.n) > 1 else sorted({*(2**i for i in range(most.bit_length())), most})
    rewards = np.array([row["scores"][:most] for row in rows])
    places = np.array([_ranks(_standings(row, config.allow_empty)[:most]) for row in rows])
    if judged is None:
        records = curve(points, rewards, places)
    else:
        worth = np.array([_ranks([v.worth for v in verdicts[:most]]) for verdicts in judged])
        false = np.array([[float(v.false) for v in some[:most]] for some in judged])
        records = curve(points, rewards, places, false, worth)
    if not any("names" in row for row in rows):
        records = [record | {"kl_bound": kl_bound(record["n"])} for record in records]
    return records


def _standings(row: dict[str, Any], allow_empty: bool) -> list[tuple[bool, float]]:
    return [standing(text, score, allow_empty) for text, score in zip(row["candidates"], row["scores"], strict=True)]


def _ranks(worths: list[Any]) -> list[int]:
    """0 for the least; equal ones have the same rank."""
    order = sorted(set(worths))
    return [order.index(worth) for worth in worths]


def _print_rewards(summary: dict[str, Any]) -> None:
    told = ", ".join(
        f"{name} {found['value']:.3f} ({found['ci95'][0]:.3f} to {found['ci95'][1]:.3f})"
        for name, found in summary["reward"].items()
    )
    n = f"{summary['n_min']} to {summary['n']}" if summary["n_min"] < summary["n"] else summary["n"]
    print(f"\nreward of {summary['prompts']} prompts, n = {n}: {told}")
    for name, found in summary.get("names", {}).items():
        told = f"best of {found['best']} prompts, mean reward {found['mean_reward']:.3f}"
        print(f"  {name}: {found['candidates']} candidates, {told}")


def _print_flagged(flagged: dict[str, int], length: int) -> None:
    if not any(flagged.values()):
        return
    told = (
        f"{flagged['empty']} candidates are empty and {flagged['repeated']} repeat another of their prompt; "
        f"the best is empty in {flagged['best_is_empty']} prompts"
    )
    if flagged.get("cut"):
        told += f"; {flagged['cut']} candidates are cut at max_new_tokens={length}, the best in "
        told += f"{flagged['best_is_cut']} prompts: raise max_new_tokens"
    if flagged.get("cut_unknown"):
        told += f"; which are cut is not noted for {flagged['cut_unknown']} prompts of an earlier version"
    print(told)
