"""Scores a JSONL file, or a JSON list, of prompts, images and responses.

    python -m rovrm.score model=runs/demo/phase3-visual in=pairs.jsonl out=scores.jsonl

An input line holds `prompt` (or `question`, `instruction`; a string or chat messages), optionally `image` or `images`
(paths) and `system`, and `responses`, or `chosen` and `rejected`, or `response`; a `chosen` or `rejected` that is null
beside the other is an error. Lines of the formats that rovrm.train reads are scored as it reads them. Every line that
is not blank gets one output line, in order: {"id", "rewards"}, or {"id", "error"} where it cannot be scored. A line
without an `id` is called by the file's name and its line number; of a list, the items count as lines.

Results are written into OUT.partial, a unit of 64 lines at a time, beside OUT.settings.json; OUT.lock keeps a second
run out. The same command again goes on behind the last whole unit, and the file ends the same to the last digit; one of
another version's is refused. A finished OUT is scored anew and replaced.
"""

import contextlib
import functools
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rovrm.common.disk import room_for
from rovrm.common.errors import UserError
from rovrm.common.files import lock, read_json, write_json
from rovrm.common.notes import as_note, refuse_changes
from rovrm.settings.command_line import parse, run
from rovrm.settings.keys import ScoreConfig

if TYPE_CHECKING:
    from rovrm.data.lines import Lines
    from rovrm.model.scorer import RewardScorer

UNIT = 64  # lines that are scored apart from others, and written together: what a resumed run cuts back to
BATCH = 32  # lines of one forward, at most
UNITS = 8  # of which the lines are read and measured at once
LINE = 100  # bytes of a line of results, about


def score(argv: list[str]) -> None:
    config = parse(ScoreConfig, argv, "python -m rovrm.score")

    from rovrm.data.lines import read_lines

    source, out = Path(config.input), Path(config.output)
    lines, digest = read_lines(source)
    partial = _unfinished_file(source, out)
    with _locked(out, partial) as settings_file:
        done = _done(partial, settings_file, _settings(config, digest), len(lines))
        with room_for(out.parent, LINE * (len(lines) - done), f"{len(lines) - done} lines of {out.name}"):
            if done < len(lines):
                _score_rest(config, source, lines, done, partial)
            os.replace(partial, out)
    _report(out, len(lines))


def _score_rest(config: ScoreConfig, source: Path, lines: "Lines", done: int, partial: Path) -> None:
    """Scores the lines behind the first `done` ones, and writes each unit of them as soon as it is scored."""
    from tqdm.auto import tqdm

    from rovrm.model.scorer import load_scorer

    scorer = load_scorer(config, config.workers)
    if done:
        print(f"{done} of {len(lines)} lines are in {partial} already; going on behind them")
    with open(partial, "a", encoding="utf-8") as file, tqdm(total=len(lines), initial=done, desc="scoring") as bar:
        for start in range(done, len(lines), UNITS * UNIT):
            for records in _score_units(scorer, lines[start : start + UNITS * UNIT], source, config):
                file.write("".join(json.dumps(record) + "\n" for record in records))
                file.flush()
                bar.update(len(records))


def _score_units(
    scorer: "RewardScorer", lines: "Lines", source: Path, config: ScoreConfig
) -> Iterator[list[dict[str, Any]]]:
    """A record per line, unit by unit: what cannot be read or measured gets its error, the rest is scored together."""
    from rovrm.data.images import find_image
    from rovrm.data.lines import parse_line

    find = functools.partial(find_image, image_root=config.image_root or None, data_file=source)
    rows = [parse_line(line, f"{source.stem}-{number}") for number, line in lines]
    place = 0
    for unit in scorer.score_units(rows, UNIT, config.batch_tokens, config.normalize, find, BATCH):
        records = []
        for rewards in unit:
            records.append(_line_result(source, lines[place][0], rows[place], rewards))
            place += 1
        yield records


