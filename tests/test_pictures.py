"""Which pictures a row has: blocks that name or number theirs, columns beside them, and pictures inside the data."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from rovrm.common.errors import UserError
from rovrm.data.bad_rows import BadRow, rejection
from rovrm.data.example import Example
from rovrm.data.images import ImageRef, decoded, is_encoded
from rovrm.data.loading import load_examples
from rovrm.data.prompts import as_example
from rovrm.data.reader import read_row

RED, BLUE = PIL.Image.new("RGB", (64, 64), "red"), PIL.Image.new("RGB", (64, 64), "blue")


def content_of(picture: PIL.Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


TEXT = base64.b64encode(content_of(RED)).decode()
PAIR = {"prompt": "Q", "chosen": "a", "rejected": "b"}


def read(row: dict[str, Any]) -> Example:
    return read_row("trl", row, find=lambda name: f"/found/{name}")


def asking(*blocks: Any, **columns: Any) -> dict[str, Any]:
    """A row whose question has these blocks: a text, a picture's name, an index, or None for an image alone."""
    content = []
    for block in blocks:
        if block is None or isinstance(block, int):
            content.append({"type": "image", "index": block})
        elif isinstance(block, str) and not block.endswith(".png"):
            content.append({"type": "text", "text": block})
        else:
            content.append({"type": "image", "image": block})
    return PAIR | {"prompt": [{"role": "user", "content": content}]} | columns


# ---- blocks that name or number theirs -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (asking("blue.png", "red.png", "Q", images=["red.png", "blue.png"]), ["blue.png", "red.png"]),
        (asking("blue.png", "Q", "red.png"), ["blue.png", "red.png"]),
        (asking("blue.png", None, "Q", images=["red.png", "blue.png"]), ["blue.png", "red.png"]),
        (asking(None, "red.png", "Q", images=["red.png", "blue.png"]), ["blue.png", "red.png"]),
        (asking("red.png", "red.png", "Q", images=["red.png"]), ["red.png", "red.png"]),
        (asking("red.png", "red.png", "Q", images=["red.png", "red.png"]), ["red.png", "red.png"]),
        (asking(1, 0, "Q", images=["red.png", "blue.png"]), ["blue.png", "red.png"]),
        (asking(1, None, "Q", images=["red.png", "blue.png"]), ["blue.png", "red.png"]),
        (PAIR | {"prompt": "<image 2> or <image>?", "images": ["red.png", "blue.png"]}, ["blue.png", "red.png"]),
    ],
)
def test_blocks_decide_which_picture_is_theirs(row: dict[str, Any], expected: list[str]) -> None:
    assert [ref.name for ref in read(row).images] == expected
    assert [ref.name for ref in as_example(row, find=lambda name: name).images] == expected


@pytest.mark.parametrize(
    "row",
    [
        asking("blue.png", "Q", images=["red.png"]),
        asking("blue.png", "Q", images=["red.png", "blue.png"]),
        asking("blue.png", None, "Q", images=["red.png"]),
        asking("blue.png", None, "Q", images=["red.png", "blue.png", "green.png"]),
        asking("blue.png", None, "Q"),
        asking(2, "Q", images=["red.png"]),
        asking(BLUE, "Q", images=[RED]),
    ],
)
def test_blocks_and_a_column_that_disagree(row: dict[str, Any]) -> None:
    with pytest.raises(BadRow):
        read(row)
    with pytest.raises(UserError):
        as_example(row, find=lambda name: name)


def test_embedded_pictures_are_found_by_their_name_and_their_pixels() -> None:
    cells = [{"bytes": content_of(RED), "path": "a/red.png"}, {"bytes": content_of(BLUE), "path": "a/blue.png"}]
    images = read(asking("blue.png", "red.png", "Q", images=cells)).images
    assert [ref.open().getpixel((0, 0)) for ref in images] == [(0, 0, 255), (255, 0, 0)]
    images = read(asking(BLUE.copy(), RED.copy(), "Q", images=[RED, BLUE])).images
    assert [ref.image for ref in images] == [BLUE, RED]


def test_a_block_with_two_pictures() -> None:
    with pytest.raises(BadRow, match="an image block that names two pictures"):
        read(PAIR | {"prompt": [{"role": "user", "content": [{"type": "image", "image": "a.png", "url": "b.png"}]}]})


