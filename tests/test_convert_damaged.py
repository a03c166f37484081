"""`python -m rovrm.convert` on damaged models and odd names: one line, no file outside, nothing left in `out`."""

import contextlib
import errno
import io
import json
import os
import random
import shutil
import sys

import pytest
import torch
from damage import damage
from helpers import change_json, error_line, read_json
from safetensors.torch import load_file, save_file
from test_convert import TheirHead, converted, refused, release, write_shards  # noqa: F401  (fixtures)

from rovrm import convert
from rovrm.common.files import PARTIAL
from rovrm.conversion import build
from rovrm.conversion import weights as weight_files
from rovrm.convert import main
from rovrm.model.contract import Contract

watched: dict[str, list[str]] = {}  # folder -> what was opened in it


def _watch(event, arguments):  # an audit hook cannot be taken away again
    if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        path = os.path.realpath(os.fsdecode(arguments[0]))
        for folder, opened in watched.items():
            if path.startswith(folder):
                opened.append(path)


sys.addaudithook(_watch)


@pytest.fixture
def outside(tmp_path):
    """A folder with weights that no conversion may open."""
    folder = tmp_path / "outside"
    folder.mkdir()
    torch.save({"a": torch.zeros(2)}, folder / "a.bin")
    watched[os.path.realpath(folder)] = opened = []
    yield folder
    assert not opened
    del watched[os.path.realpath(folder)]


