"""Calibrated search (CSR, arXiv 2405.14622): answers grow step by step, a calibrator scores each step by the image.

    trees = search(policy, calibrators, examples, config, seed)      # per prompt a list of nodes

A node is a step: a dict as a line of candidates.jsonl holds it. From the nodes alone `path_rewards` makes the rewards
of both combinations, so they can be computed again without a model.
"""

from collections.abc import Sequence
from typing import Any

import torch

from rovrm.alignment.calibrators import Calibrator, Partial, joined
from rovrm.alignment.steps import Step, StepRules, sample_steps
from rovrm.data.example import Example
from rovrm.model.beams import Beams
from rovrm.model.policy import Policy
from rovrm.settings.keys import CsrConfig

Node = dict[str, Any]
RELEASED = 1, 2  # partial answers that the released code keeps: the most and the least probable


# ---- rewards ---------------------------------------------------------------------------------------------------------


def path_rewards(nodes: Sequence[Node], combine: str, weight: float, length: str) -> dict[int, float]:
    """By a node's id the reward of the answer up to its step; higher is better.

    scores: per step weight * image score + (1 - weight) * probability of the step (the paper, section 3.2).
    ranks: per step the node's places among its siblings by image score and by mean log-probability of a token, best
    1 / siblings and worst 1, so weighted; divided by the steps of the path and one more (the released code); negated.

    Args:
        nodes: parents before their children; an image score of None counts as 0, and as equal to others.
        length: `mean` over the path's steps or their `sum`; ranks have their own.
    """
    by_id = {node["id"]: node for node in nodes}
    values = _rank_values(nodes, weight) if combine == "ranks" else _score_values(nodes, weight)
    totals: dict[int, float] = {}
    for node in nodes:
        before = totals[node["parent"]] if node["parent"] in by_id else 0.0
        totals[node["id"]] = before + values[node["id"]]
    if combine == "ranks":
        return {node["id"]: -totals[node["id"]] / (node["depth"] + 1) for node in nodes}
    return {node["id"]: totals[node["id"]] / (node["depth"] if length == "mean" else 1) for node in nodes}


def length_of(config: CsrConfig) -> str:
    """`mean` or `sum` over an answer's steps. Increments of a reward model sum up to the answer's reward, and where
    answers alone are scored there is one score; other image scores are above 0, and their sum grows with length."""
    if config.length != "auto":
        return config.length
    return "sum" if config.calibrator == "rovrm" or config.scored == "answers" else "mean"


def _score_values(nodes: Sequence[Node], weight: float) -> dict[int, float]:
    return {
        node["id"]: weight * (node["image_score"] or 0.0)
        + (1 - weight) * torch.tensor(node["logprob"], dtype=torch.float64).exp().item()
        for node in nodes
    }


def _rank_values(nodes: Sequence[Node], weight: float) -> dict[int, float]:
    siblings: dict[int, list[Node]] = {}
    for node in nodes:
        siblings.setdefault(node["parent"], []).append(node)
    values: dict[int, float] = {}
    for of_one in siblings.values():
        image = _places(of_one, lambda node: node["image_score"] or 0.0)
        language = _places(of_one, lambda node: node["logprob"] / max(node["tokens"], 1))
        for node in of_one:
            values[node["id"]] = weight * image[node["id"]] + (1 - weight) * language[node["id"]]
    return values


def _places(nodes: Sequence[Node], value: Any) -> dict[int, float]:
    """(place from 1) / nodes, the highest value first; equal values share the mean of their places."""
    values = {node["id"]: value(node) for node in nodes}
    places = {}
    for number, own in values.items():
        above, equal = sum(v > own for v in values.values()), sum(v == own for v in values.values())
        places[number] = (above + (equal + 1) / 2) / len(values)
    return places


def answer_of(nodes: Sequence[Node], node: Node) -> str:
    """The text of the answer up to a node's step."""
    return "".join(step["text"] for step in path_of(nodes, node)).strip()


def path_of(nodes: Sequence[Node], node: Node) -> list[Node]:
    """The steps of an answer up to a node's. nodes: a prompt's, of which `id` is the place."""
    path = [node]
    while path[0]["parent"] >= 0:
        path.insert(0, nodes[path[0]["parent"]])
    return path


# ---- the search ------------------------------------------------------------------------------------------------------


