"""The split by group: nothing crosses it, in no phase, and it does not move with the rows around."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from rovrm.common.errors import UserError
from rovrm.data.example import Example
from rovrm.data.images import ImageRef, content_hash
from rovrm.data.splits import EVAL_DATA, HELD_OUT, LEFT_OUT, TRAIN, Part, groups_of, members_of, split
from rovrm.data.splits import hold_out as held_groups


def example(prompt: list[dict[str, Any]] | None = None) -> Example:
    return Example("e", "s", prompt or [{"role": "user", "content": "Q"}], ["a", "b"], [0, 1])


def group_keys(examples: list[Example], hashes: list[list[str]]) -> list[str]:
    rows = [members_of(replace(e, hashes=found)) for e, found in zip(examples, hashes, strict=True)]
    groups = groups_of(rows)
    return [groups[row[0]] for row in rows]


def hold_out(keys: list[str], fraction: float, seed: int = 0) -> list[bool]:
    held = held_groups([set(keys)], fraction, seed)
    return [key in held for key in keys]


def asked(text: str) -> Example:
    return example([{"role": "user", "content": text}])


def test_groups_by_image_through_others_and_by_prompt() -> None:
    examples = [example(), example(), example(), asked("Why, now?"), asked("why now"), asked("Why not?")]
    keys = group_keys(examples, [["b", "c"], ["a", "b"], ["d"], [], [], []])
    assert keys[:3] == ["image:a", "image:a", "image:d"]
    assert keys[3] == keys[4] != keys[5]
    assert keys[3].startswith("text:")


def test_all_turns_make_the_prompt() -> None:
    talk = [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}, {"role": "user", "content": "C"}]
    keys = group_keys([example(talk), example(talk[2:])], [[], []])
    assert keys[0] != keys[1]


def random_rows(seed: int, count: int = 300) -> list[list[str]]:
    rng = random.Random(seed)
    return [[f"{rng.randrange(400):03d}" for _ in range(rng.choice((1, 1, 1, 2)))] for _ in range(count)]


@pytest.mark.parametrize("seed", range(5))
def test_no_group_crosses(seed: int) -> None:
    hashes = random_rows(seed)
    held = hold_out(group_keys([example()] * len(hashes), hashes), 0.2, seed)
    out = {h for row, is_held in zip(hashes, held, strict=True) if is_held for h in row}
    rest = {h for row, is_held in zip(hashes, held, strict=True) if not is_held for h in row}
    assert not out & rest
    assert 0.05 < sum(held) / len(held) < 0.5


def test_stable_when_rows_are_reordered_or_removed() -> None:
    hashes = [[f"{i % 150:03d}"] for i in range(300)]
    examples = [example()] * 300
    membership = dict(zip([row[0] for row in hashes], hold_out(group_keys(examples, hashes), 0.2, 3), strict=True))
    order = random.Random(0).sample(range(300), 120)
    some = [hashes[i] for i in order]
    assert hold_out(group_keys(examples[:120], some), 0.2, 3) == [membership[row[0]] for row in some]
    assert hold_out(group_keys(examples, hashes), 0.2, 4) != list(membership.values())


def test_one_image_under_two_names_is_one_group(tmp_path: Path) -> None:
    image = PIL.Image.radial_gradient("L").convert("RGB")
    for name in ("a.png", "b.bmp"):
        image.save(tmp_path / name)
    hashes = [[content_hash(ImageRef(path=str(tmp_path / name)).open())] for name in ("a.png", "b.bmp")]
    keys = group_keys([example(), example()], hashes)
    assert keys[0] == keys[1]


def test_hold_out_at_the_edges() -> None:
    keys = [f"image:{i}" for i in range(5)]
    assert hold_out(keys, 0, 0) == [False] * 5
    assert sum(hold_out(keys, 1e-9, 0)) == 1
    assert sum(hold_out(keys, 1 - 1e-9, 0)) == 4
    assert hold_out(["a", "a"], 1e-9, 0) == [False, False]
    assert hold_out([], 0.5, 0) == []
    for fraction in (-0.1, 1.0):
        with pytest.raises(UserError, match="takes a number from 0 to below 1"):
            hold_out(keys, fraction, 0)


def test_a_larger_fraction_holds_out_more_of_the_same() -> None:
    keys = [f"image:{i}" for i in range(50)]
    held = [{k for k, h in zip(keys, hold_out(keys, f, 0), strict=True) if h} for f in (1e-9, 0.1, 0.3, 0.9, 1 - 1e-9)]
    assert all(small <= large for small, large in zip(held, held[1:], strict=False))
    assert 5 < len(held[2]) < 25


# ---- several phases --------------------------------------------------------------------------------------------------


def sides(part: Part, known: dict, seed: int = 0) -> tuple[list[str], list[str]]:
    found = split({"visual": part}, known, 0.3, seed)["visual"]
    return found.data, found.eval_data


def random_part(rng: random.Random, with_eval_data: bool) -> Part:
    rows = [[f"{rng.randrange(120):03d}" for _ in range(rng.choice((1, 1, 2)))] for _ in range(80)]
    return Part(rows[:60], rows[60:]) if with_eval_data else Part(rows)


def members(part: Part, found: tuple[list[str], list[str]], *wanted: str) -> set[str]:
    rows = [*zip(part.data, found[0], strict=True), *zip(part.eval_data or [], found[1], strict=True)]
    return {member for row, side in rows if side in wanted for member in row}


@pytest.mark.parametrize("seed", range(12))
def test_nothing_crosses_between_phases_nor_runs(seed: int) -> None:
    """Whatever phases there are, with eval_data or without, and whatever stands behind them."""
    rng = random.Random(seed)
    parts = {name: random_part(rng, rng.random() < 0.4) for name in ("text", "caption", "visual")}
    found = {name: (s.data, s.eval_data) for name, s in split(parts, {}, 0.2, seed).items()}
    trained = set().union(*(members(parts[name], found[name], TRAIN) for name in parts))
    held = set().union(*(members(parts[name], found[name], HELD_OUT, EVAL_DATA) for name in parts))
    assert trained and held and not trained & held
    known = {"it": {}}
    for name, part in parts.items():
        for row, side in [*zip(part.data, found[name][0], strict=True), *zip(part.eval_data or [], found[name][1])]:  # noqa: B905
            known["it"].setdefault(side, []).append(row)
    later = random_part(rng, bool(seed % 2))
    new = sides(later, known, seed + 100)
    assert not members(later, new, TRAIN) & held and not members(later, new, HELD_OUT, EVAL_DATA) & trained
    assert not members(later, new, TRAIN) & members(later, new, HELD_OUT, EVAL_DATA)


@pytest.mark.parametrize("seed", range(12))
def test_a_phase_read_again_without_the_finished_ones_is_split_alike(seed: int) -> None:
    """A killed run resumes at the same rows, also where groups are joined through rows of a finished phase."""
    rng = random.Random(seed)
    parts = {name: random_part(rng, rng.random() < 0.4) for name in ("text", "caption", "visual")}
    parts["visual"].data = parts["visual"].data[: rng.choice((2, 3, 60))]
    whole = split(parts, {}, 0.2, seed)
    known = {}
    for name in ("text", "caption"):
        part, found = parts[name], whole[name]
        entry = known[name] = {}
        for row, side in [*zip(part.data, found.data, strict=True), *zip(part.eval_data or [], found.eval_data)]:  # noqa: B905
            entry.setdefault(side, []).append(row)
    again = split({"visual": parts["visual"]}, known, 0.2, seed)["visual"]
    assert (again.data, again.eval_data) == (whole["visual"].data, whole["visual"].eval_data)


def test_rows_that_join_what_trained_and_what_is_held_out_go_by_their_own_images() -> None:
    known = {"it": {TRAIN: [["a"]], HELD_OUT: [["b"]]}}
    found, _ = sides(Part([["a", "b"], ["a", "c"], ["a"], ["b", "d"]]), known)
    assert found == [LEFT_OUT, TRAIN, TRAIN, LEFT_OUT]
    found, evals = sides(Part([["a", "c"], ["c"], ["e"]], [["a"], ["c"]]), known)
    assert found == [LEFT_OUT, LEFT_OUT, TRAIN] and evals == [LEFT_OUT, EVAL_DATA]
