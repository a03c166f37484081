"""`python -m rovrm.merge`, called as main(argv): the merged folder scores as base and adapter do."""

import re
import shutil

import pytest
import torch
from helpers import change_json, error_line, output_of, read_json, write_adapter_phase
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

from rovrm import RewardScorer
from rovrm.common.errors import UserError
from rovrm.common.files import new_folder
from rovrm.merge import main

QUESTION, ANSWERS = "What is on the table?", ["A red cup.", "A red cup stands on it.", "", "Two dogs!"]


@pytest.fixture(scope="module")
def phase(family_folder, tmp_path_factory):
    return write_adapter_phase(family_folder("llava"), tmp_path_factory.mktemp("run") / "phase2-caption")


def scores(folder):
    image = Image.linear_gradient("L")
    scorer = RewardScorer.from_pretrained(folder, device="cpu")
    return torch.tensor([scorer.score(QUESTION, ANSWERS, images=images) for images in (None, image)])


def test_the_merged_folder_scores_as_the_adapter(phase, tmp_path, capsys):
    out = tmp_path / "new" / "merged"
    printed = output_of(capsys, main, f"model={phase}", f"out={out}")
    assert f"wrote {out}" in printed and "bfloat16" not in printed
    expected = scores(phase)
    assert expected.std() > 0.05 and (expected[0] - expected[1]).abs().max() > 1e-3
    assert (scores(out) - expected).abs().max() < 1e-5
    config = read_json(out / "config.json")
    assert (config["reward_mean"], config["reward_std"]) == (0.5, 2.0)
    assert (out / "README.md").is_file() and not (out / "adapter").exists()
    again = tmp_path / "again"
    assert main([f"model={phase / 'adapter'}", f"out={again}"]) == 0  # the adapter's own folder does as well
    assert (scores(again) - expected).abs().max() < 1e-5


def test_bfloat16_says_what_it_costs(phase, tmp_path, capsys):
    out = tmp_path / "merged"
    printed = output_of(capsys, main, f"model={phase}", f"out={out}", "save_dtype=bfloat16")
    moved, spread = (float(n) for n in re.findall(r"(?:up to|deviation is) (\d\.\d+e[-+]\d+)", printed))
    assert 0 < moved < spread  # the rewards moved, and rounding did not drown them
    weights = load_file(out / "model.safetensors")
    assert weights["score.weight"].dtype == torch.float32
    assert {w.dtype for name, w in weights.items() if name != "score.weight"} == {torch.bfloat16}
    assert 0 < (scores(out) - scores(phase)).abs().max() < 10 * moved


def test_a_text_model_in_bfloat16(family_folder, tmp_path, capsys):
    phase = write_adapter_phase(family_folder("llama"), tmp_path / "phase1-text")
    printed = output_of(capsys, main, f"model={phase}", f"out={tmp_path / 'merged'}", "save_dtype=bfloat16")
    assert "the rewards of 5 fixed answers move by up to" in printed


def test_what_is_refused(phase, tmp_path, capsys):
    def refused(*argv):
        return error_line(capsys, main, *argv)

    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("keep me")
    assert str(full) in refused(f"model={phase}", f"out={full}")
    assert (full / "mine.txt").read_text() == "keep me"
    assert "not an empty folder" in refused(f"model={phase}", f"out={full / 'mine.txt'}")
    assert "adapter/adapter_config.json" in refused(f"model={full}", f"out={tmp_path / 'new'}")
    assert "is no folder" in refused(f"model={tmp_path / 'missing'}", f"out={tmp_path / 'new'}")
    copy = shutil.copytree(phase, tmp_path / "copy")
    change_json(copy / "adapter/adapter_config.json", base_model_name_or_path="/gone/base")
    printed = refused(f"model={copy}", f"out={tmp_path / 'new'}")
    assert "/gone/base" in printed and "put it back" in printed and "base_model_name_or_path" in printed
    assert not (tmp_path / "new").exists()
    assert "out: got nothing" in refused(f"model={phase}")


def test_a_failed_merge_leaves_nothing(tmp_path):
    out = tmp_path / "new" / "out"
    for failure in (OSError(28, "No space left on device"), SafetensorError("I/O error: No space left on device")):
        with pytest.raises(UserError, match="'.*out' cannot be written: .*No space left on device"):
            with new_folder(out) as folder:
                (folder / "config.json").touch()
                raise failure
        assert not out.exists()
    with new_folder(out) as folder:
        (folder / "config.json").touch()
    assert [path.name for path in out.iterdir()] == ["config.json"]