def search(
    policy: Policy, calibrators: dict[str, Calibrator], examples: Sequence[Example], config: CsrConfig, seed: int
) -> list[list[Node]]:
    """The trees of some prompts, each as its nodes, parents before their children. The first steps' parent is -1.

    Args:
        calibrators: what scores steps by the image, by name; a node's image score is what `joined` makes of them, and
            None without any.
        examples: prompts that all have images.
        seed: of the samples of this batch.
    """
    rules = StepRules(tuple(config.steps.delimiters), config.steps.tokens, config.steps.temperature, config.steps.top_p)
    ends = policy.model.generation_config.eos_token_id
    eos = set(ends) if isinstance(ends, list) else {ends}
    generator = torch.Generator().manual_seed(seed)
    trees: list[list[Node]] = [[] for _ in examples]
    beams = Beams.of_prompts(policy, examples)
    # Of each row of the beams: its prompt, its node (none at first), and the tokens of its answer so far.
    rows: list[tuple[int, int, list[int]]] = [(i, -1, []) for i in range(len(examples))]
    for depth in range(1, config.steps.max + 1):
        beams, steps = sample_steps(
            beams, [tokens for _, _, tokens in rows], config.steps.n, rules, policy.tokenizer, eos, generator
        )
        grown = [_add_node(trees, rows[step.parent], step, depth) for step in steps]
        _score(calibrators, trees, examples, grown, config)
        kept = set()
        for number, tree in enumerate(trees):
            here = [node for owner, node in grown if owner == number]
            kept |= {(number, node["id"]) for node in _keep(tree, here, config)}
        going = [
            place for place, (owner, node) in enumerate(grown) if (owner, node["id"]) in kept and node["ended"] != "eos"
        ]
        if not going:
            break
        following = []
        for place in going:
            owner, node = grown[place]
            following.append((owner, node["id"], [*rows[steps[place].parent][2], *steps[place].tokens]))
        beams, rows = beams.select([steps[place].row for place in going]), following
    return trees


def _add_node(trees: list[list[Node]], parent: tuple[int, int, list[int]], step: Step, depth: int) -> tuple[int, Node]:
    """(number of the prompt, the node of a step), which joins its tree."""
    owner, above, _ = parent
    node: Node = {
        "id": len(trees[owner]),
        "parent": above,
        "depth": depth,
        "text": step.text,
        "tokens": len(step.tokens),
        "logprob": step.logprob,
        "image_score": None,
        "scores": {},
        "reward": 0.0,
        "kept": False,
        "ended": step.ended,
    }
    trees[owner].append(node)
    return owner, node


def _score(
    calibrators: dict[str, Calibrator],
    trees: list[list[Node]],
    examples: Sequence[Example],
    grown: list[tuple[int, Node]],
    config: CsrConfig,
) -> None:
    """Writes image scores and rewards into new nodes. With scored=answers only ended ones are scored, as wholes."""
    partials: list[list[Partial]] = [[] for _ in examples]
    places: list[list[Node]] = [[] for _ in examples]
    for owner, node in grown:
        if config.scored == "answers" and node["ended"] != "eos":
            continue
        whole = answer_of(trees[owner], node)
        before = ""
        if config.scored == "steps" and node["parent"] >= 0:
            before = answer_of(trees[owner], trees[owner][node["parent"]])
        partials[owner].append(Partial(before, node["text"].strip() if config.scored == "steps" else whole, whole))
        places[owner].append(node)
    found = {name: calibrator.scores(examples, partials) for name, calibrator in calibrators.items()}
    for number, nodes in enumerate(places if found else []):
        of_prompt = {name: scores[number] for name, scores in found.items()}
        for place, (node, score) in enumerate(zip(nodes, joined([*of_prompt.values()]), strict=True)):
            node["image_score"] = score
            node["scores"] = {name: scores[place] for name, scores in of_prompt.items()}
    for tree in trees:
        rewards = path_rewards(tree, config.combine, config.weight, length_of(config))
        for node in tree:
            node["reward"] = rewards[node["id"]]


def _keep(tree: list[Node], here: list[Node], config: CsrConfig) -> list[Node]:
    """Marks the new nodes that are searched on, and the ended ones, as kept, and returns them: the best and the worst
    partial answers of the prompt."""
    ended, open_ = [node for node in here if node["ended"] == "eos"], [n for n in here if n["ended"] != "eos"]
    if config.search == "released":
        best, worst = RELEASED
        likelihoods = _likelihoods(tree)
        ordered = sorted(open_, key=lambda node: -likelihoods[node["id"]])
    else:
        best, worst = config.steps.best, config.steps.worst
        ordered = sorted(open_, key=lambda node: -node["reward"])
    chosen = ordered if len(ordered) <= best + worst else ordered[:best] + ordered[-worst:]
    for node in (*ended, *chosen):
        node["kept"] = True
    return [*ended, *chosen]


def _likelihoods(tree: list[Node]) -> dict[int, float]:
    """By node the sum over its path of the steps' mean log-probabilities of a token."""
    totals: dict[int, float] = {}
    for node in tree:
        totals[node["id"]] = totals.get(node["parent"], 0.0) + node["logprob"] / max(node["tokens"], 1)
    return totals