# ---- base64 and data URIs --------------------------------------------------------------------------------------------

WAYS = [
    TEXT,
    f"data:image/png;base64,{TEXT}",
    f"{TEXT[:76]}\n{TEXT[76:]}\n",
    {"bytes": TEXT},
    {"bytes": content_of(RED)},
]
WAYS += [{"bytes": f"data:image/png;base64,{TEXT}", "path": None}, {"bytes": TEXT, "path": "red.png"}, content_of(RED)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("column", ["image", "images", "img_path", "image_path", "block", "address"])
def test_an_encoded_picture_is_read(way: Any, column: str) -> None:
    if column in ("block", "address"):
        block = (
            {"type": "image", "image": way} if column == "block" else {"type": "image_url", "image_url": {"url": way}}
        )
        row = PAIR | {"prompt": [{"role": "user", "content": [block, {"type": "text", "text": "Q"}]}]}
    else:
        row = PAIR | {column: [way] if column == "images" else way}
    for example in (read(row), as_example(row, find=lambda name: name)):
        [ref] = example.images
        assert ref.open().tobytes() == RED.tobytes() and len(str(ref)) < 200 and len(ref.name) < 200


def test_an_encoded_picture_in_a_data_set(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [PAIR | {"image": {"bytes": TEXT, "path": None}}, PAIR | {"image": {"bytes": TEXT, "path": "red.png"}}]
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "rows.parquet"))
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(PAIR | {"image": TEXT}) + "\n" for _ in range(2)))
    (tmp_path / "table.csv").write_text(f"prompt,chosen,rejected,image\nQ,a,b,{TEXT}\n")
    for name, count in (("rows.parquet", 2), ("lines.jsonl", 2), ("table.csv", 1)):
        loaded = load_examples(str(tmp_path / name))
        assert [example.images[0].open().size for example in loaded.examples] == [(64, 64)] * count


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (TEXT[:-3], "no whole base64"),
        ("A" * 80_001, "no whole base64"),
        (f"data:image/png,{TEXT}", "a data URI that is not base64"),
        (f"data:video/mp4;base64,{TEXT}", "only images can be scored"),
    ],
)
def test_what_is_no_picture_is_refused_in_a_short_message(text: str, reason: str) -> None:
    with pytest.raises(BadRow, match=reason) as caught:
        read(PAIR | {"image": text})
    line = json.dumps(rejection("rows.jsonl, row 1", "1", caught.value))
    assert len(str(caught.value)) < 400 and len(line) < 400 and text not in line


def test_an_encoded_picture_is_never_quoted_whole(tmp_path: Path) -> None:
    long = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(60_000)).decode()
    for row in (
        PAIR | {"picture": long},
        PAIR | {"image": [long, 5]},
        asking({"url": f"data:image/png;base64,{long}"}, images=["a.png"]),
    ):
        with pytest.raises(BadRow) as caught:
            read(row)
        assert len(str(caught.value)) < 600
    with pytest.raises(UserError, match=r"image of 60008 bytes: cannot be decoded|not an image") as error:
        read(PAIR | {"image": long}).images[0].open()
    assert len(str(error.value)) < 300


def test_the_limit_of_pixels_holds() -> None:
    [ref] = read(PAIR | {"image": TEXT}).images
    with pytest.raises(UserError, match="64 x 64 pixels, where max_pixels leaves 100"):
        ref.open(100)
    assert ref == ImageRef(content=decoded(TEXT)) and ref != ImageRef(content=b"x")


@pytest.mark.parametrize("name", ["000000000724", "coco/train2017/000000000724", "photos/" + "a" * 80 + ".jpg"])
def test_names_are_no_base64(name: str) -> None:
    assert not is_encoded(name)
    assert read(PAIR | {"image": name}).images[0].path == f"/found/{name}"


def test_an_encoded_picture_in_a_column_that_is_not_read() -> None:
    for value in (TEXT, [f"data:image/png;base64,{TEXT}"], {"bytes": TEXT}):
        with pytest.raises(BadRow, match=r"^picture = .*an image in a column that is not read"):
            read(PAIR | {"picture": value})
