"""What training a policy on preferences is worth, in the world, where every answer can be judged.

    python -m eval.alignment out=runs/alignment                              # 3 seeds, all policies: hours on 2 cores
    python -m eval.alignment out=runs/alignment seeds=0 policies=base,dpo-own rates=3e-5,1e-4,3e-4     # a part
    python -m eval.alignment out=runs/alignment seeds=                       # only the table of what is there

For each seed a reward model is trained (the demo's three phases). Policies, trained from the shipped base with LoRA and
a newcomer's defaults:

    base            as it is; best-of-8 beside it: the reward model's best of 8 of its answers
    dpo-world       DPO on the world's own visual pairs (a true description and one of an edited scene)
    rodpo-world     the text and caption phases before it
    dpo-own         DPO on pairs that rovrm.rank makes of 8 answers of the base to each of `pictures` training pictures
    rodpo-own       the text and caption phases before that
    exchanged       dpo-own with chosen and rejected exchanged: must get worse
    random          dpo-own with each pair's order drawn at random
    csr-rovrm       one iteration of rovrm.csr on the same pictures, clauses as steps, calibrated by the reward model
    csr-clip        calibrated by the world's CLIP; csr-both: by both; csr-oracle: by the truth, the bound of the method
    csr-likelihood  without a calibrator: the most and the least probable answer
    csr-ranks       csr-rovrm with combine=ranks; csr-rovrm-2: its second iteration
    csr-exchanged   the pairs of csr-rovrm exchanged; csr-random: two answers of its trees at random
    csr-as-many     of dpo-own's pairs as many as csr-rovrm has

Each answers `test` pictures of test scenes, greedily and by sampling at temperature 1. The oracle says which share of
answers holds something false (or cannot be read), and how much of the picture they cover; length is in tokens, reward
is the seed's reward model's, and kl is the mean of log pi - log pi_base over the sampled answers. Results are appended
to results.jsonl as they come, and what is there is not computed again.
"""

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.alignment_policies import POLICIES, UNTRAINED, Study, reward_model, train_policy
from eval.selection_tables import with_interval
from eval.shared.judging import MEASURES, judge_policy
from rovrm.common.errors import UserError
from rovrm.common.files import read_jsonl
from rovrm.settings.command_line import parse, run

TEST = "world:visual?split=test&questions=describe&n={n}"


@dataclass
class AlignmentStudyConfig:
    out: str  # folder of runs and results
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])  # of reward model, answers, data and training
    policies: list[str] = field(default_factory=lambda: list(POLICIES))  # those that are trained and judged
    rates: list[float] = field(default_factory=list)  # learning rates of the policies; empty = rovrm.dpo's default
    pictures: int = 1024  # of training scenes, that the base answers
    pairs: int = 2048  # of the world's own, in each phase
    test: int = 500  # pictures of test scenes
    loss_type: str = "sigmoid"  # of rovrm.dpo
    beta: float = 0.1  # of rovrm.dpo
    sft_weight: float = 0.0  # of rovrm.dpo


def alignment_study(argv: list[str]) -> None:
    config = parse(AlignmentStudyConfig, argv, "python -m eval.alignment")
    unknown = [name for name in config.policies if name not in POLICIES]
    if unknown:
        raise UserError(f"policies: got {unknown[0]!r}, takes {', '.join(POLICIES)}")
    Path(config.out).mkdir(parents=True, exist_ok=True)
    os.environ["TQDM_DISABLE"] = "1"
    for seed in config.seeds:
        for policy in config.policies:
            for rate in [None] if policy in UNTRAINED else config.rates or [None]:
                key = {"seed": seed, "policy": policy, "rate": rate}
                key |= {"loss_type": config.loss_type, "beta": config.beta, "sft_weight": config.sft_weight}
                if not any({part: row.get(part, 0.0) for part in key} == key for row in _results(config)):
                    _append(config, key | {"measures": _train_and_judge(config, seed, policy, rate)})
    print_table(_results(config))


def _train_and_judge(config: AlignmentStudyConfig, seed: int, policy: str, rate: float | None) -> dict[str, Any]:
    from rovrm.data.loading import load_examples

    dpo = [f"{name}={getattr(config, name)}" for name in ("loss_type", "beta", "sft_weight")]
    study = Study(Path(config.out), seed, config.pictures, config.pairs, dpo, rate)
    judge, trained = reward_model(study), train_policy(study, policy)
    examples = load_examples(TEST.format(n=config.test)).examples
    return judge_policy(trained, judge, examples, seed, n=8 if policy == "best-of-8" else 1)


# ---- results ---------------------------------------------------------------------------------------------------------


def print_table(rows: list[dict[str, Any]]) -> None:
    """Means over seeds, with 95 % intervals by Student's t."""
    groups: dict[tuple, list[dict[str, float]]] = {}
    for row in rows:
        for decoding, values in row["measures"].items():
            name = row["policy"] + (f" {row['rate']:g}" if row["rate"] else "")
            name += "" if row["loss_type"] == "sigmoid" else f" {row['loss_type']}"
            name += f" + {row['sft_weight']:g} sft" if row.get("sft_weight") else ""
            groups.setdefault((decoding, name), []).append(values)
    print(f"\n{'decoding':<10}{'policy':<26}{'seeds':>6}" + "".join(f"{measure:>18}" for measure in MEASURES))
    for (decoding, name), values in sorted(groups.items(), key=lambda group: group[0][0]):
        cells = [
            with_interval([of[measure] for of in values], "") if measure in values[0] else "" for measure in MEASURES
        ]
        print(f"{decoding:<10}{name:<26}{len(values):>6}" + "".join(f"{cell:>18}" for cell in cells))


def _append(config: AlignmentStudyConfig, record: dict[str, Any]) -> None:
    with open(Path(config.out) / "results.jsonl", "a") as file:
        file.write(json.dumps(record) + "\n")


def _results(config: AlignmentStudyConfig) -> list[dict[str, Any]]:
    path = Path(config.out) / "results.jsonl"
    return read_jsonl(path) if path.is_file() else []


def main(argv: list[str] | None = None) -> int:
    return run(alignment_study, sys.argv[1:] if argv is None else argv, "eval.alignment")


if __name__ == "__main__":
    sys.exit(main())
