"""Answers to choose from that other tools wrote: pools of candidates.

    pools = load_candidates(["candidates.jsonl"])     # one Pool per prompt

Rows of a JSON or JSONL file, told apart by their columns:

| columns | what it is |
|---|---|
| `prompt`, `candidates` (a list, or {"llava_13b": "..."}), `image` or `images` | pools; bon.jsonl itself |
| `prompt`, `responses`, `image` or `images` | the same, by the name that rovrm.score takes |
| `doc_id`, `input`, `resps` or `filtered_resps` | `lmms_eval --log_samples` |

Rows of several files with the same `id` (else `doc_id`) are one prompt with the candidates of all. lmms-eval does not
log images: `data` names the task's data set, and `doc_id` is a row of it.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rovrm.common.errors import UserError, shown
from rovrm.data.bad_rows import fence
from rovrm.data.example import Example
from rovrm.data.images import find_image
from rovrm.data.prompts import NO_IMAGES, as_example
from rovrm.data.raw_rows import Row, Rows, read_json_rows
from rovrm.data.sources import JSON_SUFFIXES, load_rows, parse_sources

logger = logging.getLogger(__name__)

Values = Mapping[str, Any]  # the columns of one row
Documents = Callable[[Any], dict[str, Any]]  # a doc_id -> the row of the task's data set


@dataclass(slots=True)
class Pool:
    """One prompt: the example's responses are the candidates, in the file's order. names: who gave each of them, or
    the file it came from, where there are several; empty texts where neither is known."""

    example: Example
    names: list[str]


def load_candidates(files: Sequence[str], data: Sequence[str] = (), image_root: str = "", n: int = 0) -> list[Pool]:
    """The pools of all files, joined by prompt id. Rows of bon.jsonl with an `error` are left out.

    Args:
        files: JSON and JSONL files.
        data: the data set of the task whose log the files are, as one source; for logs of lmms-eval alone.
        image_root: folder of relative image paths; empty = the data file's folder, then its parents.
        n: how many of each prompt's candidates to take, the first ones; 0 = all.

    Raises:
        UserError: with file and row, for the first row that cannot be used.
    """
    documents = _documents(data)
    paths = [Path(file) for file in files]
    pools: dict[str, Pool] = {}
    errors, logs = 0, 0
    for path, label in zip(paths, _labels(paths), strict=True):
        if not os.path.isfile(path) or path.suffix not in JSON_SUFFIXES:
            problem = "is no .json or .jsonl file" if os.path.exists(path) else "is not there"
            raise UserError(f"candidates={str(path)!r} {problem}; give a file of prompts and answers")
        # The same id in two files is one prompt answered twice; in one file it is a mistake.
        ids_in_file: set[str] = set()
        for row in read_json_rows(path):
            if row.values and "error" in row.values and "candidates" not in row.values:
                errors += 1
                continue
            if _is_log(row.values):
                logs += 1
            with fence(row.location):
                _add(pools, _pool(row, label, documents, image_root), ids_in_file)

    if not pools:
        raise UserError(f"candidates: {', '.join(files)} hold no prompt with answers; give rows with candidates")
    if data and not logs:
        raise UserError("data beside candidates is the data set of logs of lmms-eval, and these are none; leave it out")
    if errors:
        logger.warning("%d rows of candidates have an error instead of answers and are left out", errors)
    if len(files) > 1:
        joined = sum(len(set(pool.names)) > 1 for pool in pools.values())
        logger.info("%d of %d prompts have candidates of several files", joined, len(pools))
    if n:
        for pool in pools.values():
            _take_first(pool, n)
    return list(pools.values())


def _labels(files: list[Path]) -> list[str]:
    """A name for each of several files: its own, its folder's, or both, whichever tells them apart."""
    if len(files) == 1:
        return [""]
    stems = [file.stem for file in files]
    folders = [file.absolute().parent.name for file in files]
    both = [f"{folder}/{stem}" for folder, stem in zip(folders, stems, strict=True)]
    # lmms-eval calls its files by time and task, and their folder by the model.
    by_lmms_eval = any("_samples_" in stem for stem in stems)
    for names in [folders, both] if by_lmms_eval else [stems, folders, both]:
        if len(set(names)) == len(files):
            return names
    return [str(file) for file in files]


def _add(pools: dict[str, Pool], pool: Pool, ids_in_file: set[str]) -> None:
    """Joins a pool to the one of the same id from an earlier file. ids_in_file: those of this file, which grows."""
    example = pool.example
    if example.id in ids_in_file:
        raise UserError(f"the id {example.id!r} stands in two rows of the file; give every prompt its own")
    ids_in_file.add(example.id)
    if example.id not in pools:
        pools[example.id] = pool
        return
    earlier = pools[example.id]
    if earlier.example.prompt != example.prompt:
        raise UserError(
            f"id {example.id!r} has another prompt in another file; give files that answer the same prompts"
        )
    earlier.example.responses += example.responses
    earlier.example.ranks += example.ranks
    earlier.names += pool.names


