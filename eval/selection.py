"""What each way of choosing text and caption rows is worth, in the world, where every row's family is known.

    python -m eval.selection out=runs/selection                           # 5 seeds, every method: hours on 2 cores
    python -m eval.selection out=runs/selection seeds=0,1 methods=capped_ot,knn     # a part; parts add up in `out`
    python -m eval.selection out=runs/selection seeds= against=knn        # only the tables of what is there

For each seed a pool of text pairs and a pool of caption pairs are drawn, in which faithful, complete, neutral and
conflicting families are mixed (rovrm/world/pairs.py), and `visual` pairs about pictures. A method chooses `n` rows of
each pool, backwards (rovrm/select.py); the three phases are trained on them; and the reward model's accuracy on `test`
other visual pairs is taken after the caption phase, when it has seen no visual pair, and after the visual phase.
Beside the methods: `random`; `oracle`, which draws among the faithful rows alone; and `all`, the whole pool. A method
may name its preprocessing, `knn:unit+centre+dedup`. Everything but the choice is the same, seeds are paired, and each
method's share of the gap from random to oracle is given.
Results are appended to results.jsonl as they come, and what is there is not computed again.
"""

import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rovrm.common.errors import UserError
from rovrm.common.files import read_json, read_jsonl, write_jsonl
from rovrm.common.intervals import share_in_words
from rovrm.settings.command_line import parse, run

METHODS = ["random", "oracle", "all", "paper", "mean_l2", "max_cos", "gotd", "round_robin", "soft_nn", "knn"]
METHODS += ["capped_ot", "capped_sinkhorn"]
CENTRED = [f"{name}:unit+centre+dedup" for name in METHODS[METHODS.index("mean_l2") :]]
FAMILIES = ("faithful", "complete", "neutral", "conflicting")
MEASURES = {"after_caption": "no visual pair", "after_visual": "with the visual pairs"}


@dataclass
class SelectionStudyConfig:
    out: str  # folder of runs and results
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])  # one pool, one training run of each method each
    methods: list[str] = field(default_factory=lambda: METHODS + CENTRED)  # random, oracle, all, METHOD[:STEP+STEP]
    pool: int = 4096  # rows of the text pool and of the caption pool
    n: int = 1024  # rows chosen from each
    visual: int = 128  # visual pairs: what is chosen against, and trained on in the visual phase
    test: int = 4000  # visual pairs that are judged
    epochs: float = 2.0  # passes of the text and caption phases
    visual_epochs: float = 4.0  # passes of the visual phase
    warmup_pool: int = 1024  # rows of the pool in the warm-up
    against: str = "random"  # the method that the tables' differences are taken to
    keep: bool = False  # keep the runs' folders, not only results


def selection_study(argv: list[str]) -> None:
    config = parse(SelectionStudyConfig, argv, "python -m eval.selection")
    unknown = [name for name in config.methods if name.partition(":")[0] not in METHODS]
    if unknown:
        raise UserError(f"methods: got {unknown[0]!r}, takes {', '.join(METHODS)}")
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    os.environ["TQDM_DISABLE"] = "1"
    for seed in config.seeds:
        _write_pools(config, seed)
        for method in config.methods:
            if not any(row["seed"] == seed and row["method"] == method for row in _results(config)):
                _append(out / "results.jsonl", _train_and_judge(config, seed, method))
    print_tables(_results(config), config.against)


# ---- one seed and method ---------------------------------------------------------------------------------------------


def _write_pools(config: SelectionStudyConfig, seed: int) -> None:
    """text.jsonl and caption.jsonl of the seed, and the same with the faithful rows alone."""
    from rovrm.world.pairs import pair_row

    folder = Path(config.out) / f"seed{seed}"
    folder.mkdir(exist_ok=True)
    for inputs in ("text", "caption"):
        rows = [pair_row(inputs, seed, index) for index in range(config.pool)]
        write_jsonl(folder / f"{inputs}.jsonl", rows)
        write_jsonl(folder / f"{inputs}-faithful.jsonl", [row for row in rows if row["family"] == "faithful"])


