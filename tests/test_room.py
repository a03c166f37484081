"""Full disks and other trouble of the operating system: what is asked for first, and one line for what comes later."""

import errno
import os

import pytest
import torch
from helpers import error_line, say_free, write_lines
from safetensors.torch import save_file

from rovrm import score, train
from rovrm.common.disk import in_units, room_for
from rovrm.common.errors import UserError, is_full
from rovrm.settings import command_line as front
from rovrm.settings.command_line import parse
from rovrm.settings.keys import TrainConfig, with_rates
from rovrm.training import estimates, run
from rovrm.training.estimates import parameter_counts
from rovrm.world.default import BASE


@pytest.fixture
def free(monkeypatch):
    """free(bytes): what every disk is said to have."""
    return lambda size: say_free(monkeypatch, size)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no room left on a disk: No space left on device"),
        (OSError(errno.EROFS, "Read-only file system", "/a/b"), "/a/b: Read-only file system"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 9), "xxxxxxxxx: File name too long"),
        (PermissionError(errno.EACCES, "Permission denied", "/a"), "/a: Permission denied"),
        (ConnectionError("the hub is not there\nlong story"), "the hub is not there"),
    ],
)
def test_the_operating_systems_errors_take_one_line(error, words, capsys):
    def main(argv):
        raise error

    assert front.run(main, [], "rovrm.x") == 2
    assert capsys.readouterr().err == f"rovrm.x: error: {words}; mend that, and the same command goes on\n"


def test_other_errors_keep_their_traceback():
    def main(argv):
        raise KeyError("a mistake of ours")

    with pytest.raises(KeyError):
        front.run(main, [], "rovrm.x")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_libraries_that_hide_a_full_disk(tmp_path):
    """torch.save and Python's files on /dev/full; safetensors writes by memory maps, and its words are known."""
    with pytest.raises(Exception) as found, open("/dev/full", "wb") as file:
        torch.save({"a": torch.zeros(10**6)}, file)
    assert is_full(found.value)
    with pytest.raises(Exception) as found:
        torch.save({"a": torch.zeros(10**6)}, "/dev/full")
    assert is_full(found.value)
    assert not is_full(ValueError("no room for doubt"))
    with pytest.raises(Exception) as found:
        save_file({"a": torch.zeros(1)}, tmp_path / "not" / "there")
    assert not is_full(found.value)


def test_what_is_needed_is_asked_for_first_and_named_later(tmp_path, free):
    free(5_000_000)
    with pytest.raises(UserError, match=r"the checkpoints need about 7\.0 MB, and 5\.0 MB are free; make room, or"):
        with room_for(tmp_path, 7e6, "the checkpoints"):
            raise AssertionError("not begun")
    with pytest.raises(UserError, match=r"no room left \(while it was saved\); .* about 4\.0 MB, and 5\.0"):
        with room_for(tmp_path, 4e6, "the checkpoints"):
            raise RuntimeError("while it was saved") from OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(ValueError):
        with room_for(tmp_path, 4e6, "the checkpoints"):
            raise ValueError("something else")
    assert [in_units(size) for size in (1, 2000, 3.5e6, 26.96e9)] == ["1 kB", "2 kB", "3.5 MB", "27.0 GB"]


def test_training_asks_before_it_loads_a_model(tmp_path, free, monkeypatch, capsys):
    monkeypatch.setattr(run, "model_of", lambda *given: pytest.fail("a model was loaded"))
    command = ["phase=3", f"out={tmp_path}", f"model={BASE}", "visual.data=world:visual?n=60", "workers=0"]
    command += ["eval_fraction=0.3", "trainer.use_cpu=true"]
    free(1_000_000)
    printed = error_line(capsys, train.main, *command)
    assert "checkpoints and models need about" in printed and "1.0 MB are free" in printed


@pytest.mark.parametrize("more", [[], ["tuning=full"], ["save_dtype=bfloat16"], ["phase=1..3", "trainer.save_steps=1"]])
def test_the_room_asked_for_is_what_a_run_takes(tmp_path, monkeypatch, more):
    """Within a tenth and 2 MB of what lies there at the end: tokenizers and logs are not counted."""
    asked = []
    inner = estimates.run_bytes
    monkeypatch.setattr(estimates, "run_bytes", lambda *given: asked.append(inner(*given)) or asked[-1])
    command = ["phase=3", f"out={tmp_path}", f"model={BASE}", "workers=0", "trainer.use_cpu=true", "eval_fraction=0.3"]
    command += [f"{name}.data=world:{name}?n=60" for name in ("text", "caption", "visual")]
    assert train.main([*command, "trainer.disable_tqdm=true", "trainer.max_steps=2", *more]) == 0
    there = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert there == pytest.approx(asked[0], rel=0.1, abs=2e6)


def test_the_papers_model_is_reckoned_without_loading_it(tmp_path):
    """LLaVA-1.5-7B: 7.06 billion parameters, 28 GB merged; LoRA of rank 64 and the projector about 0.18 billion."""
    from transformers import LlavaConfig

    config = LlavaConfig(
        text_config={"model_type": "llama", "vocab_size": 32064},
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 336,
            "patch_size": 14,
            "projection_dim": 768,
        },
        architectures=["LlavaForConditionalGeneration"],
    )
    settings = with_rates(parse(TrainConfig, [f"out={tmp_path}", "model=llava"], "train"))
    total, trained = parameter_counts(settings, config)
    assert total == pytest.approx(6.93e9, rel=0.01) and trained == pytest.approx(1.81e8, rel=0.02)


def test_scoring_asks_first(tmp_path, free, capsys, reward):
    source = write_lines(tmp_path / "in.jsonl", *[{"prompt": "Hi", "responses": ["Yes"]}] * 100)
    free(500)
    command = [f"model={reward}", f"in={source}", f"out={tmp_path / 'out.jsonl'}", "workers=0", "device=cpu"]
    printed = error_line(capsys, score.main, *command)
    assert "100 lines of out.jsonl need about 10 kB, and 1 kB are free" in printed
    long = tmp_path / f"{'x' * 250}.jsonl"
    assert "File name too long" in error_line(capsys, score.main, *command[:2], f"out={long}")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("trainer.report_to=wandb", "trainer.report_to=wandb: WandbCallback requires wandb to be installed"),
        ("trainer.report_to=tensorboard", "trainer.report_to=tensorboard: TensorBoardCallback requires tensorboard"),
        ("trainer.report_to=nothing", "trainer.report_to=nothing: nothing is not supported"),
        ("trainer.push_to_hub=true", "trainer.push_to_hub=true needs the hub and a login there"),
    ],
)
def test_trackers_and_the_hub_are_asked_for_first(tmp_path, monkeypatch, capsys, given, words):
    from transformers.integrations import integration_utils

    monkeypatch.setattr(integration_utils, "is_wandb_available", lambda: False)
    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: False)
    command = ["phase=3", f"out={tmp_path}", f"model={BASE}", "visual.data=world:visual?n=60", "trainer.use_cpu=true"]
    assert words in error_line(capsys, train.main, *command, given)
    assert not list(tmp_path.glob("phase*"))
