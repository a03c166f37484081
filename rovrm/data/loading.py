"""Examples of a phase: all sources read, n of their rows drawn, ids made unique.

    loaded = load_examples("a.jsonl?weight=0.3,owner/name?weight=0.7", n=10000)
    loaded.examples, loaded.rejected

No row is dropped in silence: what cannot be used is in `Loaded.rejected` with its place, field, value and reason. Rows
that were not drawn are not read, and so not listed.
"""

import logging
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rovrm.common.errors import BadRows, UserError, one_line, shown
from rovrm.data.bad_rows import BadRow, first_rejection, rejection
from rovrm.data.captions import load_captions, with_caption
from rovrm.data.columns import check_columns
from rovrm.data.dataset_rows import dataset_rows
from rovrm.data.example import Example
from rovrm.data.raw_rows import Row, Source, rows_of_dicts
from rovrm.data.reader import RowReader
from rovrm.data.sources import load_rows, parse_sources

logger = logging.getLogger(__name__)

Draw = Literal["random", "first"]  # which n rows: drawn with the seed, or the first
Usable = Callable[[list[Example]], list[Example] | None]


@dataclass(slots=True)
class Loaded:
    """examples; rejected: one {"location", "id", "field", "value", "reason"} per row that cannot be used."""

    examples: list[Example] = field(default_factory=list)
    rejected: list[dict[str, str]] = field(default_factory=list)


# ---- loading ---------------------------------------------------------------------------------------------------------


def load_examples(
    sources: str | Iterable[str],
    *,
    columns: dict[str, str] | None = None,
    reader: str | None = None,
    image_root: str | None = None,
    captions: str | None = None,
    n: int | None = None,
    select: Draw = "random",
    seed: int = 0,
    images_needed: bool = True,
    usable: Usable = list,
    say: bool = True,
) -> Loaded:
    """The examples of all sources, in the order of the sources and their rows; no image is opened.

    Args:
        sources: as a setting writes them (rovrm/data/sources.py). A source's own `n` limits that source. `weight`s, on
            all sources or none, fix the shares; the total is then the largest, up to n, that repeats no row.
        columns: our name -> theirs, for every source that has the column.
        reader: the format of the rows, for sources that name none; None to find it from the columns.
        image_root: the folder of relative image paths; None for the data file's folder and its parents.
        captions: a file whose captions every row must find one in.
        n: how many examples in all; None for all.
        select: which n.
        seed: of the draw.
        images_needed: whether an image file that is not there spoils its row.
        usable: gives those of some examples that can be used, each with its location and id. Every example is given to
            it once, and what it leaves out is made up for by further rows, so that n counts what can be used; None ends
            the drawing.
        say: whether what a user should know of the rows is logged: by one of several processes.

    Raises:
        UserError: for a source or setting that is wrong.
        BadRows: when not one row can be used.
    """
    parsed = parse_sources(sources)
    shares = _shares(parsed)
    table = load_captions(captions) if captions else None
    opened = [load_rows(source) for source in parsed]
    columns = columns or {}
    # A mapping for all sources is a mistake only if none of them has the column.
    check_columns(columns, list(dict.fromkeys(column for rows in opened for column in rows.columns)))
    pools: list[Pool] = []
    for source, rows, share in zip(parsed, opened, shares, strict=True):
        check_columns(source.columns, rows.columns)
        own_columns = {canonical: theirs for canonical, theirs in columns.items() if theirs in rows.columns}
        row_reader = RowReader(
            rows,
            own_columns | source.columns,
            reader=source.reader or reader,
            image_root=image_root,
            captions=table,
            images_needed=images_needed,
            pairs=source.pairs,
        )
        # How many good rows are read: of the only source n, of one with a weight its share of n, rounded up. Of several
        # without weights all: the n are drawn of all their rows together, in the end.
        limits = [source.n]
        if len(parsed) == 1:
            limits.append(n)
        elif n is not None and share is not None:
            limits.append(int(n * share) + 1)
        limit = min((number for number in limits if number is not None), default=None)
        pools.append(Pool(source, row_reader, limit, select, seed, weighted=share is not None))
    return _drawn(pools, shares, n, select, seed, usable, say)


def as_examples(dataset: Any, say: bool = True) -> list[Example]:
    """A list of Examples as it is; a `datasets.Dataset` or a list of dicts in any known format, read.
    say: as in `load_examples`.

    Raises UserError for a data set without a length, and for the first row that cannot be read.
    """
    if not hasattr(dataset, "__len__"):
        raise UserError(f"{type(dataset).__name__} has no length; give a datasets.Dataset or a list, not a stream")
    if hasattr(dataset, "features"):
        rows = dataset_rows(dataset, "dataset", stem="dataset")
    else:
        listed = list(dataset)
        if all(isinstance(row, Example) for row in listed):
            return listed
        rows = rows_of_dicts(listed, "dataset")
    pool = Pool(Source("dataset", "dataset"), RowReader(rows, {}), None, "first", 0)
    loaded = _drawn([pool], [None], None, "first", 0, say=say)
    if loaded.rejected:
        raise UserError(first_rejection(loaded.rejected))
    return loaded.examples


