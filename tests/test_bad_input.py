"""Bad input to `python -m rovrm.train` ends at once: status 2, and one message that names the thing and the remedy.

Every case runs the command in this process. No weights may be loaded for it and nothing but the list of rejected rows
may be left behind: who mends the mistake starts again with the same command.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import change_json, message_of, pairs, says, write_lines
from transformers import PreTrainedModel

from rovrm import train
from rovrm.settings import phases
from rovrm.settings.command_line import parse
from rovrm.settings.keys import TrainConfig, with_rates
from rovrm.training import dry_run, plan
from rovrm.world.default import BASE

LISTS = {"rejected.jsonl", "rejected-eval.jsonl", ".lock"}  # the lock is empty, and free again


@pytest.fixture
def world(world_folder) -> Path:
    return world_folder(8)


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patched where every load passes: a function of ours would stay patched in modules that are first imported now."""

    def load(*args: Any, **options: Any) -> None:
        pytest.fail("the weights are loaded before the mistake is found")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", load)
    monkeypatch.setattr(dry_run, "_loaded", lambda *args: None)  # which measures a model after all mistakes


@pytest.fixture
def refused(world: Path, tmp_path: Path, capsys) -> Callable[..., str]:
    """`refused("phase=3 seed=x")` runs the command on the shipped base and returns its message. Later words win, and
    {base}, {world}, {tmp} and {out} stand for folders."""

    def command(line: str) -> str:
        names = {"base": BASE, "world": world, "tmp": tmp_path, "out": tmp_path / "run"}
        before = {path for path in tmp_path.rglob("*") if path.is_file()}
        words = f"model={{base}} out={{out}} workers=0 {line}".format(**names).split()
        message = message_of(capsys, train.main, *words)
        left = {path for path in tmp_path.rglob("*") if path.is_file()} - before
        assert {path.name for path in left} <= LISTS
        return message

    return command


# ---- keys and values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "parts"),  # one of the command's settings and one of the trainer's: test_config.py has all kinds
    [
        ("visual.dta=x", ("unknown key visual.dta", "'x'", "did you mean visual.data")),
        ("trainer.learning_rate=1", ("trainer.learning_rate is set by rovrm", "set text.learning_rate")),
    ],
)
def test_keys_and_values(refused, line: str, parts: tuple[str, ...]) -> None:
    assert says(refused(line), *parts)


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("trainer.lr_scheduler_type=foo", ("trainer", "foo", "linear")),
        ("trainer.save_strategy=foo", ("trainer", "foo", "steps")),
        ("trainer.optim=foo", ("trainer", "foo", "adamw_torch")),
        ("trainer.max_steps=many", ("trainer.max_steps", "many")),
        ("trainer.weight_decay=little", ("trainer.weight_decay", "little")),
        ("trainer.logging_steps=two", ("trainer.logging_steps", "two")),
    ],
)
def test_values_of_trainer_keys(refused, line: str, parts: tuple[str, ...]) -> None:
    assert says(refused(f"phase=3 visual.data={{world}}/visual.jsonl {line}"), *parts)


# ---- data ------------------------------------------------------------------------------------------------------------


def test_no_data(refused) -> None:
    assert says(refused("phase=2"), "phase 2 needs data", "set caption.data")


def test_data_that_are_not_there(refused) -> None:
    assert says(
        refused("phase=3 visual.data={tmp}/none.jsonl"), "/none.jsonl", "no such file or folder", "mend the path"
    )
    assert says(refused("phase=3 visual.data=owner/none"), "owner/none", "mend the path")
    message = refused("phase=2 caption.data={world}/caption.jsonl caption.captions={tmp}/none.jsonl")
    assert says(message, "captions=", "none.jsonl", "no such file; mend the path")


