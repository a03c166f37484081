"""Scores a JSONL file of prompts, images and responses.

    python -m rovrm.score model=runs/demo/phase3-visual in=pairs.jsonl out=scores.jsonl

An input line holds `prompt` (or `question`, `instruction`), optionally `image` or `images` (paths), and `responses`, or
`chosen` and `rejected`, or `response`. Every line gets one output line, in order: {"id", "rewards"}, or {"id", "error"}
where it cannot be scored. Lines are written as they come; the same command again goes on where it was stopped.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rovrm.config import ScoreConfig, parse, run
from rovrm.errors import UserError

if TYPE_CHECKING:
    from rovrm.scorer import RewardScorer

CHUNK = 256  # lines scored and written at a time


def score(argv: list[str]) -> None:
    config = parse(ScoreConfig, argv, "python -m rovrm.score")
    source, out = Path(config.input), Path(config.output)
    if not source.is_file():
        raise UserError(f"in={config.input!r} is no file; give a JSONL file with prompt, responses and images")
    with open(source, encoding="utf-8") as file:
        lines = [line for line in file if line.strip()]
    if not lines:
        raise UserError(f"in={config.input!r} is empty")
    partial = out.with_name(out.name + ".partial")
    header = {
        "model": config.model,
        "in": str(source.resolve()),
        "bytes": source.stat().st_size,
        "normalize": config.normalize,
    }
    done = _done(partial, header)

    from rovrm.scorer import RewardScorer

    scorer = RewardScorer.from_pretrained(
        config.model,
        device=config.device or None,
        dtype=config.dtype,
        rows=config.rows,
        workers=config.workers,
        trust_remote_code=config.trust_remote_code,
    )
    if config.max_length:
        scorer.max_length = config.max_length
    if config.normalize:
        scorer.require_stats()
    if done:
        print(f"{done} of {len(lines)} lines are in {partial} already; going on behind them")
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(partial, "a", encoding="utf-8") as file:
        if not done:
            file.truncate(0)
            file.write(json.dumps(header) + "\n")
        for record in _score_lines(scorer, lines, done, source, config):
            file.write(json.dumps(record) + "\n")
            file.flush()
    failed = _finish(partial, out)
    print(
        f"scored {len(lines) - failed} lines into {out}" + (f"; {failed} lines have an error instead" if failed else "")
    )


def _done(partial: Path, header: dict[str, Any]) -> int:
    """Complete lines of an earlier attempt, a cut-off last one removed. Raises UserError for another attempt's file."""
    if not partial.is_file():
        return 0
    raw = partial.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    lines = whole.splitlines()
    if not lines:
        return 0
    if json.loads(lines[0]) != header:
        raise UserError(f"{partial} is from another model or input; remove it, or give another out=")
    if whole != raw:
        os.truncate(partial, len(whole))
    return len(lines) - 1


def _score_lines(
    scorer: "RewardScorer", lines: list[str], done: int, source: Path, config: ScoreConfig
) -> Iterator[dict[str, Any]]:
    from tqdm.auto import tqdm

    with tqdm(total=len(lines), initial=done, desc="scoring") as bar:
        for start in range(done, len(lines), CHUNK):
            records = _score_chunk(scorer, lines[start : start + CHUNK], start, source, config)
            yield from records
            bar.update(len(records))


def _score_chunk(
    scorer: "RewardScorer", lines: list[str], start: int, source: Path, config: ScoreConfig
) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    good: list[tuple[int, Any]] = []
    for i, line in enumerate(lines):
        record: dict[str, Any] = {"id": f"{source.stem}-{start + i + 1}"}
        records.append(record)
        try:
            row = _row(line, source, config.image_root)
            record["id"] = row["id"] = str(row.get("id", record["id"]))
            good.append((i, scorer.measured(row)))
        except UserError as error:
            record["error"] = f"{source}, line {start + i + 1}: {error}"
    for (i, _), rewards in zip(
        good, scorer.score_batch([e for _, e in good], config.batch_tokens, config.normalize), strict=True
    ):
        records[i]["rewards"] = rewards
    return records


def _row(line: str, source: Path, image_root: str) -> dict[str, Any]:
    """An input line as prompt, responses, images, with images found as in training data."""
    from rovrm.images import find_image

    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"the line is no JSON ({error})") from error
    if not isinstance(row, dict):
        raise UserError(f"the line is a {type(row).__name__}, not an object")
    prompt = next((row[key] for key in ("prompt", "question", "instruction") if key in row), None)
    responses = row.get("responses")
    if responses is None:
        responses = [row[key] for key in ("chosen", "rejected", "response") if key in row]
    images = row.get("images", row.get("image"))
    images = [] if images is None else images if isinstance(images, list) else [images]
    found = [str(find_image(image, image_root or None, source)) for image in images]
    return {"prompt": prompt, "responses": responses, "images": found} | ({"id": row["id"]} if "id" in row else {})


def _finish(partial: Path, out: Path) -> int:
    """Gives the finished file its name; how many lines hold an error."""
    lines = partial.read_text(encoding="utf-8").splitlines(keepends=True)[1:]
    temporary = out.with_name(out.name + ".tmp")
    temporary.write_text("".join(lines), encoding="utf-8")
    os.replace(temporary, out)
    partial.unlink()
    return sum("error" in json.loads(line) for line in lines)


def main(argv: list[str] | None = None) -> int:
    return run(score, sys.argv[1:] if argv is None else argv, "rovrm.score")


if __name__ == "__main__":
    sys.exit(main())
