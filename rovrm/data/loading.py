"""From sources to examples: reading, drawing n of them, and captions.

    loaded = load_examples("a.jsonl?weight=0.3,owner/name?weight=0.7", n=10000)
    captioned = use_captions(loaded.examples, "captions.jsonl")      # then captions.caption_example on each

No row is dropped in silence: what cannot be used is in `Loaded.rejected` with its place, field, value and reason.
"""

import functools
import itertools
import json
import logging
import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from rovrm.common.errors import BadRows, UserError, shown
from rovrm.data.captions import Captions, load_captions, with_caption
from rovrm.data.example import Example
from rovrm.data.formats import READERS, check_columns, find_reader, rename
from rovrm.data.images import find_image
from rovrm.data.messages import BadRow
from rovrm.data.raw_rows import Row, Rows, Source, dataset_rows, list_rows
from rovrm.data.reader import read_row
from rovrm.data.sources import load_rows, parse_sources

logger = logging.getLogger(__name__)

Select = Literal["random", "first"]


@dataclass(slots=True)
class Loaded:
    """examples; rejected: one {"location", "id", "field", "value", "reason"} per row that cannot be used; counts: per
    source {"read", "kept", "rejected"}. Rows that were not drawn are not read: read = good + rejected, kept <= good. A
    row read as its pairs counts as so many."""

    examples: list[Example] = field(default_factory=list)
    rejected: list[dict[str, str]] = field(default_factory=list)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)


# ---- loading ---------------------------------------------------------------------------------------------------------


def load_examples(
    sources: str | Iterable[str],
    *,
    columns: dict[str, str] | None = None,
    reader: str | None = None,
    image_root: str | None = None,
    captions: str | None = None,
    n: int | None = None,
    select: Select = "random",
    seed: int = 0,
    images_needed: bool = True,
) -> Loaded:
    """The examples of all sources, in the order of the sources and their rows; no image is opened.

    columns: {canonical: theirs} for every source that has the column. captions: a file whose captions every row must
    find one in. n: how many in all; select: which, drawn with the seed or the first. A source's own `n` limits that
    source; `weight`s (on all sources or none) fix the shares, and the total is then the largest, up to n, that repeats
    no row. images_needed=False: an image file that is not there does not spoil its row. Raises UserError for a source
    or setting that is wrong, and when not one row can be used.
    """
    parsed = parse_sources(sources)
    shares = _shares(parsed)
    table = load_captions(captions) if captions else None
    opened = [load_rows(source) for source in parsed]
    _check_shared_columns(columns or {}, opened)
    parts: list[Loaded] = []
    for source, rows, share in zip(parsed, opened, shares, strict=True):
        own = {canonical: theirs for canonical, theirs in (columns or {}).items() if theirs in rows.columns}
        check_columns(source.columns, rows.columns)
        rows_reader = _Reader(
            rows, own | source.columns, source.reader or reader, image_root, table, images_needed, source.pairs
        )
        total = n if len(parsed) == 1 else None if n is None or share is None else int(n * share) + 1
        limit = min((limit for limit in (source.n, total) if limit is not None), default=None)
        parts.append(_read(source, rows_reader, limit, select, _generator(seed, source)))
    _draw_shares(parts, shares, n, select, seed)
    return _joined(parts, n, select, seed)


def as_examples(dataset: Any) -> list[Example]:
    """A list of Examples as it is; a `datasets.Dataset` or a list of dicts in any known format, read. Raises UserError
    for a data set without a length, and for the first row that cannot be read."""
    if not hasattr(dataset, "__len__"):
        raise UserError(f"{type(dataset).__name__} has no length; give a datasets.Dataset or a list, not a stream")
    if not hasattr(dataset, "features"):
        listed = list(dataset)
        if all(isinstance(row, Example) for row in listed):
            return listed
        rows = list_rows(listed, "dataset")
    else:
        rows = dataset_rows(dataset, "dataset", stem="dataset")
    loaded = _read(Source("dataset", "dataset"), _Reader(rows, {}), None, "first", random.Random(0))
    if loaded.rejected:
        raise UserError(_first_rejected(loaded.rejected))
    return _joined([loaded], None, "first", 0).examples


