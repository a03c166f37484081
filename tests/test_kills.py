"""Killed at any moment, and on full disks: the same command goes on and ends in the files of an uninterrupted run.

Slow: `pytest -m slow tests/test_kills.py`. Commands run in forks of this process, which has imported everything, with
one thread each: a new interpreter would spend its life importing. A process is killed some time after its start, drawn
up to 60 % of what an uninterrupted run takes, and only kills of live processes count.
"""

import json
import math
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import QUICK, ended, fork, say_free, without_times
from safetensors.torch import load_file

from rovrm import bon, csr, dpo, score, select, train
from rovrm.world.default import BASE

pytestmark = pytest.mark.slow

KILLS = 12  # of each command
PHASES = ("text", "caption", "visual")
CSR = ["data=world:visual?n=24&questions=describe", "batch_size=4", "iterations=2", "steps.n=3", "dpo.lora_r=4"]
CSR += ['steps.delimiters=[",", " and", "."]', "dpo.trainer.save_steps=2", "dpo.visual.epochs=2"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads do not live on in a fork, and waiting for one of them would never end."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def commands(world_folder, reward) -> dict[str, tuple[Callable[[list[str]], int], list[str]]]:
    """By name: a command's main and what it is given but for `out`."""
    world = world_folder(300)
    small = [f"{name}.data={world / name}.jsonl?n=80" for name in PHASES]
    pools = [f"{name}.data={world / name}.jsonl" for name in PHASES]
    choosing = ["phase=2", "caption.select=capped_ot", "caption.n=24", "selection.width=256", "lora_r=4"]
    choosing += ["selection.warmup_pool=32", "selection.warmup_target=32"]
    training = [f"model={BASE}", *small, "eval_fraction=0.2", "lora_r=4", "trainer.save_steps=2"]
    return {
        "train": (train.main, [*training, *(f"{name}.epochs=2" for name in PHASES), *QUICK]),
        "dpo": (dpo.main, [*training, *(f"{name}.epochs=2" for name in PHASES), *QUICK]),
        "select": (select.main, [f"model={BASE}", *pools, *choosing, "trainer.save_steps=2", *QUICK]),
        "bon": (
            bon.main,
            f"--n 3 model={reward} data=world:visual?split=test&questions=describe&n=48 batch_size=2 "
            "max_new_tokens=48".split(),
        ),
        "csr": (csr.main, [f"model={reward}", f"policy={BASE}", *CSR, *(f"dpo.{word}" for word in QUICK)]),
        "score": (score.main, [f"model={reward}", f"in={world / 'visual.jsonl'}", "workers=0", "device=cpu"]),
    }


def finish(main: Callable[[list[str]], int], argv: list[str], log: Path) -> tuple[int, float]:
    """(status, seconds) of a command that is let run."""
    began, child = time.monotonic(), fork(main, argv, log)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), time.monotonic() - began


def place(name: str, folder: Path) -> Path:
    return folder / "scores.jsonl" if name == "score" else folder


