"""The folder of rovrm.bon: which settings and models it was begun with, and what is in its bon.jsonl already.

In this order:

    check_folder(config)                                                        # before anything is computed
    done = prompts_done(path, batch_size, examples, candidates_given=False)     # the first prompts need no answers
    records = read_records(path, allow_empty=False)                             # when all prompts have one
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from rovrm.best_of_n.curve import best_place
from rovrm.common.errors import UserError
from rovrm.common.files import read_json, read_jsonl, write_json, write_jsonl
from rovrm.common.notes import changed_keys, refuse_changes
from rovrm.data.example import Example
from rovrm.settings.command_line import save
from rovrm.settings.keys import BonConfig

RECORDS = "bon.jsonl"
INDIFFERENT = ("out", "device")  # settings that do not change the answers
CANDIDATE, PICTURE = 300, 4096  # bytes of a candidate in bon.jsonl, and of a small picture that is kept, about


def check_folder(config: BonConfig) -> None:
    """Notes settings and models in `out`. Raises UserError where it holds candidates made with others."""
    out = Path(config.out)
    settings_file, models_file = out / "config.yaml", out / "models.json"
    models = {"model": _weight_files(config.model), "policy": _weight_files(config.policy)}
    if (out / RECORDS).is_file() and settings_file.is_file():
        noted = asdict(BonConfig()) | yaml.safe_load(settings_file.read_text())  # an earlier version had fewer keys
        settings = asdict(config)
        for key in INDIFFERENT:
            noted[key] = settings[key]
        refuse_changes(config.out, noted, settings, "; give another out=, or remove that folder")
    if (out / RECORDS).is_file() and models_file.is_file():
        changed = changed_keys(read_json(models_file), models)
        if changed:
            raise UserError(
                f"{config.out} holds answers and scores of another {changed[0]} that lay in "
                f"{getattr(config, changed[0])!r}; give another out=, or remove that folder"
            )
    write_json(models_file, models)
    save(config, settings_file)


def _weight_files(folder: str) -> dict[str, list[int]]:
    """Size and time of each file of weights in a folder, by which another model in its place shows; nothing for a hub
    id."""
    if not folder or not os.path.isdir(folder):
        return {}
    sizes_and_times = {}
    for file in sorted(Path(folder).rglob("*.safetensors")):
        if "checkpoints" not in file.parts:
            sizes_and_times[str(file.relative_to(folder))] = [file.stat().st_size, file.stat().st_mtime_ns]
    return sizes_and_times


def bytes_needed(config: BonConfig, examples: Sequence[Example]) -> int:
    """What these prompts add to `out`, about."""
    candidates = sum(max(len(example.responses), *config.n, 1) for example in examples)
    pictures = sum(ref.path is None for example in examples for ref in example.images)
    return CANDIDATE * candidates + PICTURE * pictures


# ---- bon.jsonl -------------------------------------------------------------------------------------------------------


def prompts_done(path: Path, batch_size: int, examples: Sequence[Example], candidates_given: bool) -> int:
    """How many of the prompts, from the first on, have a record already.

    Records behind the last whole batch are cut off the file, and with them a line that is not whole: batches stay the
    same, and so do the answers, which depend on the batch they are sampled in.

    Args:
        path: bon.jsonl, which need not be there.
        batch_size: prompts of a batch.
        examples: the prompts of this run.
        candidates_given: the examples' responses are the candidates, which must be the same too.

    Raises:
        UserError: the file is about other prompts.
    """
    if not path.is_file():
        return 0
    content = path.read_bytes()
    lines = content[: content.rfind(b"\n") + 1].splitlines(keepends=True)
    for place, line in enumerate(lines):
        if place >= len(examples) or not _is_about(json.loads(line), examples[place], candidates_given):
            raise UserError(f"{path} holds other prompts or candidates than the data; give another out=, or remove it")
    done = len(lines)
    if done < len(examples):  # the last batch of all may be a smaller one
        done -= done % batch_size
    with open(path, "r+b") as file:
        file.truncate(sum(len(line) for line in lines[:done]))
    return done


def _is_about(record: dict[str, Any], example: Example, candidates_given: bool) -> bool:
    """Whether a record is about this prompt, its image files and, where these are given, its candidates."""
    if record["id"] != example.id or record["prompt"] != example.prompt:
        return False
    if candidates_given and record.get("candidates", example.responses) != example.responses:  # none beside an error
        return False
    if len(record["images"]) != len(example.images):
        return False
    for path, ref in zip(record["images"], example.images, strict=True):
        if ref.path is not None and os.path.abspath(ref.path) != path:
            return False
    return True


def read_records(path: Path, allow_empty: bool) -> list[dict[str, Any]]:
    """The records of bon.jsonl. In those of an earlier version, by which an empty answer could win, the best is chosen
    again: in the file too, and their number is printed."""
    records = read_jsonl(path)
    changed = 0
    for record in records:
        if "error" in record:
            continue
        best = best_place(record["candidates"], record["scores"], allow_empty)
        if best != record["best"]:
            record["best"] = best
            changed += 1
    if changed:
        print(
            f"in {changed} prompts of {path} the best was empty, as an earlier version chose; now it is one with text"
        )
        write_jsonl(path, records)
    return records
