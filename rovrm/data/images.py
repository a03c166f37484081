"""Images: handles that cost nothing until they are opened, and the rule by which an image file is found.

    ref = ImageRef(path=find_image("images/1.jpg", image_root=None, data_file="data/train.jsonl"), label="images/1.jpg")
    ref.open()                      # PIL image, RGB, upright

The pixels are those of the hub's own loader (`datasets.Image`, which turns the image upright by its EXIF orientation),
converted to RGB as image processors do (`convert("RGB")`: transparency is dropped, not blended). A path, an embedded
image and a PIL image therefore give the same pixels. One departure: 16-bit greyscale is scaled to 8 bits, where
`convert("RGB")` would clip almost every pixel to white.
"""

import base64
import binascii
import functools
import hashlib
import io
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps

from rovrm.common.errors import UserError, shown

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = frozenset(".mp4 .avi .mov .webm .mkv .m4v .mpg .mpeg .flv .wmv".split())
# Only raster formats: PIL would hand an EPS file to Ghostscript.
PIL.Image.init()
RASTER = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
# A name that this Pillow lacks would be a KeyError in open.
FORMATS = tuple(name for name in RASTER if name in PIL.Image.OPEN)
BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}")
SHORTEST = 64  # characters of an image as base64; a shorter text of such characters is a name


@dataclass(frozen=True, slots=True, eq=False)
class ImageRef:
    """One image, not read before `open()`: a file, a cell of a data set, a PIL image in memory, or one drawn on demand.

    One of these is given:
    path: the file.
    image: a PIL image.
    content: the bytes of a file.
    dataset, row, column, item: a `datasets.Dataset` in "arrow" format (it gives the stored `{"bytes", "path"}` without
        decoding), its row, its image column, and the place in a list of images; None where the cell is no list.
    drawing: a hashable function that draws the image, the same each time.
    label: the image's name in the data, on which captions are joined; without it the path, or the name embedded.

    Equal and hashable by what it points to (a PIL image: by identity). Picklable: a memory-mapped data set is pickled
    as the names of its files.
    """

    path: str | None = None
    image: PIL.Image.Image | None = None
    dataset: Any = None
    row: int = 0
    column: str = ""
    item: int | None = None
    label: str | None = None
    drawing: Callable[[], PIL.Image.Image] | None = None
    content: bytes | None = None

    def open(self, left: int | None = None) -> PIL.Image.Image:
        """The decoded image, RGB, upright.

        Args:
            left: the pixels that its row may still have; None for no limit of the row's.

        Raises:
            UserError: which names the image and what is wrong: missing, empty, truncated, not an image, or more pixels
                than `left` or than PIL's limit against decompression bombs (checked before decoding).
        """
        try:
            if self.image is not None:
                self._check_left(self.image, left)
                return _upright_rgb(self.image)
            if self.drawing is not None:
                return self.drawing()
            with PIL.Image.open(self._source(), formats=FORMATS) as image:
                _check_size(image)
                self._check_left(image, left)
                return _upright_rgb(image)
        except UserError:
            raise
        except FileNotFoundError as error:
            raise UserError(f"{self}: no such file; mend the path or set image_root=FOLDER") from error
        except PIL.Image.DecompressionBombError as error:
            raise UserError(f"{self}: {error}; shrink the image or drop the row") from error
        except PIL.UnidentifiedImageError as error:
            raise UserError(f"{self}: not an image in a format read here ({', '.join(FORMATS)}); convert it") from error
        except Exception as error:  # decoders have no common class of errors
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"{self}: cannot be decoded ({reason}); replace the file or drop the row") from error

    @property
    def name(self) -> str:
        """The name captions are joined on: as written in the data, else the path, else "". Reads no image bytes."""
        if self.label is not None:
            return self.label
        if self.path is not None:
            return self.path
        if self.dataset is not None:
            return self._cell()["path"].as_py() or ""
        return getattr(self.image, "filename", "") or ""

    def __str__(self) -> str:
        if self.path is not None:
            return f"image {self.path}"
        if self.dataset is not None:
            place = "" if self.item is None else f", image {self.item + 1}"
            named = f" ({self.label})" if self.label else ""
            return f"image in column {self.column!r}, row {self.row + 1}{place}{named}"
        if self.name:
            return f"image {self.name}"
        if self.content is not None:
            return f"image of {len(self.content)} bytes"
        return f"image in memory {getattr(self.image, 'size', '')}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ImageRef) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[Any, ...]:
        # Two handles of one image are equal, and so found again in a set, without reading it.
        # A data set's fingerprint survives pickling, its identity does not.
        fingerprint = getattr(self.dataset, "_fingerprint", None)
        image = id(self.image) if self.image else None
        return self.path, image, fingerprint, self.row, self.column, self.item, self.drawing, self.content

    def _check_left(self, image: PIL.Image.Image, left: int | None) -> None:
        if left is not None and image.width * image.height > left:
            raise UserError(
                f"{self}: {image.width} x {image.height} pixels, where max_pixels leaves {max(left, 0)} for it (all "
                "images of a row count together); shrink it, raise max_pixels or drop the row"
            )

    def _cell(self) -> Any:
        """The Arrow scalar {"bytes", "path"}; its members are copied out of the file only by as_py()."""
        cell = self.dataset[self.row].column(self.column)[0]
        return cell if self.item is None else cell[self.item]

    def _source(self) -> str | io.BytesIO:
        if self.path is not None:
            return _not_empty(self.path, os.path.getsize(self.path))
        if self.content is not None:
            return _not_empty(io.BytesIO(self.content), len(self.content))
        if self.dataset is None:
            raise ValueError("the handle holds neither a path nor an image")
        cell = self._cell()
        data, path = cell["bytes"].as_py(), cell["path"].as_py()
        if data is None and path is None:
            raise ValueError("neither bytes nor a path are stored")
        if data is None:
            return path
        data = decoded(data) if isinstance(data, str) else data
        return _not_empty(io.BytesIO(data), len(data))


