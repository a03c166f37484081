"""Models and data sets by their hub ids: a server that answers as the hub does, asked by processes of their own."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from helpers import QUICK, ROOT, change_json, noise, read_json, read_lines, says, write_reward_model

from rovrm.model.contract import FILE
from rovrm.model.loading import load_processor, load_reward_model
from rovrm.model.saving import expected_rewards
from rovrm.model.scorer import RewardScorer

pytestmark = pytest.mark.slow  # each process imports torch, transformers and datasets

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PAIRS = 8
QUESTION, ANSWERS = "What is in the picture?", ["A cup.", "Nothing at all."]


class Hub(BaseHTTPRequestHandler):
    """The endpoints of the hub that huggingface_hub reads from. A repository is a folder, its only revision COMMIT."""

    repositories: dict[str, Path]  # "models/owner/name" or "datasets/owner/name" -> its folder
    requests: list[str]  # every one, as "GET /path"
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer()

    do_HEAD = do_POST = do_GET

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.requests.append(f"{self.command} {path}")
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if found := re.fullmatch(r"/(datasets/)?([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", path):
            kind, name, revision, rest = found.groups()
            self.in_repository(f"{(kind or 'models/')}{name}", revision, self.file, rest)
        elif found := re.fullmatch(r"/api/((?:models|datasets)/[\w.-]+/[\w.-]+)(?:/revision/([^/]+))?", path):
            self.in_repository(found[1], found[2] or "main", self.about, found[1])
        elif found := re.fullmatch(r"/api/((?:models|datasets)/[\w.-]+/[\w.-]+)/tree/([^/]+)(?:/(.+))?", path):
            self.in_repository(found[1], found[2], self.tree, found[3] or "")
        elif found := re.fullmatch(r"/api/((?:models|datasets)/[\w.-]+/[\w.-]+)/paths-info/([^/]+)", path):
            self.in_repository(found[1], found[2], self.paths, parse_qs(sent.decode()).get("paths", []))
        else:
            self.send(404, b"{}")

    def in_repository(self, name: str, revision: str, answer, argument) -> None:
        if name not in self.repositories:
            self.send(401, b'{"error": "Repository not found"}', **{"X-Error-Code": "RepoNotFound"})
        elif revision not in ("main", COMMIT):
            self.send(404, b'{"error": "Invalid rev id"}', **{"X-Error-Code": "RevisionNotFound"})
        else:
            answer(self.repositories[name], argument)

    def file(self, folder: Path, name: str) -> None:
        if not (folder / name).is_file():
            self.send(404, b"Entry not found", **{"X-Error-Code": "EntryNotFound"})
            return
        content = (folder / name).read_bytes()
        mark, part = f'"{hashlib.sha1(content).hexdigest()}"', self.headers.get("Range")
        if part:
            first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", part).groups()
            end = min(int(last or len(content)), len(content) - 1)
            place = {"Content-Range": f"bytes {first}-{end}/{len(content)}"}
            self.send(206, content[int(first) : end + 1], ETag=mark, **place)
        else:
            self.send(200, content, ETag=mark)

    def about(self, folder: Path, name: str) -> None:
        files = [{"rfilename": entry["path"]} for entry in entries(folder, folder, True) if entry["type"] == "file"]
        known = {"id": name.split("/", 1)[1], "sha": COMMIT, "private": False, "gated": False, "tags": []}
        self.send_json(known | {"siblings": files})

    def tree(self, folder: Path, inside: str) -> None:
        if not (folder / inside).is_dir():
            self.send(404, b'{"error": "not found"}', **{"X-Error-Code": "EntryNotFound"})
            return
        recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() == "true"
        self.send_json(entries(folder, folder / inside, recursive))

    def paths(self, folder: Path, names: list[str]) -> None:
        self.send_json([entry for entry in entries(folder, folder, True) if entry["path"] in names])

    def send_json(self, content) -> None:
        self.send(200, json.dumps(content).encode(), **{"Content-Type": "application/json"})

    def send(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        usual = {"X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes", "Content-Length": str(len(content))}
        for name, value in (usual | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_request(self, code="-", size="-") -> None:
        """Nothing is printed: `requests` has them."""


def entries(root: Path, folder: Path, recursive: bool) -> list[dict]:
    """What the hub's listings say of the files and folders in a folder."""
    found = []
    for path in sorted(folder.rglob("*") if recursive else folder.iterdir()):
        name = path.relative_to(root).as_posix()
        mark = hashlib.sha1(path.read_bytes() if path.is_file() else name.encode()).hexdigest()
        size = path.stat().st_size if path.is_file() else 0
        found.append({"type": "file" if path.is_file() else "directory", "path": name, "size": size, "oid": mark})
    return found