def test_unknown_columns(refused, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", {"ask": "Q", "good": "A", "bad": "B"})
    message = refused(f"phase=1 text.data={file}")
    assert says(message, str(file), "no reader fits the columns", "ask, bad, good", "columns.prompt=THEIRS", "reader=")
    assert says(refused(f"phase=1 text.data={file} text.columns.prompt=aks"), "columns.prompt=aks", "ask, good, bad")
    assert says(refused(f"phase=1 text.data={file} text.reader=foo"), "reader=foo", "no such reader; takes ")


def test_broken_jsonl(refused, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", *pairs(3), '{"prompt": ')
    message = refused(f"phase=1 text.data={file}")
    assert says(message, "1 of 4 rows are bad", "max_bad_fraction=0.01", f"{file}, row 4", "broken JSON at column")
    assert says(message, "mend or delete the line", "phase1-text/rejected.jsonl")
    file = write_lines(tmp_path / "b.jsonl", "prompt,chosen", "a,b")
    assert says(
        refused(f"phase=1 text.data={file}"), str(file), "neither a JSON list nor JSONL", "write one JSON object"
    )
    file = write_lines(tmp_path / "c.jsonl")
    assert says(refused(f"phase=1 text.data={file}"), str(file), "the file is empty; give one with rows")


def test_missing_images(refused, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", *pairs(3, image="none.png"))
    message = refused(f"phase=3 visual.data={file}")
    assert says(message, "not one row can be used", f"{file}, row 1", "none.png", "set image_root=FOLDER")


def test_some_missing_images(refused, world: Path, tmp_path: Path) -> None:
    good = pairs(3, image=str(world / "images" / "visual-train-0-0.png"))
    file = write_lines(tmp_path / "a.jsonl", *good, *pairs(1, image="none.png"))
    message = refused(f"phase=3 visual.data={file} max_bad_fraction=0.2")
    assert says(
        message, "1 of 4 rows are bad", "max_bad_fraction=0.2", f"{file}, row 4", "none.png", "image_root=FOLDER"
    )


def test_all_bad_data(refused, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", *pairs(7, chosen="No.", rejected="No."))
    message = refused(f"phase=1 text.data={file}")
    assert says(message, "7 of 7 rows are bad", "mend them or raise max_bad_fraction", f"{file}, row 5", "identical")
    assert f"{file}, row 6" not in message  # the first five
    rejected = tmp_path / "run" / "phase1-text" / "rejected.jsonl"
    assert len(rejected.read_text().splitlines()) == 7
    message = refused(f"phase=1 text.data={file} max_bad_fraction=1")
    assert says(message, "text.data leaves no example to train on", "0 good ones", "give more data")


def test_too_few_to_split(refused) -> None:
    message = refused("phase=3 visual.data={world}/visual.jsonl visual.n=1 eval_fraction=0.99")
    assert says(
        message, "visual.data leaves no example to train on", "1 good ones", "eval_fraction=0.99", "visual.eval_data"
    )
    message = refused("phase=3 visual.data={world}/visual.jsonl eval_fraction=1")
    assert says(message, "eval_fraction=1", "nothing to train on", "give a number between 0 and 1, or visual.eval_data")


def test_the_same_data_to_train_and_evaluate_on(refused) -> None:
    message = refused("phase=3 visual.data={world}/visual.jsonl visual.eval_data={world}/visual.jsonl")
    assert says(message, "leave no example to train on", "8 of them share an image", "or leave visual.eval_data out")


def test_images_in_the_text_phase(refused) -> None:
    message = refused("phase=1 text.data={world}/visual.jsonl")
    assert says(message, "8 of 8 rows are bad", "the text phase takes rows without images", "visual.data")


def test_without_a_mistake_the_weights_are_loaded(refused) -> None:
    with pytest.raises(pytest.fail.Exception, match="the weights are loaded"):
        refused("phase=3 visual.data={world}/visual.jsonl eval_fraction=0.3")


def test_data_of_a_phase_that_is_not_run_are_ignored(world: Path, tmp_path: Path) -> None:
    """A recipe names the data of all phases, and `phase=1` runs the first alone."""
    line = f"phase=1 model={BASE} out={tmp_path}/run text.data={world}/text.jsonl visual.data=/none workers=0"
    assert train.main([*line.split(), "dry_run=true"]) == 0


# ---- models ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def changed_base(tmp_path: Path) -> Callable[..., Path]:
    """A copy of the base without some of its files, and with other values in its config."""

    def make(*without: str, **config: Any) -> Path:
        folder = tmp_path / "changed"
        shutil.copytree(BASE, folder)
        for name in without:
            (folder / name).unlink()
        change_json(folder / "config.json", **config)
        return folder

    return make


VISUAL = "phase=3 visual.data={world}/visual.jsonl"


def test_models_that_are_not_there(refused, tmp_path: Path) -> None:
    assert says(refused(f"{VISUAL} model=/none"), "'/none' is no folder", "give a checkpoint folder or a hub id")
    assert says(refused(f"{VISUAL} model=owner/none"), "'owner/none'", "cannot load the config", "HF_HUB_OFFLINE=1 is")
    assert says(refused(f"{VISUAL} model={tmp_path}"), str(tmp_path), "without config.json", "give a checkpoint folder")


@pytest.mark.parametrize("architecture", ["LlavaModel", "BertForMaskedLM"])
def test_a_model_that_is_no_language_model(refused, changed_base, architecture: str) -> None:
    message = refused(f"{VISUAL} model={changed_base(architectures=[architecture])}")
    assert says(message, architecture, "no language model", "ForConditionalGeneration", "ForCausalLM")


def test_a_model_without_a_processor(refused, changed_base) -> None:
    folder = changed_base("tokenizer.json", "tokenizer_config.json")
    assert says(refused(f"{VISUAL} model={folder}"), str(folder), "processor")


def test_a_text_model_with_images(refused, family_folder) -> None:
    message = refused(f"{VISUAL} model={family_folder('llama')}")
    assert says(message, str(family_folder("llama")), "takes no images", "visual.jsonl, row 1")
    assert says(message, "give a vision-language model, or train with phase=1")


def test_no_chat_template(refused, changed_base, world: Path, tmp_path: Path) -> None:
    folder = changed_base("chat_template.jinja")
    assert says(refused(f"{VISUAL} model={folder}"), "no chat template", "chat_template=FILE")
    line = f"phase=3 model={folder} out={tmp_path}/run visual.data={world}/visual.jsonl workers=0 dry_run=true"
    assert train.main([*line.split(), f"chat_template={BASE}/chat_template.jinja"]) == 0


def test_chat_templates_that_do_not_work(refused, tmp_path: Path) -> None:
    message = refused(f"{VISUAL} chat_template={tmp_path}/none.jinja")
    assert says(message, "chat_template=", "none.jinja", "is no file; give a file with a Jinja template")
    broken = write_lines(tmp_path / "broken.jinja", "{% for message in %}")
    message = refused(f"{VISUAL} chat_template={broken}")
    assert says(message, "the chat template refuses", "TemplateSyntaxError", "chat_template=FILE")
    silent = write_lines(tmp_path / "silent.jinja", "{% for m in messages %}{{ m['role'] }}{% endfor %}")
    assert says(refused(f"{VISUAL} chat_template={silent}"), "8 of 8 rows are bad", "drops the user's text")


@pytest.mark.parametrize("kind", ["none", "empty", "data", "text model"])
def test_where_to_start_from(refused, family_folder, tmp_path: Path, kind: str) -> None:
    (tmp_path / "empty").mkdir()
    file = write_lines(tmp_path / "data", *pairs(2))
    start = {"none": "/none", "empty": tmp_path / "empty", "data": file, "text model": family_folder("llama")}[kind]
    assert says(refused(f"{VISUAL} init_from={start}"), "init_from", str(start))


def test_full_tuning_from_an_adapter(refused, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    message = refused(f"{VISUAL} tuning=full init_from={tmp_path}")
    assert says(message, "tuning=full", str(tmp_path), "merge it first")


def test_qlora_without_cuda(refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert says(refused(f"{VISUAL} tuning=qlora"), "tuning=qlora", "CUDA", "set tuning=lora")


# ---- the run folder --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["{base}", ""])  # "": the shipped default
@pytest.mark.parametrize("out", ["{tmp}/file", "{tmp}/file/run", "/dev/null/run", "/proc/rovrm"])
def test_out_that_cannot_be_made(refused, tmp_path: Path, out: str, model: str) -> None:
    write_lines(tmp_path / "file", "x")
    assert says(refused(f"{VISUAL} model={model} out={out}"), "out=", out.format(tmp=tmp_path), "give another folder")


def test_out_without_permission(refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*given):  # root may write everywhere
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("filelock.FileLock.acquire", denied)
    assert says(refused(VISUAL), "out=", f"{tmp_path}/run", "cannot be written to (Permission denied); give another")


def test_out_begun_with_other_settings(refused, world: Path, tmp_path: Path) -> None:
    line = f"phase=3 model={BASE} out={tmp_path}/run workers=0 visual.data={world}/visual.jsonl"
    begun = plan.settings_of(with_rates(parse(TrainConfig, line.split(), "train")), phases.VISUAL)
    folder = tmp_path / "run" / "phase3-visual"
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text(json.dumps(begun))
    message = refused(f"{VISUAL} seed=1")
    assert says(message, str(folder), "begun with other settings (seed: 0, now 1)", "give another out=, or remove")


def test_out_with_damaged_settings(refused, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "phase3-visual"
    folder.mkdir(parents=True)
    write_lines(folder / "settings.json", '{"seed": ')
    assert says(refused(VISUAL), str(folder / "settings.json"), "remove that folder")


def test_names_with_any_byte(refused, world: Path, tmp_path: Path) -> None:
    odd = tmp_path / "b\udcff.jsonl"
    odd.write_bytes((world / "visual.jsonl").read_bytes())
    line = f"phase=3 model={BASE} image_root={world} out={tmp_path}/odd workers=0 dry_run=true eval_fraction=0.3"
    assert train.main([*line.split(), f"visual.data={odd}"]) == 0
    assert says(refused(f"{VISUAL} out={tmp_path}/o\udcff"), "cannot be printed; give another name")
