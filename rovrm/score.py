"""Scores a JSONL file, or a JSON list, of prompts, images and responses.

    python -m rovrm.score model=runs/demo/phase3-visual in=pairs.jsonl out=scores.jsonl

An input line holds `prompt` (or `question`, `instruction`; a string or chat messages), optionally `image` or `images`
(paths) and `system`, and `responses`, or `chosen` and `rejected`, or `response`; a `chosen` or `rejected` that is null
beside the other is an error. Lines of the formats that rovrm.train reads are scored as it reads them. Every line that
is not blank gets one output line, in order: {"id", "rewards"}, or {"id", "error"} where it cannot be scored. A line
without an `id` is called by the file's name and its line number; of a list, the items count as lines.
Results are written as they come into OUT.partial, and the same command again goes on where it was stopped; a finished
OUT is scored anew and replaced.
"""

import functools
import hashlib
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

CHUNK = 512  # lines scored and written at a time
Lines = list[tuple[int, bytes]]  # line number and content


def score(argv: list[str]) -> None:
    config = parse(ScoreConfig, argv, "python -m rovrm.score")
    source, out = Path(config.input), Path(config.output)
    lines, digest = _read_lines(source)
    partial = _writable(source, out)
    header = _header(config, digest)
    done = _done(partial, header)

    from rovrm.scorer import load_scorer

    scorer = load_scorer(config, config.workers)
    if done:
        print(f"{done} of {len(lines)} lines are in {partial} already; going on behind them")
    with open(partial, "a" if done else "w", encoding="utf-8") as file:
        if not done:
            file.write(json.dumps(header) + "\n")
        for record in _score_lines(scorer, lines, done, source, config):
            file.write(json.dumps(record) + "\n")
            file.flush()
    errors = _finish(partial, out)
    told = f"; {len(errors)} lines have an error instead, the first: {errors[0]}" if errors else ""
    if len(errors) == len(lines):
        raise UserError(f"not one of the {len(lines)} lines could be scored (see {out}){told.removeprefix('; ')}")
    print(f"scored {len(lines) - len(errors)} lines into {out}{told}")


# ---- files -----------------------------------------------------------------------------------------------------------


def _read_lines(source: Path) -> tuple[Lines, str]:
    """The lines that are not blank, as bytes (a badly encoded one is that line's error alone), and the file's sha1."""
    if not source.is_file():
        raise UserError(f"in={str(source)!r} is no file; give a JSONL file with prompt, responses and images")
    if source.suffix in (".csv", ".tsv", ".parquet"):
        raise UserError(f"in={str(source)!r} is a {source.suffix} file; write its rows as JSONL")
    content = source.read_bytes()
    split = _items(content) or content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    lines = [(number, line) for number, line in enumerate(split, start=1) if line.strip()]
    if not lines:
        raise UserError(f"in={str(source)!r} is empty; give a JSONL file with prompt, responses and images")
    return lines, hashlib.sha1(content, usedforsecurity=False).hexdigest()


