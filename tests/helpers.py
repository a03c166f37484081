"""What several test files share: JSON files, noise images, small checkpoints, commands run here and their refusals."""

import contextlib
import faulthandler
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import sys
import time
import traceback
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rovrm.common.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
REAL = ROOT.parent / "shared" / "data"  # real data, which is never part of the repository
QUICK = ["workers=0", "trainer.disable_tqdm=true", "trainer.use_cpu=true"]  # training in this process, silently
TIMES = ("seconds", "pairs_per_second")  # what two equal runs may differ in

# ---- files -----------------------------------------------------------------------------------------------------------


def read_json(file: Path) -> Any:
    return json.loads(file.read_text())


def change_json(file: Path, **changes: Any) -> None:
    """Sets keys of a JSON object in a file."""
    file.write_text(json.dumps(read_json(file) | changes))


def read_lines(file: Path) -> list[Any]:
    """The rows of a file of JSON Lines."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def write_lines(file: Path, *rows: Any) -> str:
    """Writes JSON Lines and makes the folder; a row of text or bytes is written as it is, so that it may be broken."""
    lines = []
    for row in rows:
        if not isinstance(row, str | bytes):
            row = json.dumps(row)
        lines.append(row if isinstance(row, bytes) else row.encode())
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"".join(line + b"\n" for line in lines))
    return str(file)


def change_last_byte(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in TIMES}


def nested(depth: int) -> list[Any]:
    """A list in a list in a list."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


# ---- images ----------------------------------------------------------------------------------------------------------


