"""Best-of-n: samples n answers per prompt from a policy, scores them with a reward model and keeps the best.

    python -m rovrm.bon --n 8                          # the tiny policy of the world and the demo's reward model
    python -m rovrm.bon --n 8 model=runs/mine/phase3-visual policy=llava-hf/llava-1.5-7b-hf data=prompts.jsonl out=bon

`data` holds `prompt` and, where there are any, `image` or `images`; answers in it are not read. All n candidates of a
prompt are scored in one shared-prefix row. Writes into `out`: config.yaml, bon.jsonl and summary.json. A line of
bon.jsonl: `id, prompt, images, candidates, scores, best` (an index; the first of equal scores), `logprobs` (sums over
tokens), `tokens`, `greedy` (text, score, log-probability) and `seed`. With data=world:visual the truth is known: then
the summary counts hallucinations, and report.html shows the pictures with their answers. The same command goes on where
it was stopped.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rovrm.config import BonConfig, parse, run, save
from rovrm.errors import UserError

NEXT = """
Next, with your own data: look at it, train on it (without dry_run=true), and choose answers with what you trained:
  python -m rovrm.train phase=3 model=llava-hf/llava-1.5-7b-hf visual.data=pairs.jsonl out=runs/mine dry_run=true
  python -m rovrm.bon --n 8 model=runs/mine/phase3-visual policy=llava-hf/llava-1.5-7b-hf data=prompts.jsonl out=bon"""

if TYPE_CHECKING:
    from rovrm.examples import Example
    from rovrm.policy import Policy
    from rovrm.scorer import RewardScorer


def bon(argv: list[str]) -> None:
    config = parse(BonConfig, argv, "python -m rovrm.bon")
    lock = _take_folder(config)

    from tqdm.auto import tqdm

    examples = load_prompts(config.data, config.image_root)
    path = Path(config.out) / "bon.jsonl"
    done = _done(path, config.batch_size, examples)
    batches = range(done, len(examples), config.batch_size)
    if batches:
        policy, scorer = _models(config)
        if done:
            print(f"{done} of {len(examples)} prompts are in {path} already; going on behind them")
        with open(path, "a", encoding="utf-8") as file:
            for start in tqdm(batches, desc=f"best of {config.n}"):
                rows = best_of_n(policy, scorer, examples[start : start + config.batch_size], config, start)
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                file.flush()
    with open(path, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    summarise(config, examples, rows)
    del lock


def _models(config: BonConfig) -> tuple["Policy", "RewardScorer"]:
    from rovrm.policy import Policy
    from rovrm.scorer import RewardScorer
    from rovrm.world.default import BASE

    if config.model == BonConfig.model and not os.path.isdir(config.model):
        raise UserError(f"model={config.model!r} is not there yet; train it with python -m rovrm.train, or give model=")
    device, remote = config.device, config.trust_remote_code
    scorer = RewardScorer.from_pretrained(
        config.model, device=device or None, dtype=config.dtype, trust_remote_code=remote
    )
    policy = Policy.from_pretrained(config.policy or BASE, device=device, dtype=config.dtype, trust_remote_code=remote)
    return policy, scorer


def load_prompts(data: Sequence[str], image_root: str) -> list["Example"]:
    """The prompts of all sources as Examples with one empty response each. Raises UserError for the first bad row."""
    from rovrm.images import find_image
    from rovrm.scorer import as_example
    from rovrm.sources import load_rows, parse_sources

    examples: list[Example] = []
    for source in parse_sources(data):
        rows = load_rows(source)
        for row in rows.take(range(min(len(rows), source.n or len(rows)))):
            if row.values is None:
                raise UserError(f"{row.location}: {row.problem}")
            find = partial(find_image, image_root=image_root or None, data_file=row.data_file)
            values = {"id": f"{row.stem}-{row.number}"} | row.values | {"responses": [""]}
            examples.append(as_example(values, row.number, find))
    names = [example.id for example in examples]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"data: two prompts have the id {twice!r}; give every row its own id")
    bare = next((example.id for example in examples if not example.images), None)
    if bare is not None and any(example.images for example in examples):
        raise UserError(f"data: prompt {bare!r} has no image, others have; give prompts with and without in two runs")
    return examples


def best_of_n(
    policy: "Policy", scorer: "RewardScorer", examples: Sequence["Example"], config: BonConfig, number: int
) -> list[dict[str, Any]]:
    """One record per prompt. number: of the first prompt; it and config.seed seed the batch."""
    seed = config.seed * 1_000_003 + number
    length = config.max_new_tokens
    sampled = policy.sample(
        examples, config.n, temperature=config.temperature, top_p=config.top_p, max_new_tokens=length, seed=seed
    )
    greedy = [found[0] for found in policy.sample(examples, temperature=0, max_new_tokens=length)]
    texts = [[c.text for c in found] + [first.text] for found, first in zip(sampled, greedy, strict=True)]
    asked = [
        replace(example, responses=answers, ranks=[0] * len(answers))
        for example, answers in zip(examples, texts, strict=True)
    ]
    rewards = scorer.score_batch(asked, config.batch_tokens)
    return [
        {
            "id": example.id,
            "prompt": example.prompt,
            "images": [str(ref.name) for ref in example.images],
            "candidates": [c.text for c in found],
            "scores": scores[:-1],
            "best": max(range(config.n), key=lambda i: scores[i]),
            "logprobs": [c.logprob for c in found],
            "tokens": [c.tokens for c in found],
            "greedy": {"text": first.text, "score": scores[-1], "logprob": first.logprob},
            "seed": seed,
        }
        for example, found, first, scores in zip(examples, sampled, greedy, rewards, strict=True)
    ]


def summarise(config: BonConfig, examples: list["Example"], rows: list[dict[str, Any]]) -> None:
    """Writes and prints the mean reward of the best, the mean and the greedy answer; with the world's own prompts also
    what is true in them."""
    from rovrm.outputs import print_phases, write_json

    best = [row["scores"][row["best"]] for row in rows]
    means = [sum(row["scores"]) / config.n for row in rows]
    summary: dict[str, Any] = {
        "n": config.n,
        "prompts": len(rows),
        "reward": {
            "best": sum(best) / len(best),
            "mean": sum(means) / len(means),
            "greedy": sum(row["greedy"]["score"] for row in rows) / len(rows),
        },
    }
    if all(example.images and example.images[0].drawing is not None for example in examples):
        from rovrm.world.report import compare_choices, judge_rows, print_choices, write_report

        judged = judge_rows(examples, rows)
        summary["choices"] = compare_choices(judged, rows)
        phases = Path(config.model).parent / "summary.json"
        if phases.is_file():
            print_phases(json.loads(phases.read_text()))
        print_choices(summary["choices"])
        page = write_report(Path(config.out), config.model, examples, rows, judged, summary["choices"])
        print(f"\nreport: {page}")
    else:
        told = ", ".join(f"{name} {value:.3f}" for name, value in summary["reward"].items())
        print(f"reward of {len(rows)} prompts, n = {config.n}: {told}")
    write_json(Path(config.out) / "summary.json", summary)
    print(f"candidates and scores: {Path(config.out) / 'bon.jsonl'}")
    if not config.policy:
        print(NEXT)


# ---- the folder ------------------------------------------------------------------------------------------------------


def _take_folder(config: BonConfig) -> Any:
    """Locks `out` and notes the settings there. Raises UserError where it holds candidates made with other settings."""
    import yaml

    from rovrm.resume import lock_folder

    lock = lock_folder(config.out)
    noted = Path(config.out) / "config.yaml"
    if (Path(config.out) / "bon.jsonl").is_file() and noted.is_file():
        before, now = yaml.safe_load(noted.read_text()), asdict(config)
        changed = sorted(key for key in now if key not in ("out", "device") and before.get(key) != now[key])
        if changed:
            raise UserError(
                f"{config.out} was begun with other settings ({changed[0]}: {before.get(changed[0])!r}, now "
                f"{now[changed[0]]!r}); give another out=, or remove that folder"
            )
    _check_models(config)
    save(config, noted)
    return lock


def _check_models(config: BonConfig) -> None:
    """Notes which models made the candidates. Raises UserError where another now lies in the place of one of them."""
    from rovrm.outputs import write_json

    path, now = Path(config.out) / "models.json", {"model": _mark(config.model), "policy": _mark(config.policy)}
    if (Path(config.out) / "bon.jsonl").is_file() and path.is_file():
        before = json.loads(path.read_text())
        changed = next((key for key in now if before.get(key) != now[key]), None)
        if changed:
            raise UserError(
                f"{config.out} holds answers and scores of another {changed} that lay in {getattr(config, changed)!r}; "
                "give another out=, or remove that folder"
            )
    write_json(path, now)


def _mark(folder: str) -> dict[str, list[int]]:
    """Size and time of each file of weights in a folder; nothing for a hub id."""
    files = sorted(Path(folder).rglob("*.safetensors")) if folder and os.path.isdir(folder) else []
    kept = [file for file in files if "checkpoints" not in file.parts]
    return {str(file.relative_to(folder)): [file.stat().st_size, file.stat().st_mtime_ns] for file in kept}


def _done(path: Path, batch_size: int, examples: Sequence["Example"]) -> int:
    """Prompts already in bon.jsonl; what is behind the last whole batch is cut off, so that batches stay the same."""
    if not path.is_file():
        return 0
    raw = path.read_bytes()
    lines = raw[: raw.rfind(b"\n") + 1].splitlines(keepends=True)
    if [json.loads(line)["id"] for line in lines] != [example.id for example in examples[: len(lines)]]:
        raise UserError(f"{path} holds other prompts than data; give another out=, or remove it")
    whole = len(lines) if len(lines) == len(examples) else len(lines) // batch_size * batch_size
    with open(path, "r+b") as file:
        file.truncate(sum(len(line) for line in lines[:whole]))
    return whole


def main(argv: list[str] | None = None) -> int:
    return run(bon, sys.argv[1:] if argv is None else argv, "rovrm.bon")


if __name__ == "__main__":
    sys.exit(main())
