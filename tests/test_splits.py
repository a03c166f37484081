"""The split by group: nothing crosses it, and it does not move with the rows around."""

import random
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from rovrm.errors import UserError
from rovrm.examples import Example
from rovrm.images import ImageRef, content_hash
from rovrm.splits import group_keys, hold_out


def example(prompt: list[dict[str, Any]] | None = None) -> Example:
    return Example("e", "s", prompt or [{"role": "user", "content": "Q"}], ["a", "b"], [0, 1])


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
