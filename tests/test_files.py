"""Files that appear whole or not at all, and locks that end with their process, however it ends."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from rovrm.common.errors import UserError
from rovrm.common.files import lock_folder, read_json, read_jsonl, replacing, write_json, write_jsonl


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("old", [None, "old"])
def test_a_failure_leaves_what_was_there(tmp_path: Path, old: str | None) -> None:
    path = tmp_path / "a.json"
    if old:
        path.write_text(old)
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(path, {"a": object()})
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_jsonl(path, [{"a": 1}, {"a": object()}])
    assert (names(tmp_path), old and path.read_text()) == (["a.json"] if old else [], old)


def test_a_file_or_folder_takes_its_place_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "new" / "data"
    for _ in range(2):  # an empty folder is replaced, too
        with replacing(path) as temporary:
            temporary.mkdir()
            assert not path.exists() or not names(path)
    (path.parent / ".data.tmp").mkdir()  # of a process that was killed
    (path.parent / ".data.tmp" / "half").touch()
    with replacing(path) as temporary:
        temporary.mkdir()
        (temporary / "whole").touch()
    assert names(path.parent) == ["data"] and names(path) == ["whole"]


def test_json_is_read_back(tmp_path: Path) -> None:
    rows = [{"text": "größer \ud83d, 大きい\u2028x"}, {"text": ""}]
    write_jsonl(tmp_path / "a.jsonl", rows)
    assert read_jsonl(tmp_path / "a.jsonl")[1:] == rows[1:]
    assert "größer \\ud83d, 大きい\u2028x" in (tmp_path / "a.jsonl").read_text(encoding="utf-8")
    write_json(tmp_path / "a.json", rows[0])
    assert read_json(tmp_path / "a.json") == rows[0]
    for broken in ("", "[1]", "{", json.dumps("text")):
        (tmp_path / "b.json").write_text(broken)
        with pytest.raises(UserError, match="b.json (is no JSON|holds no keys).*copy it again"):
            read_json(tmp_path / "b.json")


def test_a_second_run_is_refused_at_once_and_the_next_is_not(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the first run fails"), lock_folder(str(tmp_path)):
        began = time.monotonic()
        with pytest.raises(UserError, match=f"another run is writing into out='{tmp_path}'; wait for it, or give"):
            lock_folder(str(tmp_path)).__enter__()
        assert time.monotonic() - began < 1
        raise ValueError("the first run fails")
    with lock_folder(str(tmp_path)):
        pass


def test_a_killed_runs_lock_is_free_though_its_worker_lives(tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    run = os.fork()
    if not run:
        with lock_folder(str(tmp_path)):
            worker = os.fork()  # as a DataLoader starts its workers
            if worker:
                os.write(theirs, str(worker).encode())
            time.sleep(60)
            os._exit(0)
    worker = int(os.read(ours, 20))
    try:
        with pytest.raises(UserError, match="another run is writing"):
            lock_folder(str(tmp_path)).__enter__()
        os.kill(run, signal.SIGKILL)
        os.waitpid(run, 0)
        os.kill(worker, 0)  # it lives
        with lock_folder(str(tmp_path)):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
