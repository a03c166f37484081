"""The shape of the house: the folders at the top, and the way imports point (eval -> rovrm -> data_selection)."""

import ast
import configparser
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import error_line, output_of

from rovrm.__main__ import COMMANDS, main

ROOT = Path(__file__).parents[1]
FOLDERS = {".ci", "data_selection", "eval", "recipes", "rovrm", "tests"}
MAY_IMPORT = {"data_selection": set(), "rovrm": {"data_selection"}, "eval": {"rovrm", "data_selection"}}


def imported(file: Path) -> set[str]:
    """Top-level names of every import in a file, wherever it stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_arrows(package: str) -> None:
    forbidden = {"data_selection", "rovrm", "eval", "tests"} - MAY_IMPORT[package] - {package}
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    wrong = {str(f.relative_to(ROOT)): names for f in files if (names := imported(f) & forbidden)}
    assert not wrong


def test_eval_is_never_imported_as_a_whole() -> None:
    for file in [f for folder in FOLDERS for f in (ROOT / folder).rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert "eval" not in names, f"{file}: `import eval` hides the builtin; write `from eval.NAME import ...`"


def test_only_these_folders_at_the_top() -> None:
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("not a git clone")
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert {name.split("/")[0] for name in files if "/" in name} <= FOLDERS


def command_modules() -> list[str]:
    """Every module that is a command: it has a `main(argv)`."""
    files = [file for package in MAY_IMPORT for file in sorted((ROOT / package).rglob("*.py"))]
    found = [file for file in files if "\ndef main(argv" in file.read_text(encoding="utf-8")]
    return [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in found]


WALK = """
import contextlib, importlib, io, sys
for name in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        importlib.import_module(name).main(["--help"])
    heavy = [module for module in ("torch", "transformers", "datasets", "peft") if module in sys.modules]
    assert printed.getvalue() and not heavy, (name, heavy)
"""


def test_help_imports_nothing_heavy() -> None:
    """What makes --help slow is imports; seconds depend on the machine, these do not."""
    names = command_modules()
    assert {"rovrm.train", "rovrm.world.__main__", "data_selection.__main__", "eval.extraction"} <= {*names}
    walk = subprocess.run([sys.executable, "-c", WALK, *names], cwd=ROOT, capture_output=True, text=True)
    assert walk.returncode == 0, walk.stderr


def test_every_command_is_listed(capsys) -> None:
    modules = {name for name in command_modules() if name.startswith("rovrm.") and name != "rovrm.__main__"}
    assert {f"rovrm.{name}" for name in COMMANDS} == {name.removesuffix(".__main__") for name in modules}
    printed = output_of(
        capsys,
        main,
    )
    assert all(f"\n  {name} " in printed for name in COMMANDS)
    assert main(["--help"]) == 0 and capsys.readouterr().out == printed
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["options.entry_points"]["console_scripts"].strip() == "rovrm = rovrm.__main__:main"


def test_commands_by_name(capsys, tmp_path) -> None:
    assert main(["world", "write", f"out={tmp_path}", "n=2"]) == 0 and (tmp_path / "visual.jsonl").is_file()
    assert main(["score", "modle=x"]) == 2 and "unknown key modle" in capsys.readouterr().err
    for name, remedy in (("tarin", "did you mean train?"), ("Score", "did you mean score?"), ("xyz", "rovrm --help")):
        printed = error_line(capsys, main, name)
        assert f"no command {name!r}" in printed and remedy in printed


def test_unknown_attribute() -> None:
    import rovrm

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = rovrm.nothing