def use_captions(examples: Sequence[Example]) -> Loaded:
    """The examples that have a caption of their own; the others are rejected, and so are those whose caption is a
    best-ranked answer, which would give the answer away."""
    loaded = Loaded()
    for example in examples:
        try:
            loaded.examples.append(with_caption(example, None))
        except BadRow as error:
            loaded.rejected.append(rejection(example.location, example.id, error))
    return loaded


# ---- one source ------------------------------------------------------------------------------------------------------

Key = tuple[int, int]  # of an example in its source: the number of its row, and that of the pair in it


class Pool:
    """The examples of one source, read in the order of the draw, as many as are asked for.

    Args:
        source, reader: what is read, and what reads its rows.
        limit: how many usable examples are wanted; None for all.
        select, seed: which of them.
        weighted: whether a share of them, drawn at random, may be cut off.

    Attributes:
        good: the examples that could be read, in the order of the draw.
        rejected: the rows that could not.
        unusable: those of `good` that the caller cannot use.
    """

    def __init__(
        self, source: Source, reader: RowReader, limit: int | None, select: Draw, seed: int, weighted: bool = False
    ):
        self.source, self.reader, self.limit = source, reader, limit
        self.good: dict[Key, Example] = {}
        self.rejected: list[dict[str, str]] = []
        self.unusable: set[Key] = set()
        # Bad rows are made up for: rows are read, in the order of the draw, until enough of them are good. So what is
        # drawn for a smaller n is part of what is drawn for a larger.
        order = list(range(len(reader.rows)))
        self._rng = _generator(seed, source)
        shuffled = select == "random" and (limit is not None or weighted)
        if shuffled:
            self._rng.shuffle(order)
        self._rows: Iterator[tuple[int, Row | None]] = zip(order, reader.rows.take(order), strict=True)
        # Pairs are drawn from those of all lists: those of the first lists alone would be few prompts with all their
        # pairs.
        self._all_at_once = shuffled and reader.pairs

    def keys(self) -> list[Key]:
        """The usable examples in the order of the draw, at most `limit`. Reads on until there are so many."""
        while self._all_at_once or not self._has_enough():
            index, row = next(self._rows, (0, None))
            if row is None:
                break
            for place, part in enumerate(self.reader(row)):
                if isinstance(part, BadRow):
                    self.rejected.append(rejection(row.location, _id_of(row), part))
                else:
                    self.good[index, place] = part
        if self._all_at_once:
            keys = list(self.good)
            self._rng.shuffle(keys)
            self.good, self._all_at_once = {key: self.good[key] for key in keys}, False
        return [key for key in self.good if key not in self.unusable][: self.limit]

    def _has_enough(self) -> bool:
        return self.limit is not None and len(self.good) - len(self.unusable) >= self.limit


def _id_of(row: Row) -> str:
    """The id of a row that cannot be used, whatever stands there."""
    own = (row.values or {}).get("id")
    return f"{row.stem}-{row.number}" if own in (None, "") else shown(own)


def _generator(seed: int, source: Source) -> random.Random:
    # By the name alone: the same rows are drawn wherever the data lie, and whatever stands beside them. A text seeds
    # through SHA-512, so hash randomisation plays no part.
    name = Path(source.name).name
    return random.Random(f"{seed}:{name}".encode("utf-8", "surrogateescape"))  # a name may hold any byte


# ---- several sources -------------------------------------------------------------------------------------------------


def _shares(parsed: Sequence[Source]) -> list[float | None]:
    """The weights, summing to 1; None for each source when there are none."""
    without = [source.text for source in parsed if source.weight is None]
    if len(without) == len(parsed):
        return [None] * len(parsed)
    if without:
        raise UserError(f"source {without[0]!r} has no weight, others have; give every source a weight=W, or none")
    weights = [source.weight or 0.0 for source in parsed]
    return [weight / sum(weights) for weight in weights]


def _drawn(
    pools: Sequence[Pool],
    shares: Sequence[float | None],
    n: int | None,
    select: Draw,
    seed: int,
    usable: Usable = list,
    say: bool = True,
) -> Loaded:
    """n usable examples of all sources. Rows are drawn, looked at, and those that cannot be used made up for, until no
    new ones come."""
    ready: dict[tuple[int, Key], Example] = {}  # by the source and its key, as `usable` gave them
    looked_at: set[tuple[int, Key]] = set()
    while True:
        drawn = _keys(pools, shares, n, select, seed)
        new = sorted(set(drawn) - looked_at)
        if not new:
            break
        looked_at.update(new)
        examples = [pools[i].good[key] for i, key in new]
        found = usable(examples)
        if found is None:
            break
        kept = {(example.location, example.id): example for example in found}
        for (i, key), example in zip(new, examples, strict=True):
            if (example.location, example.id) in kept:
                ready[i, key] = kept[example.location, example.id]
            else:
                pools[i].unusable.add(key)
    loaded = Loaded([ready[key] for key in sorted(drawn) if key in ready])
    for pool in pools:
        loaded.rejected += pool.rejected
    if not looked_at and loaded.rejected:
        names = ", ".join(pool.source.text for pool in pools)
        message = f"{names}: not one row can be used. {first_rejection(loaded.rejected)}"
        raise BadRows(message, rows=loaded.rejected)
    for note in _notes(pools, n, shares, len(drawn)) if say else []:
        logger.warning("%s", one_line(note))
    _make_ids_unique(loaded.examples)
    _tell_files_apart(loaded.examples)
    return loaded


