"""The texts for readers do not rot: their commands parse, their Python runs, their links lead somewhere."""

import ast
import configparser
import importlib
import importlib.util
import io
import json
import re
import shlex
import types
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from helpers import ROOT, noise, pairs, write_lines

from rovrm.__main__ import COMMANDS
from rovrm.settings.command_line import parse
from rovrm.settings.keys import TrainConfig
from rovrm.settings.trainer_keys import check_trainer_keys
from rovrm.world.default import BASE

FILES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
FILES += [file for folder in ("recipes", "rovrm", "data_selection", "eval") for file in (ROOT / folder).rglob("*.md")]
HUB_MODEL = "llava-hf/llava-1.5-7b-hf"  # the shipped base stands for it
NOT_RUN = {"GRPOTrainer": "tests/test_trl.py takes the same steps, with fewer samples"}  # a word of the block -> why


class Block(NamedTuple):
    """Lines between three backticks. place: file and line of the first."""

    place: str
    language: str
    text: str


def blocks(*languages: str) -> list[Block]:
    found = []
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        for match in re.finditer(r"^ *```(\w*)\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE):
            line = text[: match.start(2)].count("\n") + 1
            found.append(Block(f"{file.relative_to(ROOT)}:{line}", match[1], match[2]))
    return [block for block in found if block.language in languages]


def test_blocks_name_their_language() -> None:
    known = ("bash", "python", "json", "text", "bibtex")
    assert blocks(*known) and [block.place for block in blocks("")] == []
    assert sum(len(blocks(language)) for language in known) == len(re.findall(r"(?m)^ *```\w+$", everything()))


def everything() -> str:
    return "\n".join(file.read_text(encoding="utf-8") for file in FILES)


# ---- commands --------------------------------------------------------------------------------------------------------


def shell_lines() -> Iterator[tuple[str, list[str]]]:
    """(place, words) of every command in a block, the Makefile or a docstring, and in a sentence if it has settings."""
    for block in blocks("bash"):
        for words in split_lines(block.text):
            yield block.place, words
    for words in split_lines((ROOT / "Makefile").read_text()):
        if words[1:2] == ["-m"] and words[2].startswith("rovrm."):
            yield "Makefile", words
    for file in [f for folder in ("rovrm", "data_selection", "eval", "tests") for f in (ROOT / folder).rglob("*.py")]:
        text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        for line in re.findall(r"^ +(python -m .*)$", text, re.MULTILINE):
            words = shlex.split(line, comments=True)
            yield str(file.relative_to(ROOT)), [word for word in words if word != "..."]
    for file in FILES:
        for match in re.finditer(r"`((?:python -m|rovrm|make|pip install) [^`|]+)`", file.read_text(encoding="utf-8")):
            words = shlex.split(match[1])
            if "=" in match[1] or words[0] in ("make", "pip"):
                yield str(file.relative_to(ROOT)), words


def split_lines(text: str) -> list[list[str]]:
    lines = [shlex.split(line, comments=True) for line in text.replace("\\\n", " ").splitlines()]
    return [words for words in lines if words]


class Parsed(BaseException):
    """Ends a command as soon as its settings are read."""


def settings_of(name: str, words: list[str], capsys) -> Any:
    """What a command makes of its words; it goes no further."""
    is_folder = (ROOT / name.replace(".", "/")).is_dir()
    module = importlib.import_module(f"{name}.__main__" if is_folder else name)

    def stop(*given: Any) -> None:
        raise Parsed(parse(*given))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "parse", stop)
        try:
            module.main(words)
        except Parsed as done:
            return done.args[0]
    pytest.fail(f"{name} {' '.join(words)}: {capsys.readouterr().err}")


def extras() -> set[str]:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return {*setup["options.extras_require"]}