def _items(content: bytes) -> list[bytes]:
    """The rows of a file that is one JSON list, or an object that holds one; none of a JSONL file."""
    from rovrm.sources import whole_json

    try:
        found = whole_json(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return []
    if isinstance(found, dict) and len(found) > 1:
        raise UserError(f"the input holds the lists {', '.join(found)}; give a file with one of them")
    rows = next(iter(found.values())) if isinstance(found, dict) else found or []
    return [json.dumps(row).encode() for row in rows]


def _writable(source: Path, out: Path) -> Path:
    """The name of the unfinished file, its folder made. Raises UserError before a model is loaded in vain."""
    if out.is_dir() or out.resolve() == source.resolve():
        raise UserError(f"out={str(out)!r} is {'a folder' if out.is_dir() else 'the input file'}; name a file to write")
    partial = out.with_name(out.name + ".partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out={str(out)!r} cannot be written: {error.strerror or error}") from error
    if not os.access(out.parent, os.W_OK):
        raise UserError(f"out={str(out)!r} cannot be written: no permission to write into its folder; name another")
    return partial


def _header(config: ScoreConfig, digest: str) -> dict[str, Any]:
    """What decides the results, as the unfinished file's first line."""
    folder = Path(config.model)
    weights = sorted([*folder.glob("*.safetensors"), *folder.glob("adapter/*.safetensors")])
    return {
        "model": os.path.abspath(config.model) if weights else config.model,
        "weights": [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in weights],
        "in": digest,
        "image_root": config.image_root,
        "max_length": config.max_length,
        "max_pixels": config.max_pixels,
        "dtype": config.dtype,
        "normalize": config.normalize,
    }


def _done(partial: Path, header: dict[str, Any]) -> int:
    """Complete lines of an earlier attempt, a cut-off last one removed. Raises UserError for another attempt's file."""
    if not partial.is_file():
        return 0
    raw = partial.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    lines = whole.splitlines()
    if not lines:
        return 0
    try:
        before = json.loads(lines[0])
    except ValueError:
        before = None
    changed = [key for key in header if key not in before or before[key] != header[key]] if before else ["all of it"]
    if changed:
        raise UserError(
            f"{partial} was begun with other settings ({', '.join(changed)}); remove it, or give another out="
        )
    os.truncate(partial, len(whole))
    return len(lines) - 1


def _finish(partial: Path, out: Path) -> list[str]:
    """Gives the finished file its name, without its header; the errors in it."""
    lines = partial.read_text(encoding="utf-8").splitlines(keepends=True)[1:]
    temporary = out.with_name(out.name + ".tmp")
    temporary.write_text("".join(lines), encoding="utf-8")
    os.replace(temporary, out)
    partial.unlink()
    return [record["error"] for record in map(json.loads, lines) if "error" in record]


# ---- lines -----------------------------------------------------------------------------------------------------------


def _score_lines(
    scorer: "RewardScorer", lines: Lines, done: int, source: Path, config: ScoreConfig
) -> Iterator[dict[str, Any]]:
    from tqdm.auto import tqdm

    with tqdm(total=len(lines), initial=done, desc="scoring") as bar:
        for start in range(done, len(lines), CHUNK):
            records = _score_chunk(scorer, lines[start : start + CHUNK], source, config)
            yield from records
            bar.update(len(records))


def _score_chunk(scorer: "RewardScorer", lines: Lines, source: Path, config: ScoreConfig) -> list[dict[str, Any]]:
    """A record per line: what cannot be read or measured gets its error, the rest is scored together."""
    from rovrm.images import find_image

    find = functools.partial(find_image, image_root=config.image_root or None, data_file=source)
    rows = [_row(line, f"{source.stem}-{number}") for number, line in lines]
    good = [row for row in rows if "error" not in row]
    scored = iter(scorer.score_or_error(good, config.batch_tokens, config.normalize, find))
    found = [UserError(row["error"]) if "error" in row else next(scored) for row in rows]
    return [
        {"id": row["id"]} | ({"error": f"{source}, line {number}: {f}"} if isinstance(f, UserError) else {"rewards": f})
        for (number, _), row, f in zip(lines, rows, found, strict=True)
    ]


def _row(line: bytes, name: str) -> dict[str, Any]:
    """An input line with its id, or {"id", "error"}."""
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        return {"id": name, "error": f"the line is no JSON ({error})"}
    if not isinstance(row, dict):
        return {
            "id": name,
            "error": f"the line is a JSON {type(row).__name__}, not an object with prompt and responses",
        }
    row.pop("error", None)
    return row | {"id": name if row.get("id") in (None, "") else str(row["id"])}


def main(argv: list[str] | None = None) -> int:
    return run(score, sys.argv[1:] if argv is None else argv, "rovrm.score")


if __name__ == "__main__":
    sys.exit(main())