def write_pairs(folder: Path) -> Path:
    """A data set in TRL's vision preference format, as `push_to_hub` leaves it: a parquet file and a card."""
    from datasets import Dataset, Features, Image, List, Value

    message = {"content": Value("string"), "role": Value("string")}
    texts = {name: List(message) for name in ("prompt", "chosen", "rejected")}
    rows = []
    for i in range(PAIRS):
        row = {"images": [noise(i)], "prompt": [{"role": "user", "content": f"What is in picture {i}?"}]}
        for answer, text in (("chosen", f"It is number {i}."), ("rejected", f"No picture, {i}.")):
            row[answer] = [{"role": "assistant", "content": text}]
        rows.append(row)
    data = Dataset.from_list(rows, features=Features({"images": List(Image()), **texts}))
    (folder / "data").mkdir(parents=True)
    data.to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    configs = "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*\n"
    (folder / "README.md").write_text(f"---\nlicense: mit\n{configs}---\n# Pairs\n")
    return folder


@pytest.fixture(scope="module")
def hub(family_folder, tmp_path_factory):
    """The server's address, and the requests that it got."""
    reward = Path(write_reward_model(family_folder("llava"), tmp_path_factory.mktemp("reward"), spread=0.3))
    expected_rewards(load_reward_model(str(reward)), load_processor(str(reward))).write(reward)
    other = tmp_path_factory.mktemp("other")
    for file in reward.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    conversations = read_json(reward / FILE)["conversations"]
    conversations[0]["reward"] += 1
    change_json(other / FILE, conversations=conversations)
    repositories = {
        "models/org/tiny": family_folder("llava"),
        "models/org/reward": reward,
        "models/org/other": other,
        "datasets/org/pairs": write_pairs(tmp_path_factory.mktemp("pairs")),
    }
    handler = type("Served", (Hub,), {"repositories": repositories, "requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()


def run(hub, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python with these arguments and an empty cache, in a process that knows this hub alone."""
    offline = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
    environment = {key: value for key, value in os.environ.items() if key not in offline}
    environment |= {"HF_ENDPOINT": hub[0], "HF_HOME": str(home), "PYTHONPATH": str(ROOT)}
    environment["no_proxy"] = environment["NO_PROXY"] = "127.0.0.1"
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, timeout=300)


def test_training_on_a_model_and_a_data_set_of_the_hub(hub, tmp_path):
    out, home = tmp_path / "run", tmp_path / "home"
    home.mkdir()
    command = ["phase=3", "model=org/tiny", "visual.data=org/pairs", "eval_fraction=0.2", f"out={out}"]
    ended = run(hub, home, "-m", "rovrm.train", *command, "lora_r=4", "trainer.max_steps=2", *QUICK)
    assert ended.returncode == 0, ended.stderr[-3000:]
    [record] = read_json(out / "summary.json").values()
    assert record["n_train"] + record["n_held_out"] == PAIRS and not record["n_skipped"]
    ids = [line["id"] for line in read_lines(out / "phase3-visual" / "scores.jsonl")]
    assert len(ids) == record["n_held_out"] and all(name.startswith("pairs") for name in ids)
    adapter = read_json(out / "phase3-visual" / "adapter" / "adapter_config.json")
    assert adapter["base_model_name_or_path"] == "org/tiny"
    assert RewardScorer.from_pretrained(out / "phase3-visual").score(QUESTION, ANSWERS, images=noise(1))


SCRIPT = """
import json, sys
from PIL import Image
from rovrm.common.errors import UserError
from rovrm.model.scorer import RewardScorer

name, question, picture, *answers = sys.argv[1:]
try:
    print(json.dumps(RewardScorer.from_pretrained(name).score(question, answers, images=Image.open(picture))))
except UserError as error:
    print(json.dumps(str(error)))
"""


def test_a_reward_model_of_the_hub(hub, tmp_path):
    """The local folder's rewards; those that it promises are fetched, once, and looked at."""
    picture = tmp_path / "picture.png"
    noise(5).save(picture)

    def score(name: str):
        ended = run(hub, tmp_path, "-c", SCRIPT, name, QUESTION, str(picture), *ANSWERS)
        assert ended.returncode == 0, ended.stderr[-3000:]
        assert "rewards unchecked" not in ended.stderr
        return json.loads(ended.stdout.splitlines()[-1])

    folder = hub[1].repositories["models/org/reward"]
    local = RewardScorer.from_pretrained(folder).score(QUESTION, ANSWERS, images=noise(5))
    assert score("org/reward") == local and local[0] != local[1]
    asked = [line for line in hub[1].requests if line.startswith("GET /org/reward/") and line.endswith(f"/{FILE}")]
    assert len(asked) == 1, hub[1].requests
    assert says(score("org/other"), "org/other", f"is expected ({FILE})", "a difference of 1")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["model=org/none", "visual.data=org/pairs"], ["'org/none'", "cannot load the config"]),
        (["model=org/tiny", "visual.data=org/none"], ["'org/none'", "hub data set"]),
        (["model=org/tiny", "visual.data=org/pairs?revision=old"], ["'org/pairs?revision=old'", "old"]),
    ],
)
def test_ids_that_the_hub_does_not_know(hub, tmp_path, command, words):
    ended = run(hub, tmp_path, "-m", "rovrm.train", "phase=3", f"out={tmp_path / 'run'}", *command, *QUICK)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr, ended.stderr[-3000:]
    [line] = [line for line in ended.stderr.splitlines() if ": error: " in line]
    assert says(line, *words) and ended.stderr.endswith(f"{line}\n")