def _line_result(
    source: Path, number: int, row: dict[str, Any] | UserError, rewards: list[float] | UserError
) -> dict[str, Any]:
    name = f"{source.stem}-{number}" if isinstance(row, UserError) else row["id"]
    if isinstance(rewards, UserError):
        return {"id": name, "error": f"{source}, line {number}: {rewards}"}
    return {"id": name, "rewards": rewards}


def _report(out: Path, count: int) -> None:
    """Says how many lines have rewards. Raises UserError where none has."""
    errors = []
    with open(out, encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            if "error" in record:
                errors.append(record["error"])
    if len(errors) == count:
        raise UserError(f"not one of the {count} lines could be scored (see {out}); the first: {errors[0]}")
    exceptions = f"; {len(errors)} lines have an error instead, the first: {errors[0]}" if errors else ""
    print(f"scored {count - len(errors)} lines into {out}{exceptions}")


# ---- files -----------------------------------------------------------------------------------------------------------


def _unfinished_file(source: Path, out: Path) -> Path:
    """The name of the unfinished file, in a folder that is there. Raises UserError where it cannot be written, before a
    model is loaded in vain."""
    if out.is_dir() or out.resolve() == source.resolve():
        raise UserError(f"out={str(out)!r} is {'a folder' if out.is_dir() else 'the input file'}; name a file to write")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out={str(out)!r} cannot be written: {error.strerror or error}") from error
    if not os.access(out.parent, os.W_OK):
        raise UserError(f"out={str(out)!r} cannot be written: no permission to write into its folder; name another")
    return out.with_name(out.name + ".partial")


@contextlib.contextmanager
def _locked(out: Path, partial: Path) -> Iterator[Path]:
    """Holds OUT.lock. Gives the path of OUT.settings.json, which goes at the end unless an unfinished file stays.

    Raises UserError where another run is writing.
    """
    settings_file, lock_file = (out.with_name(f"{out.name}.{end}") for end in ("settings.json", "lock"))
    held = lock(lock_file)
    if held is None:
        raise UserError(f"another run is writing out={str(out)!r}; wait for it, or give another out=")
    try:
        yield settings_file
    finally:
        if not partial.exists():
            settings_file.unlink(missing_ok=True)
            with contextlib.suppress(PermissionError):  # Windows removes no open file; there the release does it
                lock_file.unlink()
        held.release()


def _settings(config: ScoreConfig, digest: str) -> dict[str, Any]:
    """What decides the results."""
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
        "batch_tokens": config.batch_tokens,
        "rows": config.rows,
        "unit": [UNIT, BATCH],
    }


def _done(partial: Path, settings_file: Path, settings: dict[str, Any], count: int) -> int:
    """How many lines an earlier attempt has written; what is behind its last whole unit is cut off, so that batches
    stay the same.

    Args:
        partial: the unfinished file, if there is one.
        settings_file: the file of the earlier attempt's settings, which become this one's.
        settings: what decides the results of this attempt.
        count: the number of lines in all.

    Raises:
        UserError: for an unfinished file that was begun with other settings.
    """
    raw = partial.read_bytes() if partial.is_file() else b""
    ends = [match.end() for match in re.finditer(b"\n", raw)]
    try:
        before = read_json(settings_file)
    except UserError:  # none is there, or not a whole one
        before = {}
    remedy = "; remove it, or give another out="
    if ends and not before:
        raise UserError(f"{partial} was begun by another version or command{remedy}")
    if ends:
        refuse_changes(partial, before, as_note(settings), remedy)
    done = len(ends) if len(ends) == count else len(ends) // UNIT * UNIT
    if raw:
        os.truncate(partial, ends[done - 1] if done else 0)
    write_json(settings_file, settings)  # after the cut: settings never stand beside lines of others
    return done


def main(argv: list[str] | None = None) -> int:
    return run(score, sys.argv[1:] if argv is None else argv, "rovrm.score")


if __name__ == "__main__":
    sys.exit(main())
