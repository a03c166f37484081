"""What each way of choosing text and caption rows is worth, in the world, where every row's family is known.

    python -m eval.selection out=runs/selection                        # what every method keeps: 5 seeds, 4 pools
    python -m eval.selection out=runs/selection train=true             # and what reward models learn from it: hours
    python -m eval.selection out=runs/selection seeds=0,1 methods=capped_ot,margin      # a part; parts add up in `out`
    python -m eval.selection out=runs/selection seeds=                 # only the tables of what is there

For each seed a pool of text pairs and a pool of caption pairs are drawn, and `visual` pairs about pictures. Pools:

    conflict    faithful, complete, neutral and conflicting families mixed (rovrm/world/pairs.py)
    noise10     no conflicting family; of the faithful rows a tenth has its answers exchanged
    noise25     the same, a quarter
    clean       the same, none

A method chooses `n` rows of each pool, backwards (rovrm/select.py). What it keeps of each family, and of the faithful
rows about each kind of question, goes into choices.jsonl. With train=true the three phases are trained on the rows that
are chosen against all `visual` pairs, the visual phase on the first of them alone (`trained_on`), and the accuracy on
`test` other visual pairs, by kind of question, goes into results.jsonl. Beside the methods stand `random`; `oracle`,
which draws among the faithful rows alone; and `all`, the whole pool. A method may have settings of the selection of its
own, `capped_ot:side_price=0.1:warmup=pool+target`. Everything but the choice is the same, and seeds are paired. What is
in the files is not computed again.
"""

import json
import os
import random
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.selection_tables import print_tables
from rovrm.common.errors import UserError
from rovrm.common.files import read_json, read_jsonl, write_jsonl
from rovrm.common.intervals import share_in_words
from rovrm.settings.command_line import parse, run

BASELINES = ["random", "oracle", "all"]  # which look at no gradient
METHODS = ["paper", "mean_l2", "max_cos", "gotd", "round_robin", "soft_nn", "knn", "capped_ot", "capped_sinkhorn"]
METHODS += ["margin"]
POOLS = {"conflict": None, "noise10": 0.1, "noise25": 0.25, "clean": 0.0}  # share of the faithful rows exchanged
UNMIXED = {"faithful": 0.6, "complete": 0.15, "neutral": 0.25}  # families of the pools but for the first
CHOICE_ALONE = ("side_price", "preprocess", "targets")  # settings of the selection that change no feature
TEST_SEED = 77  # of the pairs that are judged; another than any of the training seeds


@dataclass
class SelectionStudyConfig:
    out: str  # folder of runs and results
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])  # one pool, one training run of each method each
    pools: list[str] = field(default_factory=lambda: list(POOLS))  # conflict, noise10, noise25, clean
    methods: list[str] = field(default_factory=lambda: BASELINES[:2] + METHODS)  # METHOD, or METHOD:KEY=VALUE:KEY=VALUE
    train: bool = False  # train on what is chosen, too
    pool: int = 4096  # rows of the text pool and of the caption pool
    n: int = 1024  # rows chosen from each
    visual: int = 128  # visual pairs that are chosen against
    trained_on: list[int] = field(default_factory=lambda: [0, 32, 128])  # of them, in the visual phase
    test: int = 4000  # visual pairs that are judged
    epochs: float = 2.0  # passes of the text and caption phases
    visual_epochs: float = 4.0  # passes of the visual phase
    warmup_pool: int = 1024  # rows of the pool in the warm-up, or as many more of the target
    keep: bool = False  # keep the runs' folders, not only results


def selection_study(argv: list[str]) -> None:
    config = parse(SelectionStudyConfig, argv, "python -m eval.selection")
    for what, given, known in (
        ("methods", [name.partition(":")[0] for name in config.methods], [*BASELINES, *METHODS]),
        ("pools", config.pools, list(POOLS)),
    ):
        unknown = [name for name in given if name not in known]
        if unknown:
            raise UserError(f"{what}: got {unknown[0]!r}, takes {', '.join(known)}")
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    os.environ["TQDM_DISABLE"] = "1"
    for pool in config.pools:
        for seed in config.seeds:
            folder = _write_pools(config, pool, seed)
            for method in config.methods:
                key = {"pool": pool, "seed": seed, "method": method}
                if method not in BASELINES and not _is_done(config, "choices.jsonl", key):
                    _append(config, "choices.jsonl", key, {"kept": _choose(config, seed, method, folder)})
                if config.train and not _is_done(config, "results.jsonl", key):
                    _append(config, "results.jsonl", key, _train_and_judge(config, key, folder))
    print_tables(*(_rows(config, name) for name in ("choices.jsonl", "results.jsonl")))


