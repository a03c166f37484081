"""Pairs of `rovrm.csr`: of each prompt's finished answers the best and the worst, and what they are like.

rows, summary = make_pairs(records, folder, margin=0.0)       # records: lines of candidates.jsonl
"""

import os
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rovrm.alignment.search import Node, answer_of, path_of
from rovrm.best_of_n.preferences import text_blocks

REASONS = ("no_final", "one_text", "below_margin")  # why a prompt gave no pair


def make_pairs(
    records: Sequence[dict[str, Any]], folder: Path, margin: float
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(the pairs in TRL's preference form, a summary).

    The summary has `prompts`, `pairs` and by reason the prompts without one, which add up; and under `chosen` and
    `rejected` the means of `answer_facts`.

    Args:
        records: lines of candidates.jsonl.
        folder: that their relative image paths start from.
        margin: by which the best answer's reward must exceed the worst's.
    """
    counts = {"prompts": len(records), "pairs": 0} | dict.fromkeys(REASONS, 0)
    rows, chosen, rejected = [], [], []
    for record in records:
        nodes = record["nodes"]
        pair = best_and_worst(nodes, margin)
        if isinstance(pair, str):
            counts[pair] += 1
            continue
        best, worst = pair
        counts["pairs"] += 1
        chosen.append(answer_facts(nodes, best))
        rejected.append(answer_facts(nodes, worst))
        rows.append(
            {
                "id": record["id"],
                "images": [os.path.abspath(folder / path) for path in record["images"]],
                "prompt": [message | {"content": text_blocks(message["content"])} for message in record["prompt"]],
                "chosen": [{"role": "assistant", "content": answer_of(nodes, best)}],
                "rejected": [{"role": "assistant", "content": answer_of(nodes, worst)}],
                "score_chosen": best["reward"],
                "score_rejected": worst["reward"],
            }
        )
    return rows, counts | {"chosen": _means(chosen), "rejected": _means(rejected)}


def best_and_worst(nodes: Sequence[Node], margin: float) -> tuple[Node, Node] | str:
    """The ended answers of highest and lowest reward, or why there is no pair: `no_final` (fewer than two answers
    ended), `one_text`, `below_margin`."""
    finals = [node for node in nodes if node["ended"] == "eos" and answer_of(nodes, node)]
    if len(finals) < 2:
        return "no_final"
    best, worst = max(finals, key=lambda node: node["reward"]), min(finals, key=lambda node: node["reward"])
    if len({answer_of(nodes, node) for node in finals}) < 2:
        return "one_text"
    if answer_of(nodes, best) == answer_of(nodes, worst) or not best["reward"] - worst["reward"] > margin:
        return "below_margin"
    return best, worst


def answer_facts(nodes: Sequence[Node], node: Node) -> dict[str, float]:
    """Of a whole answer: `reward`; `logprob` and `tokens`, sums over its steps; `steps`; and by calibrator its score,
    of `rovrm` the sum of its increments, of others the mean over steps."""
    path = path_of(nodes, node)
    facts = {"reward": node["reward"], "steps": len(path)}
    facts |= {key: sum(step[key] for step in path) for key in ("logprob", "tokens")}
    for name in node["scores"]:
        scores = [step["scores"][name] for step in path if step["scores"]]
        facts[name] = sum(scores) if name == "rovrm" else fmean(scores)
    return facts


def _means(facts: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: fmean(of_answer[key] for of_answer in facts) for key in facts[0]} if facts else {}
