"""The world as files, and `python -m rovrm.world`: the same bytes twice, whole or not at all, readable as data."""

from pathlib import Path

import pytest
from helpers import error_line, output_of, read_lines

from rovrm.common.errors import UserError
from rovrm.data.images import content_hash
from rovrm.data.loading import load_examples
from rovrm.world import files
from rovrm.world.__main__ import main
from rovrm.world.files import write_world
from rovrm.world.pairs import INPUTS

FIELDS = {"id", "source", "family", "kind", "held_out", "prompt", "chosen", "rejected"}
MORE = {"text": set(), "caption": {"caption"}, "visual": {"caption", "image"}}


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- files -----------------------------------------------------------------------------------------------------------


def test_the_same_bytes_twice(tmp_path):
    write_world(tmp_path / "one", 12, seed=4)
    (tmp_path / "two").mkdir()  # an empty folder is welcome
    write_world(tmp_path / "two", 12, seed=4)
    one = content(tmp_path / "one")
    assert one == content(tmp_path / "two")
    pictures = {f"images/visual-train-4-{i}.png" for i in range(12)}
    assert one.keys() == {"text.jsonl", "caption.jsonl", "visual.jsonl"} | pictures
    write_world(tmp_path / "three", 12, seed=5)
    three = content(tmp_path / "three")
    assert all(one[f"{inputs}.jsonl"] != three[f"{inputs}.jsonl"] for inputs in INPUTS)


def test_fewer_rows_are_the_first_of_more(tmp_path):
    write_world(tmp_path / "few", 3)
    write_world(tmp_path / "many", 8)
    for inputs in INPUTS:
        assert read_lines(tmp_path / "few" / f"{inputs}.jsonl") == read_lines(tmp_path / "many" / f"{inputs}.jsonl")[:3]


@pytest.mark.parametrize("inputs", INPUTS)
def test_files_read_as_the_source_does(tmp_path, inputs):
    """The rows of `world:visual?n=9&seed=2` with their answers and pixels, found beside the file; none is rejected."""
    write_world(tmp_path / "data", 9, seed=2, split="test")
    file = tmp_path / "data" / f"{inputs}.jsonl"
    assert all(row.keys() == FIELDS | MORE[inputs] for row in read_lines(file))
    read, made = load_examples(str(file)), load_examples(f"world:{inputs}?n=9&seed=2&split=test")
    assert not read.rejected and len(read.examples) == 9
    made_by_id = {example.id: example for example in made.examples}
    assert len(made_by_id) == 9
    for example in read.examples:
        twin = made_by_id[example.id]
        assert (example.prompt, example.responses, example.ranks) == (twin.prompt, twin.responses, twin.ranks)
        assert example.source == twin.source
        assert example.caption == twin.caption and bool(example.caption) == (inputs != "text")
        assert len(example.images) == len(twin.images) == (inputs == "visual")
        for picture, drawn in zip(example.images, twin.images, strict=True):
            assert content_hash(picture.open()) == content_hash(drawn.open())


def test_a_folder_that_holds_something_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("keep me")
    (tmp_path / "file").write_text("keep me")
    for name in ("data", "file"):
        with pytest.raises(UserError, match=f"{tmp_path / name}' (is not empty|cannot be written .*); give another"):
            write_world(tmp_path / name, 2)
    assert content(tmp_path) == {"data/mine.txt": b"keep me", "file": b"keep me"}


def test_whole_or_not_at_all(tmp_path, monkeypatch):
    written = []

    def full(path, rows):
        written.append(Path(path).name)
        if len(written) == len(INPUTS):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_jsonl", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_world(tmp_path / "data", 2)
    assert len(written) == len(INPUTS) and not list(tmp_path.iterdir())


# ---- python -m rovrm.world -------------------------------------------------------------------------------------------


def test_unknown_commands(capsys):
    assert "'paint', takes train or clip or measure or write" in error_line(capsys, main, "paint", "out=x")
    assert "no command" in error_line(capsys, main)
    assert "python -m rovrm.world write out=" in output_of(capsys, main, "--help")


def test_write(tmp_path, capsys):
    out = tmp_path / "new" / "data"
    printed = output_of(capsys, main, "write", f"out={out}", "n=5", "seed=1", "split=test")
    assert "5 pairs of each kind" in printed
    for inputs in INPUTS:
        assert [row["id"] for row in read_lines(out / f"{inputs}.jsonl")] == [f"{inputs}-test-1-{i}" for i in range(5)]
    assert len(list((out / "images").iterdir())) == 5
    before = content(out)
    assert str(out) in error_line(capsys, main, "write", f"out={out}", "n=5")
    assert content(out) == before


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["write"], "out: got nothing"),
        (["write", "out=x", "n=0"], "n: got '0', takes a whole number above 0"),
        (["write", "out=x", "split=dev"], "split: got 'dev', takes one of train, test"),
        (["write", "out=x", "pairs=5"], "unknown key pairs"),
        (["train", "samples=2000"], "out: got nothing"),
        (["train", "out="], "out: got nothing"),
        (["train", "out=x", "samples=999"], "samples: got '999', takes a whole number 1000 or more"),
    ],
)
def test_bad_settings(tmp_path, monkeypatch, capsys, argv, named):
    monkeypatch.chdir(tmp_path)
    assert named in error_line(capsys, main, *argv)
    assert not list(tmp_path.iterdir())


def test_train_does_not_write_over_a_model(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    message = error_line(capsys, main, "train", f"out={tmp_path}", "samples=1000")
    assert str(tmp_path) in message and "holds a model already; give another folder" in message
    assert content(tmp_path) == {"config.json": b"{}"}