# ---- the pools -------------------------------------------------------------------------------------------------------


def _write_pools(config: SelectionStudyConfig, pool: str, seed: int) -> Path:
    """text.jsonl and caption.jsonl of the seed, and the same with the faithful rows alone, in the folder returned."""
    folder = Path(config.out) / pool / f"seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    for inputs in ("text", "caption"):
        rows = [pool_row(pool, inputs, seed, index) for index in range(config.pool)]
        write_jsonl(folder / f"{inputs}.jsonl", rows)
        write_jsonl(folder / f"{inputs}-faithful.jsonl", [row for row in rows if row["family"] == "faithful"])
    return folder


def pool_row(pool: str, inputs: str, seed: int, index: int) -> dict[str, Any]:
    """A row of a pool; one whose answers are exchanged is of the family `exchanged`."""
    from rovrm.world.pairs import pair_row

    exchanged = POOLS[pool]
    if exchanged is None:
        return pair_row(inputs, seed, index)
    row = pair_row(inputs, seed, index, families=UNMIXED)
    if row["family"] == "faithful" and random.Random(f"exchange:{inputs}:{seed}:{index}").random() < exchanged:
        row |= {"family": "exchanged", "chosen": row["rejected"], "rejected": row["chosen"]}
    return row


# ---- what a method keeps ---------------------------------------------------------------------------------------------


def _choose(config: SelectionStudyConfig, seed: int, method: str, folder: Path) -> dict[str, dict[str, float]]:
    """What a method keeps of the caption pool. Features are extracted once for all methods that share them."""
    from rovrm.select import main as select

    out = _features(folder, method)
    if select(
        [f"out={out}", "phase=2", *_data_words(config, seed, folder), *_choice_words(config, method, ["caption"])]
    ):
        raise UserError(f"{method}, seed {seed}: the choice failed; its message is above")
    return _kept(out, "phase2-caption", folder)


def _features(folder: Path, method: str) -> Path:
    """The folder of the caption pool's features that a method chooses by."""
    name, *words = method.split(":")
    of_features = [word for word in words if word.partition("=")[0] not in CHOICE_ALONE]
    return folder / "-".join(["features", *(["paper"] if name == "paper" else []), *of_features])


def _choice_words(config: SelectionStudyConfig, method: str, phases: list[str]) -> list[str]:
    """The words of a command by which these phases choose their rows."""
    name, *words = method.split(":")
    own = [f"selection.{word}" for word in words]
    shared = [f"selection.warmup_pool={config.warmup_pool}", f"selection.warmup_target={config.warmup_pool}"]
    return shared + own + [f"{phase}.{word}" for phase in phases for word in (f"select={name}", f"n={config.n}")]


def _kept(out: Path, phase: str, folder: Path) -> dict[str, dict[str, float]]:
    """Shares of the pool's rows that were chosen: of each family, and of the faithful rows of each kind."""
    chosen = set(read_json(out / "selection" / phase / "selected.json")["ids"])
    kept: dict[str, dict[str, list[bool]]] = {"families": {}, "kinds": {}}
    for row in read_jsonl(folder / f"{phase.split('-')[1]}.jsonl"):
        kept["families"].setdefault(row["family"], []).append(row["id"] in chosen)
        if row["family"] == "faithful":
            kept["kinds"].setdefault(row["kind"], []).append(row["id"] in chosen)
    return {by: {name: sum(of) / len(of) for name, of in sorted(shares.items())} for by, shares in kept.items()}


# ---- what is learned from it -----------------------------------------------------------------------------------------