def open_images(images: Sequence[ImageRef], max_pixels: int) -> Iterator[PIL.Image.Image]:
    """The images of a row, decoded one after the other, of at most `max_pixels` together. Raises UserError as
    `ImageRef.open`."""
    left = max_pixels
    for ref in images:
        image = ref.open(left)
        left -= image.width * image.height
        yield image


def content_hash(image: PIL.Image.Image) -> str:
    """sha1 over the size and the RGB bytes: the same for the same pixels, whatever the file is called."""
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    digest = hashlib.sha1(f"{rgb.width}x{rgb.height}:".encode(), usedforsecurity=False)
    digest.update(rgb.tobytes())
    return digest.hexdigest()


def _not_empty(source: Any, size: int) -> Any:
    """The source; PIL would call a file of 0 bytes an unknown format."""
    if not size:
        raise EOFError("the file is empty, 0 bytes")
    return source


def _check_size(image: PIL.Image.Image) -> None:
    """PIL only warns between one and two times its limit; here the limit is one."""
    width, height = image.size
    if width < 1 or height < 1:
        raise ValueError(f"its size is {width} x {height}")
    limit = PIL.Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise PIL.Image.DecompressionBombError(f"{width} x {height} pixels, above the limit of {limit} pixels")


def _upright_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    image.load()
    if image.getexif().get(PIL.Image.ExifTags.Base.Orientation) is not None:
        image = PIL.ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # 16 bits of grey: the upper 8 of them
        image = PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"its numbers have 32 bits (mode {image.mode}), and which is white is not known; save 8 bits")
    # A copy also of RGB: what the caller gets must not share pixels with an image the user still holds.
    return image.convert("RGB") if image.mode != "RGB" else image.copy()


# ---- images inside the data ------------------------------------------------------------------------------------------


def is_encoded(text: str) -> bool:
    """Whether a text is an image itself, a data URI or base64, and no name: names that long have a dot or a line."""
    return text[:5].lower() == "data:" or (len(text) >= SHORTEST and BASE64.fullmatch(text.strip()) is not None)


