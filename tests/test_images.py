"""Lazy images: what opening gives and refuses, and where a name is looked up."""

import io
import logging
import pickle
from pathlib import Path

import PIL.Image
import pytest
from helpers import encoded

from rovrm.common.errors import UserError
from rovrm.data import images
from rovrm.data.images import ImageRef, content_hash, find_image, open_images


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    PIL.Image.radial_gradient("L").resize((6, 4)).convert("RGB").save(path)
    return path


def sideways() -> PIL.Image.Image:
    """A 2 x 1 image, red beside blue."""
    image = PIL.Image.new("RGB", (2, 1), "red")
    image.putpixel((1, 0), (0, 0, 255))
    return image


def test_opens_a_path(photo: Path) -> None:
    ref = ImageRef(path=str(photo), label="images/photo.png")
    assert ref.open().size == (6, 4)
    assert ref.name == "images/photo.png"
    assert str(ref) == f"image {photo}"
    assert ImageRef(path=str(photo)).name == str(photo)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK"])
def test_always_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("x.tiff" if mode == "CMYK" else "x.png")
    PIL.Image.new("RGB", (3, 2), "white").convert(mode).save(path)
    assert ImageRef(path=str(path)).open().mode == "RGB"


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    PIL.Image.new("I;16", (2, 2), 0x8000).save(tmp_path / "deep.png")
    assert ImageRef(path=str(tmp_path / "deep.png")).open().getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize("mode, white", [("I", 65535), ("F", 1.0)])
def test_numbers_of_unknown_white_are_refused(tmp_path: Path, mode: str, white: float) -> None:
    """Clipped to 8 bits they would be all white, or all black."""
    PIL.Image.new(mode, (2, 2), white).save(tmp_path / "deep.tiff")
    with pytest.raises(UserError, match=f"deep.tiff.*32 bits .mode {mode}.*save 8 bits"):
        ImageRef(path=str(tmp_path / "deep.tiff")).open()


