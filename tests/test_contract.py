"""The score contract: expected_rewards.json is written with every checkpoint, and every road to a score keeps to it."""

import io
import json
import logging
import random
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import damage
from families import FAMILIES
from helpers import (
    QUICK,
    change_json,
    error_line,
    message_of,
    output_of,
    read_json,
    refused,
    write_adapter_phase,
    write_lines,
    write_reward_model,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoProcessor

from rovrm import RewardScorer, bon, check, convert, merge, score, serve, train
from rovrm.common.errors import UserError
from rovrm.model import contract
from rovrm.model.contract import FILE, drawn
from rovrm.model.roads import compare_roads
from rovrm.model.saving import expected_rewards
from rovrm.settings.keys import CheckConfig, ServeConfig
from rovrm.world.default import BASE

ROADS = [
    "texts and token ids",
    "separate rows",
    "shared rows",
    "padded left",
    "padded right",
    "transformers alone",
    "adapter against merged",
    "server",
]


@pytest.fixture(autouse=True)
def code_elsewhere(monkeypatch, tmp_path):
    """transformers copies a checkpoint's modeling.py into a cache, which is not to be the user's."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


def trained(out: Path, world: Path, *settings: str) -> Path:
    """A run of two steps for each phase."""
    data = [f"{name}.data={world / name}.jsonl" for name in ("text", "visual")]
    words = [f"out={out}", f"model={BASE}", *data, "eval_fraction=0.2", "trainer.max_steps=2", *QUICK, *settings]
    assert train.main(words) == 0
    return out


@pytest.fixture(scope="module")
def full(tmp_path_factory, world_folder) -> Path:
    """The shipped base, tuned in full. Do not write into it."""
    out = tmp_path_factory.mktemp("full") / "run"
    return trained(out, world_folder(24), "phase=3", "tuning=full", "visual.learning_rate=1e-3") / "phase3-visual"


@pytest.fixture(scope="module")
def run(tmp_path_factory, world_folder) -> Path:
    """Two phases with an adapter. Do not write into it."""
    return trained(tmp_path_factory.mktemp("lora") / "run", world_folder(24), "phase=1,3", "lora_r=4")


@pytest.fixture
def copy(full, tmp_path) -> Path:
    return Path(shutil.copytree(full, tmp_path / "copy"))


def load(folder: Path, **options: Any) -> RewardScorer:
    return RewardScorer.from_pretrained(folder, device="cpu", **options)


def move_weight(folder: Path, name: str = "score.weight", file: str = "model.safetensors", by: float = 1e-3) -> Path:
    """Adds a little to every number of a tensor in a folder."""
    weights = load_file(folder / file)
    [key] = [key for key in weights if key.endswith(name)]
    weights[key] += by
    save_file(weights, folder / file, {"format": "pt"})
    return folder


def rewards_in(file: Path) -> torch.Tensor:
    return torch.tensor([conversation["reward"] for conversation in read_json(file)["conversations"]])


# ---- what is written -------------------------------------------------------------------------------------------------


def test_training_writes_it(full, run):
    for folder in (full, run / "phase1-text/adapter", run / "phase3-visual/adapter", run / "phase3-visual"):
        content = read_json(folder / FILE)
        assert len(content["conversations"]) == 7 and set(content["tolerance"]) == {"float32", "bfloat16", "float16"}
        assert {bool(conversation["picture"]) for conversation in content["conversations"]} == {True, False}
    assert not (run / "phase1-text" / FILE).exists()  # that folder holds no model of its own
    before, after = (rewards_in(run / name / "adapter" / FILE) for name in ("phase1-text", "phase3-visual"))
    assert (after - rewards_in(run / "phase3-visual" / FILE)).abs().max() < 1e-5 < (after - before).abs().max()


def test_its_rewards_are_those_of_transformers_alone(full):
    """Of each conversation by itself, in the text that stands in the file."""
    model = AutoModelForSequenceClassification.from_pretrained(full, dtype=torch.float32, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(full)
    for conversation in read_json(full / FILE)["conversations"]:
        images = [drawn(conversation["picture"])] if conversation["picture"] else None
        batch = processor(text=[conversation["text"]], images=images, return_tensors="pt", add_special_tokens=False)
        assert batch["input_ids"].shape == (1, conversation["tokens"])
        with torch.no_grad():
            assert model(**batch).logits.item() == pytest.approx(conversation["reward"], abs=1e-5)


def test_the_picture_follows_from_its_name():
    picture = drawn("waves 20x10")
    assert picture.size == (20, 10) and picture.getpixel((0, 0)) == (0, 0, 0)
    assert picture.getpixel((19, 0)) == (242, 0, 48) and picture.getpixel((1, 9)) == (12, 229, 48)
    for name in ("waves 20x0", "waves 99999x10", "waves", "cat 20x10"):
        with pytest.raises(ValueError, match="no picture is called"):
            drawn(name)


def test_round_trip(full, tmp_path):
    before = contract.read(full)
    assert before is not None
    before.write(tmp_path)
    assert contract.read(tmp_path) == before and contract.read(tmp_path / "..") is None
    assert [len(row["responses"]) for row in before.rows()] == [3, 2, 2] and len(before.rewards()) == 7


def test_a_text_model_has_texts_alone(family_folder, tmp_path):
    scorer = load(Path(write_reward_model(family_folder("llama"), tmp_path, spread=0.3)))
    expected = expected_rewards(scorer.model, scorer.processor)
    assert expected is not None and [row["images"] for row in expected.rows()] == [[], []]


def test_rewards_that_are_no_numbers_are_not_promised(family_folder, tmp_path, caplog):
    scorer = load(Path(write_reward_model(family_folder("llama"), tmp_path)), verify=False)
    scorer.model.score.weight.data.fill_(torch.nan)
    assert expected_rewards(scorer.model, scorer.processor) is None
    assert "the model overflows" in caplog.text


def test_small_rewards_do_not_make_it_strict(family_folder, tmp_path):
    """Rounding errors are as large as the head and the hidden states are, also where the two hardly meet."""
    scorer = load(Path(write_reward_model(family_folder("llama"), tmp_path, spread=0.3)))
    loud = expected_rewards(scorer.model, scorer.processor)
    hidden: list[torch.Tensor] = []
    scorer.model.score.register_forward_pre_hook(lambda _, inputs: hidden.append(inputs[0]))
    scorer.score_batch(loud.rows())  # type: ignore[union-attr]
    states = torch.cat(hidden)
    weight = scorer.model.score.weight.data
    weight -= (weight @ torch.linalg.pinv(states)) @ states  # the head stands at right angles to them
    quiet = expected_rewards(scorer.model, scorer.processor)
    assert loud is not None and quiet is not None and max(map(abs, quiet.rewards())) < 1e-4
    share = (weight.norm() * states.norm(dim=1).mean() / states.shape[1] ** 0.5).item()
    assert quiet.tolerance["float32"] == pytest.approx(contract.TOLERANCES["float32"] * share, rel=1e-4)


def test_merge_writes_it(run, tmp_path):
    assert merge.main([f"model={run / 'phase1-text'}", f"out={tmp_path / 'out'}"]) == 0
    found = rewards_in(tmp_path / "out" / FILE)
    assert (found - rewards_in(run / "phase1-text/adapter" / FILE)).abs().max() < 1e-5
    load(tmp_path / "out")
    rounded = tmp_path / "rounded"  # what is promised are the rewards of the rounded weights
    assert merge.main([f"model={run / 'phase1-text'}", f"out={rounded}", "save_dtype=bfloat16"]) == 0
    assert (rewards_in(rounded / FILE) - found).abs().max() > 1e-4
    for dtype in ("float32", "bfloat16"):
        load(rounded, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_convert_writes_it(family_folder, tmp_path, dtype):
    folder, out = Path(shutil.copytree(family_folder("llama"), tmp_path / "in")), tmp_path / "out"
    weights = load_file(folder / "model.safetensors")
    save_file({key: value.to(dtype) for key, value in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    head = torch.randn(1, 32, generator=torch.Generator().manual_seed(0))
    save_file({"v_head.summary.weight": head, "v_head.summary.bias": torch.ones(1)}, folder / "value_head.safetensors")
    assert convert.main([f"in={folder}", f"out={out}"]) == 0
    scorer = load(out, dtype="float32")
    assert len(read_json(out / FILE)["conversations"]) == 5
    found = torch.tensor(contract.read(out).rewards_of(scorer))  # type: ignore[union-attr]
    assert (found - rewards_in(out / FILE)).abs().max() < 1e-4


def test_a_conversion_that_does_not_come_back_is_refused(family_folder, tmp_path, capsys, monkeypatch):
    folder, out = Path(shutil.copytree(family_folder("llama"), tmp_path / "in")), tmp_path / "out"
    head = {"v_head.summary.weight": torch.ones(1, 32), "v_head.summary.bias": torch.ones(1)}
    save_file(head, folder / "value_head.safetensors")
    read_back = convert.read_back

    def moved(new: Path, *rest: Any) -> None:
        read_back(move_weight(new, by=0.1), *rest)

    monkeypatch.setattr(convert, "read_back", moved)
    printed = error_line(capsys, convert.main, f"in={folder}", f"out={out}")
    assert "the weights did not come back" in printed and not out.exists()


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_a_head_that_moved_is_refused(copy):
    expected = read_json(copy / FILE)["tolerance"]["float32"]
    move_weight(copy)
    message = refused(
        lambda: load(copy),
        str(copy),
        "is expected",
        "a difference of",
        "and float32 may differ by",
        "are other weights",
    )
    assert f"{expected:.3g}" in message and "verify=False" in message and "(0 of 7 agree)" in message
    assert load(copy, verify=False).score("Hello", ["Hi."])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_fewer_bits_pass(full, dtype):
    scorer = load(full, dtype=dtype)
    expected = contract.read(full)
    assert expected is not None
    worst = expected.compare(expected.rewards_of(scorer), dtype)
    assert expected.tolerance["float32"] < worst.difference < worst.tolerance / 2


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_passes(family_folder, tmp_path, name):
    """In every dtype, with the rows that scoring uses, although separate ones gave the expected rewards."""
    folder = Path(write_reward_model(family_folder(name), tmp_path, spread=0.3))
    scorer = load(folder)
    expected = expected_rewards(scorer.model, scorer.processor)
    assert expected is not None
    expected.write(folder)
    for dtype in ("float32", "bfloat16", "float16"):
        load(folder, dtype=dtype)
    refused(lambda: load(move_weight(folder)), "float32 may differ by")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tolerances_are_wide_enough(family_folder, tmp_path, dtype):
    """Every road of every family; prints what share of its tolerance each family takes at most."""
    shares = {}
    for name in FAMILIES:
        folder = write_reward_model(family_folder(name), tmp_path / name, spread=0.3)
        promised = RewardScorer.from_pretrained(folder, device="cpu", dtype="float32")
        expected_rewards(promised.model, promised.processor).write(Path(folder))  # type: ignore[union-attr]
        ran = [
            road for road in compare_roads(CheckConfig(model=str(folder), device="cpu", dtype=dtype)) if road.tolerance
        ]
        assert len(ran) >= 4
        shares[name] = max(road.difference / road.tolerance for road in ran)
    print("\n", dtype, ", ".join(f"{name} {share:.2f}" for name, share in shares.items()))
    assert max(shares.values()) < 0.5


def test_another_chat_template_is_named(copy):
    template = copy / "chat_template.jinja"
    template.write_text(template.read_text().replace("USER: ", "HUMAN: "))
    refused(lambda: load(copy), "another chat template (it wrote ", "USER: What is 17", "HUMAN: What", "is expected")
    refused(lambda: load(copy, dtype="bfloat16"), "another chat template")  # whatever the tolerance
    template.write_text("{{ raise_exception('no') }}")
    refused(lambda: load(copy), "another chat template, processor or config.json, by which a conversation is refused")


def test_a_text_that_changes_no_reward_is_refused_too(copy):
    content = read_json(copy / FILE)
    content["conversations"][3]["text"] += " "
    change_json(copy / FILE, **content)
    refused(
        lambda: load(copy),
        "reads a conversation of expected_rewards.json in another way: another chat template (it wrote ",
    )


def test_another_tokenizer_is_named(copy):
    tokenizer = read_json(copy / "tokenizer.json")
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["Ġis"], vocabulary["Ġa"] = vocabulary["Ġa"], vocabulary["Ġis"]
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    refused(lambda: load(copy), "another tokenizer or image processor", "16 token ids then and 16 others now")


def test_another_image_processor_is_named(copy):
    settings = read_json(copy / "processor_config.json")
    settings["image_processor"]["image_mean"] = [0.4, 0.5, 0.6]
    (copy / "processor_config.json").write_text(json.dumps(settings))
    refused(lambda: load(copy), "only rewards about a picture differ", "(5 of 7 agree)")


def test_another_version_is_named(copy):
    change_json(copy / FILE, versions={"torch": "1.0", "transformers": "2.0"})
    move_weight(copy)
    refused(lambda: load(copy), "then torch 1.0, transformers 2.0; now torch ")


def test_a_quantized_model_is_warned_about(full, caplog):
    scorer, expected = load(full), contract.read(full)
    scorer.model.score.weight.data += 1e-3
    scorer.model.config.quantization_config = {"load_in_4bit": True}
    contract.check(scorer, expected, "mine")
    assert "mine: the reward of" in caplog.text and "the model is quantized" in caplog.text


def test_a_checkpoint_without_it_loads(copy, caplog):
    (copy / FILE).unlink()
    with caplog.at_level(logging.INFO):
        load(copy)
    assert [record.getMessage() for record in caplog.records] == [f"{copy} holds no {FILE}: rewards unchecked"]


def _without(key: str) -> Callable[[dict], Any]:
    return lambda content: {name: value for name, value in content.items() if name != key}


BROKEN: dict[str, tuple[Callable[[dict], Any], str]] = {
    "cut": (lambda content: json.dumps(content)[:200], "is no JSON"),
    "list": (lambda content: [content], "holds no keys with values"),
    "schema": (lambda content: content | {"schema": 2}, "its schema is 2, and this version of rovrm reads 1"),
    "empty": (lambda content: content | {"conversations": []}, "conversations is no list with entries"),
    "tolerance": (lambda content: content | {"tolerance": {"float32": 1}}, "tolerance holds no number for each of"),
    "nan": (lambda content: content | {"tolerance": content["tolerance"] | {"float32": float("nan")}}, "no number"),
    "versions": (_without("versions"), "versions is no mapping"),
    "key": (lambda content: content | {"conversations": [{"prompt": "a"}]}, "conversation 0 does not hold exactly"),
    "reward": (
        lambda content: content["conversations"][1].update(reward="1") or content,
        "conversation 1 is no number",
    ),
    "text": (lambda content: content["conversations"][1].update(text=None) or content, "values of wrong types"),
    "picture": (lambda content: content["conversations"][2].update(picture=[]) or content, "no picture is called '[]'"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_refused(full, tmp_path, kind):
    change, words = BROKEN[kind]
    content = change(read_json(full / FILE))
    (tmp_path / FILE).write_text(content if isinstance(content, str) else json.dumps(content))
    refused(
        lambda: contract.read(tmp_path),
        f"{tmp_path / FILE} cannot be used: ",
        words,
        "; copy it again, take a rovrm",
    )


def test_damaged_files_are_refused_or_pass(full, tmp_path):
    """By a UserError and nothing else, wherever the damage is."""
    (tmp_path / "in").mkdir()
    scorer, results = load(full), Counter()
    for seed in range(100):
        shutil.copy(full / FILE, tmp_path / "in")
        damage(tmp_path / "in", random.Random(seed), tmp_path)
        try:
            found = contract.read(tmp_path / "in")
            if results["read"] < 15:
                results["read"] += 1
                contract.check(scorer, found, "mine")
                results["passed"] += 1
        except UserError:
            results["refused"] += 1
    assert results["refused"] > 30 and 0 < results["passed"] < 15


# ---- adapters --------------------------------------------------------------------------------------------------------


def test_an_adapters_folder_keeps_its_own(run, tmp_path):
    adapter = Path(shutil.copytree(run / "phase1-text/adapter", tmp_path / "mine"))
    load(adapter)
    load(Path(BASE), adapter=adapter)
    other = write_reward_model(BASE, tmp_path / "other")
    move_weight(Path(other), "model.norm.weight", by=0.1)
    refused(lambda: load(Path(other), adapter=adapter), "the adapter was trained on", BASE, other)
    move_weight(adapter, file="adapter_model.safetensors")
    refused(lambda: load(adapter), str(adapter), "are other weights")
    (adapter / FILE).unlink()
    load(adapter)


def test_merge_refuses_an_adapter_that_moved(run, tmp_path, capsys):
    phase, out = Path(shutil.copytree(run / "phase1-text", tmp_path / "phase")), tmp_path / "out"
    move_weight(phase / "adapter", file="adapter_model.safetensors")
    printed = error_line(capsys, merge.main, f"model={phase}", f"out={out}")
    assert f"{phase / 'adapter'}: the reward of" in printed and "are other weights" in printed and not out.exists()
    assert merge.main([f"model={phase}", f"out={out}", "verify=false"]) == 0
    load(out)


def test_merging_that_moves_rewards_is_refused(run, tmp_path, capsys, monkeypatch):
    from peft.tuners.lora.layer import Linear

    monkeypatch.setattr(Linear, "get_delta_weight", lambda self, adapter: 1e-2 * torch.ones_like(self.weight))
    printed = error_line(capsys, merge.main, f"model={run / 'phase1-text'}", f"out={tmp_path / 'out'}")
    assert "the merged model: the reward of" in printed


# ---- commands --------------------------------------------------------------------------------------------------------


def test_the_commands_that_load_a_model_check_it(copy, tmp_path, capsys):
    move_weight(copy)
    lines = write_lines(tmp_path / "in.jsonl", {"prompt": "Hello", "responses": ["Hi.", "No."]})
    answers = write_lines(tmp_path / "answers.jsonl", {"prompt": "Hello", "candidates": ["Hi.", "No."]})
    commands: list[tuple[Callable[[list[str]], int], list[str]]] = [
        (score.main, [f"in={lines}", f"out={tmp_path / 'out.jsonl'}", "workers=0"]),
        (bon.main, [f"candidates={answers}", f"out={tmp_path / 'bon'}"]),
    ]
    for main, words in commands:
        assert "float32 may differ by" in error_line(capsys, main, f"model={copy}", "device=cpu", *words)
        assert main([f"model={copy}", "device=cpu", "verify=false", *words]) == 0
    assert "float32 may differ by" in error_line(capsys, serve.main, f"model={copy}", "device=cpu", "port=0")


@contextmanager
def served(folder: Path, **settings: Any) -> Iterator[str]:
    """The address of a server of a checkpoint on a free port."""
    pytest.importorskip("fastapi")
    uvicorn = pytest.importorskip("uvicorn")
    from rovrm.serving.app import make_app

    app = make_app(load(folder, verify=False), ServeConfig(model="tiny", **settings))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def table(printed: str) -> dict[str, str]:
    """Of each road in a printed table: yes, NO, or why it was not run."""
    lines = printed.split("\n\n")[0].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("road "))
    found = {}
    for line in lines[start + 1 :]:
        name, rest = line[:24].strip(), line[24:].split()
        found[name] = " ".join(rest) if rest[:2] == ["not", "run:"] else rest[-1]
    return found


def test_all_roads_agree(run, capsys):
    folder = run / "phase3-visual"
    with served(folder, token="secret") as url:
        roads = table(output_of(capsys, check.main, f"model={folder}", f"url={url}", "token=secret", "device=cpu"))
    assert list(roads) == ROADS and set(roads.values()) == {"yes"}


def test_roads_of_an_adapter(run, capsys):
    roads = table(output_of(capsys, check.main, f"model={run / 'phase1-text'}", "device=cpu"))
    assert list(roads) == ROADS and "rovrm.merge makes one" in roads.pop("transformers alone")
    assert roads.pop("server") == "not run: no url= of a running rovrm.serve was given" and {*roads.values()} == {"yes"}
    words = [f"model={BASE}", f"adapter={run / 'phase1-text'}", "dtype=bfloat16", "device=cpu"]
    assert table(output_of(capsys, check.main, *words))["adapter against merged"] == "yes"


def test_a_server_may_normalize(run, capsys):
    with served(run / "phase3-visual", normalize=True) as url:
        words = [f"model={run / 'phase3-visual'}", f"url={url}", "device=cpu"]
        assert table(output_of(capsys, check.main, *words))["server"] == "yes"


def test_roads_that_are_off(copy, full, capsys):
    (copy / "modeling.py").write_text((copy / "modeling.py").read_text() + "\n# another version's\n")
    move_weight(copy)
    with served(full) as url:
        assert check.main([f"model={copy}", f"url={url}", "device=cpu"]) == 1
    printed = capsys.readouterr().out
    roads = table(printed)
    assert roads.pop("texts and token ids") == roads.pop("server") == "yes"
    assert "trust_remote_code=true" in roads.pop("transformers alone")
    assert roads.pop("adapter against merged") == "not run: no adapter is there" and {*roads.values()} == {"NO"}
    assert "\n\nseparate rows: the reward of" in printed and "float32 may differ by" in printed


def test_a_road_that_is_off_alone(full, copy, capsys):
    move_weight(copy)
    with served(copy) as url:
        assert check.main([f"model={full}", f"url={url}", "device=cpu"]) == 1
    printed = capsys.readouterr().out
    roads = table(printed)
    assert [name for name, found in roads.items() if found == "NO"] == ["server"]
    assert "another model, or another version of it, is behind the url" in printed


def test_another_template_on_all_roads(copy, capsys):
    template = copy / "chat_template.jinja"
    template.write_text(template.read_text().replace("USER: ", "HUMAN: "))
    assert check.main([f"model={copy}", "device=cpu"]) == 1
    printed = capsys.readouterr().out
    assert table(printed)["texts and token ids"] == "NO" and "another chat template (it wrote" in printed


def test_roads_without_the_file(family_folder, tmp_path, capsys, caplog):
    """Of a family that shares no rows; a phase folder as an earlier version wrote it."""
    phase = write_adapter_phase(family_folder("paligemma"), tmp_path / "phase1-text")
    roads = table(output_of(capsys, check.main, f"model={phase}", "device=cpu"))
    assert "rewards unchecked" in caplog.text and "separate rows stand for it" in roads["texts and token ids"]
    assert roads["shared rows"].startswith("not run: this model has separate rows alone (family 'paligemma'")
    assert roads["padded left"] == roads["adapter against merged"] == "yes"


def test_a_server_that_is_none(full, capsys, monkeypatch):
    replies = [{}, {"scores": ["1", 2, 3]}, {}, {"scores": [1.0]}, {}, {"scores": [float("nan")] * 3}, [1]]
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: io.BytesIO(json.dumps(replies.pop(0)).encode()))
    while replies:
        assert check.main([f"model={full}", "url=http://127.0.0.1:1", "device=cpu"]) == 1
        assert (
            "is it the address of a rovrm.serve?" in (out := capsys.readouterr().out) or "is it a rovrm.serve?" in out
        )


def test_what_check_refuses(full, tmp_path, capsys):
    assert "is no folder" in error_line(capsys, check.main, f"model={tmp_path / 'missing'}")
    for url, words in (("file:///etc/hosts", "is no address"), ("http://127.0.0.1:1", "gives no reply")):
        assert check.main([f"model={full}", f"url={url}", "device=cpu"]) == 1
        printed = capsys.readouterr().out
        assert table(printed)["server"] == "NO" and f"\n\nserver: {url if ':1' in url else 'url='}" in printed
        assert words in printed
    with served(full, token="secret") as url:
        assert check.main([f"model={full}", f"url={url}", "device=cpu"]) == 1
        assert "/score replies 401" in capsys.readouterr().out
    assert "model: got nothing" in message_of(capsys, check.main)
