"""Sources: what a setting such as `visual.data` names, and the raw rows that lie there.

    rows = load_rows(parse_source("openbmb/RLAIF-V-Dataset?n=500"))
    for row in rows.take(range(len(rows))):
        row.values, row.location                                          # a dict; image cells are ImageRef

A source is `NAME[?key=value&key=value]`. NAME is a .json, .jsonl, .csv, .tsv or .parquet file, a folder of such files,
a folder written by `Dataset.save_to_disk`, a glob, a hub id `owner/name`, or `world:text`, `world:caption` or
`world:visual`, the generated pairs of the synthetic world. The options are fields of `Source`.

Parquet, saved and hub data stay memory mapped, and no image is read. JSON and tables are read by the standard library,
because `datasets` wants one type per column, which real files do not have.
"""

import glob
import logging
import os
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rovrm.common.errors import UserError, described, offline
from rovrm.data.dataset_rows import dataset_rows
from rovrm.data.images import expanded
from rovrm.data.raw_rows import SPLIT_WORD, Row, Rows, Source, choose_split, read_json_rows, rows_in_memory

logger = logging.getLogger(__name__)

JSON_SUFFIXES = (".json", ".jsonl")
TABLE_SUFFIXES = (".csv", ".tsv")
SUFFIXES = (*JSON_SUFFIXES, *TABLE_SUFFIXES, ".parquet")
# What `datasets` and the hub put beside the data; none of it holds rows.
NOT_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json")
WORLD, WORLD_OPTIONS = "world:", ("seed", "families", "questions")  # generated rows, see rovrm/data/world_rows.py


# ---- parsing ---------------------------------------------------------------------------------------------------------


def parse_sources(sources: str | Iterable[str]) -> list[Source]:
    """`"a,b"`, `"[a,b]"` or a list -> sources, in order. Raises UserError for none, and for one named twice."""
    if isinstance(sources, str):
        # As on a command line. A comma may stand in the name of a file that is there.
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
    name, *behind = re.split(r"\?(?=[\w.\-]+=)", text, maxsplit=1)
    options = behind[0].split("&") if behind else []
    source = Source(text=text, name=expanded(name))
    seen = set()
    for option in options:
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
    """The value as a number of this kind, finite and above 0. takes: what it must be, in words."""
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
        from rovrm.data.world_rows import world_rows

        return world_rows(source)
    # What lies on the disk comes first, so that a folder may be called as a hub id is.
    path = Path(source.name)
    if os.path.isdir(path):  # Path.is_dir raises for a name that is too long
        return _load_folder(source, path)
    if os.path.isfile(path):
        return _load_files(source, [path], source.split)
    if glob.has_magic(source.name):
        files = [Path(name) for name in sorted(glob.glob(source.name, recursive=True)) if os.path.isfile(name)]
        if not files:
            raise UserError(f"source {source.text!r}: no file matches the pattern; mend it")
        return _load_files(source, files, source.split)
    if re.fullmatch(r"[\w.\-]+/[\w.\-]+", source.name) and path.suffix not in SUFFIXES:
        return dataset_rows(_load_hub(source), source.name, stem=source.name.split("/")[1])
    raise UserError(f"source {source.text!r}: no such file or folder, and not a hub id (owner/name); mend the path")


def _load_folder(source: Source, path: Path) -> Rows:
    # A folder written by `save_to_disk`: of several splits, or of one data set.
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        import datasets

        loaded = datasets.load_from_disk(str(path))
        datasets_by_split: dict[str, Any] = {"train": loaded}
        if isinstance(loaded, dict):
            datasets_by_split = {str(split): dataset for split, dataset in loaded.items()}
        chosen = choose_split(source.text, source.split, datasets_by_split)
        return dataset_rows(datasets_by_split[chosen], source.name, stem=path.name, data_file=str(path))
    # A clone of a hub data set keeps its files in data/, hence the second, deeper look.
    files = _data_files(path.iterdir()) or _data_files(path.rglob("*"))
    if not files:
        raise UserError(f"source {source.text!r}: the folder holds no {', '.join(SUFFIXES)} file; name one that does")
    files_by_split = _by_split(files)
    if not files_by_split:
        return _load_files(source, files, source.split)
    return _load_files(source, files_by_split[choose_split(source.text, source.split, files_by_split)], None)


def _data_files(paths: Iterable[Path]) -> list[Path]:
    """The files that hold the data: of one kind, since a folder may keep the same rows in two."""
    files = sorted(p for p in paths if p.suffix in SUFFIXES and p.name not in NOT_DATA and p.is_file())
    for suffixes in ((".parquet",), JSON_SUFFIXES, TABLE_SUFFIXES):
        of_kind = [path for path in files if path.suffix in suffixes]
        if of_kind:
            return of_kind
    return []


def _by_split(files: list[Path]) -> dict[str, list[Path]]:
    """Files grouped by the split word in their names, as the hub does; those without are `train`. None has one: {}."""
    words = [SPLIT_WORD.search(file.stem.lower()) for file in files]
    if not any(words):
        return {}
    files_by_split: dict[str, list[Path]] = {}
    for file, word in zip(files, words, strict=True):
        files_by_split.setdefault(word.group(1) if word else "train", []).append(file)
    return files_by_split


def _load_files(source: Source, files: list[Path], split: str | None) -> Rows:
    """The rows of files. split: which, of those that a JSON file may hold; other files are all `train`."""
    kinds = {file.suffix for file in files}
    unreadable = sorted(kinds - set(SUFFIXES))
    if unreadable:
        takes = ", ".join(SUFFIXES)
        raise UserError(f"source {source.text!r}: cannot read {', '.join(unreadable)} files; takes {takes}")
    if kinds == {".parquet"}:
        choose_split(source.text, split, ["train"])  # refuses every other
        dataset, folder = _load_parquet(source, files), str(files[0].parent)
        return dataset_rows(dataset, source.name, stem=files[0].stem, data_file=folder)
    if ".parquet" in kinds:
        raise UserError(f"source {source.text!r}: parquet and other files together; name them as two sources")
    rows: list[Row] = []
    for file in files:
        rows += _file_rows(file, split)
    return rows_in_memory(source.name, rows)


def _file_rows(file: Path, split: str | None) -> list[Row]:
    if file.suffix in JSON_SUFFIXES:
        return read_json_rows(file, split)
    from rovrm.data.table_rows import read_table

    choose_split(str(file), split, ["train"])  # refuses every other
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
        split = source.split or choose_split(source.text, None, _hub_splits(source))
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
    except ConnectionError:  # `train` may still be in the cache
        return ["train"]
