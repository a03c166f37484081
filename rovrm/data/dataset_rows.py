"""Rows of a `datasets.Dataset` (parquet files, saved folders, the hub), memory mapped, as raw rows.

No image is read for it. An image column is found by its type, a cell of it becomes an ImageRef that reads its bytes
when it is opened, and how many images a row holds is known from Arrow's offsets and validity bits alone.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from rovrm.common.errors import UserError, described
from rovrm.data.images import ImageRef
from rovrm.data.raw_rows import Row, Rows

PARTS = ("bytes", "path")  # how data sets store an image
BATCH = 1000  # rows fetched at once; large enough that Arrow's overhead per call vanishes


def dataset_rows(dataset: Any, name: str, stem: str, data_file: str | None = None) -> Rows:
    """The raw rows of a data set.

    Cells of image columns become an ImageRef, or a list of them; a video or audio cell becomes that word, so that
    readers can refuse it. Raises UserError for a data set without rows.

    Args:
        name: of the data set, for locations. stem: for the ids of rows that have none.
        data_file: where the search for relative image paths starts.
    """
    if not len(dataset):
        raise UserError(f"source {name!r}: the data set has no rows; choose another split")
    media = [column for column, feature in dataset.features.items() if _holds_bytes(feature)]
    # Two views of the same files: one that is read as Python values, and one whose cells stay where they are.
    texts = dataset.remove_columns(media).with_format("arrow")
    pictures = dataset.select_columns(media).with_format("arrow") if media else None
    counts = {column: _counts(pictures, column) for column in media}
    others: dict[str, str] = {}  # media columns that hold no images -> what they hold
    for column in media:
        for kind in ("Video", "Audio"):
            if kind in repr(dataset.features[column]):
                others[column] = kind.lower()

    def media_cells(index: int) -> dict[str, Any]:
        cells: dict[str, Any] = {}
        for column, count in counts.items():
            cells[column] = _refs(pictures, index, column, count[index])
            if cells[column] and column in others:  # and under its kind, the name that readers refuse
                cells[column], cells[others[column]] = others[column], column
        return cells

    def take(indices: Iterable[int]) -> Iterator[Row]:
        chosen = list(indices)
        for start in range(0, len(chosen), BATCH):
            batch = chosen[start : start + BATCH]
            for index, (values, problem) in zip(batch, _texts(texts, batch), strict=True):
                values = None if values is None else values | media_cells(index)
                yield Row(values, f"{name}, row {index + 1}", stem, index + 1, data_file, problem)

    kinds: dict[str | None, Any] = {data_file: (dataset.column_names, next(take([0])).values or {})}
    return Rows(name, kinds, len(dataset), take)


def _texts(texts: Any, batch: list[int]) -> list[tuple[dict[str, Any] | None, str]]:
    """(cells, "") of each row; (None, why not) of one that cannot be read: damaged files hold what is no text."""
    if not texts.column_names:
        return [({}, "") for _ in batch]
    try:
        return [(cells, "") for cells in texts[batch].to_pylist()]
    except Exception as error:  # Arrow's errors have no common class
        # One row may spoil its whole batch: read row by row, the others are saved.
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
            # A single image is there where its bytes or its path are.
            # call_function, because pyarrow.compute makes its functions at run time, unseen by type checkers
            parts = [compute.call_function("struct_field", [cells], compute.StructFieldOptions([p])) for p in PARTS]
            valid = zip(*(part.is_valid().to_pylist() for part in parts), strict=True)
            counts += [-1 if any(stored) else 0 for stored in valid]
        else:
            counts += [length or 0 for length in compute.call_function("list_value_length", [cells]).to_pylist()]
    return counts


def _refs(pictures: Any, row: int, column: str, count: int) -> Any:
    """A cell of an image column, given its count of images (`_counts`)."""
    if count == -1:
        return ImageRef(dataset=pictures, row=row, column=column)
    if count == 0:
        return None
    return [ImageRef(dataset=pictures, row=row, column=column, item=item) for item in range(count)]
