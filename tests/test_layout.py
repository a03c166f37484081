"""The shape of the house: what lies where, which way imports point, what may not stand twice, how fast --help is."""

import ast
import configparser
import json
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ROOT, error_line, output_of

from rovrm.__main__ import COMMANDS, main

FOLDERS = {".ci", "data_selection", "eval", "recipes", "rovrm", "tests"}
MAY_IMPORT = {"data_selection": set(), "rovrm": {"data_selection"}, "eval": {"rovrm", "data_selection"}}
LONGEST = 400  # lines of a file
COPY = 6  # lines: so many may not stand twice
ALLOWED_COPIES: dict[str, str] = {}  # the first of the lines -> why they may stand twice
ALLOWED_PRIVATE = {("eval.extraction", "_features_of"): "the study takes the time of this very step of the selection"}
HEAVY = ("torch", "transformers", "datasets", "peft")


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {
    file: ast.parse(file.read_text(encoding="utf-8"))
    for package in MAY_IMPORT
    for file in sorted((ROOT / package).rglob("*.py"))
}
MODULES = {module_name(file): tree for file, tree in TREES.items()}


def imported(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(module, name or nothing) of every import, also of those inside functions and of those for types alone."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"line {node.lineno}: relative imports are not used here"
            yield from ((node.module, alias.name) for alias in node.names)


def imports_of(name: str) -> set[str]:
    """The modules of ours that a module imports; `from package import module` is an import of the module."""
    found = set()
    for module, part in imported(MODULES[name]):
        inner = f"{module}.{part}"
        found.add(inner if inner in MODULES else module)
    return found & MODULES.keys() - {name}


def room(name: str) -> str:
    """The folder of a module; a command, directly in rovrm or a folder's __main__, is a room of its own."""
    folder = name if (ROOT / name.replace(".", "/")).is_dir() else name.rpartition(".")[0]
    return name if folder == "rovrm" or name.endswith(".__main__") else folder


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """A way that leads back to its start, or nothing."""
    for start in sorted(arrows):
        ways, seen = [[start]], set()
        while ways:
            way = ways.pop()
            for place in sorted(arrows.get(way[-1], ())):
                if place == start:
                    return [*way, start]
                if place not in seen:
                    seen.add(place)
                    ways.append([*way, place])
    return []


# ---- what lies where -------------------------------------------------------------------------------------------------


def test_only_these_folders_at_the_top() -> None:
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("not a git clone")
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert {name.split("/")[0] for name in files if "/" in name} <= FOLDERS


def is_command(tree: ast.Module) -> bool:
    """Whether there is a `main(argv)`."""
    mains = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main"]
    return any([argument.arg for argument in node.args.args] == ["argv"] for node in mains)


COMMAND_MODULES = [name for name, tree in MODULES.items() if is_command(tree)]


def test_files_directly_in_rovrm_are_commands_and_all_are_listed() -> None:
    directly = {module_name(file) for file in (ROOT / "rovrm").glob("*.py")} - {"rovrm", "rovrm.__main__"}
    commands = {name for name in COMMAND_MODULES if name.startswith("rovrm.")} - {"rovrm.__main__"}
    assert directly <= commands
    assert {name.removesuffix(".__main__") for name in commands} == {f"rovrm.{name}" for name in COMMANDS}


def test_no_file_is_long() -> None:
    lengths = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in TREES}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


# ---- which way imports point -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_arrows(package: str) -> None:
    forbidden = {*MAY_IMPORT, "tests"} - MAY_IMPORT[package] - {package}
    modules = [name for name in MODULES if name.split(".")[0] == package]
    assert modules
    wrong = {name: [m for m, _ in imported(MODULES[name]) if m.split(".")[0] in forbidden] for name in modules}
    assert {name: others for name, others in wrong.items() if others} == {}


def test_no_circle_of_modules() -> None:
    assert circle({name: imports_of(name) for name in MODULES}) == []


def test_no_circle_of_rooms() -> None:
    arrows = defaultdict(set)
    for name in MODULES:
        arrows[room(name)] |= {room(other) for other in imports_of(name)} - {room(name)}
    assert circle(arrows) == []


def test_a_circle_would_be_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}}) == []
    assert [room(name) for name in ("rovrm.train", "rovrm.world.__main__", "rovrm.world", "rovrm.world.pairs")] == [
        "rovrm.train",
        "rovrm.world.__main__",
        "rovrm.world",
        "rovrm.world",
    ]


def test_eval_is_never_imported_as_a_whole() -> None:
    for file in [f for folder in FOLDERS for f in (ROOT / folder).rglob("*.py")]:
        names = [module for module, part in imported(ast.parse(file.read_text(encoding="utf-8"))) if not part]
        assert "eval" not in {name.split(".")[0] for name in names}, (
            f"{file}: `import eval` hides the builtin; write `from eval.NAME import ...`"
        )


