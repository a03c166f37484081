"""Turns scored candidates into preference data: pairs for TRL's DPOTrainer and for rovrm.train, or ranked lists.

    python -m rovrm.rank in=bon/bon.jsonl out=pairs.jsonl                      # strategy=best_worst
    python -m rovrm.rank in=bon/bon.jsonl out=pairs.parquet strategy=all_pairs max_pairs=4

An input line holds `prompt` (a text or chat messages), `candidates`, their `scores` and, where there are any, `images`
(paths), as rovrm.bon writes them; lines with an `error` instead of scores are skipped. A difference of rewards below
`margin` is noise: at 0.4 the Bradley-Terry model itself gives the better answer less than 60 %.

1. Left out are empty candidates, those without a finite score, copies, and near-duplicates: texts at least `similarity`
   alike to a better one that is kept and less than `margin` below it. A near-copy with a clearly lower reward is the
   best contrast there is, and stays.
2. best_worst pairs the highest with the lowest, all_pairs makes every pair, both if they are `margin` apart. A row:
   `id` (ID-i-j, the candidates' places from 0), `images, prompt, chosen, rejected, score_chosen, score_rejected`.
   ranked makes one row per prompt, for rovrm.train: `id, images, prompt, responses` (best first), `ranks, scores`. From
   the best down, a candidate less than `margin` below the first of a rank shares that rank; with one rank: no row.

TRL's DPOTrainer takes what `datasets.load_dataset` makes of either file unchanged: in .jsonl images are absolute paths,
which the processors of transformers 5 open; in .parquet they are embedded, so that the file can move. Without any image
there is no column `images`; with some, every message holds blocks with the same keys, because Arrow wants one type.
What was left out is counted, printed and written into OUT.summary.json.
"""

import sys
from pathlib import Path
from typing import Any

from rovrm.common.errors import UserError
from rovrm.common.files import replacing, write_json, write_jsonl
from rovrm.settings.command_line import parse, run
from rovrm.settings.keys import RankConfig

SUFFIXES = (".jsonl", ".parquet")
EMBEDDED = 100  # rows whose images are in memory at once


def rank(argv: list[str]) -> None:
    config = parse(RankConfig, argv, "python -m rovrm.rank")
    source, out = Path(config.input), Path(config.output)
    _check_files(config, source, out)

    from rovrm.best_of_n.preferences import COUNTED, preference_rows
    from rovrm.data.bad_rows import fence
    from rovrm.data.raw_rows import read_json_rows

    counts = dict.fromkeys(COUNTED, 0)
    rows: list[dict[str, Any]] = []
    for row in read_json_rows(source):
        with fence(row.location):
            rows += preference_rows(row, config, counts)
    of_prompts, left_out = _counts_in_words(counts, config.margin)
    if not rows:
        remedy = "lower margin=, or sample more candidates or at a higher temperature"
        raise UserError(f"in={str(source)!r} gives not one preference {of_prompts}; {left_out}; {remedy}")
    _align(rows)
    summary = {"in": str(source), "strategy": config.strategy, "margin": config.margin, "rows": len(rows), **counts}
    _write(out, rows, summary)
    kind = "lists" if config.strategy == "ranked" else "pairs"
    print(f"{out}: {len(rows)} {kind} {of_prompts}\n{left_out}")


def _check_files(config: RankConfig, source: Path, out: Path) -> None:
    """Raises UserError for settings with which nothing could be read or written."""
    if not source.is_file():
        raise UserError(f"in={str(source)!r} is no file; give one of candidates and scores, such as bon.jsonl")
    if out.is_dir() or out.resolve() == source.resolve():
        raise UserError(f"out={str(out)!r} is {'a folder' if out.is_dir() else 'the input file'}; name a file to write")
    if out.suffix not in SUFFIXES:
        raise UserError(f"out={str(out)!r} ends in {out.suffix!r}; name a file that ends in {' or '.join(SUFFIXES)}")
    if config.max_pairs is not None and config.strategy != "all_pairs":
        raise UserError(f"max_pairs={config.max_pairs} is for strategy=all_pairs, got {config.strategy}; leave it out")


def _counts_in_words(counts: dict[str, int], margin: float) -> tuple[str, str]:
    """Of how many prompts the preferences are, and what was left out."""
    of_prompts = (
        f"of {counts['prompts']} prompts ({counts['without']} gave none); {counts['errors']} more rows had an error"
    )
    if counts["images"]:
        of_prompts += f", {counts['images']} an image that cannot be decoded"
    left_out = (
        f"left out: {counts['empty']} empty candidates, {counts['not_finite']} without a finite score, "
        f"{counts['duplicates']} near-duplicates; {counts['noise']} pairs inside the noise (margin={margin:g}), "
        f"{counts['over_max_pairs']} above max_pairs"
    )
    return of_prompts, left_out


# ---- the file --------------------------------------------------------------------------------------------------------


def _align(rows: list[dict[str, Any]]) -> None:
    """Gives each column one type, in place, as Arrow wants it: no column of images where no row has any; else every
    message as blocks with the keys `type` and `text`."""
    from rovrm.best_of_n.preferences import text_blocks

    if not any(row["images"] for row in rows):
        for row in rows:
            del row["images"]
        return
    for row in rows:
        row["prompt"] = [message | {"content": text_blocks(message["content"])} for message in row["prompt"]]


def _write(path: Path, rows: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    """Writes the rows, and the summary beside them. Raises UserError where that cannot be done."""
    try:
        if path.suffix == ".parquet":
            _write_parquet(path, rows)
        else:
            write_jsonl(path, rows)
        write_json(path.with_name(f"{path.name}.summary.json"), summary)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"out={str(path)!r} cannot be written: {reason}; name another, or make room") from error


def _write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    """With the images inside, which `Dataset.to_parquet` would leave in their files."""
    import datasets
    from datasets.table import embed_table_storage
    from pyarrow.parquet import ParquetWriter

    data = datasets.Dataset.from_list(rows)
    if "images" in rows[0]:  # so far their paths
        data = data.cast(datasets.Features(data.features | {"images": datasets.List(datasets.Image())}))
    with replacing(path) as temporary, ParquetWriter(temporary, data.features.arrow_schema) as writer:
        for batch in data.with_format("arrow").iter(EMBEDDED):
            writer.write_table(embed_table_storage(batch))


def main(argv: list[str] | None = None) -> int:
    return run(rank, sys.argv[1:] if argv is None else argv, "rovrm.rank")


if __name__ == "__main__":
    sys.exit(main())
