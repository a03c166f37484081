"""The split of a run's rows into what trains and what is held out: one over all its phases.

    sides = split({"caption": Part(rows), "visual": Part(rows, eval_rows)}, known={}, fraction=0.02, seed=0)

A row is known by its members: the content hashes of its images, or where it has none its prompt. Rows that share a
member, directly or through others, are a group, and a group is on one side in every phase.
"""

import hashlib
from collections.abc import Collection, Iterable, Sequence, Set
from dataclasses import dataclass, field

from rovrm.common.errors import UserError
from rovrm.data.example import Example
from rovrm.data.messages import normalise, text_of

# Sides of a row. Held out by a fraction, it is held out in every phase that has no eval_data of its own; what shares a
# group with a phase's eval_data is left out of the others.
TRAIN, HELD_OUT, EVAL_DATA, LEFT_OUT = SIDES = ("train", "held_out", "eval_data", "left_out")
Row = list[str]  # the members of a row


@dataclass(slots=True)
class Part:
    """The rows of one phase. eval_data: None where a fraction of `data` is held out."""

    data: list[Row]
    eval_data: list[Row] | None = None


@dataclass(slots=True)
class Sides:
    """The side of each row of a part. because: by the number of a row of `data` that is left out, what it shares a
    group with, in words. before: how many rows of `data` the fraction would hold out, but were trained on before."""

    data: list[str] = field(default_factory=list)
    eval_data: list[str] = field(default_factory=list)
    because: dict[int, str] = field(default_factory=dict)
    before: int = 0


def members_of(example: Example) -> Row:
    """`image:HASH` of each image (an example with a caption keeps those of its pictures), else `text:HASH`."""
    if example.hashes:
        return [f"image:{content}" for content in example.hashes]
    turns = [normalise(text_of(message["content"])) for message in example.prompt]
    return ["text:" + hashlib.sha1("\n".join(turns).encode(), usedforsecurity=False).hexdigest()]


def groups_of(rows: Iterable[Row]) -> dict[str, str]:
    """The group of each member, by its smallest member."""
    parent: dict[str, str] = {}

    def root(node: str) -> str:
        while parent.setdefault(node, node) != node:
            parent[node] = node = parent[parent[node]]
        return node

    for row in rows:
        for other in row:
            low, high = sorted((root(row[0]), root(other)))
            parent[high] = low
    return {member: root(member) for member in list(parent)}


Known = dict[str, dict[str, list[Row]]]  # rows of phases that are split already, by whose they are and by side


def split(parts: dict[str, Part], known: Known, fraction: float, seed: int) -> dict[str, Sides]:
    """The sides of the rows of each phase, by its name.

    known: what stands behind these phases. What was held out there does not train here, and what trained there is not
    held out.
    """
    before = {side: [row for entry in known.values() for row in entry.get(side, [])] for side in SIDES}
    now = [row for part in parts.values() for row in [*part.data, *(part.eval_data or [])]]
    groups = groups_of([row for rows in before.values() for row in rows] + now)
    trained = {member for row in before[TRAIN] for member in row}
    never = {groups[row[0]] for row in before[TRAIN]}
    taken = _taken(parts, known, groups, trained)
    drawn = hold_out(
        [{groups[row[0]] for row in part.data} - taken.keys() for part in parts.values() if part.eval_data is None],
        fraction,
        seed,
        always={groups[row[0]] for row in before[HELD_OUT]} - never - taken.keys(),
        never=never,
    )
    # Only rows that join groups meet both what trained and what is held out: they go by their own members.
    away = {member for side in (HELD_OUT, EVAL_DATA) for row in before[side] for member in row}
    away |= {m for part in parts.values() for row in part.eval_data or [] if trained.isdisjoint(row) for m in row}
    holders = {groups[row[0]]: f"what {whose} holds out" for whose, e in known.items() for row in e.get(HELD_OUT, [])}
    found = {}
    for name, part in parts.items():
        sides = found[name] = Sides()
        sides.eval_data = [EVAL_DATA if trained.isdisjoint(row) else LEFT_OUT for row in part.eval_data or []]
        for i, row in enumerate(part.data):
            group = groups[row[0]]
            may_train = away.isdisjoint(row) if group in never else group not in taken and group not in drawn
            held_out = group in drawn and part.eval_data is None
            sides.data.append(TRAIN if may_train else HELD_OUT if held_out else LEFT_OUT)
            sides.before += group in never and part.eval_data is None and _place(group, seed) < fraction
            if sides.data[i] == LEFT_OUT:
                owners = taken.get(group) or [holders.get(group, OTHERS)]
                sides.because[i] = f"{name}.eval_data" if f"{name}.eval_data" in owners else owners[0]
    return found


OTHERS = "what another phase holds out"


def _taken(parts: dict[str, Part], known: Known, groups: dict[str, str], trained: set[str]) -> dict[str, list[str]]:
    """The groups of eval_data, each with whose they are in words. Rows that trained before are not held out."""
    taken: dict[str, list[str]] = {}
    for name, part in parts.items():
        for row in part.eval_data or []:
            if trained.isdisjoint(row):
                taken.setdefault(groups[row[0]], []).append(f"{name}.eval_data")
    for whose, entry in known.items():
        for row in entry.get(EVAL_DATA, []):
            taken.setdefault(groups[row[0]], []).append(f"what {whose} holds out")
    return taken


def hold_out(
    phases: Sequence[Collection[str]],
    fraction: float,
    seed: int = 0,
    always: Set[str] = frozenset(),
    never: Set[str] = frozenset(),
) -> set[str]:
    """Which of the groups of some phases are held out: those whose hash, with the seed, falls under the fraction.

    Whether a group is held out depends on its key alone, and so not on the rows around it. Only where that would hold
    out no group of a phase, or every one, of two or more, the group of the smallest hash is taken, or that of the
    largest left, in all phases: what a slightly larger or smaller fraction would do. Fraction 0 holds out nothing.
    always, never: groups that are on one side already.
    """
    if phases and not 0 <= fraction < 1:
        raise UserError(f"held-out fraction {fraction} takes a number from 0 to below 1")
    if not fraction:
        return set(always)
    places = {key: _place(key, seed) for keys in phases for key in keys}
    held = {key for key, place in places.items() if place < fraction and key not in never} | always
    ordered = [sorted(keys, key=lambda key: (places[key], key)) for keys in phases if len(keys) > 1]
    kept = set(never)
    for keys in ordered:
        free = [key for key in keys if key not in always]
        if free and held.issuperset(keys):
            held.discard(free[-1])
            kept.add(free[-1])
    for keys in ordered:
        free = [key for key in keys if key not in kept]
        if free and held.isdisjoint(keys):
            held.add(free[0])
    return held


def _place(key: str, seed: int) -> float:
    """From 0 to below 1."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8]) / 2**64
