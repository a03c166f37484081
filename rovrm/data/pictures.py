"""The images of a row: which column or which blocks of the prompt hold them, and that none is left unread.

    images = images_of(row, messages, find)        # from `images`, `image`, ..., else from the blocks of the messages

A picture is a path, one embedded in a data set, a PIL image, bytes, base64 or a data URI, in a column as in a block.
Blocks that name their picture decide which it is; a column beside them must hold the same pictures.
"""

import dataclasses
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import PIL.Image

from rovrm.common.errors import UserError
from rovrm.data.bad_rows import BadRow
from rovrm.data.formats import IMAGE_COLUMNS, READERS, TEXT_COLUMNS
from rovrm.data.images import ImageRef, brief, decoded, find_image, is_encoded
from rovrm.data.messages import image_blocks

IMAGE_NAMES = IMAGE_COLUMNS[2:]  # beside another image column they only name its image
IMAGE_SUFFIXES = tuple(".jpg .jpeg .png .webp .gif .bmp .tif .tiff .ppm .pgm .jp2 .avif".split())
PICTURE_WORDS = ("image", "img", "photo", "picture")  # in the names of columns
# How data URIs, JPEG, PNG, GIF and WebP begin as base64.
ENCODED_STARTS = ("data:image/", "/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR")


# ---- those that are read ---------------------------------------------------------------------------------------------


def images_of(
    row: Mapping[str, Any], messages: list[dict[str, Any]], find: Callable[[str], str] = find_image
) -> list[ImageRef]:
    """The row's images: those of its column, else those that content blocks carry. A block that names one gets its
    number."""
    column = image_column(row)
    images = [] if column is None else _of_column(row, column, find)
    named = [block for block in image_blocks(messages) if "image" in block]
    if column is None:  # OpenAI's way: the image inside the block that stands for it
        for number, block in enumerate(named, 1):
            images.append(_image_ref(block["image"], "prompt", find))
            block["number"] = number
    elif named:
        _number_blocks(messages, named, images, column, find)
    return images


def image_column(row: Mapping[str, Any]) -> str | None:
    """The column that holds the row's images: the first of IMAGE_COLUMNS that is neither null nor an empty list."""
    return next((name for name in IMAGE_COLUMNS if not _is_none(row.get(name))), None)


def _is_none(value: Any) -> bool:
    return value is None or (isinstance(value, (list, tuple)) and not value)


def _of_column(row: Mapping[str, Any], column: str, find: Callable[[str], str]) -> list[ImageRef]:
    value = row[column]
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    # An embedded image is known to caption files by the path that stands beside it.
    beside = next((row[name] for name in reversed(IMAGE_NAMES) if isinstance(row.get(name), str)), None)
    label = beside if len(values) == 1 and column not in IMAGE_NAMES else None
    return [_image_ref(item, column, find, label) for item in values]


def _image_ref(value: Any, column: str, find: Callable[[str], str], label: str | None = None) -> ImageRef:
    if isinstance(value, Mapping):  # a data set's cell: bytes and a path, or one of them
        path = value.get("path")
        label = label or (path if isinstance(path, str) and value.get("bytes") is not None else None)
        value = path if value.get("bytes") is None else value["bytes"]
    if isinstance(value, ImageRef):
        return dataclasses.replace(value, label=label) if label and value.label is None else value
    if isinstance(value, PIL.Image.Image):
        return ImageRef(image=value, label=label)
    if isinstance(value, bytes):
        return ImageRef(content=value, label=label)
    if isinstance(value, str) and not value.strip():
        raise BadRow(column, value, "the name is empty; give a path, or null for a row without an image")
    if not isinstance(value, str):
        raise BadRow(column, value, "an image is a path, or embedded in a data set; give one of them, or null for none")
    try:
        if is_encoded(value):
            return ImageRef(content=decoded(value), label=label)
        return ImageRef(path=find(value), label=value)
    except UserError as error:
        raise BadRow(column, brief(value), str(error)) from error


# ---- blocks that name theirs, beside a column ------------------------------------------------------------------------


def _number_blocks(
    messages: list[dict[str, Any]],
    named: list[dict[str, Any]],
    images: Sequence[ImageRef],
    column: str,
    find: Callable[[str], str],
) -> None:
    """Gives each block that names its picture the number of it in the column. Raises BadRow where they disagree."""
    free = set(range(len(images)))  # those that no block has named
    for block in named:
        place = _place_of(block["image"], images, free, find)
        if place is None:
            reason = f"a block of the prompt names a picture that column {column} does not hold; "
            raise BadRow("prompt", brief(block["image"]), reason + "leave the column out, or mend one of them")
        block["number"] = place + 1
        free.discard(place)
    blocks = image_blocks(messages)
    free -= {block["number"] - 1 for block in blocks if "number" in block}
    unnamed = sum("number" not in block for block in blocks)
    if len(free) > unnamed:
        reason = f"{len(free)} pictures of {len(images)} here have no block, where the prompt's blocks name theirs; "
        raise BadRow(column, [ref.name for ref in images], reason + "leave this column out, or mend one of them")


