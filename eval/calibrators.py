"""Which calibrator of `rovrm.csr` tells true steps of an answer from false ones, in the world, by depth.

    python -m eval.calibrators clip=runs/world-clip models=runs/demo/phase3-visual

The shipped base answers pictures of test scenes clause by clause; at every depth `n` candidates are sampled behind true
partial answers, which alone are gone on with. Of siblings, of which the oracle finds one true and the other with
something false in its newest clause, each calibrator prefers one: the table has the share of these pairs in which it
prefers the true one (ties half). .5 is chance. Beside clauses stand whole answers, finished at the same step.

    rovrm        increments of the reward model: among siblings the same order as its reward of the partial answer
    clip         100 cos(picture, clause)
    likelihood   of the clause, by the policy; and of its mean token
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from statistics import fmean
from typing import Any

from rovrm.settings.command_line import parse, run
from rovrm.settings.fields import ABOVE_ZERO, limited

CLAUSES = [",", " and", "."]
AT_ONCE = 50  # prompts


@dataclass
class CalibratorStudyConfig:
    models: list[str] = field(default_factory=lambda: ["runs/demo/phase3-visual"])  # reward models; their mean is shown
    clip: str = ""  # CLIP folder; empty = without
    prompts: int = limited(200, ABOVE_ZERO)  # pictures of test scenes
    n: int = limited(5, ABOVE_ZERO)  # candidates behind each partial answer
    seed: int = 0  # of the samples


def calibrator_study(argv: list[str]) -> None:
    config = parse(CalibratorStudyConfig, argv, "python -m eval.calibrators")

    from eval.shared.oracle_calibrator import OracleCalibrator
    from rovrm.alignment.calibrators import ClipCalibrator, RewardCalibrator
    from rovrm.alignment.search import search
    from rovrm.data.loading import load_examples
    from rovrm.model.policy import Policy
    from rovrm.model.scorer import RewardScorer
    from rovrm.settings.keys import CsrConfig, StepsConfig
    from rovrm.world.default import BASE

    examples = load_examples(f"world:visual?split=test&questions=describe&n={config.prompts}").examples
    policy, settings = Policy.from_pretrained(BASE), CsrConfig(steps=StepsConfig(CLAUSES, n=config.n, best=1, worst=0))
    trees = []
    for start in range(0, len(examples), AT_ONCE):
        trees += search(
            policy, {"oracle": OracleCalibrator()}, examples[start : start + AT_ONCE], settings, config.seed + start
        )

    shares: dict[str, list[dict[str, float]]] = {}
    pairs = _sibling_pairs(examples, trees)
    for model in config.models:
        scores = _scores(RewardCalibrator(RewardScorer.from_pretrained(model)), examples, trees)
        shares.setdefault("rovrm", []).append(_shares(pairs, scores))
    if config.clip:
        shares["clip"] = [_shares(pairs, _scores(ClipCalibrator(config.clip), examples, trees))]
    for name, value in {
        "likelihood": lambda node: node["logprob"],
        "likelihood of a token": lambda node: node["logprob"] / node["tokens"],
    }.items():
        shares[name] = [_shares(pairs, [[value(node) for node in tree] for tree in trees])]
    _print_shares(pairs, shares)


def _sibling_pairs(examples: Sequence[Any], trees: Sequence[Any]) -> dict[str, list[tuple[int, int, int]]]:
    """By group (`depth 1`, ..., `answers`) triples of a tree's number, a true node's and a false sibling's."""
    from eval.shared.judging import verdict_of
    from rovrm.alignment.search import answer_of

    pairs: dict[str, list[tuple[int, int, int]]] = {}
    for number, (example, tree) in enumerate(zip(examples, trees, strict=True)):
        siblings: dict[int, list[Any]] = {}
        false = {-1: False}
        for node in tree:
            false[node["id"]] = verdict_of(example, answer_of(tree, node)).false
            siblings.setdefault(node["parent"], []).append(node)
        for parent, nodes in siblings.items():
            if false[parent]:
                continue
            for true, wrong in product(nodes, nodes):
                if false[true["id"]] or not false[wrong["id"]] or true["text"] == wrong["text"]:
                    continue
                ended = {true["ended"], wrong["ended"]} == {"eos"}
                group = "answers" if ended else f"depth {true['depth']}"
                pairs.setdefault(group, []).append((number, true["id"], wrong["id"]))
    return dict(sorted(pairs.items(), key=lambda group: (group[0] == "answers", group[0])))


def _scores(calibrator: Any, examples: Sequence[Any], trees: Sequence[Any]) -> list[list[float]]:
    """The calibrator's score of every node, by tree and node's number."""
    from rovrm.alignment.calibrators import Partial
    from rovrm.alignment.search import answer_of

    partials = []
    for tree in trees:
        before = [answer_of(tree, tree[node["parent"]]) if node["parent"] >= 0 else "" for node in tree]
        partials.append(
            [Partial(b, node["text"].strip(), answer_of(tree, node)) for b, node in zip(before, tree, strict=True)]
        )
    found = []
    for start in range(0, len(examples), AT_ONCE):
        found += calibrator.scores(examples[start : start + AT_ONCE], partials[start : start + AT_ONCE])
    return found


def _shares(pairs: dict[str, list[tuple[int, int, int]]], scores: list[list[float]]) -> dict[str, float]:
    """By group the share of pairs whose true node has the higher score, ties half."""
    shares = {}
    for group, of_group in pairs.items():
        gaps = [scores[tree][true] - scores[tree][false] for tree, true, false in of_group]
        shares[group] = fmean((gap > 0) + (gap == 0) / 2 for gap in gaps)
    return shares


def _print_shares(pairs: dict[str, list[Any]], shares: dict[str, list[dict[str, float]]]) -> None:
    print(f"\n{'calibrator':<24}" + "".join(f"{group:>10}" for group in pairs))
    print(f"{'pairs':<24}" + "".join(f"{len(of_group):>10}" for of_group in pairs.values()))
    for name, rows in shares.items():
        print(f"{name:<24}" + "".join(f"{fmean(row[group] for row in rows):>10.3f}" for group in pairs))


def main(argv: list[str] | None = None) -> int:
    return run(calibrator_study, sys.argv[1:] if argv is None else argv, "eval.calibrators")


if __name__ == "__main__":
    sys.exit(main())
