"""The shape of the house: the folders at the top, and the way imports point (eval -> rovrm -> data_selection)."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_import_is_light() -> None:
    heavy = ("torch", "transformers", "datasets", "peft")
    code = f"import sys, rovrm, rovrm.config; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_unknown_attribute() -> None:
    import rovrm

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = rovrm.nothing