def _train_and_judge(config: SelectionStudyConfig, key: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Trains a reward model on what a method chooses. Returns what it was trained on, and how it judges."""
    from rovrm.train import main as train

    seed, method = key["seed"], key["method"]
    out, chooses = folder / method.replace(":", "-"), method not in BASELINES
    if chooses:
        features = _features(folder, method) / "selection" / "phase2-caption"
        shutil.copytree(features, out / "selection" / "phase2-caption", dirs_exist_ok=True)
    accuracy = {}
    for pairs in [None, *config.trained_on]:
        if pairs == 0:
            continue
        if train(_train_words(config, seed, method, folder, out, pairs)):
            raise UserError(f"{method}, seed {seed}: training failed; its message is above")
        if pairs is None:
            accuracy["0"] = _judge(out / "phase2-caption", config.test)
        else:
            accuracy[str(pairs)] = _judge(out / f"visual{pairs}" / "phase3-visual", config.test)
    phases = ("phase1-text", "phase2-caption") if chooses else ()
    record = {"accuracy": accuracy, "kept": {phase: _kept(out, phase, folder) for phase in phases}}
    if not config.keep:
        shutil.rmtree(out)
    shares = [f"{pairs} pairs {share_in_words(of['all'], config.test)}" for pairs, of in accuracy.items()]
    print(f"{key['pool']}, seed {seed}, {method}: {', '.join(shares)}", flush=True)
    return record


def _train_words(
    config: SelectionStudyConfig, seed: int, method: str, folder: Path, out: Path, pairs: int | None
) -> list[str]:
    """The words of rovrm.train: of the text and caption phases, or, with a number of pairs, of the visual phase."""
    # No setting of the trainer: the warm-up of the choice had none.
    common = [f"seed={seed}", "visual.eval_data=world:visual?n=200&seed=78&split=test", "workers=0"]
    if pairs is not None:
        return [
            f"out={out / f'visual{pairs}'}",
            "phase=3",
            f"init_from={out / 'phase2-caption'}",
            f"visual.data=world:visual?n={pairs}&seed={seed}",
            f"visual.epochs={config.visual_epochs}",
            *common,
        ]
    words = [f"out={out}", "phase=1,2", *_data_words(config, seed, folder), *common]
    words += [f"text.epochs={config.epochs}", f"caption.epochs={config.epochs}"]
    if method == "oracle":
        words += [f"{phase}.data={folder / f'{phase}-faithful.jsonl'}" for phase in ("text", "caption")]
    if method not in BASELINES:
        return words + _choice_words(config, method, ["text", "caption"])
    return words if method == "all" else [*words, f"text.n={config.n}", f"caption.n={config.n}"]


def _data_words(config: SelectionStudyConfig, seed: int, folder: Path) -> list[str]:
    return [
        f"seed={seed}",
        f"text.data={folder / 'text.jsonl'}",
        f"caption.data={folder / 'caption.jsonl'}",
        f"visual.data=world:visual?n={config.visual}&seed={seed}",
        "visual.eval_data=world:visual?n=200&seed=78&split=test",
        "text.eval_data=world:text?n=200&seed=78&families=faithful",  # so that nothing of the pool is held out
        "caption.eval_data=world:caption?n=200&seed=78&families=faithful",
        "workers=0",
    ]


def _judge(model: Path, test: int) -> dict[str, float]:
    """A reward model's accuracy on the visual pairs that all are judged by: `all`, and by kind of question."""
    from rovrm import RewardScorer
    from rovrm.data.loading import load_examples

    examples = load_examples(f"world:visual?n={test}&seed={TEST_SEED}&split=test").examples
    rewards = RewardScorer.from_pretrained(str(model)).score_batch(examples)
    right: dict[str, list[bool]] = {"all": []}
    for example, (chosen, rejected) in zip(examples, rewards, strict=True):
        for kind in ("all", example.source.removeprefix("faithful-")):
            right.setdefault(kind, []).append(chosen > rejected)
    return {kind: sum(of) / len(of) for kind, of in right.items()}


# ---- results ---------------------------------------------------------------------------------------------------------


def _settings(config: SelectionStudyConfig) -> dict[str, Any]:
    """What decides the results, beside pool, seed and method."""
    keys = ("pool", "n", "visual", "trained_on", "test", "epochs", "visual_epochs", "warmup_pool")
    return {key: getattr(config, key) for key in keys}


def _append(config: SelectionStudyConfig, name: str, key: dict[str, Any], record: dict[str, Any]) -> None:
    with open(Path(config.out) / name, "a") as file:
        file.write(json.dumps(key | record | {"settings": _settings(config)}) + "\n")


def _is_done(config: SelectionStudyConfig, name: str, key: dict[str, Any]) -> bool:
    return any({part: row[part] for part in key} == key for row in _rows(config, name))


def _rows(config: SelectionStudyConfig, name: str) -> list[dict[str, Any]]:
    path = Path(config.out) / name
    rows = read_jsonl(path) if path.is_file() else []
    if any(row["settings"] != _settings(config) for row in rows):
        raise UserError(f"{path} holds results of other settings ({rows[0]['settings']}); give another out=")
    return rows


def main(argv: list[str] | None = None) -> int:
    return run(selection_study, sys.argv[1:] if argv is None else argv, "eval.selection")


if __name__ == "__main__":
    sys.exit(main())
