"""The summary of rovrm.bon: what the choice is worth, with intervals, in print, in summary.json and as a curve.

    summarise_choices(config, examples, records)     # records: those of bon.jsonl, one per example

Intervals are 95 % bootstrap intervals over prompts.
"""

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from rovrm.best_of_n.curve import curve, kl_bound, mean_ci95, plot_curve, print_curve, standing
from rovrm.best_of_n.world_page import write_report
from rovrm.best_of_n.world_table import compare_choices, judge_records, print_choices
from rovrm.common.errors import UserError
from rovrm.common.files import read_json, write_json
from rovrm.common.phase_table import print_phases
from rovrm.data.example import Example
from rovrm.settings.keys import BonConfig
from rovrm.world.oracle import Verdict

NEXT = """
Next, with your own data: look at it, train on it (without dry_run=true), and choose answers with what you trained:
  python -m rovrm.train phase=3 model=llava-hf/llava-1.5-7b-hf visual.data=pairs.jsonl out=runs/mine dry_run=true
  python -m rovrm.bon --n 8 model=runs/mine/phase3-visual policy=llava-hf/llava-1.5-7b-hf data=prompts.jsonl out=bon"""


def summarise_choices(config: BonConfig, examples: list[Example], records: list[dict[str, Any]]) -> None:
    """Writes and prints the rewards of the best, the mean, the first, a random and the greedy candidate, and the curve;
    with the world's own prompts also what is true in them."""
    out = Path(config.out)
    errors = [record["error"] for record in records if "error" in record]
    if len(errors) == len(records):
        raise UserError(f"not one of the {len(records)} prompts could be used (see {out / 'bon.jsonl'}): {errors[0]}")
    examples = [example for example, record in zip(examples, records, strict=True) if "error" not in record]
    records = [record for record in records if "error" not in record]

    summary = _counts_and_rewards(config, records, len(errors))
    if _truth_is_known(examples, records):
        verdicts = judge_records(examples, records)
        choices = summary["choices"] = compare_choices(verdicts, records)
        summary["curve"] = _curve(config, records, verdicts)
        plot_curve(out / "curve.svg", summary["curve"], greedy=choices["rates"]["greedy"]["false"])
        phases = _phases_of(config.model)
        if phases:
            print_phases(phases)
        print_choices(choices)
        page = write_report(out, phases, examples, records, verdicts, choices)
        print(f"\nreport: {page}")
    else:
        summary["curve"] = _curve(config, records, None)
        plot_curve(out / "curve.svg", summary["curve"])

    _print_rewards(summary)
    _print_flagged(summary["flagged"], config.max_new_tokens)
    if errors:
        print(f"{len(errors)} prompts could not be used, the first: {errors[0]}")
    print_curve(summary["curve"])
    if summary["n_min"] < summary["n"]:
        print(f"(of the {summary['n_min']} to {summary['n']} candidates the table takes the first {summary['n_min']})")
    write_json(out / "summary.json", summary)
    print(f"\ncandidates and scores: {out / 'bon.jsonl'}")
    if "choices" in summary and not config.policy:  # the demo
        print(NEXT)


def _truth_is_known(examples: list[Example], records: list[dict[str, Any]]) -> bool:
    """Whether all pictures are the world's own, and the answers a policy's."""
    for example, record in zip(examples, records, strict=True):
        if "greedy" not in record or not example.images or not example.images[0].drawing:
            return False
    return True


def _phases_of(model: str) -> dict[str, dict[str, Any]]:
    """summary.json of the run that trained the reward model, by phase; empty where its folder is not in a run's."""
    path = Path(model).parent / "summary.json"
    return read_json(path) if path.is_file() else {}


# ---- what is summed up -----------------------------------------------------------------------------------------------


def _counts_and_rewards(config: BonConfig, records: list[dict[str, Any]], failed: int) -> dict[str, Any]:
    counts = [len(record["candidates"]) for record in records]
    summary: dict[str, Any] = {
        "n": max(counts),
        "n_min": min(counts),
        "prompts": len(records),
        "failed": failed,
        "reward": _rewards_by_choice(records, config.seed),
        "flagged": _flagged(records),
    }
    if any("names" in record for record in records):
        summary["names"] = _by_name(records)
    return summary