def test_path_cell_and_memory_give_the_pixels_of_the_hub_loader(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    exif = PIL.Image.Exif()
    exif[PIL.Image.ExifTags.Base.Orientation] = 6
    data = encoded(sideways(), "PNG", exif=exif)
    (tmp_path / "turned.png").write_bytes(data)
    features = datasets.Features({"image": datasets.Image()})
    table = datasets.Dataset.from_list([{"image": {"bytes": data, "path": "in/turned.png"}}], features=features)
    cell = ImageRef(dataset=table.with_format("arrow"), row=0, column="image")
    theirs = content_hash(table[0]["image"])
    memory = ImageRef(image=PIL.Image.open(io.BytesIO(data)))
    assert [content_hash(r.open()) for r in (ImageRef(path=str(tmp_path / "turned.png")), cell, memory)] == [theirs] * 3
    assert cell.open().size == (1, 2)
    assert cell.name == "in/turned.png"
    assert str(cell) == "image in column 'image', row 1"
    assert pickle.loads(pickle.dumps(cell)) == cell
    assert len({cell, ImageRef(dataset=cell.dataset, row=0, column="image")}) == 1


def test_the_copy_is_independent() -> None:
    held = PIL.Image.new("RGB", (2, 2), "red")
    ImageRef(image=held).open().putpixel((0, 0), (0, 0, 0))
    assert held.getpixel((0, 0)) == (255, 0, 0)


def test_refs_are_values(photo: Path) -> None:
    one, other = ImageRef(path=str(photo)), ImageRef(path=str(photo), label="x")
    assert one == other and len({one, other}) == 1
    assert pickle.loads(pickle.dumps(one)) == one
    assert ImageRef(image=sideways()) != ImageRef(image=sideways())


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty, 0 bytes"),
        (b"not an image at all", "not an image in a format read here"),
        (encoded(PIL.Image.effect_noise((64, 64), 50), "JPEG")[:-900], "truncated"),
        (encoded(PIL.Image.effect_noise((64, 64), 50), "PNG")[:-900], "cannot be decoded"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image in a format"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "broken.jpg"
    path.write_bytes(data)
    with pytest.raises(UserError, match=reason) as caught:
        ImageRef(path=str(path)).open()
    assert str(path) in str(caught.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.png: no such file; mend the path or set image_root"):
        ImageRef(path=str(tmp_path / "gone.png")).open()


def test_a_handle_to_nothing_is_an_error() -> None:
    with pytest.raises(UserError, match="neither a path nor an image"):
        ImageRef().open()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [20, 6])  # PIL itself only warns between one and two times its limit
def test_bombs_are_refused_before_decoding(photo: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", limit)
    monkeypatch.setattr(images, "_upright_rgb", lambda image: pytest.fail("decoded"))
    with pytest.raises(UserError, match=r"photo\.png.*pixels.*; shrink the image or drop the row"):
        ImageRef(path=str(photo)).open()


def test_content_hash_is_of_pixels_and_size() -> None:
    wide, tall = PIL.Image.new("RGB", (4, 1)), PIL.Image.new("RGB", (1, 4))
    assert content_hash(wide) != content_hash(tall)
    assert content_hash(wide) == content_hash(PIL.Image.new("L", (4, 1)))


def test_find_under_root_folder_and_parents(tmp_path: Path, photo: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = tmp_path / "a" / "b" / "train.jsonl"
    data.parent.mkdir(parents=True)
    data.touch()
    with caplog.at_level(logging.INFO, logger="rovrm.data.images"):
        assert [find_image("photo.png", None, data) for _ in range(3)] == [str(photo)] * 3
    assert len(caplog.records) == 1  # said once
    assert find_image("photo.png", tmp_path, data) == str(photo)
    assert find_image(str(photo)) == str(photo)
    with pytest.raises(UserError, match=r"photo\.png: no such file.*image_root=FOLDER"):
        find_image("photo.png", data.parent, data)
    with pytest.raises(UserError, match=r"x\.png: not found in .*b or the folders above it; set image_root"):
        find_image("x.png", None, data)


@pytest.mark.parametrize("first", ["1.png", "2.png"])
def test_an_image_is_found_nearest_first_whatever_was_found_before(tmp_path: Path, first: str) -> None:
    for name in ("img/1.png", "img/2.png", "sub/img/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    find_image(f"img/{first}", None, tmp_path / "sub" / "pairs.jsonl")
    for data in ("pairs.jsonl", "more.jsonl"):  # two files in one folder
        assert find_image("img/1.png", None, tmp_path / "sub" / data) == str(tmp_path / "img/1.png")
        assert find_image("img/2.png", None, tmp_path / "sub" / data) == str(tmp_path / "sub/img/2.png")


def test_the_working_folder_is_searched_anew_in_every_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "1.png").touch()
    monkeypatch.chdir(tmp_path / "a")
    assert find_image("1.png") == str(tmp_path / "1.png")
    (tmp_path / "a" / "1.png").touch()
    assert find_image("1.png") == str(tmp_path / "a" / "1.png")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("https://x.org/a.jpg", "https://x.org/a.jpg: URLs are not fetched; download the image"),
        ("data:image/png;base64,AAAA", "URLs are not fetched"),
        ("clips/a.MP4", r"clips/a\.MP4: this is a video"),
        (" ", "the name is empty"),
    ],
)
def test_refused_names(name: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        find_image(name)


@pytest.mark.parametrize("name", ["~\0", "~\0/a.png", "~\ud800/a.png", "a\0.png", "\ud800.png", "a" * 5000])
def test_names_that_no_file_can_have_are_not_found(tmp_path: Path, name: str) -> None:
    for root in (None, tmp_path, "~\0"):
        with pytest.raises(UserError, match="no such file|not found"):
            find_image(name, root, tmp_path / "rows.jsonl")
        assert find_image(name, root, tmp_path / "rows.jsonl", must_exist=False) == name


@pytest.mark.skipif("AVIF" not in images.FORMATS, reason="this Pillow reads no AVIF")
def test_every_error_of_a_decoder_is_told(tmp_path: Path) -> None:
    """AVIF raises RuntimeError."""
    whole = encoded(PIL.Image.effect_noise((64, 64), 50).convert("RGB"), "AVIF")
    (tmp_path / "a.avif").write_bytes(whole[:-200] + bytes(200))
    (tmp_path / "b.avif").write_bytes(whole[:-200])
    for name in ("a.avif", "b.avif"):
        with pytest.raises(UserError, match=rf"{name}: cannot be decoded .*; replace the file or drop the row"):
            ImageRef(path=str(tmp_path / name)).open()


def test_the_images_of_a_row_have_a_limit_together(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refs = [ImageRef(path=str(photo)), ImageRef(image=PIL.Image.new("1", (6, 4)))]
    assert [image.size for image in open_images(refs, 48)] == [(6, 4), (6, 4)]
    with pytest.raises(UserError, match=r"in memory.*: 6 x 4 pixels, where max_pixels leaves 23 for it .*; shrink it"):
        list(open_images(refs, 47))
    monkeypatch.setattr(images, "_upright_rgb", lambda image: pytest.fail("decoded"))
    with pytest.raises(UserError, match=r"photo\.png: 6 x 4 pixels.* leaves 23 .*raise max_pixels or drop"):
        list(open_images(refs, 23))
