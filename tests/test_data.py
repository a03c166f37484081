"""Loading, drawing, captions and the split; then every preference file of the real data, where it is present."""

import dataclasses
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from helpers import REAL, ROOT, pairs, write_lines

from rovrm.common.errors import UserError
from rovrm.common.files import write_jsonl
from rovrm.data.bad_rows import BadRow, rejection
from rovrm.data.captions import caption_example, load_captions, with_caption
from rovrm.data.example import Example
from rovrm.data.images import ImageRef
from rovrm.data.loading import Loaded, as_examples, load_examples, use_captions
from rovrm.settings.keys import CAPTION_TEMPLATE


@pytest.fixture
def hundred(tmp_path: Path) -> str:
    return write_lines(tmp_path / "hundred.jsonl", *pairs(100))


def captioned(examples: list[Example], file: str | Path) -> Loaded:
    """The examples that find a caption in a file, and why the others do not."""
    captions, loaded = load_captions(file), Loaded()
    for one in examples:
        try:
            loaded.examples.append(with_caption(one, captions))
        except BadRow as error:
            loaded.rejected.append(rejection(one.location, one.id, error))
    return loaded


def ids(*args: Any, **settings: Any) -> list[str]:
    return [example.id for example in load_examples(*args, **settings).examples]


# ---- loading ---------------------------------------------------------------------------------------------------------


def test_rows_that_cannot_be_read_are_counted_and_said(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "a.jsonl",
        *pairs(2),
        pairs(1)[0] | {"chosen": None, "id": "x"},
        pairs(1)[0] | {"margin": "y" * 300},
        "{broken",
    )
    loaded = load_examples(path)
    assert [example.id for example in loaded.examples] == ["a-1", "a-2"]
    first, second, third = loaded.rejected
    assert (first["location"], first["id"], first["field"], first["value"]) == (f"{path}, row 3", "x", "chosen", "null")
    assert first["reason"] == "no value in chosen; fill it in or drop the row"
    assert (second["id"], second["value"]) == ("a-4", "y" * 200)
    assert (third["field"], third["value"]) == ("row", "{broken")
    assert "broken JSON" in third["reason"] and "mend or delete the line" in third["reason"]


def test_not_one_good_row(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", *pairs(2, image="gone.jpg"))
    with pytest.raises(UserError, match=r"not one row can be used. 2 rows .*row 1: image = 'gone\.jpg': .*image_root"):
        load_examples(path)


def test_unknown_format_and_reader_name_the_file(tmp_path: Path, hundred: str) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"query": "Q", "chosen": "a", "rejected": "b"})
    with pytest.raises(UserError, match=rf"{path}: no reader fits the columns chosen, query, rejected"):
        load_examples([path, hundred])
    with pytest.raises(UserError, match="reader=plian: no such reader; takes ultrafeedback"):
        load_examples(hundred, reader="plian")


def test_files_of_a_folder_may_differ_in_format(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", *pairs(1))
    write_lines(tmp_path / "b.jsonl", {"question": "Q", "output_1": "x", "output_2": "y", "label": 2})
    assert [e.responses[0] for e in load_examples(str(tmp_path)).examples] == ["good 0", "y"]


def test_columns_from_the_section_and_from_the_source(tmp_path: Path, hundred: str) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"q": "Q", "good": "a", "rejected": "b"})
    settings = f"{path}?columns.chosen=good"
    loaded = load_examples([settings, hundred], columns={"prompt": "q"})  # the second source has its own prompt
    assert (loaded.examples[0].prompt[0]["content"], loaded.examples[0].responses) == ("Q", ["a", "b"])
    assert Counter(e.source for e in loaded.examples)["hundred"] == 100
    with pytest.raises(UserError, match=r"columns\.prompt=quest: the data have no such column; they have q"):
        load_examples(settings, columns={"prompt": "quest"})


def test_columns_may_be_swapped(hundred: str) -> None:
    loaded = load_examples(hundred, columns={"chosen": "rejected", "rejected": "chosen"})
    assert loaded.examples[0].responses == ["bad 0", "good 0"]


