"""The iterations of `rovrm.csr`: search, pairs, DPO, and the policy that the next one starts from."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from tqdm.auto import tqdm

from rovrm.alignment.calibrators import Calibrator, ClipCalibrator
from rovrm.alignment.csr_pairs import REASONS, make_pairs
from rovrm.alignment.csr_report import write_report
from rovrm.alignment.search import search
from rovrm.best_of_n.choose import image_paths
from rovrm.best_of_n.folder import prompts_done
from rovrm.common.errors import UserError
from rovrm.common.files import new_folder, read_jsonl, write_json, write_jsonl
from rovrm.common.notes import refuse_changes
from rovrm.data.example import Example
from rovrm.data.prompts import check_images, load_prompts
from rovrm.model.loading import is_reward_model, load_config
from rovrm.model.policy import Policy
from rovrm.settings.command_line import parse, save
from rovrm.settings.keys import CsrConfig, DpoConfig
from rovrm.settings.trainer_keys import check_trainer_keys
from rovrm.world.default import BASE

WORLD = "world:visual?n=512&questions=describe&seed=7"
MODEL_FILES = ("*.json", "*.jinja", "*.safetensors", "*.model", "*.txt")  # of a policy's folder
INDIFFERENT = ("out", "device", "iterations")  # settings that change no iteration


def check_run(config: CsrConfig) -> CsrConfig:
    """The settings with their defaults, noted in `out`. Raises UserError, before a model is loaded, for settings that
    contradict each other and for a folder begun with others."""
    if config.calibrator in ("clip", "both") and not config.clip:
        raise UserError(f"calibrator={config.calibrator} needs a CLIP model; set clip=FOLDER_OR_HUB_ID")
    if config.calibrator in ("rovrm", "both"):
        if config.model == CsrConfig.model and not os.path.isdir(config.model):
            raise UserError(
                f"model={config.model!r} is not there yet; train it with python -m rovrm.train, or give model="
            )
    if config.data and not config.policy:
        raise UserError("data without policy: the shipped tiny policy knows pictures of the world alone; give policy=")
    config = replace(config, policy=config.policy or BASE, data=config.data or [WORLD])
    if is_reward_model(load_config(config.policy, config.trust_remote_code)):
        raise UserError(f"policy={config.policy!r} is a reward model; give a model that generates text")
    check_trainer_keys(parse(DpoConfig, dpo_words(config, config.policy, Path(config.out)), "rovrm.csr: dpo").trainer)
    settings = Path(config.out) / "config.yaml"
    if settings.is_file():
        noted = asdict(CsrConfig()) | yaml.safe_load(settings.read_text())
        now = asdict(config)
        for key in INDIFFERENT:
            noted[key] = now[key]
        refuse_changes(config.out, noted, now, "; give another out=, or remove that folder")
    save(config, settings)
    return config


def run_iterations(
    config: CsrConfig, dpo: Callable[[list[str]], int], calibrators_of: Callable[[CsrConfig], dict[str, Calibrator]]
) -> None:
    """All iterations, each from the policy of the one before it.

    Args:
        dpo: the command `rovrm.dpo`.
        calibrators_of: makes the calibrators by name; called only where there is something to search.
    """
    examples = load_prompts(config.data, config.image_root)
    without = [example.id for example in examples if not example.images]
    if without:
        raise UserError(f"{len(without)} of {len(examples)} prompts have no image, such as {without[0]}; drop them")
    check_images(examples)
    policy, summaries = config.policy, []
    for iteration in range(1, config.iterations + 1):
        folder = Path(config.out) / f"iter{iteration}"
        folder.mkdir(exist_ok=True)
        summary = _search_and_pair(config, examples, policy, folder, iteration, calibrators_of)
        summaries.append(summary)
        _print_summary(iteration, summary)
        if not summary["pairs"]:
            counts = ", ".join(f"{summary[reason]} {reason}" for reason in REASONS)
            raise UserError(
                f"{folder}: not one pair of {summary['prompts']} prompts ({counts}); raise steps.n or steps.max, or "
                "lower margin"
            )
        policy = _train(config, policy, folder, dpo)
        write_report(Path(config.out), summaries)
    print(f"\npolicy: {policy}\nreport: {Path(config.out) / 'report.html'}")


# ---- search and pairs ------------------------------------------------------------------------------------------------


def _search_and_pair(
    config: CsrConfig,
    examples: list[Example],
    policy: str,
    folder: Path,
    iteration: int,
    calibrators_of: Callable[[CsrConfig], dict[str, Calibrator]],
) -> dict[str, Any]:
    """Searches for what is not in candidates.jsonl yet; writes pairs.jsonl and summary.json, which follow from it."""
    path = folder / "candidates.jsonl"
    done = prompts_done(path, config.batch_size, examples, candidates_given=False)
    truncated = 0
    if done < len(examples):
        model = Policy.from_pretrained(
            policy, device=config.device, dtype=config.dtype, trust_remote_code=config.trust_remote_code
        )
        calibrators = calibrators_of(config)
        if done:
            print(f"{done} of {len(examples)} prompts are in {path} already; going on behind them")
        with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
            for start in tqdm(
                range(done, len(examples), config.batch_size),
                desc=f"search {iteration}",
                disable=bool(os.environ.get("TQDM_DISABLE")),
            ):
                batch = examples[start : start + config.batch_size]
                seed = (config.seed * 1_000_003 + iteration) * 1_000_003 + start
                try:
                    trees = search(model, calibrators, batch, config, seed)
                except torch.OutOfMemoryError as error:
                    raise UserError(
                        f"partial answers to {len(batch)} prompts do not fit into memory; lower batch_size or steps.n "
                        f"({str(error).splitlines()[0]})"
                    ) from error
                for example, nodes in zip(batch, trees, strict=True):
                    images = image_paths(example, str(folder))
                    record = {"id": example.id, "prompt": example.prompt, "images": images, "nodes": nodes}
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
                file.flush()
        clip = calibrators.get("clip")
        truncated = clip.truncated if isinstance(clip, ClipCalibrator) else 0
    if truncated:
        print(f"{truncated} steps were longer than the CLIP model reads, and cut for it")
    rows, summary = make_pairs(read_jsonl(path), folder, config.margin)
    write_jsonl(folder / "pairs.jsonl", rows)
    write_json(folder / "summary.json", summary)
    return summary


def _print_summary(iteration: int, summary: dict[str, Any]) -> None:
    counts = ", ".join(f"{summary[key]} {key}" for key in ("pairs", *REASONS))
    print(f"\niteration {iteration}: {summary['prompts']} prompts, {counts}")
    if summary["pairs"]:
        for key, chosen in summary["chosen"].items():
            print(f"  mean {key:<12} chosen {chosen:.3f}, rejected {summary['rejected'][key]:.3f}")


# ---- training --------------------------------------------------------------------------------------------------------


def _train(config: CsrConfig, policy: str, folder: Path, dpo: Callable[[list[str]], int]) -> str:
    """Trains the policy on the iteration's pairs. Returns the folder of the result."""
    merged = folder / "merged"
    if (merged / "config.json").is_file():
        return str(merged)
    if dpo(dpo_words(config, policy, folder)):
        raise UserError(f"the training of {folder / 'dpo'} failed; its message is above")
    trained = folder / "dpo" / "phase3-visual"
    with new_folder(merged) as partial:
        for pattern in MODEL_FILES:
            for file in trained.glob(pattern):
                if file.name not in ("phase.json", "settings.json"):
                    _link(file, partial / file.name)
    return str(merged)


def dpo_words(config: CsrConfig, policy: str, folder: Path) -> list[str]:
    """The words of rovrm.dpo for an iteration, whose files are in `folder`."""
    words = [f"out={folder / 'dpo'}", "phase=3", f"model={policy}", f"visual.data={folder / 'pairs.jsonl'}"]
    words += [f"seed={config.seed}", f"dtype={config.dtype}", f"trust_remote_code={config.trust_remote_code}".lower()]
    return words + [f"{key}={value}" for key, value in _flat(config.dpo)]


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Keys and values of nested mappings, `visual.epochs` and so on."""
    found = []
    for key, value in values.items():
        found += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return found


def _link(file: Path, place: Path) -> None:
    """The same file in another place, copied where it cannot be linked."""
    try:
        os.link(file, place)
    except OSError:
        shutil.copy2(file, place)
