r"""Captions: read from a file, joined to examples by image, and put where the image was.

    captions = load_captions("captions.jsonl")
    example = caption_example(with_caption(example, captions), "Image description: {caption}\n\n")

A caption that is the chosen answer would give it away and is never used.
"""

import os
import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rovrm.common.errors import UserError, shown
from rovrm.data.bad_rows import BadRow, fence
from rovrm.data.example import Example
from rovrm.data.images import ImageRef
from rovrm.data.messages import normalise, text_of
from rovrm.data.raw_rows import Row, read_json_rows

CAPTION_IMAGES = ("image", "file", "image_path", "file_name", "image_id")
CAPTION_TEXTS = ("caption", "captions", "human_captions", "text")


@dataclass(slots=True)
class Captions:
    """Captions by image, as a file has them.

    entries: image as written, its path normalised -> its captions.
    names, stems: file name, or its stem (an id is one) -> the entries of that name.
    met: entry -> the paths of the images in the data that it was used for.
    """

    path: str
    entries: dict[str, list[str]] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)
    stems: dict[str, list[str]] = field(default_factory=dict)
    met: dict[str, list[str]] = field(default_factory=dict)

    def add(self, image: str, captions: Iterable[str]) -> None:
        """More captions of an image, which may have some already."""
        key = posixpath.normpath(image)
        if key not in self.entries:
            self.names.setdefault(posixpath.basename(key), []).append(key)
            self.stems.setdefault(_stem(key), []).append(key)
        self.entries.setdefault(key, []).extend(captions)

    def of(self, image: ImageRef) -> list[str]:
        """The captions of an image, by its path, else its file name, else its id or stem (000724 is 724).

        A name or stem counts only where no folder contradicts it: one of the two paths ends in the other, or is bare.
        Raises UserError where two entries fit the image, and where an entry fits two images.
        """
        key = posixpath.normpath(image.name)
        entries = [key] if key in self.entries else self._fitting(key)
        if len(entries) > 1:
            raise UserError(
                f"{self.path}: image {image.name} may be {entries[0]} or {entries[1]}, the file name fits both; "
                "write the images of the captions as the paths of the data"
            )
        if not entries:
            return []
        self._meet(entries[0], image)
        return self.entries[entries[0]]

    def elsewhere(self, image: str) -> str:
        """An entry of the same file name or stem that lies in another folder; "" for none."""
        key = posixpath.normpath(image)
        namesakes = self.names.get(posixpath.basename(key)) or self.stems.get(_stem(key)) or [""]
        return namesakes[0]

    def _fitting(self, key: str) -> list[str]:
        """The entries of the same file name, or else of the same stem, whose folders do not contradict the key's."""
        by_name = [entry for entry in self.names.get(posixpath.basename(key), []) if _same_end(entry, key)]
        if by_name:
            return by_name
        return [entry for entry in self.stems.get(_stem(key), []) if _same_end(_bare(entry), _bare(key))]

    def _meet(self, entry: str, image: ImageRef) -> None:
        """Notes that the entry was used for this image; raises UserError if it was for one of another folder."""
        path = posixpath.normpath(image.path or image.name)
        earlier = self.met.setdefault(entry, [])
        if path in earlier:
            return
        for other in earlier:
            if not _same_end(other, path):
                raise UserError(
                    f"{self.path}: {entry} may be {other} or {path}, which both are in the data; "
                    "write the images of the captions with their folders, as the paths of the data"
                )
        earlier.append(path)


def _same_end(one: str, other: str) -> bool:
    """Whether one path ends in the other, whole folders compared: the same path under another root, or a bare name."""
    one, other = one.lstrip("./"), other.lstrip("./")
    return f"/{one}".endswith(f"/{other}") or f"/{other}".endswith(f"/{one}")


def _stem(path: str) -> str:
    """The file name without its ending, and without the zeros that lead a number: 000724 and 724 are one id."""
    stem = posixpath.splitext(posixpath.basename(path))[0]
    return (stem.lstrip("0") or "0") if stem.isascii() and stem.isdecimal() else stem


def _bare(path: str) -> str:
    """The path with the stem for its file name."""
    return posixpath.join(posixpath.dirname(path), _stem(path))


