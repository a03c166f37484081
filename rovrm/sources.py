"""Sources of rows: files, folders, globs and hub data sets, read without touching image bytes.

    rows = load_rows(parse_source("openbmb/RLAIF-V-Dataset?n=500"))
    for row in rows.take(range(len(rows))): row.values, row.location      # dicts; image cells are ImageRef

A source is `NAME[?key=value&key=value]`. NAME: a .json, .jsonl, .csv, .tsv or .parquet file, a folder of such files, a
folder written by `Dataset.save_to_disk`, a glob, or a hub id `owner/name`. Parquet, saved and hub data stay memory
mapped; JSON and tables are read by the standard library, because `datasets` wants one type per column, which real files
do not have.
With `pairs=true` a ranked list becomes all its pairs of different rank, so that `n` counts pairs, not lists.
`world:text`, `world:caption` and `world:visual` are the generated pairs of the synthetic world (rovrm/world/).
"""

import glob
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rovrm.errors import UserError, described, shown
from rovrm.hints import offline
from rovrm.images import ImageRef, expanded

logger = logging.getLogger(__name__)

JSON_SUFFIXES = (".json", ".jsonl")
TABLE_SUFFIXES = (".csv", ".tsv")
SUFFIXES = (*JSON_SUFFIXES, *TABLE_SUFFIXES, ".parquet")
# What `datasets` and the hub put beside the data; none of it holds rows.
NOT_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json")
SPLIT_WORD = re.compile(r"(?<![a-z])(train|test|validation|valid|val|dev)(?![a-z])")
PARTS = ("bytes", "path")  # how data sets store an image
WORLD, WORLD_OPTIONS = "world:", ("seed", "families", "questions")  # generated rows, see rovrm/world/source.py
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


# ---- parsing ---------------------------------------------------------------------------------------------------------


def parse_sources(sources: str | Iterable[str]) -> list[Source]:
    """`"a,b"`, `"[a,b]"` or a list -> sources, in order. Raises UserError for none, and for one named twice."""
    if isinstance(sources, str):
        whole = sources.strip()
        if whole.startswith("[") and whole.endswith("]"):
            whole = whole[1:-1]
        texts = [whole] if os.path.exists(whole) else whole.split(",")
    else:
        texts = [str(source) for source in sources]
    texts = [text.strip().strip("'\"") for text in texts if text.strip()]
    if not texts:
        raise UserError(
            "no data source given; name a .json, .jsonl, .csv or .parquet file, a folder, a glob or a hub id"
        )
    for text in texts:
        if texts.count(text) > 1:
            raise UserError(f"source {text!r} is named twice; name it once (weight=W sets its share)")
    return [parse_source(text) for text in texts]


def parse_source(text: str) -> Source:
    """Takes `NAME?key=value&key=value` apart. Raises UserError for an unknown option or a value of the wrong type."""
    # `?` also stands in globs ("part-?.jsonl"), so only a `?` before `key=` starts the options.
    name, *options = re.split(r"\?(?=[\w.\-]+=)", text, maxsplit=1)
    source = Source(text=text, name=expanded(name))
    seen = set()
    for option in options[0].split("&") if options else []:
        key, _, value = option.partition("=")
        if key in seen:
            raise UserError(f"source {text!r}: option {key!r} is given twice; give it once")
        seen.add(key)
        source = _with_option(source, key, value)
    return source


def _with_option(source: Source, key: str, value: str) -> Source:
    if not value:
        raise UserError(f"source {source.text!r}: option {key!r} has no value; write {key}=VALUE or leave it out")
    if key.startswith("columns.") and key != "columns.":
        return replace(source, columns=source.columns | {key.removeprefix("columns."): value})
    if key == "n":
        return replace(source, n=_number(source, key, value, int, "a whole number above 0"))
    if key == "weight":
        return replace(source, weight=_number(source, key, value, float, "a number above 0"))
    if key == "pairs":
        if value not in ("true", "false"):
            raise UserError(f"source {source.text!r}: pairs={value!r} takes true or false")
        return replace(source, pairs=value == "true")
    if key in ("split", "config", "revision", "reader"):
        return replace(source, **{key: value})
    if source.name.startswith(WORLD) and key in WORLD_OPTIONS:
        return replace(source, options=source.options | {key: value})
    valid = "split, config, revision, reader, n, weight, pairs, columns.CANONICAL=THEIRS"
    valid += f"; of {WORLD}: {', '.join(WORLD_OPTIONS)}" if source.name.startswith(WORLD) else ""
    raise UserError(f"source {source.text!r}: unknown option {key!r}; valid are {valid}")