def test_ids_are_unique(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", *[row | {"id": "same"} for row in pairs(3)])
    assert ids(path) == ["same", "same-2", "same-3"]
    again = zip(pairs(4), ("a", "a-2", "a", "a"), strict=True)
    path = write_lines(tmp_path / "b.jsonl", *[row | {"id": name} for row, name in again])
    assert ids(path) == ["a", "a-2", "a-3", "a-4"]


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    names = ("x/train/a.jsonl", "x/test/a.jsonl", "y/test/a.jsonl", "y/b.jsonl")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_lines(tmp_path / name, *pairs(2))
    loaded = load_examples([str(tmp_path / name) for name in names])
    assert [e.source for e in loaded.examples[::2]] == ["x/train/a", "x/test/a", "y/test/a", "b"]
    loaded = load_examples(f"{tmp_path}/x/*/a.jsonl")
    assert [e.source for e in loaded.examples] == ["test/a"] * 2 + ["train/a"] * 2
    own = [row | {"source": "mine"} for row in pairs(1)]
    loaded = load_examples(
        [str(tmp_path / names[0]), write_lines(tmp_path / "a.jsonl", *own), write_lines(tmp_path / "a.json", *own)]
    )
    assert [e.source for e in loaded.examples] == ["a", "a", "mine", "mine"]
    both = [write_lines(tmp_path / name, *pairs(1)) for name in ("c.json", "c.jsonl")]
    assert [e.source for e in load_examples(both).examples] == both


def test_many_equal_ids(tmp_path: Path) -> None:
    """In a time that grows with their number: with its square this would take minutes."""
    path = write_lines(tmp_path / "a.jsonl", *[row | {"id": "same"} for row in pairs(20_000)])
    assert ids(path)[-1] == "same-20000"


def test_no_image_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").write_bytes(b"not an image")
    monkeypatch.setattr(PIL.Image, "open", lambda *_, **__: pytest.fail("opened at load"))
    path = write_lines(tmp_path / "a.jsonl", *pairs(1, image="a.jpg"))
    assert load_examples(path).examples[0].images == [ImageRef(path=str(tmp_path / "a.jpg"))]


def test_image_root(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").touch()
    path = write_lines(tmp_path / "a.jsonl", *pairs(1, image="a.jpg"))
    loaded = load_examples(path, image_root=str(tmp_path / "images"))
    assert loaded.examples[0].images[0].path == str(tmp_path / "images" / "a.jpg")


def test_n_is_drawn_with_the_seed(hundred: str) -> None:
    drawn = ids(hundred, n=10)
    assert len(drawn) == 10 and drawn == ids(hundred, n=10) == ids(f"{hundred}?n=10")
    assert drawn == sorted(drawn, key=lambda name: int(name.split("-")[1]))
    assert drawn != ids(hundred, n=10, seed=1)
    assert ids(hundred, n=3, select="first") == ["hundred-1", "hundred-2", "hundred-3"]
    assert set(ids(hundred, n=5)) <= set(drawn)  # a smaller n is part of a larger


def test_drawing_does_not_depend_on_the_process(hundred: str) -> None:
    code = "from rovrm.data.loading import load_examples; "
    code += f"print([e.id for e in load_examples({hundred!r}, n=10).examples])"
    environment = os.environ | {"PYTHONHASHSEED": "123"}
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == str(ids(hundred, n=10))


def test_bad_rows_are_made_up_for(tmp_path: Path) -> None:
    bad = [row | {"chosen": None} for row in pairs(50)]
    path = write_lines(tmp_path / "a.jsonl", *pairs(50), *bad)
    loaded = load_examples(path, n=50)
    assert len(loaded.examples) == 50
    assert 0 < len(loaded.rejected) <= 50
    assert len(load_examples(path, n=25).rejected) < len(loaded.rejected)  # rows that are not drawn are not read


def test_more_than_there_is(hundred: str, caplog: pytest.LogCaptureFixture) -> None:
    assert len(ids(f"{hundred}?n=500")) == 100
    assert "n=500 asked for, 100 usable rows found: all taken" in caplog.text


def test_several_sources_with_counts(tmp_path: Path, hundred: str) -> None:
    other = write_lines(tmp_path / "other.jsonl", *pairs(50))
    loaded = load_examples([f"{hundred}?n=20", f"{other}?n=5"])
    assert [example.source for example in loaded.examples] == ["hundred"] * 20 + ["other"] * 5
    drawn = [example.source for example in load_examples([hundred, other], n=30).examples]
    assert len(drawn) == 30 and {*drawn} == {"hundred", "other"} and drawn == sorted(drawn)


@pytest.mark.parametrize(
    ("weights", "n", "kept"),
    [
        ((3, 1), 40, [30, 10]),
        ((1, 1), None, [50, 50]),
        ((0.9, 0.1), None, [100, 11]),
        ((1, 1), 1000, [50, 50]),
        ((1, 2), 10, [3, 7]),
    ],
)
def test_several_sources_with_weights(
    tmp_path: Path, hundred: str, weights: Any, n: int | None, kept: list[int]
) -> None:
    other = write_lines(tmp_path / "other.jsonl", *pairs(50))
    texts = [f"{hundred}?weight={weights[0]}", f"{other}?weight={weights[1]}"]
    loaded = load_examples(texts, n=n)
    assert [example.source for example in loaded.examples] == ["hundred"] * kept[0] + ["other"] * kept[1]
    assert len({example.id for example in loaded.examples}) == sum(kept)
    with pytest.raises(UserError, match="has no weight, others have; give every source"):
        load_examples([texts[0], other])


# ---- pairs=true ------------------------------------------------------------------------------------------------------


def ultrafeedback(path: Path, *scores: list[float]) -> str:
    """A file in UltraFeedback's schema; the response with the score s is called s."""
    rating = {"Rating": "4", "Rationale": "", "Type": ["1"], "Rationale For Rating": ""}
    names = ("instruction_following", "honesty", "truthfulness", "helpfulness")
    more = {"annotations": dict.fromkeys(names, rating), "custom_system_prompt": "", "model": "m", "principle": "p"}
    more |= {"critique": "", "fine-grained_score": 4.0}
    rows = [
        {
            "source": "evol_instruct",
            "instruction": f"Q{i}",
            "models": ["m"] * len(many),
            "completions": [more | {"response": f"{i}: {score}", "overall_score": score} for score in many],
            "correct_answers": ["None"],
            "incorrect_answers": ["None"],
        }
        for i, many in enumerate(scores)
    ]
    return write_lines(path, *rows)


def test_a_list_becomes_its_pairs(tmp_path: Path) -> None:
    path = ultrafeedback(tmp_path / "u.jsonl", [5, 9, 1, 7], [5, 9, 5, 7], [3, 3, 3, 3], [2, 1])
    lists, loaded = load_examples(path), load_examples(f"{path}?pairs=true")
    assert [len(e.responses) for e in lists.examples] == [4, 4, 4, 2]
    found = {e.id: [float(text.split(": ")[1]) for text in e.responses] for e in loaded.examples}
    assert list(found) == [
        *("u-1-0-1", "u-1-0-2", "u-1-0-3", "u-1-1-2", "u-1-1-3", "u-1-2-3"),
        *("u-2-0-1", "u-2-0-2", "u-2-0-3", "u-2-1-2", "u-2-1-3"),  # 2 and 3 tie
        *("u-3", "u-4"),  # a list of ties, which the checks refuse, and a pair
    ]
    assert all(e.ranks == [0, 1] and found[e.id][0] > found[e.id][1] for e in loaded.examples if e.id != "u-3")
    assert found["u-1-0-3"] == [9, 1] and found["u-2-1-3"] == [7, 5]
    assert [e.responses for e in loaded.examples if e.id == "u-3"] == [lists.examples[2].responses]
    assert {e.prompt[0]["content"] for e in loaded.examples[:6]} == {"Q0"}
    assert not loaded.rejected


def test_n_counts_pairs(tmp_path: Path) -> None:
    path = ultrafeedback(tmp_path / "u.jsonl", *[[4, 3, 2, 1]] * 50)
    drawn = load_examples(f"{path}?pairs=true", n=60)
    assert len(drawn.examples) == 60 == len(load_examples(f"{path}?pairs=true&n=60").examples)
    assert len({e.prompt[0]["content"] for e in drawn.examples}) > 25  # of all lists, not all pairs of ten
    assert [e.id for e in drawn.examples] == ids(f"{path}?pairs=true", n=60) != ids(f"{path}?pairs=true", n=60, seed=1)
    assert set(ids(f"{path}?pairs=true", n=20)) <= {e.id for e in drawn.examples}
    assert len(load_examples(path, n=60).examples) == 50 == len(load_examples(f"{path}?pairs=false", n=60).examples)
    first = ids(f"{path}?pairs=true", n=7, select="first")
    assert first[5:] == ["u-1-2-3", "u-2-0-1"]


def test_every_ranked_format_has_pairs(tmp_path: Path) -> None:
    talk = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": ["a", "b", "c"]}]
    names = ("Helpfulness", "Ethical Considerations", "Visual Faithfulness")
    rated = [{"response": r, "annotations": {n: {"Rating": r} for n in names}} for r in "321"]
    mixed = [talk[0], {"from": "gpt", "preference_values": ["a", "b", "c"]}]
    rows = [{"prompt": "Q", "responses": ["a", "b", "c"]}, {"conversations": talk}]
    rows += [{"prompt": "Q", "completions": rated}, {"conversations": mixed, "origin_pre_dataset": "povid"}]
    for i, row in enumerate(rows):
        path = write_lines(tmp_path / f"{i}.jsonl", row | {"margin": 0.5})
        assert ids(f"{path}?pairs=true") == [f"{i}-1-0-1", f"{i}-1-0-2", f"{i}-1-1-2"]
        assert {e.margin for e in load_examples(f"{path}?pairs=true").examples} == {0.5}


def test_pairs_with_captions_are_judged_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").touch()
    path = write_lines(tmp_path / "a.jsonl", {"prompt": "Q", "responses": ["a", "b", "c"], "image": "1.jpg"})
    captions = write_lines(tmp_path / "c.jsonl", {"image": "1.jpg", "caption": "B"})
    loaded = load_examples(f"{path}?pairs=true", captions=captions)
    assert [e.id for e in loaded.examples] == ["a-1-0-1", "a-1-0-2"]
    assert ["would give it away" in row["reason"] for row in loaded.rejected] == [True]


def test_the_recipes_count_pairs() -> None:
    files = [file for file in (ROOT / "recipes").rglob("*.yaml") if "UltraFeedback" in file.read_text()]
    assert len(files) >= 6
    for file in files:
        text = file.read_text()
        assert "data: openbmb/UltraFeedback?pairs=true" in text and ("n: 20000" in text or "no-selection" in file.name)


def test_as_examples(hundred: str) -> None:
    examples = load_examples(hundred).examples
    assert as_examples(examples) == examples
    assert as_examples(pairs(2))[1].responses == ["good 1", "bad 1"]
    with pytest.raises(UserError, match="1 rows cannot be used; the first, dataset, row 2: chosen = 'null'"):
        as_examples([pairs(1)[0], pairs(1)[0] | {"chosen": None}])
    with pytest.raises(UserError, match="generator has no length"):
        as_examples(row for row in pairs(1))


def test_as_examples_of_a_dataset_with_images() -> None:
    datasets = pytest.importorskip("datasets")
    rows = [pairs(1)[0] | {"image": {"bytes": b"no image", "path": None}}]
    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    example = as_examples(table)[0]
    assert example.images[0].column == "image" and example.id == "dataset-1"


# ---- captions --------------------------------------------------------------------------------------------------------


def example(chosen: str = "A cat.", image: str = "images/000724.jpg", **more: Any) -> Example:
    prompt = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    images = [ImageRef(path=f"/x/{name}", label=name) for name in image.split()]
    fields: dict[str, Any] = {"id": "e", "source": "s", "prompt": prompt, "responses": [chosen, "bad"], "ranks": [0, 1]}
    fields |= {"images": images} | more
    return Example(**fields)


@pytest.mark.parametrize(
    "row",
    [
        {"image": "images/000724.jpg", "caption": "one cat"},
        {"file": "./images/000724.jpg", "captions": ["one cat", "two"]},
        {"image_path": "/elsewhere/images/000724.jpg", "human_captions": ["one cat"]},
        {"image_path": "../images/000724.png", "human_captions": ["one cat"]},
        {"file_name": "000724.jpg", "text": "one cat"},
        {"file_name": "000724.png", "text": "one cat"},
        {"image_id": 724, "text": "one cat"},
        {"image_id": "000724", "caption": ["A CAT", "", "one cat"]},
    ],
)
def test_captions_are_joined(tmp_path: Path, row: dict[str, Any]) -> None:
    path = write_lines(tmp_path / "captions.jsonl", {"image": "other.jpg", "caption": "none"}, row)
    assert [e.caption for e in captioned([example()], path).examples] == ["one cat"]


def test_captions_of_two_files_of_one_name(tmp_path: Path) -> None:
    rows = [{"image": f"{folder}/1.jpg", "caption": folder} for folder in ("root/a", "root/b")]
    path = write_lines(tmp_path / "captions.jsonl", *rows)
    assert captioned([example(image="a/1.jpg")], path).examples[0].caption == "root/a"
    with pytest.raises(UserError, match=r"image 1\.jpg may be root/a/1\.jpg or root/b/1\.jpg, the file name"):
        captioned([example(image="1.jpg")], path)


@pytest.mark.parametrize(
    ("written", "image"),
    [
        ("train/1.jpg", "val/1.jpg"),
        ("train/000001.jpg", "val/1.jpg"),
        ("train/1.png", "val/1.jpg"),
        ("coco/train/1.jpg", "/data/train2/1.jpg"),
        ("rain/1.jpg", "train/1.jpg"),  # whole folders are compared
    ],
)
def test_the_caption_of_another_folder_is_not_joined(tmp_path: Path, written: str, image: str) -> None:
    path = write_lines(tmp_path / "captions.jsonl", {"image": written, "caption": "another"})
    loaded = captioned([example(image=image)], path)
    assert not loaded.examples
    reason = f"no caption for image {image} in {path} ({written} lies in another folder); add one or drop the row"
    assert [row["reason"] for row in loaded.rejected] == [reason]


@pytest.mark.parametrize("entry", [{"image": "1.jpg"}, {"image_id": 1}, {"file_name": "set/1.jpg"}])
def test_two_images_of_one_caption_entry(tmp_path: Path, entry: dict[str, Any]) -> None:
    path = write_lines(tmp_path / "captions.jsonl", entry | {"caption": "c"})
    both = [example(image="train/set/1.jpg"), example(image="val/set/1.jpg")]
    for one in both:  # each alone, as often as it likes, also by a shorter path
        assert len(captioned([one, one], path).examples) == 2
    message = r"1.* may be /x/train/set/1\.jpg or /x/val/set/1\.jpg, which both are in the data; write the images of"
    with pytest.raises(UserError, match=message):
        captioned(both, path)


def test_one_name_in_the_folders_of_two_sources(tmp_path: Path) -> None:
    sources = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.jpg").touch()
        sources.append(write_lines(tmp_path / folder / "a.jsonl", *pairs(1, image="1.jpg")))
    captions = write_lines(tmp_path / "captions.jsonl", {"image": "1.jpg", "caption": "c"})
    with pytest.raises(UserError, match=rf"1\.jpg may be {tmp_path}/one/1\.jpg or {tmp_path}/two/1\.jpg"):
        load_examples(sources, captions=captions)


def test_captions_of_coco_and_of_embedded_images(tmp_path: Path) -> None:
    rows = [
        {"image_id": 139, "caption": "by id"},
        {"file_name": "000000000285.jpg", "caption": "by name"},
        {"file_name": "train2017/000000000632.jpg", "caption": "by folder and name"},
        {"image": "./vqa/7.jpg", "caption": "by the path that stands beside it"},
    ]
    path = write_lines(tmp_path / "captions.jsonl", *rows)
    names = [f"images/train2017/{number:012}.jpg" for number in (139, 285, 632)]
    given = [*(example(image=name) for name in names), example(images=[ImageRef(drawing=print, label="vqa/7.jpg")])]
    assert [e.caption for e in captioned(given, path).examples] == [row["caption"] for row in rows]


def test_the_answer_is_never_the_caption(tmp_path: Path) -> None:
    rows = [
        {"image": "1.jpg", "caption": "a CAT!"},
        {"image": "1.jpg", "caption": "one cat"},
        {"image": "2.jpg", "caption": "A cat"},
    ]
    path = write_lines(tmp_path / "captions.jsonl", *rows)
    given = [example(image="1.jpg"), example(image="2.jpg"), example(image="3.jpg"), example(image="")]
    loaded = captioned(given, path)
    assert [e.caption for e in loaded.examples] == ["one cat"]
    reasons = [row["reason"] for row in loaded.rejected]
    assert "every caption equals the chosen answer" in reasons[0]
    assert f"no caption for image 3.jpg in {path}" in reasons[1]
    assert "no caption for image (without a name)" in reasons[2]
    assert [row["field"] for row in loaded.rejected] == ["caption"] * 3


def test_every_best_answer_counts_and_no_other(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "captions.jsonl", {"image": "1.jpg", "captions": ["two", "three", "x"]})
    tied = example(image="1.jpg", responses=["one", "two", "three"], ranks=[0, 0, 1])
    assert captioned([tied], path).examples[0].caption == "three"


def test_the_rows_own_caption_comes_first(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "captions.jsonl", {"image": "1.jpg", "caption": "from the file"})
    own, leak = example(image="1.jpg", caption="own"), example(image="1.jpg", caption="a cat")
    assert [e.caption for e in captioned([own, leak], path).examples] == ["own", "from the file"]
    alone = use_captions([own, leak, example()])
    assert [e.caption for e in alone.examples] == ["own"]
    assert "give caption.captions=FILE" in alone.rejected[1]["reason"]


def test_several_images(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "captions.jsonl", *[{"image": f"{i}.jpg", "caption": f"c{i}"} for i in (1, 2)])
    loaded = captioned([example(image="1.jpg 2.jpg"), example(image="1.jpg 3.jpg")], path)
    assert [e.caption for e in loaded.examples] == ["Image 1: c1\nImage 2: c2"]
    assert "image 3.jpg" in loaded.rejected[0]["reason"]


def test_load_examples_counts_rows_without_captions(tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / f"{i}.jpg").touch()
    data = write_lines(tmp_path / "a.jsonl", *[row | {"image": f"{i}.jpg"} for i, row in enumerate(pairs(4))])
    captions = write_lines(tmp_path / "c.jsonl", *[{"image": f"{i}.jpg", "caption": "c"} for i in range(3)])
    loaded = load_examples(data, captions=captions)
    assert len(loaded.examples) == 3 and [row["id"] for row in loaded.rejected] == ["a-4"]
    assert len(load_examples(data, captions=captions, n=3).examples) == 3


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([{"image": "1.jpg"}], r"no row has an image and a caption; columns are image; takes one of image, file"),
        ([{"image": "1.jpg", "caption": 5}], r"row 1: caption = '5' takes a text or a list"),
        ([[1], {"image": "1.jpg", "caption": "c"}], r"row 1: a row is a JSON object"),
    ],
)
def test_wrong_caption_files(tmp_path: Path, rows: Any, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        captioned([], write_lines(tmp_path / "captions.jsonl", *rows))
    assert "captions.jsonl" in str(caught.value)
    with pytest.raises(UserError, match="gone.json: no such file"):
        captioned([], "gone.json")


def test_caption_example() -> None:
    told = caption_example(dataclasses.replace(example(), caption="one {cat}"), CAPTION_TEMPLATE)
    assert told.prompt == [{"role": "user", "content": "Image description: one {cat}\n\nWhat?"}]
    assert (told.images, told.responses, told.lengths) == ([], ["A cat.", "bad"], None)
    talk = [
        {"role": "system", "content": "S"},
        *example().prompt,
        {"role": "assistant", "content": "A"},
        *example().prompt,
    ]
    short = caption_example(example(prompt=talk, caption="c"), "{caption} | ")
    assert [m["content"] for m in short.prompt] == ["S", "c | What?", "A", "What?"]
    assert len(example().images) == 1 and talk[1] == example().prompt[0]  # the originals are left alone


def test_caption_example_refuses() -> None:
    with pytest.raises(UserError, match=r"template 'x' has no \{caption\}"):
        caption_example(example(caption="c"), "x")
    with pytest.raises(UserError, match="example e .* has no caption; add one to the row"):
        caption_example(example(), CAPTION_TEMPLATE)


# ---- writing ---------------------------------------------------------------------------------------------------------


def test_write_jsonl_is_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [{"x": "é\u2028"}, {"x": 2}])
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]] == [
        {"x": "é\u2028"},
        {"x": 2},
    ]
    with pytest.raises(TypeError):
        write_jsonl(path, [{"x": 1}, {"x": object()}])
    assert "é" in path.read_text(encoding="utf-8")
    assert os.listdir(tmp_path) == ["a.jsonl"]