def _take_first(pool: Pool, n: int) -> None:
    """Leaves the first n candidates of a pool; one without any stays empty, and becomes an error of its own later."""
    count = len(pool.names)
    if n > count > 0:
        raise UserError(f"n={n}: prompt {pool.example.id!r} has only {count} candidates; give n={count} or less")
    pool.example.responses = pool.example.responses[:n]
    pool.example.ranks = [0] * n
    pool.names = pool.names[:n]


# ---- one row ---------------------------------------------------------------------------------------------------------


def _pool(row: Row, label: str, documents: Documents, image_root: str) -> Pool:
    """The pool of one row. label: what tells its file from others, "" where there is one file."""
    if row.values is None:
        raise UserError(row.problem)
    if _is_log(row.values):
        answers, values = _logged_answers(row.values), _logged_prompt(row.values, documents)
    else:
        answers, values = row.values.get("candidates", row.values.get("responses")), dict(row.values)
    texts, names = _texts_and_names(answers, label)

    # A null counts as a missing column. Without an id the row is called by its file and number, so that rows of two
    # files are never joined by accident.
    values = {column: value for column, value in values.items() if value is not None}
    values = {"id": values.get("doc_id", f"{label or row.stem}-{row.number}")} | values
    find = partial(find_image, image_root=image_root or None, data_file=row.data_file, must_exist=False)
    # A prompt without candidates is kept, but an example has at least one response while it is read.
    example = as_example(values | {"responses": texts or [""]}, row.number, find)
    return Pool(replace(example, responses=texts, ranks=[0] * len(texts)), names)


def _texts_and_names(answers: Any, label: str) -> tuple[list[str], list[str]]:
    """Candidates and who gave them. Raises UserError for anything but texts, in a list or by name."""
    if isinstance(answers, Mapping):
        names, texts = list(answers), list(answers.values())
    elif isinstance(answers, Sequence) and not isinstance(answers, str):
        names, texts = [label] * len(answers), list(answers)
    else:
        raise UserError("needs candidates or responses, a list of answers (or resps, as lmms-eval logs them)")
    for text in texts:
        if not isinstance(text, str):
            raise UserError(f"a candidate is a text, got {type(text).__name__} {shown(text, 60)!r}; mend or remove it")
    return texts, names


# ---- lmms-eval -------------------------------------------------------------------------------------------------------


def _is_log(values: Values | None) -> bool:
    """Whether a row is one of `lmms_eval --log_samples`."""
    return values is not None and "doc_id" in values and not {"candidates", "responses"} & values.keys()


def _logged_answers(values: Values) -> list[Any]:
    """The answers of a logged row: as generated where they are logged, else as filtered."""
    answers = values.get("resps") or values.get("filtered_resps") or []
    flat = []
    for part in _nested_lists(answers if isinstance(answers, list) else [answers]):
        if _is_likelihood(part):
            raise UserError("these are log-likelihoods of given choices, no answers; log a task that generates text")
        flat += [answer for answer in part if not isinstance(answer, list)]
    return flat


def _nested_lists(items: list[Any]) -> Iterator[list[Any]]:
    """A list and all lists inside it."""
    yield items
    for item in items:
        if isinstance(item, list):
            yield from _nested_lists(item)


def _is_likelihood(part: list[Any]) -> bool:
    """[log-likelihood, whether it is greedy], which lmms-eval writes as numbers or as texts."""
    if len(part) != 2 or str(part[1]) not in ("True", "False"):
        return False
    try:
        float(part[0])
    except (TypeError, ValueError):
        return False
    return True


def _logged_prompt(values: Values, documents: Documents) -> dict[str, Any]:
    """Id, prompt and images of a logged row; the images, and a prompt that was not logged as text, from the task."""
    document, prompt = documents(values["doc_id"]), values.get("input")
    columns: dict[str, Any] = {"id": str(values["doc_id"])}
    if not isinstance(prompt, str) or not prompt.strip():
        return columns | {column: value for column, value in document.items() if column not in ("id", "responses")}
    # Whatever may be an image comes along: under another name than ours it is refused.
    images = {column: value for column, value in document.items() if column not in NO_IMAGES}
    return columns | {"prompt": prompt} | images


def _documents(data: Sequence[str]) -> Documents:
    """A function from a document's number to its row in the task's data set."""
    sources = parse_sources(data) if data else []
    if len(sources) > 1:
        raise UserError(f"data: {len(sources)} sources beside candidates; give the one data set of the logged task")
    rows: Rows | None = load_rows(sources[0]) if sources else None

    def document(number: Any) -> dict[str, Any]:
        if rows is None:
            raise UserError(
                "lmms-eval logs no images; give data=SOURCE, the data set of the task, whose rows hold them"
            )
        if not isinstance(number, int) or not 0 <= number < len(rows):
            raise UserError(f"doc_id {number!r} is no row of {rows.name}, which has {len(rows)}; give the task's data")
        [row] = rows.take([number])
        if row.values is None:
            raise UserError(f"{row.location}: {row.problem}")
        return row.values

    return document