def make(kind, release, family_folder, tmp_path):  # noqa: F811
    """(the folder to damage, the words of the command)"""
    folder = tmp_path / "in"
    if kind == "value head":
        shutil.copytree(family_folder("llama"), folder)
        save_file(TheirHead(32).keys(), folder / "value_head.safetensors")
        return folder, [f"in={folder}"]
    _, weights, base = release
    if kind == "shards":
        write_shards(folder, weights, "pytorch_model.bin", torch.save)
    else:
        folder.mkdir()
        torch.save(weights, folder / "pytorch_model.bin")
    if kind != "base":
        return folder, [f"in={folder}", f"base={base}"]
    copy = shutil.copytree(base, tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors"))
    return copy, [f"in={folder}", f"base={copy}"]


def run_all(count, kind, release, family_folder, tmp_path, outside):  # noqa: F811
    folder, words = make(kind, release, family_folder, tmp_path)
    results = []
    for seed in range(count):
        out = tmp_path / "out"
        path, before = damage(folder, random.Random(f"{kind}:{seed}"), outside)
        told = io.StringIO()
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
            results.append(main([*words, f"out={out}"]))
        path.write_bytes(before)
        line = (told.getvalue().splitlines() or [""])[-1]
        if results[-1] == 0:
            assert (out / "config.json").is_file() and not (out / PARTIAL).exists()
            shutil.rmtree(out)
        else:
            assert results[-1] == 2 and line.startswith("rovrm.convert: error: "), (seed, path.name, line)
            assert not out.exists(), (seed, path.name, line)
            assert path.name in line or str(tmp_path) in line, (seed, path.name, line)
    assert {0, 2} == {*results}  # some damage does no harm: another byte in a weight


KINDS = {"whole": 25, "shards": 25, "value head": 25, "base": 15}


@pytest.mark.parametrize("kind", KINDS)
def test_damaged(kind, release, family_folder, tmp_path, outside):  # noqa: F811
    run_all(KINDS[kind], kind, release, family_folder, tmp_path, outside)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_by_the_thousand(kind, release, family_folder, tmp_path, outside):  # noqa: F811
    run_all(1000, kind, release, family_folder, tmp_path, outside)


@pytest.mark.parametrize("place", ["../outside/a.bin", "{}/a.bin", "sub/../../outside/a.bin", "..\\outside\\a.bin"])
def test_an_index_names_its_own_folder_alone(place, release, tmp_path, outside, refused):  # noqa: F811
    _, weights, base = release
    folder = write_shards(tmp_path / "in", weights, "pytorch_model.bin", torch.save)
    index = folder / "pytorch_model.bin.index.json"
    change_json(index, weight_map=read_json(index)["weight_map"] | {"v_head.weight": place.format(outside)})
    message = refused(f"in={folder}", f"base={base}")
    assert "outside of its folder" in message and "index.json" in message and "a.bin" in message


def test_nothing_is_read_before_all_names_are_looked_at(release, tmp_path, monkeypatch, refused):  # noqa: F811
    _, weights, base = release
    folder = write_shards(tmp_path / "in", weights, "model.safetensors", save_file)
    index = folder / "model.safetensors.index.json"
    change_json(index, weight_map=read_json(index)["weight_map"] | {"v_head.weight": "/etc/passwd"})
    read = []
    monkeypatch.setattr(weight_files, "read_tensors", read.append)
    assert "'/etc/passwd'" in refused(f"in={folder}", f"base={base}") and not read
    for odd in ({}, [], "x", {"a": 1}, {"a": ["x"]}, {"a": None}):
        index.write_text(json.dumps({"weight_map": odd}))
        assert "names no files of weights" in refused(f"in={folder}", f"base={base}")
    for name in ("a" * 300, "\0", "\ud800", ".", ""):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        assert "lacks" in refused(f"in={folder}", f"base={base}")


def test_a_snapshot_of_the_hubs_cache(release, converted, tmp_path):  # noqa: F811
    """There every file is a link to ../../blobs."""
    _, weights, base = release
    shards = write_shards(tmp_path / "shards", weights, "model.safetensors", save_file)
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for i, path in enumerate(sorted(shards.iterdir())):
        path.rename(blobs / str(i))
        (snapshot / path.name).symlink_to(f"../../blobs/{i}")
    assert main([f"in={snapshot}", f"base={base}", f"out={tmp_path / 'out'}"]) == 0
    ours, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", converted))
    assert ours.keys() == expected.keys() and all(torch.equal(ours[key], expected[key]) for key in ours)


def test_out_is_left_as_it_was(release, tmp_path, capsys, monkeypatch):  # noqa: F811
    _, weights, base = release
    folder, out = tmp_path / "in", tmp_path / "new" / "out"
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    words = [f"in={folder}", f"base={base}", f"out={out}"]

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def broken(*_):
        raise ZeroDivisionError()

    for module, name, failure, told in (
        (Contract, "write", full, "No space left on device"),
        (convert, "read_back", broken, "ZeroDivisionError"),
    ):
        monkeypatch.setattr(module, name, failure)
        assert main(words) == 2 and not out.exists()
        out.mkdir(parents=True)
        assert main(words) == 2 and out.is_dir() and not any(out.iterdir())
        out.rmdir()
        printed = capsys.readouterr().err
        assert printed.count("error: ") == 2 and printed.count(told) == 2
        monkeypatch.undo()
    (out / PARTIAL / "old").mkdir(parents=True)  # of a command that was killed
    assert main(words) == 0 and not (out / PARTIAL).exists() and (out / "config.json").is_file()
    assert "not an empty folder" in error_line(capsys, main, *words)


class PanicException(BaseException):
    """As Rust's libraries raise it, which is no Exception."""


def test_a_panic_and_absurd_sizes(release, family_folder, tmp_path, monkeypatch, refused):  # noqa: F811
    folder, words = make("value head", release, family_folder, tmp_path)
    layers = read_json(folder / "config.json")["num_hidden_layers"]
    change_json(folder / "config.json", num_hidden_layers=10**9)
    assert "asks for 1000000000 layers" in refused(*words)
    change_json(folder / "config.json", num_hidden_layers=layers)

    def panic(*_):
        raise PanicException("range end index out of range")

    for module, name in ((build, "build_processor"), (convert, "read_back")):
        monkeypatch.setattr(module, name, panic)
        message = refused(*words)
        assert "PanicException range end index" in message and "tokenizer.json" in message
        monkeypatch.undo()
    monkeypatch.setattr(convert, "read_back", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    assert main([*words, f"out={tmp_path / 'new'}"]) == 130 and not (tmp_path / "new").exists()