def load_captions(path: str | os.PathLike) -> Captions:
    """The captions of a JSON or JSONL file.

    A row has an image column (image, file, image_path, file_name or image_id) and a caption column (caption, captions,
    human_captions or text) with a text or a list. Several rows of one image add up; rows without a caption are passed
    over. Raises UserError for a missing file, missing columns, and an ill-formed row.
    """
    if not os.path.isfile(path):
        raise UserError(f"captions={path}: no such file; mend the path")
    captions = Captions(str(path))
    rows = read_json_rows(Path(path))
    for row in rows:
        with fence(row.location):
            image, texts = _caption_row(row)
            if image and texts:
                captions.add(image, texts)
    if not captions.entries:
        columns = ", ".join(dict.fromkeys(column for row in rows for column in row.values or ()))
        takes = f"one of {', '.join(CAPTION_IMAGES)} and one of {', '.join(CAPTION_TEXTS)}"
        raise UserError(f"captions={path}: no row has an image and a caption; columns are {columns}; takes {takes}")
    return captions


def _caption_row(row: Row) -> tuple[str, list[str]]:
    """A row's image, "" for none, and the captions in it that hold a text."""
    if row.values is None:
        raise UserError(row.problem)
    image = next((row.values[name] for name in CAPTION_IMAGES if row.values.get(name) is not None), "")
    if not isinstance(image, str | int):
        raise UserError(f"image = {shown(image, 80)!r} takes a path, a file name or an id; mend it")
    text = next((row.values[name] for name in CAPTION_TEXTS if row.values.get(name) is not None), None)
    texts = [text] if isinstance(text, str) else text or []
    if not isinstance(texts, list) or not all(isinstance(item, str) for item in texts):
        raise UserError(f"caption = {shown(text, 80)!r} takes a text or a list of texts; mend it")
    return str(image), [item for item in texts if item.strip()]


def with_caption(example: Example, table: Captions | None) -> Example:
    """The example with a caption that does not give its best answers away. Raises BadRow where there is none.

    Its own caption comes first, then those of the table. An example of several images without a caption of its own gets
    one line for each image.

    Args:
        table: captions by image; None for none but the example's own.
    """
    best = min(example.ranks)
    leaks = {normalise(text) for text, rank in zip(example.responses, example.ranks, strict=True) if rank == best}
    own = [example.caption] if example.caption and example.caption.strip() else []
    if own and normalise(own[0]) not in leaks:
        return example
    # One caption for the whole example: its own may be an answer, and then one of the table's takes its place.
    if len(example.images) <= 1 or own:
        image = example.images[0] if len(example.images) == 1 else ImageRef()
        return replace(example, caption=_pick(own + _captions_of(image, table), leaks, image.name, table))
    lines = []
    for number, image in enumerate(example.images, 1):
        caption = _pick(_captions_of(image, table), leaks, image.name, table)
        lines.append(f"Image {number}: {caption}")
    return replace(example, caption="\n".join(lines))


def _captions_of(image: ImageRef, table: Captions | None) -> list[str]:
    return table.of(image) if table and image.name else []


def _pick(captions: Sequence[str], leaks: set[str], image: str, table: Captions | None) -> str:
    """The first caption that is none of the best answers. Raises BadRow, with what is missing, where there is none."""
    for caption in captions:
        if normalise(caption) not in leaks:
            return caption
    if captions:
        reason = "every caption equals the chosen answer and would give it away; add another caption or drop the row"
        raise BadRow("caption", captions[0], reason)
    where = f"in {table.path}" if table else "in the row; give caption.captions=FILE"
    other = table.elsewhere(image) if table and image else ""
    where += f" ({other} lies in another folder)" if other else ""
    raise BadRow(
        "caption", image, f"no caption for image {image or '(without a name)'} {where}; add one or drop the row"
    )


def caption_example(example: Example, template: str) -> Example:
    """The example of the caption phase: images and image blocks gone, the caption before the first user's text.

    Args:
        template: what is written before the text, with `{caption}` in it.

    Raises:
        UserError: for an example without a caption and for a template without `{caption}`.
    """
    if "{caption}" not in template:
        raise UserError(f"caption template {template!r} has no {{caption}}; write where the caption goes")
    if not example.caption:
        remedy = "add one to the row, or give caption.captions=FILE"
        raise UserError(f"example {example.id} ({example.location}) has no caption; {remedy}")
    prompt = [message | {"content": text_of(message["content"])} for message in example.prompt]  # new messages
    first = next(message for message in prompt if message["role"] == "user")
    first["content"] = template.replace("{caption}", example.caption) + first["content"]
    return replace(example, prompt=prompt, images=[], lengths=None)  # lengths that were measured are another text's
