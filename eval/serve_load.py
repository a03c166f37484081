"""The server under load: right scores, right refusals, no crash, and how fast it is.

    python -m eval.serve_load                           # 2,000 requests, 200 of them broken, by 4 clients
    python -m eval.serve_load requests=100 model=runs/demo/phase3-visual

Starts `python -m rovrm.serve` as a process of its own on a free port of the loopback, with an untrained reward model on
the shipped base unless `model` names one. Half of the good requests have an image. The broken ones, equally often, are
not JSON, of wrong types, an image of 60 megapixels, a truncated JPEG, a path out of image_root, and a body of 50 MB.
First the good requests are scored one at a time by `RewardScorer.score` in this process: their right answers, and the
speed to compare with, images' decoding included. Then all are sent, shuffled. Ends with status 1 where a score is off
by more than 2e-5 of its size (of 1, where it is smaller: the server's batches are others, and so are float32's sums), a
refusal has another status than it should, or the server has gone.
"""

import base64
import http.client
import io
import itertools
import json
import os
import random
import re
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rovrm.common.errors import UserError
from rovrm.settings.command_line import parse, run
from rovrm.settings.fields import ABOVE_ZERO, limited

TOLERANCE = 2e-5  # of a score's size, or of 1
BIG = 50_000_000  # bytes of the largest body


@dataclass
class ServeLoadConfig:
    model: str = ""  # reward model, folder; empty = an untrained one on the shipped base
    requests: int = limited(2000, ABOVE_ZERO)  # all of them
    broken: int | None = None  # broken ones among them; null = a tenth
    clients: int = 4  # threads that send, each on a connection of its own
    responses: int = 4  # responses of one request, at most
    device: str = "cpu"  # device of both scorers, such as cpu or cuda
    seed: int = 0  # seed of requests and their order


class Call(NamedTuple):
    """A body to send, and what must come back: the scores, or the status of the refusal."""

    kind: str  # good, or what is broken, in words
    body: bytes
    status: int
    scores: list[float]


