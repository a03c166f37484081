"""The split of a run's rows into what trains and what is held out: one over all its phases.

    sides = split({"caption": Part(rows), "visual": Part(rows, eval_rows)}, known={}, fraction=0.02, seed=0)

A row is known by its members: the content hashes of its images, or where it has none its prompt. Rows that share a
member, directly or through others, are a group, and a group is on one side in every phase: what a model is measured on,
it has not seen in training under another question or another caption.
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
Members = list[str]  # of one row, at least one
Known = dict[str, dict[str, list[Members]]]  # rows of phases that are split already, by whose they are and by side
OTHERS = "what another phase holds out"


@dataclass(slots=True)
class Part:
    """The rows of one phase. eval_data: None where a fraction of `data` is held out."""

    data: list[Members]
    eval_data: list[Members] | None = None


@dataclass(slots=True)
class Sides:
    """The side of each row of a part.

    because: by the number of a row of `data` that is left out, what it shares a group with, in words.
    before: how many rows of `data` the fraction would hold out, had they not been trained on before.
    """

    data: list[str] = field(default_factory=list)
    eval_data: list[str] = field(default_factory=list)
    because: dict[int, str] = field(default_factory=dict)
    before: int = 0


def members_of(example: Example) -> Members:
    """`image:HASH` of each image (an example with a caption keeps those of its pictures), else `text:HASH`."""
    if example.hashes:
        return [f"image:{content}" for content in example.hashes]
    turns = [normalise(text_of(message["content"])) for message in example.prompt]
    return ["text:" + hashlib.sha1("\n".join(turns).encode(), usedforsecurity=False).hexdigest()]


def groups_of(rows: Iterable[Members]) -> dict[str, str]:
    """The group of each member, by the group's smallest member."""
    parent: dict[str, str] = {}  # a forest: following the parents leads to the smallest member of the group so far

    def root(member: str) -> str:
        parent.setdefault(member, member)
        while parent[member] != member:
            parent[member] = parent[parent[member]]  # halves the way for the next time
            member = parent[member]
        return member

    for row in rows:
        for other in row:
            low, high = sorted((root(row[0]), root(other)))
            parent[high] = low
    return {member: root(member) for member in list(parent)}


# ---- the split -------------------------------------------------------------------------------------------------------


def split(parts: dict[str, Part], known: Known, fraction: float, seed: int) -> dict[str, Sides]:
    """The sides of the rows of each phase.

    By group, the first of these that fits:
        1. It has trained before: it goes on to train.
        2. It is in the eval_data of a phase: it is held out there, and left out of the `data` of every phase.
        3. It was held out before, or is drawn by the fraction: it is held out in every phase without eval_data, and
           left out of those with eval_data.
        4. It trains.

    Args:
        parts: the rows of the phases, by the phase's name.
        known: what stands behind these phases: what was held out there does not train here, and what trained there is
            not held out.
        fraction: share of the groups of a phase without eval_data that is held out.
        seed: of the draw.
    """
    before = _by_side(known)
    now = [row for part in parts.values() for row in [*part.data, *(part.eval_data or [])]]
    groups = groups_of([row for rows in before.values() for row in rows] + now)
    trained = {member for row in before[TRAIN] for member in row}
    trained_groups = {groups[row[0]] for row in before[TRAIN]}
    owners = _owners_of_eval_data(parts, known, groups, trained)
    held_out = hold_out(
        [{groups[row[0]] for row in part.data} - owners.keys() for part in parts.values() if part.eval_data is None],
        fraction,
        seed,
        always={groups[row[0]] for row in before[HELD_OUT]} - trained_groups - owners.keys(),
        never=trained_groups,
    )
    holders = _holders(known, groups)
    withheld = _withheld(parts, before, trained)

    sides_by_phase = {}
    for name, part in parts.items():
        sides = sides_by_phase[name] = Sides()
        for row in part.eval_data or []:
            sides.eval_data.append(EVAL_DATA if trained.isdisjoint(row) else LEFT_OUT)
        for number, row in enumerate(part.data):
            group = groups[row[0]]
            if group in trained_groups:
                # Rows of today may join what trained before with what is held out into one group. It has trained, but
                # a row that itself has a member of what is held out does not.
                trains = withheld.isdisjoint(row)
            else:
                trains = group not in owners and group not in held_out
            if trains:
                sides.data.append(TRAIN)
            elif group in held_out and part.eval_data is None:
                sides.data.append(HELD_OUT)
            else:
                sides.data.append(LEFT_OUT)
                own = f"{name}.eval_data"
                others = owners.get(group) or [holders.get(group, OTHERS)]
                sides.because[number] = own if own in others else others[0]
            if group in trained_groups and part.eval_data is None and _place(group, seed) < fraction:
                sides.before += 1
    return sides_by_phase


def _by_side(known: Known) -> dict[str, list[Members]]:
    rows: dict[str, list[Members]] = {side: [] for side in SIDES}
    for by_side in known.values():
        for side in SIDES:
            rows[side] += by_side.get(side, [])
    return rows


def _owners_of_eval_data(
    parts: dict[str, Part], known: Known, groups: dict[str, str], trained: Set[str]
) -> dict[str, list[str]]:
    """The groups of eval_data, each with whose they are in words. Rows that trained before are not held out."""
    owners: dict[str, list[str]] = {}
    for name, part in parts.items():
        for row in part.eval_data or []:
            if trained.isdisjoint(row):
                owners.setdefault(groups[row[0]], []).append(f"{name}.eval_data")
    for whose, by_side in known.items():
        for row in by_side.get(EVAL_DATA, []):
            owners.setdefault(groups[row[0]], []).append(f"what {whose} holds out")
    return owners


def _withheld(parts: dict[str, Part], before: dict[str, list[Members]], trained: Set[str]) -> set[str]:
    """The members of rows that are held out, before or in eval_data now: a row with one of them never trains."""
    rows = before[HELD_OUT] + before[EVAL_DATA]
    for part in parts.values():
        rows = rows + [row for row in part.eval_data or [] if trained.isdisjoint(row)]
    return {member for row in rows for member in row}


def _holders(known: Known, groups: dict[str, str]) -> dict[str, str]:
    """The groups that were held out by a fraction before, each with whose they are in words."""
    holders: dict[str, str] = {}
    for whose, by_side in known.items():
        for row in by_side.get(HELD_OUT, []):
            holders[groups[row[0]]] = f"what {whose} holds out"
    return holders


# ---- the draw --------------------------------------------------------------------------------------------------------


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

    Args:
        phases: the groups of each phase.
        always, never: groups that are on one side already.
    """
    if phases and not 0 <= fraction < 1:
        raise UserError(f"held-out fraction {fraction} takes a number from 0 to below 1")
    if not fraction:
        return set(always)
    places = {group: _place(group, seed) for groups in phases for group in groups}
    held = {group for group, place in places.items() if place < fraction and group not in never}
    held |= always
    ordered = [sorted(groups, key=lambda group: (places[group], group)) for groups in phases if len(groups) > 1]
    # First every phase gets something to train on, then every phase something held out, but not what the first step
    # left for training.
    kept = set(never)
    for groups in ordered:
        free = [group for group in groups if group not in always]
        if free and held.issuperset(groups):
            held.discard(free[-1])
            kept.add(free[-1])
    for groups in ordered:
        free = [group for group in groups if group not in kept]
        if free and held.isdisjoint(groups):
            held.add(free[0])
    return held


def _place(group: str, seed: int) -> float:
    """A number from 0 to below 1, by hash."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{group}".encode()).digest()[:8]) / 2**64
