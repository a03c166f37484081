"""Best-of-n: n answers per prompt, sampled from a policy or read from a file; a reward model keeps the best.

    python -m rovrm.bon --n 8                          # the tiny policy of the world and the demo's reward model
    python -m rovrm.bon --n 8 model=runs/mine/phase3-visual policy=llava-hf/llava-1.5-7b-hf data=prompts.jsonl out=bon
    python -m rovrm.bon model=runs/mine/phase3-visual candidates=answers.jsonl out=bon

`data` holds `prompt` and, where there are any, `image` or `images`; answers in it are not read, and a policy must be
named for it. All candidates of a prompt are scored in one shared-prefix row, equal texts once. Writes into `out`:
config.yaml, bon.jsonl, summary.json and curve.svg (what smaller n would give, from the same candidates; --n
1,2,4,8,16,32 names the points). A line of bon.jsonl:

- `id, prompt, images` (paths; images without a file are written to out/images), `candidates, scores, seed`;
- `best`, an index, the first of equal scores, of one with text where there is any (allow_empty=true: of any); `empty`
  and `repeated`, the indices of candidates without text and of those that repeat an earlier one (scored like others);
- sampled ones: `logprobs` (sums over tokens), `tokens`, `cut` (the indices of those that max_new_tokens cut off, scored
  like others too), `greedy` (text, score, log-probability, whether it is cut); from a file: `names`;
- a prompt that cannot be used (an image is missing or broken, it is too long) has `error` in place of all but id,
  prompt and images.

With the world's own pictures the truth is known: then the summary counts hallucinations, and report.html shows the
pictures with their answers. The same command goes on where it was stopped.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rovrm.best_of_n.choose import best_of_n, best_place
from rovrm.common.disk import room_for
from rovrm.common.errors import UserError
from rovrm.common.notes import changed_keys, refuse_changes
from rovrm.data.prompts import check_images, load_prompts
from rovrm.settings.command_line import parse, run, save
from rovrm.settings.keys import BonConfig

if TYPE_CHECKING:
    from rovrm.data.example import Example
    from rovrm.model.policy import Policy
    from rovrm.model.scorer import RewardScorer


WORLD = "world:visual?split=test&questions=describe&n=800"
CANDIDATE, PICTURE = 300, 4096  # bytes of a candidate in bon.jsonl, and of a small picture that is kept, about
INDIFFERENT = ("out", "device")  # settings that do not change the answers
AT_ONCE = {True: 320, False: 32}  # candidates sampled at once: by the tiny policy, by others


def bon(argv: list[str]) -> None:
    config = _settled(parse(BonConfig, argv, "python -m rovrm.bon"))
    lock = _take_folder(config)

    from tqdm.auto import tqdm

    from rovrm.best_of_n.report import summarise

    examples, names = _prompts(config)
    path, size = Path(config.out) / "bon.jsonl", config.batch_size or 1
    done = _done(path, size, examples, bool(config.candidates))
    batches = range(done, len(examples), size)
    with room_for(config.out, _bytes(config, examples[done:]), "the answers"):
        if batches:
            scorer, policy = _models(config)
            if done:
                print(f"{done} of {len(examples)} prompts are in {path} already; going on behind them")
            with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:  # half an emoji in a text
                for start in tqdm(batches, desc="best of n"):
                    batch = examples[start : start + size]
                    rows = best_of_n(scorer, batch, config, policy, start)
                    rows = [row | ({"names": names[row["id"]]} if row["id"] in names else {}) for row in rows]
                    file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                    file.flush()
        summarise(config, examples, _chosen_rows(path, config.allow_empty))
    del lock


def _bytes(config: BonConfig, examples: Sequence["Example"]) -> int:
    """What these prompts add to `out`, about."""
    candidates = sum(max(len(example.responses), *config.n, 1) for example in examples)
    pictures = sum(ref.path is None for example in examples for ref in example.images)
    return CANDIDATE * candidates + PICTURE * pictures


def _settled(config: BonConfig) -> BonConfig:
    """The settings with their defaults filled in. Raises UserError for those that exclude each other."""
    if config.candidates and config.policy:
        raise UserError("policy and candidates are both given; answers are sampled from the one or read from the other")
    sampled = not config.candidates
    if sampled and config.data and not config.policy:
        _check_world(config.data)
    n = sorted(set(config.n)) or ([8] if sampled else [])
    size = config.batch_size or max(1, AT_ONCE[sampled and not config.policy] // (max(n) if n else 1))
    return replace(config, n=n, batch_size=size, data=config.data or ([WORLD] if sampled else []))


def _check_world(data: Sequence[str]) -> None:
    """Raises UserError for data of which the shipped policy, which knows the world alone, would say noise."""
    from rovrm.data.sources import WORLD as PREFIX
    from rovrm.data.sources import parse_sources

    other = next((source.text for source in parse_sources(data) if not source.name.startswith(PREFIX)), None)
    if other is not None:
        raise UserError(
            f"data={other!r} without policy: the shipped tiny policy knows pictures of the world alone; give "
            "policy=FOLDER_OR_HUB_ID, or candidates=FILE of answers in place of data"
        )


def _prompts(config: BonConfig) -> tuple[list["Example"], dict[str, list[str]]]:
    """The prompts, with the candidates of a file; and by id, where they are known, the names of who gave them."""
    if not config.candidates:
        return load_prompts(config.data, config.image_root), {}
    from rovrm.best_of_n.candidates import load_candidates

    pools = load_candidates(config.candidates, config.data, config.image_root, max(config.n, default=0))
    check_images([pool.example for pool in pools])
    return [pool.example for pool in pools], {pool.example.id: pool.names for pool in pools if any(pool.names)}


def _models(config: BonConfig) -> tuple["RewardScorer", "Policy | None"]:
    from rovrm.model.policy import Policy
    from rovrm.model.scorer import RewardScorer
    from rovrm.world.default import BASE

    if config.model == BonConfig.model and not os.path.isdir(config.model):
        raise UserError(f"model={config.model!r} is not there yet; train it with python -m rovrm.train, or give model=")
    device, remote = config.device, config.trust_remote_code
    scorer = RewardScorer.from_pretrained(
        config.model, device=device or None, dtype=config.dtype, rows=config.rows, trust_remote_code=remote
    )
    scorer.max_pixels = config.max_pixels
    if config.candidates:
        return scorer, None
    policy = Policy.from_pretrained(config.policy or BASE, device=device, dtype=config.dtype, trust_remote_code=remote)
    return scorer, policy


# ---- the folder ------------------------------------------------------------------------------------------------------


def _take_folder(config: BonConfig) -> Any:
    """Locks `out` and notes the settings there. Raises UserError where it holds candidates made with other settings."""
    import yaml

    from rovrm.common.files import lock_folder

    lock = lock_folder(config.out)
    path = Path(config.out) / "config.yaml"
    if (Path(config.out) / "bon.jsonl").is_file() and path.is_file():
        noted, now = asdict(BonConfig()) | yaml.safe_load(path.read_text()), asdict(config)
        for key in INDIFFERENT:
            noted[key] = now[key]
        refuse_changes(config.out, noted, now, "; give another out=, or remove that folder")
    _check_models(config)
    save(config, path)
    return lock


def _check_models(config: BonConfig) -> None:
    """Notes which models made the candidates. Raises UserError where another now lies in the place of one of them."""
    from rovrm.common.files import read_json, write_json

    path, now = Path(config.out) / "models.json", {"model": _mark(config.model), "policy": _mark(config.policy)}
    if (Path(config.out) / "bon.jsonl").is_file() and path.is_file():
        changed = changed_keys(read_json(path), now)
        if changed:
            place = getattr(config, changed[0])
            raise UserError(
                f"{config.out} holds answers and scores of another {changed[0]} that lay in {place!r}; give another "
                "out=, or remove that folder"
            )
    write_json(path, now)


def _mark(folder: str) -> dict[str, list[int]]:
    """Size and time of each file of weights in a folder; nothing for a hub id."""
    files = sorted(Path(folder).rglob("*.safetensors")) if folder and os.path.isdir(folder) else []
    kept = [file for file in files if "checkpoints" not in file.parts]
    return {str(file.relative_to(folder)): [file.stat().st_size, file.stat().st_mtime_ns] for file in kept}


def _done(path: Path, batch_size: int, examples: Sequence["Example"], given: bool) -> int:
    """Prompts already in bon.jsonl; what is behind the last whole batch is cut off, so that batches stay the same.
    given: the candidates are those of the examples."""
    if not path.is_file():
        return 0
    raw = path.read_bytes()
    lines = raw[: raw.rfind(b"\n") + 1].splitlines(keepends=True)
    for line, example in zip(map(json.loads, lines), [*examples, *[None] * len(lines)], strict=False):
        if example is None or not _is_of(line, example, given):
            raise UserError(f"{path} holds other prompts or candidates than the data; give another out=, or remove it")
    whole = len(lines) if len(lines) == len(examples) else len(lines) // batch_size * batch_size
    with open(path, "r+b") as file:
        file.truncate(sum(len(line) for line in lines[:whole]))
    return whole


def _chosen_rows(path: Path, allow_empty: bool) -> list[dict[str, Any]]:
    """The lines of bon.jsonl. Those of an earlier version, by which an empty answer could win, are chosen again: in the
    file too, and their number is printed."""
    from rovrm.common.files import write_jsonl

    with open(path, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    moved = 0
    for row in (row for row in rows if "error" not in row):
        best = best_place(row["candidates"], row["scores"], allow_empty)
        moved += best != row["best"]
        row["best"] = best
    if moved:
        print(f"in {moved} prompts of {path} the best was empty, as an earlier version chose; now it is one with text")
        write_jsonl(path, rows)
    return rows


def _is_of(line: dict[str, Any], example: "Example", given: bool) -> bool:
    """Whether a line of bon.jsonl is about this prompt, its image files and, where these are given, its candidates."""
    paths = [None if ref.path is None else os.path.abspath(ref.path) for ref in example.images]
    same = len(paths) == len(line["images"]) and all(
        path in (None, name) for path, name in zip(paths, line["images"], strict=True)
    )
    answers = line.get("candidates", example.responses) if given else example.responses
    return same and (line["id"], line["prompt"], answers) == (example.id, example.prompt, example.responses)


def main(argv: list[str] | None = None) -> int:
    return run(bon, sys.argv[1:] if argv is None else argv, "rovrm.bon")


if __name__ == "__main__":
    sys.exit(main())
