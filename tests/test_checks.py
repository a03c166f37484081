"""The look at every example before training: what is bad is found, with its field, its value and the remedy."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from helpers import noise

from rovrm.common.errors import UserError
from rovrm.data.example import Example
from rovrm.data.images import ImageRef, content_hash
from rovrm.model.collator import RewardCollator
from rovrm.model.loading import load_config, load_processor
from rovrm.training.checks import check_examples, check_responses, stop_if_too_bad

FIELDS = {"location", "id", "field", "value", "reason"}
LONG = 10_000


@pytest.fixture(scope="session")
def collator_of(family_folder):
    """`collator_of("llava")`: the collator of that tiny model."""

    def make(name: str) -> RewardCollator:
        folder = str(family_folder(name))
        return RewardCollator(load_processor(folder), load_config(folder))

    return make


@pytest.fixture(scope="session")
def collator(collator_of) -> RewardCollator:
    return collator_of("llava")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Callable[..., ImageRef]:
    """`pictures(seed, width, height)`: a noise image in a file of its own."""
    folder = tmp_path_factory.mktemp("pictures")

    def picture(seed: int = 0, width: int = 40, height: int = 30) -> ImageRef:
        path = folder / f"{seed}-{width}x{height}.png"
        noise(seed, (width, height)).save(path)
        return ImageRef(path=str(path), label=path.name)

    return picture


def example(*images: ImageRef, prompt: Any = "What is on the table?", **fields: Any) -> Example:
    messages = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    plain = Example(
        "e1", "test", messages, ["A red cup.", "A dog."], [0, 1], list(images), location="data.jsonl, row 7"
    )
    return dataclasses.replace(plain, **fields)


def look(collator: RewardCollator, bad: Example, max_length: int = LONG) -> dict[str, Any]:
    """The one record that a bad example gives."""
    checked = check_examples([bad], collator, max_length)
    assert not checked.examples
    [record] = checked.rejected
    assert set(record) == FIELDS and record["location"] == "data.jsonl, row 7" and record["id"] == "e1"
    assert json.dumps(record) and len(record["value"]) <= 200
    return record


# ---- images ----------------------------------------------------------------------------------------------------------


def broken_file(kind: str, whole: Path, folder: Path) -> Path:
    path = folder / f"{kind}.png"
    if kind == "truncated":
        path.write_bytes(whole.read_bytes()[:-1500])
    elif kind == "zero":
        path.write_bytes(b"")
    elif kind == "unreadable":
        path.write_bytes(b"this is a text")
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "no such file; mend the path"),
        ("zero", "the file is empty, 0 bytes.*replace the file or drop the row"),
        ("unreadable", "not an image in a format read here.*convert it"),
        ("truncated", "cannot be decoded.*replace the file or drop the row"),
    ],
)
def test_broken_images(collator, pictures, tmp_path: Path, kind: str, reason: str) -> None:
    path = broken_file(kind, Path(pictures().path), tmp_path)
    record = look(collator, example(pictures(), ImageRef(path=str(path), label=f"their/{kind}.png")))
    assert record["field"] == "image 2" and record["value"] == f"their/{kind}.png"
    assert str(path) in record["reason"]
    with pytest.raises(UserError, match=reason):
        raise UserError(record["reason"])


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bomb(collator, pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = pictures(0, 40, 30)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1199)
    record = look(collator, example(ref))
    assert record["field"] == "image 1" and record["value"] == ref.name
    assert "40 x 30 pixels, above the limit of 1199 pixels; shrink the image or drop the row" in record["reason"]
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1200)
    assert check_examples([example(ref)], collator, LONG).examples


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (40, 3), (1000, 2)])
def test_odd_images_that_pass(collator, pictures, size: tuple[int, int]) -> None:
    odd = example(pictures(0, *size))
    [found] = check_examples([odd], collator, LONG).examples
    assert found.lengths == built_lengths(collator, odd)
    assert collator([odd])["pixel_values"].isfinite().all()


def test_an_odd_image_that_the_processor_refuses(collator_of, pictures) -> None:
    collator, odd = collator_of("qwen2_5_vl"), example(pictures(1), pictures(0, 1000, 2))
    record = look(collator, odd)
    assert record["field"] == "images" and record["value"] == "1-40x30.png, 0-1000x2.png"
    assert "ValueError: absolute aspect ratio must be smaller than 200" in record["reason"]
    assert "replace the image or drop the row" in record["reason"]
    with pytest.raises(ValueError):  # as it would have in training
        collator([odd])


def test_a_processor_that_raises_anything_costs_one_row(collator, pictures, monkeypatch) -> None:
    def refuse(*args: Any, **options: Any) -> Any:
        raise ZeroDivisionError("aspect ratio")

    monkeypatch.setattr(type(collator.processor), "__call__", refuse)
    monkeypatch.setattr(collator, "_extra_tokens", {})
    record = look(collator, example(pictures(5)))
    assert record["field"] == "images" and record["value"] == pictures(5).name
    assert "ZeroDivisionError: aspect ratio" in record["reason"] and "drop the row" in record["reason"]


# ---- texts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "field", "value", "reason"),
    [
        ({"responses": ["A", ""]}, "response 2", "''", "is empty; fill it in or drop the row"),
        ({"responses": [" \n\t", "B"]}, "response 1", r"' \n\t'", "is empty; fill it in or drop the row"),
        ({"responses": ["A", "A"]}, "responses 1 and 2", "A", "identical.*drop the row"),
        ({"responses": ["A", "A \n"]}, "responses 1 and 2", "A \n", "identical.*drop the row"),
        ({"responses": ["A", "B", "A"], "ranks": [0, 0, 1]}, "responses 1 and 3", "A", "identical.*drop the row"),
        ({"ranks": [0, 0]}, "ranks", "[0, 0]", "tied, there is nothing to compare; drop the row"),
        ({"responses": ["A", "A"], "ranks": [0, 0]}, "ranks", "[0, 0]", "tied.*drop the row"),
        ({"responses": ["A"], "ranks": [0]}, "responses", "1 responses, 1 ranks", "two or more.*drop the row"),
        ({"responses": ["A", "B", "C"]}, "responses", "3 responses, 2 ranks", "each with its rank"),
        ({"margin": float("nan")}, "margin", "nan", "not finite; mend it or leave it out"),
        ({"margin": float("-inf")}, "margin", "-inf", "not finite; mend it or leave it out"),
        ({"margin": -1.5}, "margin", "-1.5", "below 0 .* lets the worse answer win; give 0 or more"),
    ],
)
def test_bad_responses(collator, fields: dict[str, Any], field: str, value: str, reason: str) -> None:
    record = look(collator, example(**fields))
    assert (record["field"], record["value"]) == (field, value)
    with pytest.raises(UserError, match=reason):
        raise UserError(record["reason"])


def test_good_responses() -> None:
    for fields in (
        {"responses": ["A", "A", "B"], "ranks": [0, 0, 1]},  # identical ones may tie
        {"responses": ["A", "AB", "a"], "ranks": [0, 1, 1]},
        {"margin": 0.0},
    ):
        assert not check_responses(example(**fields)).reason


def test_more_placeholders_than_images(collator, pictures) -> None:
    blocks = [{"type": "image"}, {"type": "text", "text": "or"}, {"type": "image"}, {"type": "text", "text": "cup?"}]
    record = look(collator, example(pictures(), prompt=[{"role": "user", "content": blocks}]))
    assert record["field"] == "prompt" and record["value"] == "or\ncup?"
    assert "2 image placeholders for 1 images; add images or drop placeholders" in record["reason"]


@pytest.mark.parametrize("pictured", [False, True])
@pytest.mark.parametrize(("family", "word"), [("llava", "<image>"), ("gemma3", "<image_soft_token>"),
                                               ("gemma3", "<start_of_image>")])  # fmt: skip
def test_image_tokens_in_texts(collator_of, pictures, family: str, word: str, pictured: bool) -> None:
    """Also for separate rows, where the processor sees the first response alone before training."""
    collator, images = collator_of(family), [pictures()] if pictured else []
    remedy = f"the text {word!r} stands for an image in this model; remove it from the text"
    record = look(collator, example(*images, responses=["A.", f"{'x' * 300}B {word}"]))
    assert record["field"] == "response 2" and word in record["value"] and remedy in record["reason"]
    record = look(collator, example(*images, prompt=f"Is {word} HTML?"))
    assert record["field"] == "prompt" and record["value"] == f"Is {word} HTML?" and remedy in record["reason"]


def test_image_tokens_mean_nothing_to_a_text_model(collator_of) -> None:
    assert check_examples([example(prompt="Is <image> HTML?")], collator_of("qwen2"), LONG).examples


def test_over_long_row(collator, pictures) -> None:
    [good] = check_examples([example(pictures())], collator, LONG).examples
    assert good.lengths
    longest = good.lengths[0] + max(good.lengths[1])
    assert check_examples([good], collator, longest).examples
    checked = check_examples([good], collator, longest - 1)
    [record] = checked.long  # apart from the bad ones: only its length is wrong
    assert not checked.examples and not checked.rejected and checked.skipped == [record] and set(record) == FIELDS
    assert record["field"] == "responses" and record["value"] == f"{longest} tokens"
    assert f"max_length={longest - 1}; raise max_length or drop the row" in record["reason"]


def test_chat_template_that_refuses(collator, monkeypatch: pytest.MonkeyPatch) -> None:
    template = "{{ raise_exception('Roles must alternate') if messages[0]['role'] == messages[1]['role'] }}{{ 'x' }}"
    monkeypatch.setattr(collator.processor, "chat_template", template)
    turns = [{"role": "user", "content": "Hello"}, {"role": "user", "content": "What?"}]
    record = look(collator, example(prompt=turns))
    assert record["field"] == "prompt" and record["value"] == "Hello\nWhat?"
    assert "the chat template refuses this conversation" in record["reason"]
    assert "Roles must alternate" in record["reason"]
    assert "mend the roles of the prompt, or give another template with chat_template=FILE" in record["reason"]


# ---- what a good one brings ------------------------------------------------------------------------------------------


def built_lengths(collator: RewardCollator, one: Example) -> tuple[int, list[int]]:
    """Prefix and response lengths, counted in the batch that training would get."""
    batch = collator([one])
    if collator.shared:
        return batch["input_ids"].shape[1], batch["answer_attention_mask"].sum(1).tolist()
    tokens = batch["attention_mask"].sum(1).tolist()
    rows = [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    same = next(i for i, column in enumerate(zip(*rows, strict=False)) if len(set(column)) > 1)
    return same, [total - same for total in tokens]


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "idefics3", "gemma3", "mllama", "qwen3"])
def test_lengths_are_those_the_collator_builds(collator_of, pictures, family: str) -> None:
    collator = collator_of(family)
    more = {"responses": ["A red cup.", "A red dog, and a long list of other things.", "It is 3."], "ranks": [0, 1, 2]}
    examples = [example(), example(**more)]
    if family != "qwen3":
        examples += [example(pictures(1)), example(pictures(2, 90, 35), **more), example(pictures(3))]
        examples += [example(pictures(4), pictures(5, 33, 70))]
    checked = check_examples(examples, collator, LONG)
    assert not checked.rejected
    for found in checked.examples:
        assert found.lengths == built_lengths(collator, found)


def test_hashes_are_of_the_pixels(collator, pictures, tmp_path: Path) -> None:
    first, second = pictures(1), pictures(2)
    copy = tmp_path / "another name.bmp"
    first.open().save(copy)
    checked = check_examples([example(first, second), example(ImageRef(path=str(copy))), example()], collator, LONG)
    own = content_hash(first.open())
    assert [e.hashes for e in checked.examples] == [[own, content_hash(second.open())], [own], []]


def test_captioned_examples_are_hashed_by_their_pictures(collator, pictures, tmp_path: Path) -> None:
    """One whose file cannot be opened is known by its name: the caption phase needs no pixels."""
    gone = ImageRef(path=str(tmp_path / "gone.png"), label="images/gone.png")
    pictured = [example(pictures(1)), example(gone), example()]
    checked = check_examples([example(), example(), example()], collator, LONG, pictured=pictured)
    assert not checked.rejected
    assert [e.hashes for e in checked.examples] == [[content_hash(pictures(1).open())], ["name:images/gone.png"], []]


def mixed(pictures, tmp_path: Path) -> list[Example]:
    """23 examples, every fourth one bad."""
    gone = ImageRef(path=str(tmp_path / "gone.png"))
    made = []
    for i in range(23):
        one = example(*([pictures(i)] if i % 3 else []), id=f"e{i}", location=f"data.jsonl, row {i + 1}")
        bad = [{"responses": ["", "B"]}, {"margin": float("inf")}, {"images": [gone]}][i % 3]
        made.append(dataclasses.replace(one, **bad) if i % 4 == 3 else one)
    return made


def test_workers_change_nothing(collator, pictures, tmp_path: Path) -> None:
    examples = mixed(pictures, tmp_path)
    alone, helped = (check_examples(examples, collator, LONG, workers) for workers in (0, 2))
    assert alone == helped
    assert [e.id for e in alone.examples] == [f"e{i}" for i in range(23) if i % 4 != 3]
    assert [r["id"] for r in alone.rejected] == [f"e{i}" for i in range(23) if i % 4 == 3]
    assert all(e.lengths for e in alone.examples) and not any(e.lengths for e in examples)


def test_nothing_to_look_at(collator) -> None:
    checked = check_examples([], collator, LONG, workers=2)
    assert (checked.examples, checked.rejected) == ([], [])


# ---- too many --------------------------------------------------------------------------------------------------------


def rejected(count: int) -> list[dict[str, Any]]:
    return [
        {"location": f"a.jsonl, row {i}", "id": f"e{i}", "field": "margin", "value": "x" * 500, "reason": f"reason {i}"}
        for i in range(count)
    ]


@pytest.mark.parametrize(
    ("bad", "total", "fraction", "stops"),
    [
        (0, 0, 0.0, False),
        (1, 100, 0.01, False),
        (2, 100, 0.01, True),
        (1, 99, 0.01, True),
        (29, 100, 0.29, False),  # 0.29 * 100 is 28.999999999999996
        (30, 100, 0.29, True),
        (1, 5, 0.0, True),
        (5, 5, 1.0, False),
    ],
)
def test_threshold(bad: int, total: int, fraction: float, stops: bool) -> None:
    if not stops:
        return stop_if_too_bad(rejected(bad), total, fraction, "list")
    with pytest.raises(UserError, match=f"{bad} of {total} rows are bad, more than max_bad_fraction={fraction:g}"):
        stop_if_too_bad(rejected(bad), total, fraction, "list")


def test_the_first_five_are_shown() -> None:
    with pytest.raises(UserError) as caught:
        stop_if_too_bad(rejected(7), 10, 0.5, "runs/x/rejected.jsonl")
    first, *lines = str(caught.value).splitlines()
    assert "all of them: runs/x/rejected.jsonl" in first and "mend them or raise max_bad_fraction" in first
    assert len(lines) == 5
    for i, line in enumerate(lines):
        assert line == f"  a.jsonl, row {i}: margin = {'x' * 120!r}: reason {i}"


def test_images_above_the_limit_of_pixels(collator: RewardCollator, pictures: Callable[..., ImageRef]) -> None:
    one, two = pictures(0), pictures(1)
    assert check_examples([example(one, two)], collator, LONG, max_pixels=2400).examples
    [record] = check_examples([example(one, two)], collator, LONG, max_pixels=2399).rejected
    assert (record["field"], record["value"]) == ("image 2", "1-40x30.png")
    assert "40 x 30 pixels, where max_pixels leaves 1199" in record["reason"] and "raise max_pixels" in record["reason"]