def decoded(text: str) -> bytes:
    """The bytes of an image given as base64 or as a data URI. Raises UserError, which does not quote the text, for what
    is no whole base64 and for a data URI of something else."""
    what = f"image given as {brief(text)}"
    if text[:5].lower() == "data:":
        head, _, text = text.partition(",")
        if not head.lower().rstrip().endswith(";base64"):
            raise UserError(f"{what}: a data URI that is not base64; write data:image/png;base64,...")
        if head[5:10].lower() in ("video", "audio"):
            raise UserError(f"{what}: only images can be scored; drop the row or give a frame")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"{what}: no whole base64 ({error}); write the file's bytes as base64, or its path") from error


def brief(value: Any) -> str:
    """A picture of a row in a message: its name, or the beginning and the length of an encoded one."""
    text = value if isinstance(value, str) else shown(value)
    return text if len(text) <= 120 else f"{text[:40]}... ({len(text)} characters)"


# ---- finding files ---------------------------------------------------------------------------------------------------

_said: set[tuple[str, str]] = set()  # data folders and where their images were found, as it was logged


def find_image(
    name: str,
    image_root: str | os.PathLike | None = None,
    data_file: str | os.PathLike | None = None,
    must_exist: bool = True,
) -> str:
    """The path of an image named in a data file.

    An absolute path is taken as it is. A relative one is looked up under `image_root`; without it in the folder of the
    data file, then in that folder's parents, nearest first. What was found before plays no part: it says nothing about
    where this image lies. The folder is logged once.

    Args:
        name: as the data write it.
        image_root: the folder of relative names; None to search.
        data_file: the file, or folder, in which the name stands; None for the working folder.
        must_exist: False lets a file that is found nowhere keep its name.

    Raises:
        UserError: for a URL, a video, an empty name, and a file found nowhere.
    """
    _refuse(name)
    try:
        return _search(expanded(name), name, image_root, data_file)
    except UserError:
        if must_exist:
            raise
        return name


def _search(path: str, name: str, image_root: str | os.PathLike | None, data_file: str | os.PathLike | None) -> str:
    if os.path.isabs(path):
        return _existing(path)
    if image_root is not None:
        return _existing(os.path.join(expanded(image_root), path))
    folder = _folder_of(data_file)
    for parent in _with_parents(folder):
        if os.path.isfile(os.path.join(parent, path)):
            _say_root(folder, parent)
            return os.path.join(parent, path)
    raise UserError(f"image {brief(name)}: not found in {folder} or the folders above it; set image_root=FOLDER")


@functools.lru_cache
def _with_parents(folder: str) -> list[str]:
    """The folder and those above it, nearest first."""
    folders = [folder]
    while os.path.dirname(folders[-1]) != folders[-1]:
        folders.append(os.path.dirname(folders[-1]))
    return folders


def expanded(path: str | os.PathLike) -> str:
    """The path with the home folder for a leading `~`; as it is where no user can have such a name."""
    try:
        return os.path.expanduser(os.fspath(path))
    except ValueError:  # ~ and a zero byte, or half a character
        return os.fspath(path)


def _refuse(name: str) -> None:
    """Raises UserError for a name that cannot be that of an image file."""
    if not name.strip():
        raise UserError("image '': the name is empty; give a path, or null for a row without an image")
    if "://" in name or name.startswith("data:"):
        raise UserError(f"image {name[:120]}: URLs are not fetched; download the image and give its path")
    if os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES:
        raise UserError(f"image {name}: this is a video, and only images can be scored; drop the row or give a frame")


def _existing(path: str) -> str:
    if os.path.isfile(path):
        return path
    raise UserError(f"image {brief(path)}: no such file; mend the path or set image_root=FOLDER")


def _folder_of(data_file: str | os.PathLike | None) -> str:
    path = os.path.abspath(expanded(data_file)) if data_file is not None else os.getcwd()
    return path if os.path.isdir(path) else os.path.dirname(path)


def _say_root(folder: str, root: str) -> None:
    if (folder, root) not in _said:
        _said.add((folder, root))
        logger.info("images of %s are looked up under %s", folder, root)