def _number(source: Source, key: str, value: str, kind: type, takes: str) -> Any:
    try:
        number = kind(value)
    except ValueError:
        number = 0
    if not 0 < number < float("inf"):
        raise UserError(f"source {source.text!r}: {key}={value!r} takes {takes}")
    return number


# ---- loading ---------------------------------------------------------------------------------------------------------


def load_rows(source: Source) -> Rows:
    """The rows of a source. Raises UserError when it is not there, empty, not readable or has no such split."""
    try:
        return _load(source)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"source {source.text!r}: cannot be read ({error.strerror or error}); mend it") from error
    except Exception as error:  # what `datasets` raises on damaged folders has no common class
        raise UserError(f"source {source.text!r}: cannot be read ({described(error)}); mend or replace it") from error


def _load(source: Source) -> Rows:
    if source.name.startswith(WORLD):
        from rovrm.world.source import world_rows

        return world_rows(source)
    path = Path(source.name)
    if os.path.isdir(path):  # Path.is_dir raises for a name that is too long
        return _load_folder(source, path)
    if os.path.isfile(path):
        return _load_files(source, [path], source.split)
    if glob.has_magic(source.name):
        found = [Path(name) for name in sorted(glob.glob(source.name, recursive=True)) if os.path.isfile(name)]
        if not found:
            raise UserError(f"source {source.text!r}: no file matches the pattern; mend it")
        return _load_files(source, found, source.split)
    if re.fullmatch(r"[\w.\-]+/[\w.\-]+", source.name) and path.suffix not in SUFFIXES:
        return dataset_rows(_load_hub(source), source.name, stem=source.name.split("/")[1])
    raise UserError(f"source {source.text!r}: no such file or folder, and not a hub id (owner/name); mend the path")


def _load_folder(source: Source, path: Path) -> Rows:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        import datasets

        loaded = datasets.load_from_disk(str(path))
        splits = {str(k): v for k, v in loaded.items()} if isinstance(loaded, dict) else {"train": loaded}
        chosen = splits[_choose_split(source, splits)]
        return dataset_rows(chosen, source.name, stem=path.name, data_file=str(path))
    # A clone of a hub data set keeps its files in data/, hence the second, deeper look.
    files = _data_files(path.iterdir()) or _data_files(path.rglob("*"))
    if not files:
        raise UserError(f"source {source.text!r}: the folder holds no {', '.join(SUFFIXES)} file; name one that does")
    splits = _by_split(files)
    if not splits:
        return _load_files(source, files, source.split)
    return _load_files(source, splits[_choose_split(source, splits)], None)


def _data_files(paths: Iterable[Path]) -> list[Path]:
    files = sorted(p for p in paths if p.suffix in SUFFIXES and p.name not in NOT_DATA and p.is_file())
    by_kind = ([p for p in files if p.suffix in kind] for kind in ((".parquet",), JSON_SUFFIXES, TABLE_SUFFIXES))
    return next((found for found in by_kind if found), [])


def _by_split(files: list[Path]) -> dict[str, list[Path]]:
    """Files grouped by the split word in their names, as the hub does; those without are `train`. None has one: {}."""
    splits: dict[str, list[Path]] = {}
    words = [SPLIT_WORD.search(file.stem.lower()) for file in files]
    for file, word in zip(files, words, strict=True) if any(words) else ():
        splits.setdefault(word.group(1) if word else "train", []).append(file)
    return splits


def _choose_split(source: Source, splits: Iterable[str]) -> str:
    names = list(splits)
    if source.split is not None:
        if source.split in names:
            return source.split
        raise UserError(f"source {source.text!r}: no split {source.split!r}; it has {', '.join(names)}")
    if "train" in names or len(names) == 1:
        return "train" if "train" in names else names[0]
    raise UserError(f"source {source.text!r}: which split? It has {', '.join(names)}; add ?split=NAME")


def _load_files(source: Source, files: list[Path], split: str | None) -> Rows:
    """The rows of files. split: which, of those that a JSON file may hold; other files are all `train`."""
    kinds = {file.suffix for file in files}
    if wrong := sorted(kinds - set(SUFFIXES)):
        raise UserError(f"source {source.text!r}: cannot read {', '.join(wrong)} files; takes {', '.join(SUFFIXES)}")
    if kinds == {".parquet"}:
        _choose_split(replace(source, split=split), ["train"])
        data, folder = _load_parquet(source, files), str(files[0].parent)
        return dataset_rows(data, source.name, stem=files[0].stem, data_file=folder)
    if ".parquet" in kinds:
        raise UserError(f"source {source.text!r}: parquet and other files together; name them as two sources")
    return _json_rows(source.name, [row for file in files for row in _file_rows(file, split)])