def _keys(
    pools: Sequence[Pool], shares: Sequence[float | None], n: int | None, select: Draw, seed: int
) -> list[tuple[int, Key]]:
    """The examples to take, by source and key: of what the sources give, their shares, and n of them all."""
    keys = [pool.keys() for pool in pools]
    for i, size in enumerate(_sizes([len(of_source) for of_source in keys], shares, n)):
        keys[i] = (keys[i] if select == "random" else sorted(keys[i]))[:size]
    joined = [(i, key) for i, of_source in enumerate(keys) for key in sorted(of_source)]
    if n is None or len(joined) <= n:
        return joined
    if select == "first":
        return joined[:n]
    # Drawn of all, so that a row that proves unusable moves no other; what it leaves open is filled by the rest.
    unusable = {(i, key) for i, pool in enumerate(pools) for key in pool.unusable}
    everything = sorted({*joined, *unusable})
    rng = random.Random(f"{seed}:total")
    first = [everything[place] for place in rng.sample(range(len(everything)), n)]
    rest = sorted(set(everything) - set(first))
    rng.shuffle(rest)
    return [key for key in first + rest if key not in unusable][:n]


def _sizes(have: Sequence[int], shares: Sequence[float | None], n: int | None) -> list[int]:
    """How many of each source to take: the largest total, up to n, that repeats no row; all without weights."""
    weights = [share for share in shares if share is not None]
    if not weights:
        return list(have)
    # The source that is shortest for its weight decides how large the whole can be.
    largest = min(count / weight for count, weight in zip(have, weights, strict=True))
    total = int(min(largest, n if n is not None else largest) + 1e-9)  # 0.29 * 100 is a little less than 29
    sizes = [int(total * weight + 1e-9) for weight in weights]
    # Rounding down leaves some over: one more for each of the parts that lost most by it.
    left_over = total - sum(sizes)
    by_loss = sorted(range(len(sizes)), key=lambda i: sizes[i] - total * weights[i])
    for i in by_loss[:left_over]:
        sizes[i] = min(sizes[i] + 1, have[i])
    return sizes


def _notes(pools: Sequence[Pool], n: int | None, shares: Sequence[float | None], found: int) -> list[str]:
    """What fell short of a number that was asked for, and what the readers have to say of the rows."""
    notes = []
    for pool in pools:
        wanted, count = pool.source.n, len(pool.good) - len(pool.unusable)
        if wanted is not None and count < wanted and (pool.limit is None or pool.limit >= wanted):
            notes.append(f"source {pool.source.text!r}: n={wanted} asked for, {count} usable rows found: all taken")
        notes += pool.reader.notes()
    if n is not None and found < n and shares[0] is not None:
        notes.append(f"n={n} asked for, but the weights allow {found} examples without repeating a row")
    elif n is not None and found < n:
        notes.append(f"n={n} asked for, {found} usable rows found: all taken")
    return notes


# ---- names -----------------------------------------------------------------------------------------------------------


def _make_ids_unique(examples: Iterable[Example]) -> None:
    """Numbers ids that repeat: a, a-2, a-3, passing over those that are in use."""
    seen: set[str] = set()
    counts: dict[str, int] = {}  # by id as given, the last number tried: equal ids are not counted through anew
    for example in examples:
        name = example.id
        while example.id in seen:
            counts[name] = counts.get(name, 1) + 1
            example.id = f"{name}-{counts[name]}"
        seen.add(example.id)


def _tell_files_apart(examples: Iterable[Example]) -> None:
    """Where several files have one name, their examples' `source` gets as much of the path as tells them apart."""
    by_name: dict[str, dict[str, list[Example]]] = {}  # name of the file -> its path -> its examples
    for example in examples:
        path = example.location.rpartition(", row ")[0]
        if example.source == Path(path).stem:  # not where the row names its source itself
            by_name.setdefault(example.source, {}).setdefault(path, []).append(example)
    for by_path in by_name.values():
        if len(by_path) == 1:
            continue
        for short_name, of_file in zip(_short_names(list(by_path)), by_path.values(), strict=True):
            for example in of_file:
                example.source = short_name


def _short_names(files: Sequence[str]) -> list[str]:
    """The last parts of paths, as few as tell them apart: `train/a` and `test/a`; else the paths."""
    parts = [Path(file).with_suffix("").parts for file in files]
    for count in range(2, max(map(len, parts)) + 1):
        names = ["/".join(path[-count:]) for path in parts]
        if len(set(names)) == len(names):
            return names
    return list(files)
