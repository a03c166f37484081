"""Which learning rate a LoRA adapter wants: one phase alone, at several rates, sizes of data and seeds, in the world.

    python -m eval.rates out=runs/rates                   # the visual phase: 45 runs, half an hour on one core
    python -m eval.rates out=runs/rates phase=1           # the text phase

Everything but rate, size and seed is a newcomer's default (LoRA, one epoch, batches of 8). Accuracy is taken on
`test` pairs of another seed, about scenes that no training row shares. Results are appended to
results-PHASE.jsonl as they come, and what is there is not computed again.
"""

import json
import os
import shutil
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rovrm.common.errors import UserError
from rovrm.common.files import read_json, read_jsonl
from rovrm.common.intervals import wilson95
from rovrm.settings.command_line import parse, run
from rovrm.settings.phases import Phase, parse_phases

TEST_SEED = 77  # of the pairs that are judged; another than any of the training seeds


@dataclass
class RateStudyConfig:
    out: str  # folder of runs and results
    phase: str = "3"  # the one phase that is trained
    rates: list[float] = field(default_factory=lambda: [1e-6, 1e-4, 1.5e-4, 2e-4, 3e-4])  # learning rates
    sizes: list[int] = field(default_factory=lambda: [300, 1000, 3000])  # training pairs
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])  # of data and training
    test: int = 1000  # pairs that are judged


def rate_study(argv: list[str]) -> None:
    config = parse(RateStudyConfig, argv, "python -m eval.rates")
    phases = parse_phases(config.phase)
    if len(phases) != 1:
        raise UserError(f"phase={config.phase}: takes one phase, since each is trained alone")
    phase = phases[0]
    results = Path(config.out) / f"results-{phase.name}.jsonl"
    results.parent.mkdir(parents=True, exist_ok=True)
    os.environ["TQDM_DISABLE"] = "1"
    runs = [(size, seed, rate) for size in config.sizes for seed in config.seeds for rate in config.rates]
    done = {(row["size"], row["seed"], row["rate"], row["test"]) for row in read_results(results)}
    for size, seed, rate in runs:
        if (size, seed, rate, config.test) not in done:
            record = {"size": size, "seed": seed, "rate": rate, "test": config.test}
            record |= _trained(config, phase, size, seed, rate)
            with open(results, "a") as file:
                file.write(json.dumps(record) + "\n")
            print(record, flush=True)
    print_table([row for row in read_results(results) if row["test"] == config.test])


def _trained(config: RateStudyConfig, phase: Phase, size: int, seed: int, rate: float) -> dict[str, float]:
    from rovrm.train import main as train
    from rovrm.world.default import BASE

    name = phase.name
    out = Path(config.out) / f"{name}-{size}-{seed}-{rate:g}"
    shutil.rmtree(out, ignore_errors=True)  # of a run that was stopped
    command = [
        f"phase={name}",
        f"model={BASE}",
        f"{name}.data=world:{name}?n={size}&seed={seed}&families=faithful",
        f"{name}.eval_data=world:{name}?n={config.test}&seed={TEST_SEED}&families=faithful",
        f"{name}.learning_rate={rate}",
        f"seed={seed}",
        f"out={out}",
        "trainer.disable_tqdm=true",
        "workers=0",
    ]
    if train(command):
        raise UserError(f"training failed ({' '.join(command)}); its message is above")
    record = read_json(out / "summary.json")[phase.folder_name]
    shutil.rmtree(out)
    return {key: record[key] for key in ("accuracy", "loss", "n_train")}


def read_results(path: Path) -> list[dict[str, Any]]:
    return read_jsonl(path) if path.is_file() else []


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Prints a line per rate: for each size the mean accuracy over seeds and the lowest, and the mean of all."""
    sizes = sorted({row["size"] for row in rows})
    print(f"\n{'rate':<10}" + "".join(f"{f'{size} pairs':>20}" for size in sizes) + f"{'all':>8}")
    for rate in sorted({row["rate"] for row in rows}):
        of_rate = [row for row in rows if row["rate"] == rate]
        cells = ""
        for size in sizes:
            accuracies = [row["accuracy"] for row in of_rate if row["size"] == size]
            cell = f"{statistics.mean(accuracies):.3f} ({min(accuracies):.3f})" if accuracies else ""
            cells += f"{cell:>20}"
        print(f"{rate:<10g}{cells}{statistics.mean(row['accuracy'] for row in of_rate):>8.3f}")
    print("(mean over seeds, the lowest in brackets)")
    for n in sorted({row["test"] for row in rows}):
        half = wilson95(0.5, n)[1] - 0.5  # the widest: at a share of 0.5
        print(f"(each run's accuracy is a share of n={n} pairs: a 95 % interval of +- {half:.3f} at most)")


def main(argv: list[str] | None = None) -> int:
    return run(rate_study, sys.argv[1:] if argv is None else argv, "eval.rates")


if __name__ == "__main__":
    sys.exit(main())