def _place_of(value: Any, images: Sequence[ImageRef], free: set[int], find: Callable[[str], str]) -> int | None:
    """The place of a picture that a block names; of equal ones the first that is free."""
    try:
        ref = _image_ref(value, "prompt", find)
    except BadRow:  # it may be the name of an image that is embedded in the column
        ref = ImageRef(label=value) if isinstance(value, str) else ImageRef()
    for place in sorted(range(len(images)), key=lambda i: (i not in free, i)):
        if _is_same(ref, images[place]):
            return place
    return None


def _is_same(ref: ImageRef, other: ImageRef) -> bool:
    """Whether two handles are one picture: one file, the same bytes or pixels, or an embedded one of that name."""
    if ref.path is not None and other.path is not None:
        return os.path.realpath(ref.path) == os.path.realpath(other.path)
    if ref.image is not None and other.image is not None:
        return ref.image == other.image
    if ref.content is not None and other.content is not None:
        return ref.content == other.content
    names = os.path.basename(ref.name), os.path.basename(other.name)
    return ref == other or (bool(names[0]) and names[0] == names[1])


# ---- those that nothing reads ----------------------------------------------------------------------------------------


def check_unread(reader: str, row: Mapping[str, Any], images: Sequence[ImageRef], find: Callable[[str], str]) -> None:
    """Raises BadRow for an image that no column given to the reader holds: it would be dropped in silence."""
    texts = {name for needed in READERS[reader].columns for name in needed.split("|") if name not in IMAGE_COLUMNS}
    column = unread_image(row, texts | TEXT_COLUMNS, images, find)
    if column is None:
        return
    remedy = f"call it image, or set visual.columns.image={column} (behind a source: ?columns.image={column})"
    if images:
        remedy = "put all images of a row into one list `images`, or remove this column"
    raise BadRow(column, row[column], f"an image in a column that is not read; {remedy}")


def unread_image(
    row: Mapping[str, Any], texts: Collection[str], images: Sequence[ImageRef], find: Callable[[str], str]
) -> str | None:
    """The first column with an image that is not one of `images`, those that were read; None where there is none.

    Args:
        texts: columns of texts, which are not looked at.
        find: as in `read_row`; a text that ends like an image file is an image where a file is found by it.
    """
    used = image_column(row)
    for column, value in row.items():
        if column in texts or column == used:
            continue
        cells = value if isinstance(value, (list, tuple)) else (value,)
        if any(_is_another_image(cell, column, images, find) for cell in cells):
            return column
    return None


def _is_another_image(cell: Any, column: str, images: Sequence[ImageRef], find: Callable[[str], str]) -> bool:
    if isinstance(cell, str):
        if is_encoded_picture(cell):
            return True
        if not images and is_lost(column, cell):
            return True
        return column not in IMAGE_NAMES and _names_another(cell, images, find)
    if isinstance(cell, PIL.Image.Image):
        return ImageRef(image=cell) not in images
    if isinstance(cell, Mapping):  # as data sets store an image
        return "bytes" in cell and (cell["bytes"] is not None or cell.get("path") is not None)
    return isinstance(cell, ImageRef) and cell not in images


def is_encoded_picture(text: str) -> bool:
    """Whether a text in some column is a picture by itself."""
    return text.startswith(ENCODED_STARTS) and is_encoded(text)


def is_lost(column: Any, text: str) -> bool:
    """Whether a text is the address of a picture by the column's name, whether or not a file is found there."""
    named = any(word in str(column).lower() for word in PICTURE_WORDS)
    return named and ("://" in text or text[-5:].lower().endswith(IMAGE_SUFFIXES))


def _names_another(text: str, images: Sequence[ImageRef], find: Callable[[str], str]) -> bool:
    """Whether a text is the path of an image file that is not one of `images`."""
    if not text[-5:].lower().endswith(IMAGE_SUFFIXES):
        return False
    try:
        path = find(text)
    except UserError:
        return False
    if not os.path.isfile(path):  # in the caption phase names are taken unseen
        return False
    # The same file may be named twice, by two ways of writing its path; and an embedded image by its file name.
    files = {os.path.realpath(ref.path) for ref in images if ref.path is not None}
    embedded = {os.path.basename(ref.name) for ref in images if ref.path is None}
    return os.path.realpath(path) not in files and os.path.basename(text) not in embedded