def test_private_names_stay_in_their_module() -> None:
    """Neither `from ours import _name` nor `module._name`."""
    found = set()
    for name, tree in MODULES.items():
        aliases = set()  # what modules of ours are called here
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MAY_IMPORT:
                found |= {(name, alias.name) for alias in node.names if alias.name.startswith("_")}
                aliases |= {a.asname or a.name for a in node.names if f"{node.module}.{a.name}" in MODULES}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
                found |= {(name, node.attr)} if node.attr.startswith("_") else set()
    assert found - ALLOWED_PRIVATE.keys() == set()


# ---- what stands twice -----------------------------------------------------------------------------------------------


def code_lines(text: str) -> list[tuple[int, str]]:
    """(number, line) of what is code: no comments, imports, signatures, docstrings, nor lines of brackets alone."""
    skipped: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        if isinstance(node, ast.Import | ast.ImportFrom):
            skipped.update(range(node.lineno, node.end_lineno + 1))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            skipped.update(range(node.lineno, body[0].lineno))
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            skipped.update(range(body[0].lineno, body[0].end_lineno + 1))
    lines = [(number, " ".join(line.split("  #")[0].split())) for number, line in enumerate(text.splitlines(), 1)]
    return [(n, line) for n, line in lines if n not in skipped and line[:1] != "#" and any(map(str.isalnum, line))]


def copies(texts: dict[str, str]) -> dict[str, list[str]]:
    """What stands in more than one place: COPY lines after each other -> where they begin."""
    places = defaultdict(list)
    for name, text in texts.items():
        lines = code_lines(text)
        for i in range(len(lines) - COPY + 1):
            places["\n".join(line for _, line in lines[i : i + COPY])].append(f"{name}:{lines[i][0]}")
    return {part: where for part, where in places.items() if len(where) > 1}


def test_nothing_stands_twice() -> None:
    found = copies({str(file.relative_to(ROOT)): file.read_text() for file in TREES})
    assert {part: where for part, where in found.items() if part.splitlines()[0] not in ALLOWED_COPIES} == {}


def test_a_copy_would_be_found() -> None:
    body = [f"    {'abcdef'[i]} = call({i})" for i in range(COPY)]
    one = "\n".join(["import os", "def one(", "    x", "):", '    """What."""', *body])
    other = "\n".join(["class A:", "  def other(self):", *["  " + line + "  # why" for line in body]])
    assert list(copies({"one": one, "other": other}).values()) == [["one:6", "other:3"]]
    assert copies({"one": one, "other": other.replace("e = call", "e = f")}) == {}


# ---- commands --------------------------------------------------------------------------------------------------------

# A fork for each command: its imports are fresh, its time is its own, and no interpreter starts.
WALK = """
import contextlib, importlib, io, json, os, sys, time
heavy, names = json.loads(sys.argv[1]), sys.argv[2:]
for name in names:
    if os.fork() == 0:
        with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
            importlib.import_module(name).main(["--help"])
        loaded = [module for module in heavy if module in sys.modules]
        print(json.dumps([name, len(printed.getvalue()), loaded, time.process_time()]), flush=True)
        os._exit(0)
    os.wait()
"""


def test_help_is_fast_and_imports_nothing_heavy() -> None:
    """In under a second of the processor's time, which other work on the machine does not count in."""
    assert {"rovrm.train", "rovrm.world.__main__", "data_selection.__main__", "eval.extraction"} <= {*COMMAND_MODULES}
    walk = [sys.executable, "-c", WALK, json.dumps(HEAVY), *COMMAND_MODULES]
    done = subprocess.run(walk, cwd=ROOT, capture_output=True, text=True, check=False)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [name for name, *_ in found] == COMMAND_MODULES, done.stderr
    for name, printed, loaded, seconds in found:
        assert printed > 100 and loaded == [] and seconds < 1, (name, printed, loaded, seconds)


def test_the_list_of_commands(capsys) -> None:
    printed = output_of(capsys, main)
    assert all(f"\n  {name} " in printed for name in COMMANDS)
    assert output_of(capsys, main, "--help") == printed
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["options.entry_points"]["console_scripts"].strip() == "rovrm = rovrm.__main__:main"


def test_commands_by_name(capsys, tmp_path) -> None:
    assert main(["world", "write", f"out={tmp_path}", "n=2"]) == 0 and (tmp_path / "visual.jsonl").is_file()
    assert "unknown key modle" in error_line(capsys, main, "score", "modle=x")
    for name, remedy in (("tarin", "did you mean train?"), ("Score", "did you mean score?"), ("xyz", "rovrm --help")):
        printed = error_line(capsys, main, name)
        assert f"no command {name!r}" in printed and remedy in printed


def test_unknown_attribute() -> None:
    import rovrm

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = rovrm.nothing