def _rewards_by_choice(records: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """The mean reward by way of choosing, with its interval."""
    rng = np.random.default_rng(seed)  # the same seed draws the same candidates when the summary is written again
    rewards = {
        "best": [record["scores"][record["best"]] for record in records],
        "mean": [sum(record["scores"]) / len(record["scores"]) for record in records],
        "first": [record["scores"][0] for record in records],
        "random": [record["scores"][rng.integers(len(record["scores"]))] for record in records],
    }
    if "greedy" in records[0]:
        rewards["greedy"] = [record["greedy"]["score"] for record in records]
    return {name: mean_ci95(values) for name, values in rewards.items()}


def _flagged(records: list[dict[str, Any]]) -> dict[str, int]:
    """How many candidates, and how many of those chosen, are empty, repeated or cut."""
    flagged = {
        "empty": sum(len(record["empty"]) for record in records),
        "repeated": sum(len(record["repeated"]) for record in records),
        "best_is_empty": sum(record["best"] in record["empty"] for record in records),
    }
    if "greedy" in records[0]:
        flagged |= {
            "cut": sum(len(record.get("cut", [])) for record in records),
            "best_is_cut": sum(record["best"] in record.get("cut", []) for record in records),
            "cut_unknown": sum("cut" not in record for record in records),  # of a run before it was noted
        }
    return flagged


def _by_name(records: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Per name the number of candidates, how often one of them is the best, and their mean reward; most candidates
    first."""
    scores: dict[str, list[float]] = defaultdict(list)
    best: dict[str, int] = defaultdict(int)
    for record in records:
        names = record.get("names") or [""] * len(record["scores"])
        best[names[record["best"]]] += 1
        for name, score in zip(names, record["scores"], strict=True):
            scores[name].append(score)
    names = sorted(scores, key=lambda name: -len(scores[name]))
    return {
        name: {
            "candidates": len(scores[name]),
            "best": best[name],
            "mean_reward": math.fsum(scores[name]) / len(scores[name]),
        }
        for name in names
    }


def _curve(config: BonConfig, records: list[dict[str, Any]], verdicts: list[list[Verdict]] | None) -> list[dict]:
    """The curve up to the smallest number of candidates of any prompt. verdicts: where the truth is known."""
    most = min(len(record["candidates"]) for record in records)
    if len(config.n) > 1:
        sizes = config.n
    else:
        sizes = sorted({*(2**i for i in range(most.bit_length())), most})  # 1, 2, 4, ... and all

    # All four arrays: (prompts, most). Prompts with more candidates give their first ones.
    rewards = np.array([record["scores"][:most] for record in records])
    ranks = np.array([_ranks(_standings(record, config.allow_empty)[:most]) for record in records])
    false = worth = None
    if verdicts is not None:
        false = np.array([[float(verdict.false) for verdict in of_one[:most]] for of_one in verdicts])
        worth = np.array([_ranks([verdict.worth for verdict in of_one[:most]]) for of_one in verdicts])
    points = curve(sizes, rewards, ranks, false, worth)

    # The bound holds for samples of one policy, not for the answers of several.
    if not any("names" in record for record in records):
        for point in points:
            point["kl_bound"] = kl_bound(point["n"])
    return points


def _standings(record: dict[str, Any], allow_empty: bool) -> list[tuple[bool, float]]:
    return [standing(t, s, allow_empty) for t, s in zip(record["candidates"], record["scores"], strict=True)]


def _ranks(values: list[Any]) -> list[int]:
    """0 for the least; equal ones have the same rank. Arrays hold numbers, while standing and worth are tuples."""
    order = sorted(set(values))
    return [order.index(value) for value in values]


# ---- what is printed -------------------------------------------------------------------------------------------------


def _print_rewards(summary: dict[str, Any]) -> None:
    parts = []
    for choice, reward in summary["reward"].items():
        low, high = reward["ci95"]
        parts.append(f"{choice} {reward['value']:.3f} ({low:.3f} to {high:.3f})")
    n = f"{summary['n_min']} to {summary['n']}" if summary["n_min"] < summary["n"] else summary["n"]
    print(f"\nreward of {summary['prompts']} prompts, n = {n}: {', '.join(parts)}")
    for name, counts in summary.get("names", {}).items():
        worth = f"best of {counts['best']} prompts, mean reward {counts['mean_reward']:.3f}"
        print(f"  {name or '(no name)'}: {counts['candidates']} candidates, {worth}")


def _print_flagged(flagged: dict[str, int], max_new_tokens: int) -> None:
    if not any(flagged.values()):
        return
    line = (
        f"{flagged['empty']} candidates are empty and {flagged['repeated']} repeat another of their prompt; "
        f"the best is empty in {flagged['best_is_empty']} prompts"
    )
    if flagged.get("cut"):
        line += f"; {flagged['cut']} candidates are cut at max_new_tokens={max_new_tokens}, the best in "
        line += f"{flagged['best_is_cut']} prompts: raise max_new_tokens"
    if flagged.get("cut_unknown"):
        line += f"; which are cut is not noted for {flagged['cut_unknown']} prompts of an earlier version"
    print(line)