def noise(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A picture of random pixels, another for every seed. size: width and height."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


# ---- rows ------------------------------------------------------------------------------------------------------------


def pairs(count: int, **more: Any) -> list[dict[str, Any]]:
    """Rows of the plain format, with these fields more or instead."""
    return [{"prompt": f"Q{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} | more for i in range(count)]


# ---- what is refused -------------------------------------------------------------------------------------------------


def says(message: str, *parts: str) -> bool:
    """True, or a failure that shows which parts are missing."""
    missing = [part for part in parts if part not in message]
    assert not missing, f"{missing} not in: {message}"
    return True


def refused(call: Callable[[], Any], *words: str) -> str:
    """The one line of the UserError with which a call ends, in which the words stand."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert says(message, *words) and "\n" not in message
    return message


def message_of(capsys, main: Callable[[list[str]], int], *argv: str) -> str:
    """What a command says when it refuses: status 2, one message, and nothing behind it. Drops what stood before."""
    capsys.readouterr()
    assert main(list(argv)) == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    starts = [*re.finditer(r"^(data_selection|[\w.]+: error): ", printed, re.MULTILINE)]
    assert len(starts) == 1, printed
    return printed[starts[0].end() :].rstrip("\n")


def error_line(capsys, main: Callable[[list[str]], int], *argv: str) -> str:
    """The one line with which a command refuses."""
    message = message_of(capsys, main, *argv)
    assert message and "\n" not in message, message
    return message


def output_of(capsys, main: Callable[[list[str]], int], *argv: str) -> str:
    """What a command prints that succeeds. Drops what stood before."""
    capsys.readouterr()
    assert main(list(argv)) == 0
    return capsys.readouterr().out


def close(one: Any, other: Any, tolerance: float = 1e-5) -> bool:
    """Whether no number differs by the tolerance or more."""
    return bool(np.abs(np.asarray(one) - np.asarray(other)).max() < tolerance)


# ---- models ----------------------------------------------------------------------------------------------------------


def write_reward_model(base: str | Path, folder: Path, spread: float = 0.0) -> str:
    """A reward model with a random head on a base. spread: the head's standard deviation, if another than usual; at 0.3
    rewards differ in the first digit."""
    import torch

    from rovrm.model.loading import load_processor, load_reward_model

    torch.manual_seed(0)
    model: Any = load_reward_model(str(base))
    if spread:
        model.score.weight.data.normal_(std=spread, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(folder)
    load_processor(str(base)).save_pretrained(folder)
    return str(folder)


def write_adapter_phase(base: str | Path, folder: Path) -> Path:
    """A phase folder as rovrm.train writes it before the last phase: an adapter that moves the rewards, the processor
    and the record."""
    import torch
    from peft import get_peft_model

    from rovrm.model.adapters import lora_config
    from rovrm.model.loading import load_processor, load_reward_model

    model: Any = load_reward_model(str(base))
    model.name_or_path = str(base)
    torch.manual_seed(2)
    adapted = get_peft_model(model, lora_config(model, 4, 8, 0.0))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            parameter.data.normal_(std=0.1)
        if "score.modules_to_save" in name:
            parameter.data.normal_(std=0.3)
    adapted.save_pretrained(folder / "adapter")
    load_processor(str(base)).save_pretrained(folder)
    (folder / "phase.json").write_text(json.dumps({"reward_mean": 0.5, "reward_std": 2.0}))
    return folder


def forward_sizes(patch: pytest.MonkeyPatch, model: Any) -> list[tuple[int, int]]:
    """A list that grows by (rows of prompts, padded tokens of all rows) with each forward of the model."""
    sizes: list[tuple[int, int]] = []
    forward = model.forward

    def watched(**inputs: Any) -> Any:
        tokens = sum(inputs[name].numel() for name in ("input_ids", "answer_input_ids") if name in inputs)
        sizes.append((len(inputs["input_ids"]), tokens))
        return forward(**inputs)

    patch.setattr(model, "forward", watched)
    return sizes


# ---- the machine -----------------------------------------------------------------------------------------------------

Usage = namedtuple("Usage", "total used free")


def say_free(patch: pytest.MonkeyPatch, size: int) -> None:
    """Every disk is said to have so many bytes free."""
    patch.setattr(shutil, "disk_usage", lambda _: Usage(size, 0, size))


def fork(main: Callable[[list[str]], int], argv: list[str], log: Path, **environment: str) -> int:
    """The id of a process that runs a command; what it prints goes to the end of `log`.

    A fork has imported everything, where a new interpreter would spend its life importing. torch's pool of threads does
    not live on in it, so nothing may use one: run it with one thread (see conftest.py).
    """
    child = os.fork()
    if child:
        return child
    status = 70  # where it ends by an exception that no command should let pass
    try:
        os.environ.update({"HF_DEACTIVATE_ASYNC_LOAD": "1"} | environment)  # else weights are loaded by threads
        with open(log, "a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            sys.stdout, sys.stderr = open(1, "w", buffering=1), open(2, "w", buffering=1)
            faulthandler.register(signal.SIGUSR1)
            status = main(argv)
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(status)


def ended(child: int) -> int | None:
    """The status of a process that has ended, the signal's number below 0."""
    done, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def two_processes(main: Callable[[list[str]], int], argv: list[str], log: Path) -> str:
    """What a command prints in two forks that are told what torchrun tells its processes."""
    from accelerate.state import AcceleratorState

    def forgetful(argv: list[str]) -> int:
        AcceleratorState._reset_state(True)  # this process has been alone so far
        return main(argv)

    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    children = [fork(forgetful, argv, log, RANK=rank, LOCAL_RANK=rank, **group) for rank in ("0", "1")]
    statuses: dict[int, int | None] = dict.fromkeys(children)

    def decided() -> bool:
        """Both have ended, or one has failed, for which the other would wait in vain."""
        for child in children:
            statuses[child] = ended(child) if statuses[child] is None else statuses[child]
        return None not in statuses.values() or any(statuses.values())

    try:
        wait_for(decided, 200)
    except AssertionError:
        for child in [child for child in children if statuses[child] is None]:
            os.kill(child, signal.SIGUSR1)  # where it stands goes to the log
        time.sleep(1)
    finally:
        for child in children:
            if statuses[child] is None:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
    assert [*statuses.values()] == [0, 0], f"{statuses}: {log.read_text()[-6000:]}"
    return log.read_text()


def free_port() -> int:
    """A free one below those that systems give to outgoing connections, which another test may open meanwhile."""
    while True:
        port = random.SystemRandom().randrange(10_000, 30_000)
        with socket.socket() as server, contextlib.suppress(OSError):
            server.bind(("127.0.0.1", port))
            return port


def wait_for(done: Callable[[], Any], seconds: float = 120) -> None:
    """Until something is true, or the test fails; the machine may be busy."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.002)