class _Reader:
    """Turns the rows of one source into examples; the format of each file is found once."""

    def __init__(
        self,
        rows: Rows,
        mapping: dict[str, str],
        name: str | None = None,
        image_root: str | None = None,
        captions: Captions | None = None,
        images_needed: bool = True,
        pairs: bool = False,
    ):
        self.rows, self.mapping, self.captions, self.pairs = rows, mapping, captions, pairs
        self.find = functools.partial(find_image, image_root=image_root, must_exist=images_needed)
        if name is not None and name not in READERS:
            raise UserError(f"reader={name}: no such reader; takes {', '.join(READERS)}")
        self.names = {file: name or self._find(file) for file in rows.kinds}

    def _find(self, file: str | None) -> str:
        columns, first = self.rows.kinds[file]
        renamed = {canonical for canonical, theirs in self.mapping.items() if theirs in columns}
        try:
            return find_reader((set(columns) - {*self.mapping.values()}) | renamed, rename(first, self.mapping))
        except UserError as error:
            raise UserError(f"{file or self.rows.name}: {error}") from error

    def __call__(self, row: Row) -> list[Example | BadRow]:
        """The row's example, or each of its pairs, or why it cannot be used."""
        try:
            example = self._example(row)
        except BadRow as error:
            return [error]
        parts = pairs_of(example) if self.pairs else [example]
        return [self._captioned(part) for part in parts]

    def _captioned(self, example: Example) -> Example | BadRow:
        try:
            return with_caption(example, self.captions) if self.captions else example
        except BadRow as error:
            return error

    def _example(self, row: Row) -> Example:
        if row.values is None:
            raise BadRow("row", row.raw, row.problem)
        find = functools.partial(self.find, data_file=row.data_file)
        return read_row(
            self.names[row.data_file],
            rename(row.values, self.mapping),
            find,
            location=row.location,
            fallback_id=f"{row.stem}-{row.number}",
            source=row.stem,
        )


def pairs_of(example: Example) -> list[Example]:
    """A ranked list as its pairs of different rank, with the id ID-i-j: the places, from 0 for the best, of the better
    and the worse response. A pair, and a list of ties alone (which the checks refuse), stay as they are."""
    ranks, responses = example.ranks, example.responses
    if len(ranks) <= 2 or len(set(ranks)) == 1:
        return [example]
    pairs = []
    for i, j in itertools.combinations(range(len(ranks)), 2):
        if ranks[i] != ranks[j]:
            name, both = f"{example.id}-{i}-{j}", [responses[i], responses[j]]
            pairs.append(replace(example, id=name, responses=both, ranks=[0, 1]))
    return pairs


def _read(source: Source, reader: _Reader, limit: int | None, select: Select, rng: random.Random) -> Loaded:
    """Reads one source until `limit` examples are good, or to its end. Pairs are drawn from all of them: those of the
    first lists alone would be few prompts, each with all its pairs."""
    order = list(range(len(reader.rows)))
    drawn = limit is not None and select == "random"
    if drawn:
        rng.shuffle(order)
    good: dict[tuple[int, int], Example] = {}
    rejected: list[dict[str, str]] = []
    for index, row in zip(order, reader.rows.take(order), strict=True):
        for place, part in enumerate(reader(row)):
            if isinstance(part, BadRow):
                given = (row.values or {}).get("id")
                id_ = f"{row.stem}-{row.number}" if given in (None, "") else shown(given)
                rejected.append(_rejected(row.location, id_, part))
            else:
                good[index, place] = part
        if limit is not None and len(good) >= limit and not (drawn and reader.pairs):
            break
    keys = list(good)
    if drawn and reader.pairs:
        rng.shuffle(keys)
    kept = sorted(keys[:limit])
    if source.n is not None and len(good) < source.n and (limit is None or limit >= source.n):
        logger.warning("source %r: n=%d asked for, %d usable rows found: all taken", source.text, source.n, len(good))
    counts = {"read": len(good) + len(rejected), "kept": len(kept), "rejected": len(rejected)}
    return Loaded([good[key] for key in kept], rejected, {source.text: counts})


def _rejected(location: str, id_: str, error: BadRow) -> dict[str, str]:
    value = error.value
    try:
        value = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    except Exception:  # keys that are no texts, lists nested too deeply, numbers that are too long
        value = shown(value)
    return {"location": location, "id": id_, "field": error.field, "value": value[:200], "reason": error.reason}


def _first_rejected(rejected: Sequence[dict[str, str]]) -> str:
    first = rejected[0]
    where = f"{first['location']}: {first['field']} = {first['value']!r}"
    return f"{len(rejected)} rows cannot be used; the first, {where}: {first['reason']}"


def _check_shared_columns(columns: dict[str, str], opened: Sequence[Rows]) -> None:
    """A mapping for all sources is a mistake only if none of them has the column."""
    check_columns(columns, list(dict.fromkeys(column for rows in opened for column in rows.columns)))


def _generator(seed: int, source: Source) -> random.Random:
    # By the name alone: the same rows are drawn wherever the data lie, and whatever stands beside them. A text seeds
    # through SHA-512, so hash randomisation plays no part.
    name = Path(source.name).name
    return random.Random(f"{seed}:{name}".encode("utf-8", "surrogateescape"))  # a name may hold any byte


def _shares(parsed: Sequence[Source]) -> list[float | None]:
    """The weights, summing to 1; None for each source when there are none."""
    without = [source.text for source in parsed if source.weight is None]
    if len(without) == len(parsed):
        return [None] * len(parsed)
    if without:
        raise UserError(f"source {without[0]!r} has no weight, others have; give every source a weight=W, or none")
    weights = [source.weight or 0.0 for source in parsed]
    return [weight / sum(weights) for weight in weights]