# ---- the real data ---------------------------------------------------------------------------------------------------

real = pytest.mark.skipif(not REAL.is_dir(), reason="the real data are not here")


@real
@pytest.mark.parametrize(
    ("file", "count", "images"),
    [
        ("text_prefs/llmbar.jsonl", 419, 0),
        ("text_prefs/alpaca_eval_gpt4turbo.jsonl", 1610, 0),
        ("text_prefs/hh_rlhf_harmless_test_300.jsonl", 300, 0),
        ("text_prefs/llamafactory_dpo_en_demo.json", 300, 0),
        ("caption_prefs/coco_caption_vs_foil.jsonl", 188, 1),
        ("scienceqa/visual_prefs.jsonl", 103, 1),
        ("mmvet/visual_prefs.jsonl", 34, 1),
        ("nlvr/nlvr_dev.jsonl", 603, 1),
    ],
)
def test_real_files(file: str, count: int, images: int) -> None:
    loaded = load_examples(str(REAL / file))
    assert (len(loaded.examples), loaded.rejected) == (count, [])
    assert {len(e.images) for e in loaded.examples} == {images}
    assert all(len(e.responses) == 2 and e.prompt[-1]["role"] == "user" for e in loaded.examples)
    if images:
        assert loaded.examples[0].images[0].open().mode == "RGB"


