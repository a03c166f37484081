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

import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rovrm.common.errors import UserError, shown
from rovrm.common.files import replacing, write_json, write_jsonl
from rovrm.data.messages import is_blank
from rovrm.settings.command_line import parse, run
from rovrm.settings.keys import RankConfig

if TYPE_CHECKING:
    from rovrm.data.example import Example
    from rovrm.data.raw_rows import Row

SUFFIXES = (".jsonl", ".parquet")
COUNTED = ("prompts", "errors", "images", "without", "empty", "not_finite", "duplicates", "noise", "over_max_pairs")
EMBEDDED = 100  # rows whose images are in memory at once
Counts = dict[str, int]


class Candidate(NamedTuple):
    place: int  # among the prompt's candidates, from 0
    text: str
    score: float


def rank(argv: list[str]) -> None:
    config = parse(RankConfig, argv, "python -m rovrm.rank")
    source, out = Path(config.input), Path(config.output)
    _check_files(config, source, out)

    from rovrm.data.bad_rows import fence
    from rovrm.data.raw_rows import read_json_rows

    counts: Counts = {name: 0 for name in COUNTED}
    rows: list[dict[str, Any]] = []
    for row in read_json_rows(source):
        with fence(row.location):
            rows += _rank_row(row, config, counts)
    left = (
        f"left out: {counts['empty']} empty candidates, {counts['not_finite']} without a finite score, "
        f"{counts['duplicates']} near-duplicates; {counts['noise']} pairs inside the noise (margin={config.margin:g}), "
        f"{counts['over_max_pairs']} above max_pairs"
    )
    of = f"of {counts['prompts']} prompts ({counts['without']} gave none); {counts['errors']} more rows had an error"
    of += f", {counts['images']} an image that cannot be decoded" if counts["images"] else ""
    if not rows:
        remedy = "lower margin=, or sample more candidates or at a higher temperature"
        raise UserError(f"in={str(source)!r} gives not one preference {of}; {left}; {remedy}")
    _align(rows)
    summary = {"in": str(source), "strategy": config.strategy, "margin": config.margin, "rows": len(rows), **counts}
    _write(out, rows, summary)
    print(f"{out}: {len(rows)} {'lists' if config.strategy == 'ranked' else 'pairs'} {of}\n{left}")


def _check_files(config: RankConfig, source: Path, out: Path) -> None:
    if not source.is_file():
        raise UserError(f"in={str(source)!r} is no file; give one of candidates and scores, such as bon.jsonl")
    if out.is_dir() or out.resolve() == source.resolve():
        raise UserError(f"out={str(out)!r} is {'a folder' if out.is_dir() else 'the input file'}; name a file to write")
    if out.suffix not in SUFFIXES:
        raise UserError(f"out={str(out)!r} ends in {out.suffix!r}; name a file that ends in {' or '.join(SUFFIXES)}")
    if config.max_pairs is not None and config.strategy != "all_pairs":
        raise UserError(f"max_pairs={config.max_pairs} is for strategy=all_pairs, got {config.strategy}; leave it out")


# ---- one prompt ------------------------------------------------------------------------------------------------------


def _rank_row(row: "Row", config: RankConfig, counts: Counts) -> list[dict[str, Any]]:
    """The rows that an input line gives. Raises UserError for a line that is not as rovrm.bon writes it."""
    if row.values is None:
        raise UserError(row.problem)
    if row.values.get("error") and not row.values.get("scores"):
        counts["errors"] += 1
        return []
    found = _candidates(row, counts)
    example = _prompt(row, config)
    if config.output.endswith(".parquet") and not _readable(example):
        counts["images"] += 1
        return []
    kept = distinct(found, config.margin, config.similarity)
    made = (_list if config.strategy == "ranked" else _pairs)(kept, config, counts)
    counts["prompts"] += 1
    counts["without"] += not made
    counts["duplicates"] += len(found) - len(kept)
    images = [os.path.abspath(ref.path or "") for ref in example.images]
    return [{"id": example.id + suffix, "images": images, "prompt": example.prompt} | part for suffix, part in made]


def _candidates(row: "Row", counts: Counts) -> list[Candidate]:
    """Those that can be compared, best first (equal scores in their order)."""
    name = "responses" if "responses" in (row.values or {}) else "candidates"
    texts, scores = _listed(row, name, str), _listed(row, "scores", (int, float, type(None)))
    if len(texts) != len(scores):
        raise UserError(f"{len(texts)} candidates and {len(scores)} scores; give one score for each")
    found = []
    for place, (text, score) in enumerate(zip(texts, scores, strict=True)):
        if is_blank(text):
            counts["empty"] += 1
        elif score is None or not abs(score) <= sys.float_info.max:  # NaN written as null
            counts["not_finite"] += 1
        else:
            found.append(Candidate(place, text, float(score)))
    return sorted(found, key=lambda one: -one.score)


def _listed(row: "Row", name: str, takes: Any) -> list[Any]:
    value, words = (row.values or {}).get(name), "texts" if takes is str else "numbers"
    if not isinstance(value, list) or not value:
        raise UserError(f"{name} = {shown(value, 80)!r}; give a list of {words}, as rovrm.bon writes it")
    for item in value:
        if not isinstance(item, takes) or isinstance(item, bool):
            raise UserError(f"{name} hold {shown(item, 80)!r}; give {words} only, or drop the row")
    return value


