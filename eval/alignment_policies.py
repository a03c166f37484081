"""The policies of eval.alignment: what each is trained on, from the shipped base, with a newcomer's defaults."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rovrm.common.errors import UserError
from rovrm.common.files import read_jsonl, write_jsonl
from rovrm.world.default import BASE

UNTRAINED = ("base", "best-of-8")
ON_PAIRS = ("dpo-world", "rodpo-world", "dpo-own", "rodpo-own", "exchanged", "random")
SELF_REWARDED = ("csr-rovrm", "csr-clip", "csr-both", "csr-oracle", "csr-likelihood", "csr-ranks", "csr-rovrm-2")
CSR_CONTROLS = ("csr-exchanged", "csr-random", "csr-as-many")
POLICIES = (*UNTRAINED, *ON_PAIRS, *SELF_REWARDED, *CSR_CONTROLS)
CLAUSES = 'steps.delimiters=[",", " and", "."]'


@dataclass
class Study:
    """What all policies of a seed share.

    out: folder of all seeds. seed: of reward model, answers, data and training. pictures: of training scenes, that the
    base answers. pairs: of the world's own, in each phase. dpo: words of rovrm.dpo; rate: its learning rate, None for
    the default.
    """

    out: Path
    seed: int
    pictures: int
    pairs: int
    dpo: list[str]
    rate: float | None = None

    @property
    def folder(self) -> Path:
        return self.out / f"seed{self.seed}"

    @property
    def prompts(self) -> str:
        return f"world:visual?n={self.pictures}&seed={100 + self.seed}&questions=describe"


def reward_model(study: Study) -> str:
    """The folder of the seed's reward model: the demo's three phases."""
    from rovrm.train import main as train

    out = study.folder / "reward"
    _run(train, [f"out={out}", f"seed={study.seed}", "phase=1..3", "workers=0", "trainer.disable_tqdm=true"])
    return str(out / "phase3-visual")


def train_policy(study: Study, policy: str) -> str:
    """Trains one of POLICIES, or goes on with it. Returns its folder."""
    if policy in UNTRAINED:
        return BASE
    if policy in SELF_REWARDED:
        return _self_rewarded(study, policy)
    kind, _, source = policy.partition("-")
    phases = ["text", "caption", "visual"] if kind == "rodpo" else ["visual"]
    if policy.endswith("-world"):
        data = f"world:visual?n={study.pairs}&seed={study.seed}&questions=describe"
    else:
        data = str(_pairs(study, policy))
    words = [f"visual.data={data}", f"phase={','.join(phases)}"]
    words += [f"{name}.data=world:{name}?n={study.pairs}&seed={study.seed}&families=faithful" for name in phases[:-1]]
    return _dpo(study, policy, words, phases)


def _dpo(study: Study, policy: str, words: Sequence[str], phases: Sequence[str]) -> str:
    from rovrm.dpo import main as dpo

    out = study.folder / _with_rate(study, policy)
    rates = [f"{name}.learning_rate={study.rate}" for name in phases if study.rate is not None]
    words = [f"out={out}", f"model={BASE}", f"seed={study.seed}", *words, *rates, *study.dpo]
    _run(dpo, [*words, "workers=0", "trainer.disable_tqdm=true"])
    return str(out / "phase3-visual")


def _with_rate(study: Study, policy: str) -> str:
    return policy if study.rate is None else f"{policy}-{study.rate:g}"


# ---- pairs of the base's own answers ---------------------------------------------------------------------------------


def _pairs(study: Study, policy: str) -> Path:
    """The file of pairs of a policy that is trained on its base's own answers."""
    if policy in ("csr-exchanged", "csr-random", "csr-as-many"):
        return _csr_pairs(study, policy)
    own = _own_pairs(study)
    if policy in ("exchanged", "random"):
        rows, path = read_jsonl(own), own.with_name(f"{policy}.jsonl")
        write_jsonl(path, _exchanged(rows) if policy == "exchanged" else _in_random_order(rows, study.seed))
        return path
    return own