@real
def test_real_preferences() -> None:
    """The better answer by the files' own columns, found without this package's readers."""
    path = REAL / "text_prefs" / "alpaca_eval_gpt4turbo.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    examples = load_examples(str(path)).examples
    better = [row["output_1"] if row["preference"] <= 1.5 else row["output_2"] for row in rows]
    assert [e.responses[0] for e in examples] == better
    assert sum(e.ranks == [0, 0] for e in examples) == 6
    path = REAL / "text_prefs" / "llmbar.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    assert [e.responses[0] for e in load_examples(str(path)).examples] == [
        row[f"output_{row['label']}"] for row in rows
    ]


@real
def test_real_rovrm_sample_without_its_images(tmp_path: Path) -> None:
    rows = json.loads((REAL / "benchmarks" / "rovrm" / "reward_samples.json").read_text())
    for row in rows:
        PIL.Image.new("RGB", (2, 2)).save(tmp_path / row["image"])
    loaded = load_examples(str(REAL / "benchmarks" / "rovrm" / "reward_samples.json"), image_root=str(tmp_path))
    assert [e.responses for e in loaded.examples] == [row["conversations"][1]["value"] for row in rows]
    assert all(e.prompt[0]["content"].count({"type": "image"}) == 1 for e in loaded.examples)


