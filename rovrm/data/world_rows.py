"""Rows of the synthetic world as raw rows: `text.data=world:text?n=8192`, `visual.data=world:visual`.

Rows are made when they are read, so a source of any size costs nothing until then. Options besides those of every
source: `seed`, `split` (train, test), `families` (`faithful+neutral`, or with weights
`faithful:0.8+conflicting:0.2`) and `questions` (`colour+place`, of the families that ask about a fact).
Without `n` a source has 4,096 rows.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from rovrm.common.errors import UserError
from rovrm.data.images import ImageRef
from rovrm.data.raw_rows import Row, Rows, Source
from rovrm.world.language import KINDS
from rovrm.world.pairs import FAMILIES, INPUTS, SPLITS, pair_row

SIZE = 4096


def world_rows(source: Source) -> Rows:
    """The rows of `world:text`, `world:caption` or `world:visual`. Raises UserError for another name or option."""
    inputs = source.name.removeprefix("world:")
    if inputs not in INPUTS:
        raise UserError(f"source {source.text!r}: no such part of the world; takes world:{', world:'.join(INPUTS)}")
    split = source.split or "train"
    if split not in SPLITS:
        raise UserError(f"source {source.text!r}: no split {split!r}; takes {', '.join(SPLITS)}")
    if source.config or source.revision:
        raise UserError(f"source {source.text!r}: the world takes neither config nor revision; leave them out")
    if ":" in source.options.get("questions", ""):
        raise UserError(f"source {source.text!r}: questions takes no weights; it takes names joined by +")
    seed = _seed(source)
    families = _weights(source, "families", FAMILIES)
    questions = tuple(_weights(source, "questions", KINDS) or KINDS)

    def take(indices: Iterable[int]) -> Iterator[Row]:
        for index in indices:
            values: dict[str, Any] = pair_row(inputs, seed, index, split, families, questions)
            if "image" in values:
                values["image"] = ImageRef(drawing=values["image"], label=values["id"])
            yield Row(values, f"{source.name}, row {index + 1}", f"world-{inputs}", index + 1)

    first = next(take([0])).values or {}
    return Rows(source.name, {None: (list(first), first)}, source.n or SIZE, take)


def _seed(source: Source) -> int:
    text = source.options.get("seed", "0")
    if not text.isdecimal():
        raise UserError(f"source {source.text!r}: seed={text!r} takes a whole number from 0")
    return int(text)


def _weights(source: Source, option: str, takes: tuple[str, ...]) -> dict[str, float] | None:
    """`a+b` or `a:0.7+b:0.3` -> weights; None where the option is not given. takes: the names that may stand there."""
    if option not in source.options:
        return None
    weights: dict[str, float] = {}
    for part in source.options[option].split("+"):
        name, _, weight = part.partition(":")
        if name not in takes:
            raise UserError(f"source {source.text!r}: {option} has no {name!r}; takes {', '.join(takes)}, joined by +")
        if name in weights:
            raise UserError(f"source {source.text!r}: {option} has {name!r} twice; it takes one weight")
        try:
            weights[name] = float(weight or 1)
        except ValueError:
            weights[name] = -1.0
        if not 0 < weights[name] < float("inf"):
            raise UserError(f"source {source.text!r}: {option}: {part!r} takes a weight above 0, as {name}:0.5")
    return weights
