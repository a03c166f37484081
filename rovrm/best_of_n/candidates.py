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
from collections.abc import Callable, Iterable, Mapping, Sequence
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


@dataclass(slots=True)
class Pool:
    """One prompt: the example's responses are the candidates, in the file's order. names: who gave each of them, or
    the file it came from, where there are several; empty where neither is known."""

    example: Example
    names: list[str]


def load_candidates(files: Sequence[str], data: Sequence[str] = (), image_root: str = "", n: int = 0) -> list[Pool]:
    """n: how many of each prompt's candidates to take, the first ones; 0 = all. Rows of bon.jsonl with an `error` are
    left out. Raises UserError, with file and row, for the first row that cannot be used."""
    task = _task(data)
    pools: dict[str, Pool] = {}
    errors = logged = 0
    for file, label in zip(map(Path, files), _labels(list(map(Path, files))), strict=True):
        if not os.path.isfile(file) or file.suffix not in JSON_SUFFIXES:
            what = "is no .json or .jsonl file" if os.path.exists(file) else "is not there"
            raise UserError(f"candidates={str(file)!r} {what}; give a file of prompts and answers")
        seen: set[str] = set()
        for row in read_json_rows(file):
            if row.values and "error" in row.values and "candidates" not in row.values:
                errors += 1
                continue
            logged += _is_logged(row.values)
            with fence(row.location):
                _add(pools, _pool(row, label, task, image_root), seen)
    if not pools:
        raise UserError(f"candidates: {', '.join(files)} hold no prompt with answers; give rows with candidates")
    if data and not logged:
        raise UserError("data beside candidates is the data set of logs of lmms-eval, and these are none; leave it out")
    if errors:
        logger.warning("%d rows of candidates have an error instead of answers and are left out", errors)
    if len(files) > 1:
        joined = sum(len(set(pool.names)) > 1 for pool in pools.values())
        logger.info("%d of %d prompts have candidates of several files", joined, len(pools))
    for pool in pools.values():
        if n > len(pool.names) > 0:
            count = len(pool.names)
            raise UserError(f"n={n}: prompt {pool.example.id!r} has only {count} candidates; give n={count} or less")
        if n:
            pool.example.responses, pool.names = pool.example.responses[:n], pool.names[:n]
            pool.example.ranks = [0] * n
    return list(pools.values())


def _labels(files: list[Path]) -> list[str]:
    """A name for each of several files: its own, its folder's, or both, whichever tells them apart. lmms-eval calls its
    files by time and task, and their folder by the model."""
    if len(files) == 1:
        return [""]
    stems, folders = [file.stem for file in files], [file.absolute().parent.name for file in files]
    both = [f"{folder}/{stem}" for folder, stem in zip(folders, stems, strict=True)]
    choices = [folders, both] if any("_samples_" in stem for stem in stems) else [stems, folders, both]
    return next((names for names in choices if len(set(names)) == len(files)), [str(file) for file in files])


def _add(pools: dict[str, Pool], pool: Pool, seen: set[str]) -> None:
    """Joins a pool to the one of the same id from an earlier file."""
    example = pool.example
    if example.id in seen:
        raise UserError(f"the id {example.id!r} stands in two rows of the file; give every prompt its own")
    seen.add(example.id)
    before = pools.setdefault(example.id, pool)
    if before is pool:
        return
    if before.example.prompt != example.prompt:
        raise UserError(
            f"id {example.id!r} has another prompt in another file; give files that answer the same prompts"
        )
    before.example.responses += example.responses
    before.example.ranks += example.ranks
    before.names += pool.names


def _pool(row: Row, file: str, task: Callable[[Any], dict[str, Any]], image_root: str) -> Pool:
    if row.values is None:
        raise UserError(row.problem)
    values, given = dict(row.values), row.values.get("candidates", row.values.get("responses"))
    if _is_logged(values):
        given, values = _logged(values), _logged_prompt(values, task)
    texts = list(given.values()) if isinstance(given, Mapping) else given
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise UserError("needs candidates or responses, a list of answers (or resps, as lmms-eval logs them)")
    names = list(given) if isinstance(given, Mapping) else [file] * len(texts)
    for text in texts:
        if not isinstance(text, str):
            raise UserError(f"a candidate is a text, got {type(text).__name__} {shown(text, 60)!r}; mend or remove it")
    values = {key: value for key, value in values.items() if value is not None}
    values = {"id": values.get("doc_id", f"{file or row.stem}-{row.number}")} | values
    find = partial(find_image, image_root=image_root or None, data_file=row.data_file, must_exist=False)
    example = as_example(values | {"responses": list(texts) or [""]}, row.number, find)
    return Pool(replace(example, responses=list(texts), ranks=[0] * len(texts)), names)


# ---- lmms-eval -------------------------------------------------------------------------------------------------------


def _is_logged(values: Mapping[str, Any] | None) -> bool:
    return values is not None and "doc_id" in values and not {"candidates", "responses"} & values.keys()


def _logged(values: Mapping[str, Any]) -> list[str]:
    """The answers in a row of `--log_samples`: as generated where they are logged, else as filtered."""
    found = values.get("resps") or values.get("filtered_resps") or []
    parts = list(_lists(found if isinstance(found, list) else [found]))
    if any(_is_likelihood(part) for part in parts):
        raise UserError("these are log-likelihoods of given choices, no answers; log a task that generates text")
    return [answer for part in parts for answer in part if not isinstance(answer, list)]


def _logged_prompt(values: Mapping[str, Any], task: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    """Id, prompt and images of a logged row; the images, and a prompt that was not logged as text, from the task."""
    document, prompt = task(values["doc_id"]), values.get("input")
    found = {"id": str(values["doc_id"])}
    if not isinstance(prompt, str) or not prompt.strip():
        return found | {key: value for key, value in document.items() if key not in ("id", "responses")}
    # Whatever may be an image comes along: under another name than ours it is refused.
    return found | {"prompt": prompt} | {key: value for key, value in document.items() if key not in NO_IMAGES}


def _task(data: Sequence[str]) -> Callable[[Any], dict[str, Any]]:
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
        row = next(iter(rows.take([number])))
        if row.values is None:
            raise UserError(f"{row.location}: {row.problem}")
        return row.values

    return document


def _lists(value: Any) -> Iterable[list[Any]]:
    """A list and all lists inside it."""
    if isinstance(value, list):
        yield value
        for item in value:
            yield from _lists(item)


def _is_likelihood(part: list[Any]) -> bool:
    """[log-likelihood, whether it is greedy], which lmms-eval writes as numbers or as texts."""
    if len(part) != 2 or str(part[1]) not in ("True", "False"):
        return False
    try:
        float(part[0])
    except (TypeError, ValueError):
        return False
    return True