@real
def test_real_captions() -> None:
    """188 rows: 12 have no human caption; of the 102 in which a caption is the answer, 13 have no other."""
    examples = load_examples(str(REAL / "caption_prefs" / "coco_caption_vs_foil.jsonl")).examples
    loaded = captioned(examples, REAL / "coco_photos" / "photos.jsonl")
    why = Counter(row["reason"].split(" ")[0] for row in loaded.rejected)
    assert (len(loaded.examples), why) == (163, {"every": 13, "no": 12})
    for told in (caption_example(one, CAPTION_TEMPLATE) for one in loaded.examples):
        assert told.caption and told.prompt[0]["content"].startswith(f"Image description: {told.caption}\n\n")
        assert told.caption.strip().casefold() != told.responses[0].strip().casefold()


def test_images_of_captions_with_thousands_of_digits(tmp_path: Path) -> None:
    zeros, nines = "0" * 5000, "9" * 5000
    rows = [{"image_id": 724, "caption": "B"}, {"image": nines, "caption": "A"}, {"image": zeros, "caption": "C"}]
    captions = load_captions(write_lines(tmp_path / "c.jsonl", *rows))
    assert captions.of(ImageRef(label=f"{zeros}724.png")) == ["B"]
    assert captions.of(ImageRef(label=f"{nines}.png")) == ["A"]
    assert captions.of(ImageRef(label="0.png")) == ["C"]


def test_captions_that_are_no_captions(tmp_path: Path) -> None:
    for row, told in (({"image": ["a"], "caption": "A"}, "image = .*takes a path"), ({"image": "a", "text": 5}, "5")):
        with pytest.raises(UserError, match=rf"c.jsonl, row 1: .*{told}"):
            captioned([], write_lines(tmp_path / "c.jsonl", row))