def _train_and_judge(config: SelectionStudyConfig, seed: int, method: str) -> dict[str, Any]:
    """Trains one reward model. Returns its line of results.jsonl: what it was trained on, and how it judges."""
    from rovrm.train import main as train

    folder = Path(config.out) / f"seed{seed}"
    out, features = folder / method.replace(":", "-"), folder / "features"
    chooses = method not in ("random", "oracle", "all")
    if chooses and features.is_dir():  # the caption phase's features are the same for every method
        shutil.copytree(features, out / "selection" / "phase2-caption", dirs_exist_ok=True)
    command = _command(config, seed, method, folder, out, chooses)
    if train(command):
        raise UserError(f"{method}, seed {seed}: training failed; its message is above")
    if chooses and not features.is_dir():
        for part in ("warmup", "pool", "target", "judges"):
            shutil.copytree(out / "selection" / "phase2-caption" / part, features / part)
    kept = (
        {phase: _kept_by_family(out, phase, folder) for phase in ("phase1-text", "phase2-caption")} if chooses else {}
    )
    record = {
        "seed": seed,
        "method": method,
        "after_caption": _accuracy(out / "phase2-caption", config.test),
        "after_visual": read_json(out / "phase3-visual" / "phase.json")["accuracy"],
        "kept": kept,
        "distances": _report_distances(out) if chooses else {},
        "settings": _deciding_settings(config),
    }
    if not config.keep:
        shutil.rmtree(out)
    caption, visual = (share_in_words(record[measure], config.test) for measure in MEASURES)
    print(f"seed {seed}, {method}: {caption}, {visual}", flush=True)
    return record


def _command(config: SelectionStudyConfig, seed: int, method: str, folder: Path, out: Path, chooses: bool) -> list[str]:
    """The words of rovrm.train. chooses: the method looks at the rows; it is none of random, oracle and all."""
    suffix = "-faithful" if method == "oracle" else ""
    name, _, steps = method.partition(":")
    words = [
        f"out={out}",
        f"seed={seed}",
        f"text.data={folder / f'text{suffix}.jsonl'}",
        f"caption.data={folder / f'caption{suffix}.jsonl'}",
        f"visual.data=world:visual?n={config.visual}&seed={seed}",
        f"visual.eval_data=world:visual?n={config.test}&seed=77&split=test",
        "text.eval_data=world:text?n=200&seed=78&families=faithful",  # so that nothing of the pool is held out
        "caption.eval_data=world:caption?n=200&seed=78&families=faithful",
        f"text.epochs={config.epochs}",
        f"caption.epochs={config.epochs}",
        f"visual.epochs={config.visual_epochs}",
        f"selection.warmup_pool={config.warmup_pool}",
        f"selection.warmup_target={config.warmup_pool}",
        "trainer.disable_tqdm=true",
        "trainer.save_steps=100000",
        "workers=0",
    ]
    if chooses:
        words += [f"text.select={name}", f"caption.select={name}"]
    if steps:
        words.append(f"selection.preprocess=[{steps.replace('+', ',')}]")
    if method != "all":
        words += [f"text.n={config.n}", f"caption.n={config.n}"]
    return words


def _accuracy(model: Path, test: int) -> float:
    """Of a reward model on the visual pairs that the visual phase is judged by."""
    from rovrm import RewardScorer
    from rovrm.data.loading import load_examples

    examples = load_examples(f"world:visual?n={test}&seed=77&split=test").examples
    rewards = RewardScorer.from_pretrained(str(model)).score_batch(examples)
    return sum(right > wrong for right, wrong in rewards) / len(rewards)


def _kept_by_family(out: Path, phase: str, folder: Path) -> dict[str, float]:
    """The share of each family's rows of the pool that was chosen."""
    name = phase.split("-")[1]
    rows = read_jsonl(folder / f"{name}.jsonl")
    chosen = set(read_json(out / "selection" / phase / "selected.json")["ids"])
    kept: dict[str, list[bool]] = {}
    for row in rows:
        kept.setdefault(row["family"], []).append(row["id"] in chosen)
    return {family: sum(of_family) / len(of_family) for family, of_family in sorted(kept.items())}


def _report_distances(out: Path) -> dict[str, dict[str, float]]:
    """The Wasserstein distances of each phase's report, by the phase's folder."""
    return {path.parent.name: read_json(path)["wasserstein"] for path in out.glob("selection/*/report.json")}