def _prompt(row: "Row", config: RankConfig) -> "Example":
    """Prompt and images as the trainer will read them. Raises UserError for what it would refuse."""
    from rovrm.data.images import find_image
    from rovrm.data.reader import read_row

    find = partial(find_image, image_root=config.image_root or None, data_file=row.data_file)
    values = (row.values or {}) | {"responses": [""], "ranks": None, "scores": None, "margin": None}
    return read_row("ranked", values, find, fallback_id=f"{row.stem}-{row.number}")


def _readable(example: "Example") -> bool:
    try:
        return all(ref.open() for ref in example.images)
    except UserError:
        return False


def distinct(found: Sequence[Candidate], margin: float, similarity: float) -> list[Candidate]:
    """Candidates, best first, without copies of better ones: the same text, or one at least `similarity` alike (case
    and white space aside) whose reward is not `margin` lower."""
    kept: list[Candidate] = []
    plain = {one.place: " ".join(one.text.casefold().split()) for one in found}
    for one in found:
        if not any(
            one.text.strip() == better.text.strip()
            or (not apart(better, one, margin) and likeness(plain[better.place], plain[one.place]) >= similarity)
            for better in kept
        ):
            kept.append(one)
    return kept


def likeness(a: str, b: str) -> float:
    """2 LCS / (len(a) + len(b)) of two texts, not both empty; LCS: characters of the longest common subsequence.

    Bit-parallel (Hyyro 2004): a row of the table is one integer, so that long answers take milliseconds where difflib's
    ratio, a lower bound of this one, takes a second."""
    places: dict[str, int] = defaultdict(int)
    for i, character in enumerate(a):
        places[character] |= 1 << i
    row = full = (1 << len(a)) - 1
    for character in b:
        hits = row & places.get(character, 0)
        row = (row + hits | row - hits) & full
    return 2 * (len(a) - row.bit_count()) / (len(a) + len(b))


def apart(better: Candidate, worse: Candidate, margin: float) -> bool:
    return better.score > worse.score and better.score - worse.score >= margin


Made = list[tuple[str, dict[str, Any]]]  # per row: what its id ends in, and its columns


def _pairs(kept: list[Candidate], config: RankConfig, counts: Counts) -> Made:
    ends = [(kept[0], kept[-1])] if len(kept) > 1 else []
    pairs = ends if config.strategy == "best_worst" else list(combinations(kept, 2))
    clear = [pair for pair in pairs if apart(*pair, config.margin)]
    clear.sort(key=lambda pair: pair[1].score - pair[0].score)
    taken = clear[: config.max_pairs]
    counts["noise"] += len(pairs) - len(clear)
    counts["over_max_pairs"] += len(clear) - len(taken)
    return [(f"-{better.place}-{worse.place}", _pair(better, worse)) for better, worse in taken]


def _pair(better: Candidate, worse: Candidate) -> dict[str, Any]:
    # No column `margin`: rovrm's readers take it as a Bradley-Terry margin.
    return {
        "chosen": [{"role": "assistant", "content": better.text}],
        "rejected": [{"role": "assistant", "content": worse.text}],
        "score_chosen": better.score,
        "score_rejected": worse.score,
    }


def _list(kept: list[Candidate], config: RankConfig, counts: Counts) -> Made:
    firsts: list[Candidate] = []  # of each rank
    ranks = []
    for one in kept:
        if not firsts or apart(firsts[-1], one, config.margin):
            firsts.append(one)
        ranks.append(len(firsts) - 1)
    counts["noise"] += sum(a == b for a, b in combinations(ranks, 2))
    lists = {"responses": [one.text for one in kept], "ranks": ranks, "scores": [one.score for one in kept]}
    return [("", lists)] if len(firsts) > 1 else []


# ---- the file --------------------------------------------------------------------------------------------------------


def _align(rows: list[dict[str, Any]]) -> None:
    """One type per column: no column of images where no row has any; else every message as blocks of type and text."""
    if not any(row["images"] for row in rows):
        for row in rows:
            del row["images"]
        return
    for row in rows:
        row["prompt"] = [message | {"content": _blocks(message["content"])} for message in row["prompt"]]


def _blocks(content: Any) -> list[dict[str, Any]]:
    listed = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return [{"type": block["type"], "text": block.get("text")} for block in listed]


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
    """With the images inside, which `Dataset.to_parquet` would leave where they are."""
    import datasets
    from datasets.table import embed_table_storage
    from pyarrow.parquet import ParquetWriter

    data = datasets.Dataset.from_list(rows)
    if "images" in rows[0]:
        data = data.cast(datasets.Features(data.features | {"images": datasets.List(datasets.Image())}))
    with replacing(path) as temporary, ParquetWriter(temporary, data.features.arrow_schema) as writer:
        for batch in data.with_format("arrow").iter(EMBEDDED):
            writer.write_table(embed_table_storage(batch))


def main(argv: list[str] | None = None) -> int:
    return run(rank, sys.argv[1:] if argv is None else argv, "rovrm.rank")


if __name__ == "__main__":
    sys.exit(main())