def _own_pairs(study: Study) -> Path:
    """Pairs that rovrm.rank makes of what the reward model makes of 8 answers of the base to each picture."""
    from rovrm.bon import main as bon
    from rovrm.rank import main as rank

    path = study.folder / "own.jsonl"
    if not path.is_file():
        answers = study.folder / "bon"
        words = [f"out={answers}", f"data={study.prompts}", f"seed={study.seed}", "n=8"]
        _run(bon, [*words, f"model={reward_model(study)}"])
        _run(rank, [f"in={answers / 'bon.jsonl'}", f"out={path}"])
    return path


def _exchanged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]


def _in_random_order(rows: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [rng.choice(both) for both in zip(rows, _exchanged(rows), strict=True)]


# ---- CSR -------------------------------------------------------------------------------------------------------------


def _self_rewarded(study: Study, policy: str) -> str:
    from eval.shared.oracle_calibrator import OracleCalibrator
    from rovrm.alignment.calibrators import make_calibrators
    from rovrm.alignment.self_rewarding import check_run, run_iterations
    from rovrm.dpo import main as dpo
    from rovrm.settings.command_line import parse
    from rovrm.settings.keys import CsrConfig

    iterations = 2 if policy == "csr-rovrm-2" else 1
    out = study.folder / _with_rate(study, policy.removesuffix("-2"))
    words = [f"out={out}", f"policy={BASE}", f"data={study.prompts}", f"seed={study.seed}", CLAUSES]
    words += [f"iterations={iterations}", f"model={reward_model(study)}", "batch_size=32"]
    if policy in ("csr-clip", "csr-both"):
        words += [f"calibrator={policy.removeprefix('csr-')}", f"clip={_clip(study)}"]
    words += {
        "csr-likelihood": ["weight=0", "search=released"],
        "csr-ranks": ["combine=ranks"],
    }.get(policy, [])
    words += [f"dpo.{word}" for word in [*study.dpo, "workers=0", "trainer.disable_tqdm=true"]]
    words += [f"dpo.visual.learning_rate={study.rate}"] if study.rate is not None else []
    config = check_run(parse(CsrConfig, words, "eval.alignment"))
    known: dict[str, dict[str, Any]] = {"csr-oracle": {"oracle": OracleCalibrator()}, "csr-likelihood": {}}
    run_iterations(config, dpo, lambda config: known[policy] if policy in known else make_calibrators(config))
    return str(out / f"iter{iterations}" / "merged")


def _clip(study: Study) -> Path:
    """The folder of the world's CLIP, trained where it is not there yet."""
    from rovrm.world.__main__ import main as world

    out = study.out / "clip"
    if not (out / "config.json").is_file():
        _run(world, ["clip", f"out={out}"])
    return out


def _csr_pairs(study: Study, policy: str) -> Path:
    """Pairs of controls, as many as csr-rovrm made: its own exchanged, two of its finished answers at random, or the
    first pairs of best-of-n."""
    from rovrm.alignment.search import answer_of

    train_policy(study, "csr-rovrm")
    iteration = study.folder / _with_rate(study, "csr-rovrm") / "iter1"
    rows = read_jsonl(iteration / "pairs.jsonl")
    if policy == "csr-exchanged":
        rows = _exchanged(rows)
    elif policy == "csr-as-many":
        rows = read_jsonl(_own_pairs(study))[: len(rows)]
    else:
        rng, trees = (
            random.Random(study.seed),
            {tree["id"]: tree for tree in read_jsonl(iteration / "candidates.jsonl")},
        )
        for row in rows:
            nodes = trees[row["id"]]["nodes"]
            texts = sorted({answer_of(nodes, node) for node in nodes if node["ended"] == "eos"} - {""})
            for side, text in zip(("chosen", "rejected"), rng.sample(texts, 2), strict=True):
                row[side] = [{"role": "assistant", "content": text}]
    path = study.folder / f"{policy}.jsonl"
    write_jsonl(path, rows)
    return path


def _run(main: Any, words: list[str]) -> None:
    if main(words):
        raise UserError(f"a run failed, its message is above: {' '.join(words)}")