def serve_load(argv: list[str]) -> int:
    config = parse(ServeLoadConfig, argv, "python -m eval.serve_load")
    broken = config.requests // 10 if config.broken is None else config.broken
    os.environ["TQDM_DISABLE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        model = config.model or untrained(Path(folder) / "model")
        good, seconds = good_calls(config, model, config.requests - broken)
        calls = good + list(itertools.islice(broken_calls(), broken))
        random.Random(config.seed).shuffle(calls)
        with server(model, config, folder) as (process, port):
            took, faults, worst = send_all(calls, config.clients, port)
            if process.poll() is not None:
                faults.append(f"the server has ended with status {process.returncode}")
    alone, served = len(good) / seconds, len(good) / took  # a second
    print(f"one at a time in Python: {len(good)} good requests in {seconds:.1f} s, {alone:.1f} a second")
    print(
        f"server, {config.clients} clients: these and {broken} broken ones in {took:.1f} s, {served:.1f} good ones "
        f"a second; ratio {served / alone:.2f}"
    )
    print(f"largest difference of a score: {worst:.1e} of its size, or of 1 (limit {TOLERANCE:g})")
    print(f"{len(faults)} wrong replies")
    for fault, count in Counter(faults).most_common(10):
        print(f"  {count} x {fault}")
    return 1 if faults else 0


# ---- requests --------------------------------------------------------------------------------------------------------


def untrained(folder: Path) -> str:
    """Saves a reward model with a random head on the shipped base."""
    import torch

    from rovrm.model.loading import load_processor, load_reward_model
    from rovrm.world.default import BASE

    torch.manual_seed(0)
    model = load_reward_model(BASE)
    model.save_pretrained(folder)
    load_processor(BASE).save_pretrained(folder)
    return str(folder)


def good_calls(config: ServeLoadConfig, model: str, count: int) -> tuple[list[Call], float]:
    """Requests with the scores that the Python scorer gives, and the seconds it took one after the other."""
    from PIL import Image

    from rovrm import RewardScorer

    scorer = RewardScorer.from_pretrained(model, device=config.device)
    rng = random.Random(config.seed)
    bodies = [_good_body(rng, config.responses, pictured=i % 2 == 1) for i in range(count)]
    scorer.score("Hello", ["Hi."])  # the first forward is slower
    start = time.perf_counter()
    scores = []
    for body in bodies:
        images = [Image.open(io.BytesIO(base64.b64decode(text))) for text in body["images"]]
        scores.append(scorer.score(body["prompt"], body["responses"], images=images))
    seconds = time.perf_counter() - start
    calls = []
    for body, right in zip(bodies, scores, strict=True):
        calls.append(Call("good", json.dumps(body).encode(), 200, right))
    return calls, seconds


def _good_body(rng: random.Random, most_responses: int, pictured: bool) -> dict[str, Any]:
    words = "a the cup star circle red blue green is on near left right large small and with two three of".split()
    texts = [" ".join(rng.choices(words, k=rng.randint(1, 30))) for _ in range(rng.randint(1, most_responses) + 1)]
    images = [_noise_image(rng, rng.choice(("PNG", "JPEG")))] if pictured else []
    return {"prompt": texts[0], "responses": texts[1:], "images": images}


def _noise_image(rng: random.Random, image_format: str) -> str:
    """An image of random size and pixels, as base64."""
    from PIL import Image

    width, height = rng.randint(30, 200), rng.randint(30, 200)
    file = io.BytesIO()
    Image.frombytes("RGB", (width, height), rng.randbytes(3 * width * height)).save(file, image_format)
    return base64.b64encode(file.getvalue()).decode()


def broken_calls() -> Iterator[Call]:
    """The six kinds in turn, for ever."""

    def body(**changes: Any) -> bytes:
        return json.dumps({"prompt": "What is it?", "responses": ["A cup."]} | changes).encode()

    truncated = base64.b64decode(_noise_image(random.Random(0), "JPEG"))[:-400]
    return itertools.cycle(
        [
            Call("not JSON", b'{"prompt": ', 400, []),
            Call("wrong types", body(responses="A cup."), 422, []),
            Call("60 megapixels", body(images=[_huge_png(10_000, 6_000)]), 413, []),
            Call("truncated JPEG", body(images=[base64.b64encode(truncated).decode()]), 415, []),
            Call("path traversal", body(images=["../secret.png"]), 422, []),
            Call("50 MB body", body(prompt="a" * BIG), 413, []),
        ]
    )


def _huge_png(width: int, height: int) -> str:
    """A PNG of that size by its header, with next to nothing in it."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    rest = chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + head + rest).decode()


# ---- the server and its clients --------------------------------------------------------------------------------------


@contextmanager
def server(model: str, config: ServeLoadConfig, folder: str) -> Iterator[tuple[subprocess.Popen, int]]:
    """A server process and its port; ended behind the block."""
    root = Path(folder) / "images"
    root.mkdir()
    (root.parent / "secret.png").touch()
    command = [sys.executable, "-m", "rovrm.serve"]
    command += [f"model={model}", "port=0", f"device={config.device}", f"image_root={root}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process, _port(process, command)
        finally:
            process.terminate()


def _port(process: subprocess.Popen, command: list[str]) -> int:
    """The free port that the server has chosen, as it prints it when it is ready."""
    for line in process.stdout or ():
        match = re.match(r"serving .* on http://.*:(\d+),", line)
        if match:
            return int(match[1])
    raise UserError(f"the server did not start: {' '.join(command)}")


def send_all(calls: list[Call], clients: int, port: int) -> tuple[float, list[str], float]:
    """Sends all calls, each client on a connection of its own. Returns (seconds, what went wrong, largest difference
    of a score, of its size or of 1)."""
    unsent = iter(calls)  # one iterator for all threads: a list's gives each item once
    faults: list[str] = []
    gaps = [0.0]

    def work() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        for call in unsent:
            try:
                connection.request("POST", "/score", call.body, {"Content-Type": "application/json"})
                reply = connection.getresponse()
                _compare_reply(call, reply.status, json.loads(reply.read()), faults, gaps)
            except (OSError, http.client.HTTPException, ValueError) as error:
                faults.append(f"{call.kind}: {type(error).__name__}: {error}")
                connection.close()

    threads = [threading.Thread(target=work) for _ in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start, faults, max(gaps)


def _compare_reply(call: Call, status: int, reply: Any, faults: list[str], gaps: list[float]) -> None:
    """Adds what is wrong with a reply to `faults`, and how far its scores are off to `gaps`."""
    if status != call.status:
        faults.append(f"{call.kind}: status {status} instead of {call.status}: {str(reply)[:200]}")
    elif status != 200:
        if list(reply) != ["error"]:
            faults.append(f"{call.kind}: {str(reply)[:200]}")
    elif len(reply["scores"]) != len(call.scores):
        faults.append(f"{call.kind}: {len(reply['scores'])} scores instead of {len(call.scores)}")
    else:
        gaps.append(max(abs(a - b) / max(abs(b), 1.0) for a, b in zip(reply["scores"], call.scores, strict=True)))
        if gaps[-1] > TOLERANCE:
            faults.append(f"{call.kind}: a score is off by more than {TOLERANCE:g} of its size")


def main(argv: list[str] | None = None) -> int:
    return run(serve_load, sys.argv[1:] if argv is None else argv, "eval.serve_load")


if __name__ == "__main__":
    sys.exit(main())
