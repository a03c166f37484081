"""Rows as files and data sets hold them, with the place each came from."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rovrm.common.errors import UserError, described, shown
from rovrm.data.images import ImageRef

SPLIT_WORD = re.compile(r"(?<![a-z])(train|test|validation|valid|val|dev)(?![a-z])")
PARTS = ("bytes", "path")  # how data sets store an image
BATCH = 1000  # rows fetched at once; large enough that Arrow's overhead per call vanishes


@dataclass(slots=True)
class Source:
    """A source as written (`text`), taken apart. n: how many examples; weight: its share among several sources; pairs:
    whether ranked lists become their pairs."""

    text: str
    name: str
    split: str | None = None
    config: str | None = None
    revision: str | None = None
    reader: str | None = None
    n: int | None = None
    weight: float | None = None
    pairs: bool = False
    columns: dict[str, str] = field(default_factory=dict)  # canonical name -> theirs
    options: dict[str, str] = field(default_factory=dict)  # of the synthetic world alone


@dataclass(slots=True)
class Row:
    """One row. values is None for a row that could not be parsed, and `problem` then says why.

    location: "file, row 12" (1-based; in a JSONL file or a table the line number). data_file: where relative image
    paths start. stem, number: parts of the id a row without one gets.
    """

    values: dict[str, Any] | None
    location: str
    stem: str
    number: int
    data_file: str | None = None
    problem: str = ""
    raw: str = ""


@dataclass(slots=True)
class Rows:
    """Rows by index. take(indices) yields them in that order. kinds: for the choice of a reader, by data file, every
    column seen and a first row, since the files of a folder may differ in format."""

    name: str
    kinds: dict[str | None, tuple[list[str], dict[str, Any]]]
    size: int
    take: Callable[[Iterable[int]], Iterator[Row]]

    def __len__(self) -> int:
        return self.size

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(column for columns, _ in self.kinds.values() for column in columns))


def choose_split(source: Source, splits: Iterable[str]) -> str:
    names = list(splits)
    if source.split is not None:
        if source.split in names:
            return source.split
        raise UserError(f"source {source.text!r}: no split {source.split!r}; it has {', '.join(names)}")
    if "train" in names or len(names) == 1:
        return "train" if "train" in names else names[0]
    raise UserError(f"source {source.text!r}: which split? It has {', '.join(names)}; add ?split=NAME")


def json_row(file: Path, number: int, value: Any, raw: str, problem: str = "") -> Row:
    if not isinstance(value, dict):
        problem = problem or f"a row is a JSON object, got {type(value).__name__}; write {{...}}"
        raw, value = raw or shown(value), None
    return Row(value, f"{file}, row {number}", file.stem, number, str(file), problem, raw)


def json_rows(name: str, rows: list[Row]) -> Rows:
    firsts: dict[str | None, dict[str, Any]] = {}
    columns: dict[str | None, dict[str, None]] = {}
    for row in (row for row in rows if row.values is not None):
        firsts.setdefault(row.data_file, row.values or {})
        columns.setdefault(row.data_file, {}).update(dict.fromkeys(row.values or ()))
    kinds = {file: (list(columns[file]), first) for file, first in firsts.items()}
    return Rows(name, kinds, len(rows), lambda indices: (rows[i] for i in indices))


def list_rows(rows: Iterable[Any], name: str) -> Rows:
    """Rows that are already dicts in memory (a list given to the trainer)."""
    listed = [Row(dict(row), f"{name}, row {number}", name, number) for number, row in enumerate(rows, 1)]
    return json_rows(name, listed)


# ---- data sets -------------------------------------------------------------------------------------------------------


def dataset_rows(dataset: Any, name: str, stem: str, data_file: str | None = None) -> Rows:
    """Rows of a `datasets.Dataset`. Cells of image columns become ImageRef (or lists of them); a video or audio cell
    becomes that word, so that readers can refuse it. None is read: only the columns' offsets and validity bits are.
    """
    if not len(dataset):
        raise UserError(f"source {name!r}: the data set has no rows; choose another split")
    media = [column for column, feature in dataset.features.items() if _holds_bytes(feature)]
    texts = dataset.remove_columns(media).with_format("arrow")
    pictures = dataset.select_columns(media).with_format("arrow") if media else None
    counts = {column: _counts(pictures, column) for column in media}
    others = {c: kind for c in media for kind in ("Video", "Audio") if kind in repr(dataset.features[c])}

    def cells(index: int) -> dict[str, Any]:
        found = {column: _refs(pictures, index, column, count[index]) for column, count in counts.items()}
        return found | {column: kind.lower() for column, kind in others.items() if found[column]}

    def take(indices: Iterable[int]) -> Iterator[Row]:
        chosen = list(indices)
        for start in range(0, len(chosen), BATCH):
            batch = chosen[start : start + BATCH]
            for index, (values, problem) in zip(batch, _texts(texts, batch), strict=True):
                values = None if values is None else values | cells(index)
                yield Row(values, f"{name}, row {index + 1}", stem, index + 1, data_file, problem)

    kinds: dict[str | None, Any] = {data_file: (dataset.column_names, next(take([0])).values or {})}
    return Rows(name, kinds, len(dataset), take)


def _texts(texts: Any, batch: list[int]) -> list[tuple[dict[str, Any] | None, str]]:
    """(cells, "") of each row; (None, why not) of one that cannot be read: damaged files hold what is no text."""
    try:
        return [(row, "") for row in (texts[batch].to_pylist() if texts.column_names else [{} for _ in batch])]
    except Exception as error:  # Arrow's errors have no common class
        if len(batch) == 1:
            return [(None, f"the row cannot be read ({described(error)}); write the file again")]
        return [_texts(texts, [index])[0] for index in batch]


def _holds_bytes(feature: Any) -> bool:
    """Image, Video or Audio, a list of them, or the plain {"bytes", "path"} that other tools write."""
    import datasets

    if isinstance(feature, (datasets.Image, datasets.Video, datasets.Audio)):
        return True
    if isinstance(feature, dict):
        return "bytes" in feature and "path" in feature
    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    return inner is not None and _holds_bytes(inner)


def _counts(pictures: Any, column: str) -> list[int]:
    """Images per row: -1 for a single image, 0 for none, else the length of the list."""
    import pyarrow
    from pyarrow import compute

    counts: list[int] = []
    for batch in pictures.select_columns([column]).iter(BATCH):
        cells = batch.column(column)
        if pyarrow.types.is_struct(cells.type):
            # call_function, because pyarrow.compute makes its functions at run time, unseen by type checkers
            parts = [compute.call_function("struct_field", [cells], compute.StructFieldOptions([p])) for p in PARTS]
            valid = zip(*(part.is_valid().to_pylist() for part in parts), strict=True)
            counts += [-1 if any(stored) else 0 for stored in valid]
        else:
            counts += [length or 0 for length in compute.call_function("list_value_length", [cells]).to_pylist()]
    return counts


def _refs(pictures: Any, row: int, column: str, count: int) -> Any:
    if count == -1:
        return ImageRef(dataset=pictures, row=row, column=column)
    if count == 0:
        return None
    return [ImageRef(dataset=pictures, row=row, column=column, item=item) for item in range(count)]