# ---- results ---------------------------------------------------------------------------------------------------------


def _deciding_settings(config: SelectionStudyConfig) -> dict[str, Any]:
    """What decides the results, beside seed and method."""
    keys = ("pool", "n", "visual", "test", "epochs", "visual_epochs", "warmup_pool")
    return {key: getattr(config, key) for key in keys}


def _append(path: Path, row: dict[str, Any]) -> None:
    with open(path, "a") as file:
        file.write(json.dumps(row) + "\n")


def _results(config: SelectionStudyConfig) -> list[dict[str, Any]]:
    path = Path(config.out) / "results.jsonl"
    rows = read_jsonl(path) if path.is_file() else []
    if any(row["settings"] != _deciding_settings(config) for row in rows):
        raise UserError(f"{path} holds results of other settings ({rows[0]['settings']}); give another out=")
    return rows


def print_tables(rows: Sequence[dict[str, Any]], against: str = "random") -> None:
    """Means over seeds; differences to `against` and shares of the gap from random to oracle are paired by seed."""
    present = {row["method"] for row in rows}
    methods = [method for method in METHODS if method in present] + sorted(present - set(METHODS))
    print("\nshare of each family's rows that is kept, text pool and caption pool")
    print(f"{'':<34}" + "".join(f"{family:>18}" for family in FAMILIES))
    for method in methods:
        kept = [row["kept"] for row in rows if row["method"] == method and row["kept"]]
        if kept:
            print(f"{method:<34}" + "".join(f"{_kept(kept, family):>18}" for family in FAMILIES))
    for measure, words in MEASURES.items():
        print(f"\naccuracy on visual pairs, {words}")
        print(f"{'':<34}{'seeds':>6}{'mean, 95 %':>16}{f'minus {against}, 95 %':>36}{'share of the gap':>18}")
        accuracies: dict[str, dict[int, float]] = {method: {} for method in methods}  # by seed
        for row in rows:
            accuracies[row["method"]][row["seed"]] = row[measure]
        for method, by_seed in accuracies.items():
            mean = _with_interval(list(by_seed.values()), "")
            print(f"{method:<34}{len(by_seed):>6}{mean:>16}{_differences(accuracies, method, against)}")


def _kept(kept: Sequence[dict[str, dict[str, float]]], family: str) -> str:
    text, caption = (_mean([k[phase][family] for k in kept]) for phase in ("phase1-text", "phase2-caption"))
    return f"{text:.2f}  {caption:.2f}"


def _differences(accuracies: dict[str, dict[int, float]], method: str, against: str) -> str:
    """The mean difference to `against` with its t interval, and the share of the gap from random to oracle; each over
    the seeds that all of its methods have."""

    def seeds_of(*methods: str) -> list[int]:
        return sorted(set.intersection(*(set(accuracies.get(name, {})) for name in methods)))

    def differences(one: str, other: str, seeds: Sequence[int]) -> list[float]:
        return [accuracies[one][seed] - accuracies[other][seed] for seed in seeds]

    difference = share = ""
    seeds = seeds_of(method, against)
    if method != against and seeds:
        difference = _with_interval(differences(method, against, seeds), "+")
    seeds = seeds_of(method, "random", "oracle")
    gap = _mean(differences("oracle", "random", seeds)) if seeds else 0.0
    if gap > 0 and method != "random":
        share = f"{_mean(differences(method, 'random', seeds)) / gap:.2f}"
    return f"{difference:>36}{share:>18}".rstrip()


def _with_interval(values: Sequence[float], sign: str) -> str:
    """The mean, and half of its 95 % interval over the seeds by Student's t, which takes two seeds."""
    from scipy.stats import sem, t

    mean = f"{_mean(values):{sign}.3f}"
    if len(values) < 2:
        return mean
    half = t.ppf(0.975, len(values) - 1) * sem(values)
    return f"{mean} +- {half:.3f}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def main(argv: list[str] | None = None) -> int:
    return run(selection_study, sys.argv[1:] if argv is None else argv, "eval.selection")


if __name__ == "__main__":
    sys.exit(main())