def _draw_shares(parts: Sequence[Loaded], shares: Sequence[float | None], n: int | None, select: Select, seed: int):
    """Cuts the parts to their shares, in place: the largest total, up to n, that repeats no row."""
    known = [share for share in shares if share is not None]
    if not known:
        return
    have = [len(part.examples) for part in parts]
    largest = min(count / share for count, share in zip(have, known, strict=True))
    total = int(min(largest, n if n is not None else largest) + 1e-9)
    if n is not None and total < n:
        logger.warning("n=%d asked for, but the weights allow %d examples without repeating a row", n, total)
    sizes = [int(total * share + 1e-9) for share in known]
    # The largest remainders get what rounding down has left over.
    for i in sorted(range(len(sizes)), key=lambda i: sizes[i] - total * known[i])[: total - sum(sizes)]:
        sizes[i] = min(sizes[i] + 1, have[i])
    for i, (part, size) in enumerate(zip(parts, sizes, strict=True)):
        part.examples = _draw(part.examples, size, select, random.Random(f"{seed}:share:{i}"))
        next(iter(part.counts.values()))["kept"] = len(part.examples)


def _draw(examples: list[Example], size: int, select: Select, rng: random.Random) -> list[Example]:
    """`size` of the examples, in their order."""
    if size >= len(examples):
        return examples
    chosen = range(size) if select == "first" else sorted(rng.sample(range(len(examples)), size))
    return [examples[i] for i in chosen]


def _joined(parts: Sequence[Loaded], n: int | None, select: Select, seed: int) -> Loaded:
    owners = [(example, next(iter(part.counts))) for part in parts for example in part.examples]
    examples = [example for example, _ in owners]
    if n is not None and len(examples) > n:
        keep = {id(example) for example in _draw(examples, n, select, random.Random(f"{seed}:total"))}
        owners = [(example, owner) for example, owner in owners if id(example) in keep]
    elif n is not None and len(examples) < n:
        logger.warning("n=%d asked for, %d usable rows found: all taken", n, len(examples))
    loaded = Loaded([example for example, _ in owners], [bad for part in parts for bad in part.rejected])
    for part in parts:
        for text, counts in part.counts.items():
            loaded.counts[text] = counts | {"kept": sum(owner == text for _, owner in owners)}
    if not loaded.examples and loaded.rejected:
        message = f"{', '.join(loaded.counts)}: not one row can be used. {_first_rejected(loaded.rejected)}"
        raise BadRows(message, rows=loaded.rejected)
    _make_ids_unique(loaded.examples)
    _tell_files_apart(loaded.examples)
    return loaded


def _make_ids_unique(examples: Iterable[Example]) -> None:
    """Numbers ids that repeat: a, a-2, a-3, passing over those that are taken."""
    seen: set[str] = set()
    counts: dict[str, int] = {}  # by id as given, the last number tried: equal ids are not counted through anew
    for example in examples:
        name = example.id
        while example.id in seen:
            counts[name] = counts.get(name, 1) + 1
            example.id = f"{name}-{counts[name]}"
        seen.add(example.id)


def _tell_files_apart(examples: Iterable[Example]) -> None:
    """Examples whose source is their file's name get as much of its path as tells files of one name apart."""
    files: dict[str, dict[str, list[Example]]] = {}  # name -> file -> its examples
    for example in examples:
        file = example.location.rpartition(", row ")[0]
        if example.source == Path(file).stem:
            files.setdefault(example.source, {}).setdefault(file, []).append(example)
    for found in files.values():
        for name, many in zip(_short_names(list(found)), found.values(), strict=True) if len(found) > 1 else ():
            for example in many:
                example.source = name


def _short_names(files: Sequence[str]) -> list[str]:
    """The last parts of paths, as few as tell them apart: `train/a` and `test/a`; else the paths."""
    parts = [Path(file).with_suffix("").parts for file in files]
    for count in range(2, max(map(len, parts)) + 1):
        names = ["/".join(path[-count:]) for path in parts]
        if len(set(names)) == len(names):
            return names
    return list(files)


# ---- captions --------------------------------------------------------------------------------------------------------


def use_captions(examples: Sequence[Example], captions: str | os.PathLike | Captions | None = None) -> Loaded:
    """Each example with its caption: its own, or one of the file's. Examples that get none are rejected.

    A caption that is the chosen answer (any best-ranked one, compared by `normalise`) would give the answer away and is
    never used; the next one in the list is. Raises UserError for a file that cannot be read or is ambiguous.
    """
    table = captions if isinstance(captions, Captions) or captions is None else load_captions(captions)
    loaded = Loaded()
    for example in examples:
        try:
            loaded.examples.append(with_caption(example, table))
        except BadRow as error:
            loaded.rejected.append(_rejected(example.location, example.id, error))
    kept, name = len(loaded.examples), table.path if table else "captions of the rows"
    loaded.counts[name] = {"read": len(examples), "kept": kept, "rejected": len(loaded.rejected)}
    return loaded