def final_files(name: str, folder: Path) -> dict[str, Any]:
    """What a run is for, without times, logs and checkpoints."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        key = str(path.relative_to(folder))
        if "checkpoints" in path.parts or path.name in ("trainer_log.jsonl", "config.yaml", ".lock", "log.txt"):
            continue
        if path.suffix == ".safetensors":
            found[key] = {name: tensor.numpy().tobytes() for name, tensor in load_file(path).items()}
        elif path.name in ("phase.json", "summary.json"):
            text = path.read_text().replace(str(folder), "OUT")
            found[key] = json.loads(text, object_hook=without_times)
        elif path.name != "settings.json" and path.name != "models.json":  # hold marks of phase.json, and so times
            found[key] = path.read_bytes().replace(str(folder).encode(), b"OUT")
    return found


def assert_same(name: str, straight: Path, other: Path) -> int:
    """The number of final files, all of them the same."""
    one, two = final_files(name, straight), final_files(name, other)
    assert one.keys() == two.keys() and len(one) >= (1 if name == "score" else 3)
    assert [key for key in one if one[key] != two[key]] == []
    return len(one)


@pytest.mark.parametrize("name", ["train", "dpo", "csr", "select", "bon", "score"])
def test_sigkill_at_random_moments(commands, tmp_path, name):
    """Until there were enough kills, a finished folder is compared, emptied and begun again."""
    main, given = commands[name]
    straight, killed, log = tmp_path / "straight", tmp_path / "killed", tmp_path / "log.txt"
    straight.mkdir()
    killed.mkdir()
    status, seconds = finish(main, [f"out={place(name, straight)}", *given], log)
    assert status == 0, log.read_text()[-2000:]
    drawn, began = random.Random(name), time.monotonic()
    kills, inside, rounds = 0, 0, []
    while kills < KILLS or not rounds or rounds[-1] != kills:
        child = fork(main, [f"out={place(name, killed)}", *given], log)
        end = time.monotonic() + drawn.uniform(0.02, 0.6) * seconds if kills < KILLS else math.inf
        while (status := ended(child)) is None and time.monotonic() < end:
            time.sleep(0.005)
        if status is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            kills += 1
            partial = killed / "scores.jsonl.partial"
            inside += partial.is_file() and 0 < partial.stat().st_size
            continue
        assert status == 0 and "Traceback" not in log.read_text(), log.read_text()[-2000:]
        files = assert_same(name, straight, killed)
        if name == "score":
            assert [path.name for path in killed.iterdir()] == ["scores.jsonl"]
        rounds.append(kills)
        shutil.rmtree(killed)
        killed.mkdir()
    told = f"{kills} kills ({inside} between units of score), {len(rounds)} runs ended in {files} equal files"
    print(f"{name}: {told}; {seconds:.1f} s uninterrupted, {time.monotonic() - began:.0f} s in all")


# ---- full disks ------------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path) -> Iterator[Callable[[float], Path]]:
    """disk(megabytes): a folder that holds so much; called again it is made larger."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def sized(megabytes: float) -> Path:
        size = f"size={round(megabytes * 1024)}k"
        again = ["remount,"] if os.path.ismount(folder) else [""]
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", again[0] + size, "tmpfs", str(folder)], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip(f"tmpfs cannot be mounted here: {done.stderr.decode().strip()}")
        return folder

    yield sized
    if os.path.ismount(folder):
        subprocess.run(["umount", str(folder)], check=True)


# Megabytes at first: too few for the first checkpoint, for the features, for the answers, and for the results.
@pytest.mark.parametrize(("name", "small"), [("train", 3.0), ("select", 3.0), ("bon", 0.1), ("score", 0.016)])
def test_a_full_disk(commands, tmp_path, disk, monkeypatch, name, small):
    main, given = commands[name]
    straight, log = tmp_path / "straight", tmp_path / "log.txt"
    straight.mkdir()
    assert finish(main, [f"out={place(name, straight)}", *given], log)[0] == 0
    folder = disk(small)
    command = [f"out={place(name, folder)}", *given]

    def assert_refused(words: str) -> None:
        log.write_text("")
        status, _ = finish(main, command, log)
        told = [line for line in log.read_text().splitlines() if "error:" in line]
        assert status == 2 and len(told) == 1 and words in told[0], log.read_text()[-3000:]
        assert "Traceback" not in log.read_text() and " need about " in told[0] and "make room" in told[0]
        print(told[0])

    assert_refused("are free; make room")
    with monkeypatch.context() as patched:  # as if others had filled the disk meanwhile
        say_free(patched, 10**12)
        assert_refused("the same command goes on where it was stopped")
    disk(100)
    status, _ = finish(main, command, log)
    assert status == 0, log.read_text()[-3000:]
    print(f"{name}: {assert_same(name, straight, folder)} equal files after room was made")