def _file_rows(file: Path, split: str | None) -> list[Row]:
    if file.suffix in JSON_SUFFIXES:
        return read_json(file, split)
    from rovrm.tables import read_table

    _choose_split(Source(str(file), str(file), split), ["train"])
    return read_table(file)


def _load_parquet(source: Source, files: list[Path]) -> Any:
    import datasets
    import datasets.exceptions

    try:
        return datasets.load_dataset("parquet", data_files=[str(file) for file in files], split="train")
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        cause = error.__cause__ or error
        raise UserError(f"source {source.text!r}: not readable as parquet ({cause}); write the file again") from error


def _load_hub(source: Source) -> Any:
    """One split of a hub data set, memory mapped. Offline, a data set already in the cache is still found."""
    import datasets
    import datasets.exceptions

    name, config, revision = source.name, source.config, source.revision
    try:
        split = source.split or _choose_split(source, _hub_splits(source))
        return datasets.load_dataset(name, config, split=split, revision=revision)
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        if not isinstance(error, OSError):
            raise UserError(f"source {source.text!r}: the hub data set does not load: {error}") from error
        raise UserError(
            f"source {source.text!r}: {name} is not a local path, and no such hub data set can be reached ({error})"
            f"{offline(name)}; mend the path, or download the data set where there is a network"
        ) from error


def _hub_splits(source: Source) -> list[str]:
    import datasets

    try:
        return datasets.get_dataset_split_names(source.name, source.config, revision=source.revision)
    except ConnectionError:
        return ["train"]


# ---- JSON ------------------------------------------------------------------------------------------------------------


def read_json(file: Path, split: str | None = None) -> list[Row]:
    """The rows of a .json or .jsonl file, whatever form it has inside: a list, `{"data": [...]}`, lines, or the lists
    of several splits, `{"train": [...], "test": [...]}`, of which `split` names one.

    A broken line becomes a row with a `problem`. Raises UserError for an empty file and for one that is not JSON.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error}); mend it or name another") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text ({error}); a source is JSON, JSONL, CSV or parquet") from error
    if not text.strip():
        raise UserError(f"{file}: the file is empty; give one with rows")
    items = whole_json(text)
    splits = items if isinstance(items, dict) else {"train": items or []}
    chosen = _choose_split(Source(str(file), str(file), split), splits)
    if items is None:
        rows = [_line_row(file, number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    else:
        rows = [_row(file, number, item, "") for number, item in enumerate(splits[chosen], 1)]
    if not rows:
        raise UserError(f"{file}: it holds no rows; give a file with at least one")
    if all(row.values is None for row in rows):
        raise UserError(
            f"{file}: neither a JSON list nor JSONL; {rows[0].location}: {rows[0].problem} ({rows[0].raw[:80]!r}); "
            "write one JSON object per line"
        )
    return rows


def whole_json(text: str) -> list[Any] | dict[str, list[Any]] | None:
    """The items of a text that is one JSON value, by split where it holds several lists; None when it is JSONL."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict):
        if isinstance(value.get("data"), list):
            return value["data"]
        return value if _holds_splits(value) else [value]
    return value if isinstance(value, list) else [value]


def _holds_splits(value: dict[str, Any]) -> bool:
    """Whether every value is a list of rows: of objects that are not messages, which a row itself may consist of."""
    lists = [items for items in value.values() if isinstance(items, list)]
    firsts = [items[0] for items in lists if items]
    rows = all(isinstance(first, dict) and not {"role", "from"} & first.keys() for first in firsts)
    return bool(firsts) and len(lists) == len(value) and rows


def _line_row(file: Path, number: int, line: str) -> Row:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        problem = f"broken JSON at column {error.colno} ({error.msg}); mend or delete the line"
        return _row(file, number, None, line, problem)
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
        return _row(file, number, None, line, f"unreadable JSON ({error}); mend or delete the line")
    return _row(file, number, value, line)


def _row(file: Path, number: int, value: Any, raw: str, problem: str = "") -> Row:
    if not isinstance(value, dict):
        problem = problem or f"a row is a JSON object, got {type(value).__name__}; write {{...}}"
        raw, value = raw or shown(value), None
    return Row(value, f"{file}, row {number}", file.stem, number, str(file), problem, raw)


def _json_rows(name: str, rows: list[Row]) -> Rows:
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
    return _json_rows(name, listed)


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