@pytest.mark.parametrize(("place", "words"), [pytest.param(*one, id=one[0]) for one in shell_lines()])
def test_commands(place: str, words: list[str], capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    if words[0] in ("curl", "."):
        return
    if words[0] == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {*words[1:]} <= {*targets}
    elif words[0] == "pip":
        assert words[1:5] == ["install", "-c", "constraints.txt", "-e"] and words[5].strip(".[]") in extras()
    elif words[0].endswith("python") and words[1] != "-m":
        assert (ROOT / words[1]).is_file()
    elif "pytest" in words:
        assert (ROOT / words[-1]).is_file()
    else:
        if words[0] == "rovrm":
            assert words[1] in COMMANDS
            name, words = f"rovrm.{words[1]}", words[2:]
        else:  # python, or a launcher of several processes
            assert words[0].split("/")[-1] in ("python", "torchrun", "accelerate") and "-m" in words
            name, words = words[words.index("-m") + 1], words[words.index("-m") + 2 :]
        if name == "data_selection":  # its keys are right where it looks for the file
            assert importlib.import_module("data_selection.__main__").main(words) == 2
            assert "no such file" in capsys.readouterr().err
            return
        settings = settings_of(name, words, capsys)
        if isinstance(settings, TrainConfig):
            check_trainer_keys(settings.trainer)


def test_commands_in_sentences_exist() -> None:
    names = re.findall(r"`(?:python|accelerate launch|torchrun) -m ([\w.]+)", everything())
    assert "eval.speed" in names
    for name in {*names} - {"eval.NAME"}:
        module = f"{name}.__main__" if (ROOT / name.replace(".", "/")).is_dir() else name
        assert importlib.util.find_spec(module), name
    assert {*re.findall(r"`rovrm ([\w-]+)", everything())} <= {*COMMANDS}


# ---- Python and JSON -------------------------------------------------------------------------------------------------


def missing_imports(tree: ast.Module) -> list[str]:
    """Names that a module does not have."""
    missing = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            missing += [alias.name for alias in node.names if importlib.util.find_spec(alias.name) is None]
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            missing += [f"{node.module}.{a.name}" for a in node.names if not hasattr(module, a.name)]
    return missing


@pytest.fixture
def place_of_work(tmp_path: Path, reward: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the files that the examples name."""
    (tmp_path / "runs/demo").mkdir(parents=True)
    (tmp_path / "runs/demo/phase3-visual").symlink_to(reward)
    noise(0).save(tmp_path / "photo.jpg")
    for name in ("pairs.jsonl", "runs/pairs.jsonl"):
        write_lines(tmp_path / name, *pairs(4, image=str(tmp_path / "photo.jpg")))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def server(reward: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests to localhost:8000 are answered in this process."""
    pytest.importorskip("fastapi")
    pytest.importorskip("httpx2")
    from fastapi.testclient import TestClient

    from rovrm import RewardScorer
    from rovrm.serving.app import make_app
    from rovrm.settings.keys import ServeConfig

    client = TestClient(make_app(RewardScorer.from_pretrained(reward, device="cpu"), ServeConfig(model="tiny")))

    def answer(request: urllib.request.Request) -> io.BytesIO:
        assert request.host == "localhost:8000"
        reply = client.post(request.selector, content=request.data, headers=dict(request.header_items()))
        assert reply.status_code == 200, reply.text
        return io.BytesIO(reply.content)

    monkeypatch.setattr(urllib.request, "urlopen", answer)


PYTHON_FILES = sorted({block.place.split(":")[0] for block in blocks("python")})


@pytest.mark.parametrize("file", PYTHON_FILES)
def test_python_runs(file: str, place_of_work: Path, request: pytest.FixtureRequest, capsys) -> None:
    """The blocks of a file after each other, as one program."""
    module = types.ModuleType("example")
    for block in blocks("python"):
        if block.place.split(":")[0] != file:
            continue
        if "localhost:8000" in block.text:
            request.getfixturevalue("server")
        tree = ast.parse(block.text, block.place)
        if "from trl" in block.text:
            pytest.importorskip("trl")
        assert missing_imports(tree) == []
        if not any(word in block.text for word in NOT_RUN):
            exec(compile(block.text.replace(HUB_MODEL, BASE), block.place, "exec"), vars(module))
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("block", blocks("json"), ids=lambda block: block.place)
def test_json_is_json(block: Block) -> None:
    assert all(isinstance(json.loads(line), dict) for line in block.text.splitlines())


# ---- links -----------------------------------------------------------------------------------------------------------


def anchors(file: Path) -> set[str]:
    """What GitHub calls a file's headings."""
    text = re.sub(r"(?ms)^ *```.*?^ *```$", "", file.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_links_lead_somewhere(file: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", file.read_text(encoding="utf-8")):
        if urllib.parse.urlparse(link).scheme:
            continue
        path, _, anchor = link.partition("#")
        target = (file.parent / path).resolve() if path else file
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []
