"""python -m rovrm.select and the stage inside rovrm.train, in-process on the shipped tiny base."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import QUICK, change_last_byte, error_line, output_of, read_json, read_lines, write_lines
from PIL import Image
from safetensors.torch import load_file, save_file

from data_selection.gradients import GradientFeatures, lora_layers
from data_selection.store import Store
from rovrm import RewardScorer
from rovrm.common.errors import UserError
from rovrm.data.example import Example
from rovrm.model.adapters import load_adapter
from rovrm.model.collator import RewardCollator
from rovrm.model.loading import load_config, load_processor, load_reward_model
from rovrm.select import main
from rovrm.selection.extraction import adam_weigh, batch_features, gradient_model
from rovrm.selection.layers import check_layers, chosen_layers, layer_groups
from rovrm.selection.stage import check_selection, read_phases, warm_up_epochs
from rovrm.settings.command_line import parse
from rovrm.settings.keys import SelectionConfig, TrainConfig
from rovrm.settings.phases import CAPTION, TEXT, VISUAL
from rovrm.train import main as train
from rovrm.training.losses import ascents, compare, list_losses, preference_loss
from rovrm.training.plan import selection_settings, settings_of, target_phase
from rovrm.world.default import BASE
from rovrm.world.files import write_world

POOL, N = 60, 24  # rows to choose from, and rows chosen
SETTINGS = [
    f"text.data=world:text?n={POOL}",
    f"caption.data=world:caption?n={POOL}",
    "visual.data=world:visual?n=60",
    "text.select=capped_ot",
    f"text.n={N}",
    "caption.select=capped_ot",
    f"caption.n={N}",
    "selection.warmup_pool=16",
    "selection.warmup_target=16",
    "selection.learning_rate=1e-3",
    "selection.width=256",
    "tuning=lora",
    "lora_r=4",
    "batch_size=8",
    *QUICK,
]


def shards(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("features-*.safetensors"))
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {name: content for name, (_, content) in shards(folder).items()}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Both phases' selections. Tests may train in it and choose again, with the same features."""
    out = tmp_path_factory.mktemp("runs") / "selected"
    assert main([f"out={out}", *SETTINGS]) == 0
    return out


# ---- the stage -------------------------------------------------------------------------------------------------------


def test_it_writes_what_was_chosen_and_why(run):
    for name in ("phase1-text", "phase2-caption"):
        folder = run / "selection" / name
        selected = read_json(folder / "selected.json")
        why = read_lines(folder / "selected.jsonl")
        assert selected["k"] == len(set(selected["indices"])) == len(set(selected["ids"])) == N == len(why)
        assert selected["method"] == "capped_ot" and selected["preprocess"] == ["unit", "dedup"]
        assert [row["score"] for row in why] == sorted((row["score"] for row in why), reverse=True)
        report = read_json(folder / "report.json")
        assert sum(row["chosen"] for row in report["sources"]) == N
        assert sum(row["pool"] for row in report["sources"]) == report["pool"] < POOL  # held-out rows are not in it
        for row in report["sources"]:
            assert row["chosen"] == sum(line["source"] == row["source"] for line in why)
            assert row["share_kept"] == row["chosen"] / row["pool"]
        assert set(report["wasserstein"]) == {"chosen", "random", "pool"}
        page = (folder / "report.html").read_text()
        assert page.count("<circle") == report["pool"] + report["targets"]


def test_it_goes_backwards(run):
    """The text rows are chosen against the chosen caption rows, the caption rows against the visual rows."""
    chosen = read_json(run / "selection" / "phase2-caption" / "selected.json")["ids"]
    nearest = {row["nearest_target"] for row in read_lines(run / "selection" / "phase1-text" / "selected.jsonl")}
    assert nearest <= set(chosen)
    nearest = {row["nearest_target"] for row in read_lines(run / "selection" / "phase2-caption" / "selected.jsonl")}
    assert all(name.startswith("visual-") for name in nearest)
    folders = [run / "selection" / "phase1-text" / name for name in ("target", "judges")]
    assert sum(read_json(folder / "store.json")["rows"] for folder in folders) == N


def test_training_takes_the_chosen_rows_and_computes_nothing_again(run, capsys):
    before = shards(run)
    shown = output_of(capsys, train, f"out={run}", *SETTINGS, "phase=1")
    assert "its rows were chosen before" in shown and shards(run) == before
    record = read_json(run / "phase1-text" / "phase.json")
    assert record["n_train"] == N
    assert 1 <= record["n_held_out"] <= 3  # as many as 24 rows would have, not as the pool would
    # Settings of the selection are settings of the phase.
    assert "was begun with other settings (selection" in error_line(
        capsys, train, f"out={run}", *SETTINGS, "phase=1", "selection.targets=8"
    )


def test_another_method_uses_the_same_features(run, capsys):
    folder = run / "selection" / "phase2-caption"
    before, chosen = shards(folder), (folder / "selected.json").read_text()
    assert main([f"out={run}", *SETTINGS, "phase=2", "caption.select=mean_l2", "selection.preprocess=none"]) == 0
    selected = read_json(folder / "selected.json")
    assert selected["method"] == "mean_l2" and selected["preprocess"] == [] and selected["k"] == N
    # Minus the mean Euclidean distance of the raw gradients, by hand.
    pool, target = (load_file(folder / name / "features-00000.safetensors") for name in ("pool", "target"))
    raw, aims = (part["features"].float() * part["norms"][:, None] for part in (pool, target))
    scores = [-(raw[i] - aims).norm(dim=1).double().mean().item() for i in selected["indices"]]
    assert [row["score"] for row in read_lines(folder / "selected.jsonl")] == pytest.approx(scores)
    assert main([f"out={run}", *SETTINGS, "phase=2", "selection.targets=20", "caption.n=10"]) == 0
    report = read_json(folder / "report.json")
    assert (report["targets"], report["chosen"]) == (20, 10)
    assert shards(folder) == before
    assert main([f"out={run}", *SETTINGS, "phase=2"]) == 0
    assert (folder / "selected.json").read_text() == chosen
    # The text rows were chosen against others: their features are refused, not mixed in.
    assert "give another out=, or remove" in error_line(
        capsys, main, f"out={run}", *SETTINGS, "phase=1", "caption.select=knn"
    )
    assert main([f"out={run}", *SETTINGS, "phase=2"]) == 0


def test_the_published_method_keeps_its_warm_up_and_layers(run, capsys):
    """Its features are others: a folder that holds those of the defaults refuses them."""
    config = parse(TrainConfig, [*SETTINGS, "caption.select=paper"], "select")
    settings = selection_settings(config, CAPTION)
    assert (settings["warmup"], settings["layers"], settings["balance"]) == ("pool+target", "all", False)
    settings = selection_settings(parse(TrainConfig, SETTINGS, "select"), CAPTION)
    assert (settings["warmup"], settings["layers"], settings["balance"]) == ("target", "last=0.25", True)
    error = error_line(capsys, main, f"out={run}", *SETTINGS, "phase=2", "caption.select=paper")
    assert "made with other settings or rows" in error and "give another out=" in error
    assert main([f"out={run}", *SETTINGS, "phase=2"]) == 0


def test_the_warm_up_sees_the_target_alone_as_often_as_both_would_be_seen():
    of = SelectionConfig
    assert warm_up_epochs(of(warmup="target"), 1024, 128) == 9.0
    assert warm_up_epochs(of(warmup="pool+target"), 1024, 128) == 1.0
    assert warm_up_epochs(of(warmup="target", epochs=3.0), 1024, 128) == 3.0


def test_margins_are_those_of_the_scorer(tmp_path, capsys):
    """select=margin keeps the rows that the warmed-up model prefers most; its margins are plain reward differences."""
    words = [*SETTINGS, "phase=2", "caption.select=margin"]
    assert main([f"out={tmp_path}", *words]) == 0
    shown = capsys.readouterr().out
    folder = tmp_path / "selection" / "phase2-caption"
    selected, report = read_json(folder / "selected.json"), read_json(folder / "report.json")
    assert selected["method"] == "margin" and len(selected["indices"]) == N and "median margin: chosen" in shown
    assert not (folder / "pool").exists() and set(report["margins"]) == {"pool", "chosen", "judges"}
    scorer = RewardScorer.from_pretrained(str(folder / "warmup" / "adapter"))
    config = parse(TrainConfig, words, "select")
    pool = read_phases(config, [CAPTION], RewardCollator(load_processor(BASE), load_config(BASE)), True)[CAPTION].train
    margins = []
    for example, rewards in zip(pool, scorer.score_batch(pool), strict=True):
        better, worse = (rewards[example.ranks.index(rank)] for rank in sorted(set(example.ranks)))
        margins.append(better - worse)
    assert np.load(folder / "scores.npy") == pytest.approx(margins, abs=2e-5)
    assert sorted(selected["indices"]) == sorted(np.argsort(-np.array(margins), kind="stable")[:N].tolist())
    before = contents(folder)
    (folder / "settings.json").unlink()
    (folder / "margins" / "pool" / "features-00000.safetensors").unlink()
    assert main([f"out={tmp_path}", *words]) == 0
    assert contents(folder) == before


def test_what_is_missing_is_extracted_and_ends_in_the_same_bytes(run, capsys):
    folder = run / "selection" / "phase2-caption"
    before = contents(folder)
    (folder / "settings.json").unlink()
    (folder / "target" / "features-00000.safetensors").unlink()
    (folder / "pool" / "features-00000.safetensors").write_bytes(b"cut off")
    kept = shards(folder / "judges")
    assert main([f"out={run}", *SETTINGS, "phase=2"]) == 0
    assert contents(folder) == before and shards(folder / "judges") == kept
    assert "judges: 6 of 6 rows have their features from before; 0 to do" in capsys.readouterr().out


def test_no_rows_of_another_model_are_mixed_in(run, capsys):
    assert "was made with other settings or rows" in error_line(
        capsys, main, f"out={run}", *SETTINGS, "phase=2", "seed=1"
    )
    assert "holds features made from something else (width: 256, now 128)" in error_line(
        capsys, main, f"out={run}", *SETTINGS, "phase=2", "selection.width=128"
    )


def test_a_choice_of_another_model_is_not_taken(run, capsys):
    for change in ("lora_r=8", "dtype=bfloat16", "lora_alpha=3"):
        assert main([f"out={run}", *SETTINGS, "phase=2", change]) == 2
        told = capsys.readouterr()
        assert "was made with other settings or rows" in told.err and "were chosen before" not in told.out


def test_selection_and_training_split_alike_and_choose_nothing_held_out(tmp_path, capsys):
    """The caption rows are the target of the text rows, and some of their pictures are the visual phase's eval_data,
    which the selection of text rows alone would not need to read."""
    write_world(tmp_path / "world", 40)
    rows = [row | {"caption": "Some shapes."} for row in read_lines(tmp_path / "world" / "visual.jsonl")]
    held, captions = tmp_path / "world" / "held.jsonl", tmp_path / "world" / "captions.jsonl"
    write_lines(held, *rows[:12])
    write_lines(captions, *rows)
    command = [*SETTINGS, f"out={tmp_path / 'run'}", f"caption.data={captions}", "visual.data=world:visual?n=60&seed=3"]
    command += ["caption.select=random", "caption.n=null", f"visual.eval_data={held}", "trainer.max_steps=1"]
    assert main(command) == 0
    used = [
        name
        for part in ("target", "judges")
        for name in read_json(tmp_path / "run" / "selection" / "phase1-text" / part / "ids.json")
    ]
    assert used and not {row["id"] for row in rows[:12]} & set(used)
    assert "caption: 12 training rows share an image or prompt with visual.eval_data" in capsys.readouterr().out
    before = shards(tmp_path / "run")
    assert "its rows were chosen before" in output_of(capsys, train, *command) and shards(tmp_path / "run") == before


def test_kmeans_and_random_representatives(tmp_path):
    few = [*SETTINGS, "phase=2", "selection.targets=12"]
    assert main([f"out={tmp_path}", *few, "selection.representatives=random", "selection.gradients=adam"]) == 0
    note = read_json(tmp_path / "selection" / "phase2-caption" / "target" / "store.json")
    assert note["rows"] == 12 and note["gradients"] == "plain"  # drawn before anything is computed
    assert read_json(tmp_path / "selection/phase2-caption/pool/store.json")["gradients"] == "adam"
    assert read_json(tmp_path / "selection/phase2-caption/report.json")["targets"] == 12


def test_other_pictures_and_another_base_under_the_same_names_are_refused(tmp_path, capsys):
    """Features of before these were noted are used again, and it says so."""
    base, world = tmp_path / "base", tmp_path / "world"
    shutil.copytree(BASE, base)
    write_world(world, 40)
    folder = tmp_path / "run" / "selection" / "phase2-caption"
    command = ["phase=2", f"out={tmp_path / 'run'}", *SETTINGS, f"model={base}", f"visual.data={world}/visual.jsonl"]
    command += [f"visual.eval_data={world}/eval.jsonl", "caption.n=10"]
    (world / "eval.jsonl").write_text((world / "visual.jsonl").read_text().splitlines()[0] + "\n")
    assert main(command) == 0
    picture = world / read_lines(world / "visual.jsonl")[1]["image"]
    for path, key in ((picture, "images"), (base / "model.safetensors", "weights")):
        kept = path.read_bytes()
        if key == "images":
            Image.new("RGB", (64, 64), "red").save(path)
        else:
            change_last_byte(path)
        message = error_line(capsys, main, *command)  # of the warm-up, or of features where the row is not in it
        assert re.search(rf"settings or rows \({key}: |made from something else \({key}: ", message), message
        path.write_bytes(kept)
    assert main(command) == 0
    capsys.readouterr()
    for path in (folder / "settings.json", *folder.glob("*/settings.json"), *folder.glob("*/store.json")):
        record = {k: v for k, v in read_json(path).items() if k not in ("images", "weights")}
        path.write_text(json.dumps(record))
    for name in ("pool", "target", "judges"):
        mark_as_before(folder / name)
    assert "were chosen before" in output_of(capsys, main, *command)
    (folder / "settings.json").unlink()
    before = shards(folder)
    shown = output_of(capsys, main, *command)
    for name in ("pool", "target", "judges"):
        assert f"{name}: made by a version that did not note images" in shown
    assert "0 to do" in shown and shards(folder) == before


def mark_as_before(folder: Path) -> None:
    """Writes a store's shards with the mark of its note, as the version that wrote such notes did."""
    note = read_json(folder / "store.json")
    mark = hashlib.sha1(json.dumps(note, sort_keys=True).encode()).hexdigest()
    for path in folder.glob("features-*.safetensors"):
        save_file(load_file(path), path, {"mark": mark})


# ---- features --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parts(run):
    """(config, adapter, collator): what the selection of the caption phase was made with."""
    config = parse(TrainConfig, [f"model={BASE}", *SETTINGS], "select")
    processor = load_processor(BASE)
    adapter = run / "selection" / "phase2-caption" / "warmup" / "adapter"
    return config, adapter, RewardCollator(processor, load_config(BASE))


def examples() -> list[Example]:
    from rovrm.data.loading import load_examples

    pictures = load_examples("world:visual?n=3&seed=5").examples
    notes = load_examples("world:text?n=2&seed=5").examples
    ranked = Example("list", "own", notes[0].prompt, ["Red.", "Blue.", "It is red.", "No."], [0, 2, 1, 2])
    return [*pictures, ranked, *notes]


def doubled(batch: dict) -> dict:
    """In float64 the twin's own rounding is no part of the comparison."""
    return {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}


@pytest.mark.parametrize(("rows", "words"), [("shared", "all"), ("separate", "all"), ("shared", "last=0.25")])
def test_features_are_the_one_by_one_gradients_of_the_loss(parts, rows, words):
    """Pairs about pictures and a ranked list, in batches; of shared prompts every layer runs twice. Against
    loss.backward() of each example alone on weights that train."""
    config, adapter, collator = parts
    collator = RewardCollator(collator.processor, load_config(BASE), rows)
    data = examples() if rows == "shared" else [example for example in examples() if not example.images]
    batch = doubled(collator(data) | {"example_ids": torch.arange(len(data))})
    assert ("owners" in batch) == (rows == "shared")
    model = gradient_model(config, adapter).double()
    layers = chosen_layers(words, model)
    with GradientFeatures(model, layers, 0) as features:
        found, slope = batch_features(model, batch, features)
        order = list(features.layers)
    slow = load_adapter(load_reward_model(BASE), str(adapter), trainable=True).eval().double()
    for i, example in enumerate(data):
        alone = doubled(collator([example]))
        inputs = {k: v for k, v in alone.items() if k not in ("labels", "margins", "list_ids", "response_ids")}
        slow.zero_grad()
        pairs = compare(slow(**inputs).logits[:, 0], alone["labels"], alone["list_ids"])
        (preference_loss(pairs, alone["margins"]) / len(example.responses)).backward()
        twin = lora_layers(slow)
        gradient = torch.cat([twin[name].weight.grad.flatten() for name in order])
        error = (slope[i] * found[i] + gradient).norm() / gradient.norm()
        assert error < 1e-5, (example.id, error)


def test_objectives_rise_where_losses_fall():
    rewards = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.tensor([[0, 1, -100], [1, 0, -100], [0, 1, 2], [1, 0, 1]])
    margins = torch.tensor([0.0, 0.7, 0.0, 0.2])
    pairs = compare(rewards.flatten(), labels.flatten(), torch.arange(4).repeat_interleave(3))
    losses, (objective, slope) = list_losses(pairs, margins), ascents(pairs, margins)
    assert objective[0].item() == pytest.approx((rewards[0, 0] - rewards[0, 1]).item())
    assert losses[1].item() == pytest.approx(torch.nn.functional.softplus(rewards[1, 0] - rewards[1, 1] + 0.7).item())
    total = sum(loss * len(row[row >= 0]) for loss, row in zip(losses, labels, strict=True))
    assert total.item() == pytest.approx(preference_loss(pairs, margins).item(), rel=1e-6)
    for i in range(4):
        of_loss, of_objective = (
            torch.autograd.grad(value[i], rewards, retain_graph=True)[0] for value in (losses, objective)
        )
        assert torch.allclose(of_loss, -slope[i] * of_objective, atol=1e-6)


def test_objectives_do_not_vanish_where_the_model_is_sure():
    rewards = torch.tensor([60.0, -60.0], requires_grad=True)
    objective, slope = ascents(compare(rewards, torch.tensor([0, 1]), torch.tensor([0, 0])), torch.zeros(1))
    assert torch.autograd.grad(objective.sum(), rewards)[0].tolist() == [1.0, -1.0] and slope.item() < 1e-30


def test_adams_form_is_less_formula(parts, tmp_path):
    """(0.9 m + 0.1 g) / sqrt(0.999 v + 0.001 g^2 + 1e-8), for the gradient g of the loss; features point down it."""
    _, adapter, _ = parts
    moments = load_file(adapter.parent / "moments.safetensors")
    name = next(iter(moments)).removesuffix(".exp_avg").removesuffix(".exp_avg_sq")
    m, v = moments[f"{name}.exp_avg"].flatten(), moments[f"{name}.exp_avg_sq"].flatten()
    assert m.any() and (v >= 0).all() and v.any()
    g = torch.randn(3, len(m), generator=torch.Generator().manual_seed(0)) * v.sqrt().mean()
    expected = (0.9 * m + 0.1 * g) / (0.999 * v + 0.001 * g**2 + 1e-8).sqrt()
    assert torch.allclose(adam_weigh(adapter)(name, -g), -expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("key", ["gradient_checkpointing", "activation_checkpointing"])
def test_checkpointing_changes_no_feature(parts, key):
    """It is on where training has it: then a layer's forward runs twice, in eval mode too."""
    config, adapter, collator = parts
    batch = collator(examples()) | {"example_ids": torch.arange(6)}
    found, runs = [], []
    for extra in ([], [f"trainer.{key}=true"]):
        config = parse(TrainConfig, [f"model={BASE}", *SETTINGS, *extra], "select")
        model = gradient_model(config, adapter)
        layers = chosen_layers("last=0.25", model)
        next(iter(layers.values())).register_forward_hook(lambda *_: runs.append(len(found)))
        with GradientFeatures(model, layers, 256) as features:
            found.append(batch_features(model, batch, features)[0])
    assert torch.allclose(*found, rtol=1e-5, atol=1e-6)
    assert runs == [0, 0, 1, 1, 1, 1]  # on prompts and on answers


def test_some_layers_only(parts):
    """The shipped base has 7 decoder layers, a quarter of which is 2; A and B of each are balanced apart."""
    config, adapter, _ = parts
    model = gradient_model(config, adapter)
    projections = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in chosen_layers(r"layers\.1\..*q_proj", model)}
    assert projections == {"q_proj"}
    with pytest.raises(UserError, match="fits none of"):
        chosen_layers("nothing", model)
    last = chosen_layers("last=0.25", model)
    assert set(layer_groups(last, model).values()) == {"5.lora_A", "5.lora_B", "6.lora_A", "6.lora_B"}
    assert len(chosen_layers("last=1", model)) == len(chosen_layers("all", model)) == len(lora_layers(model))
    for wrong, words in {"last=0": "give a share", "last=x": "give a share", "*": "nor a regular expression"}.items():
        with pytest.raises(UserError, match=words):
            check_layers(wrong)


def test_no_features_without_a_warm_up(parts, tmp_path):
    config, adapter, _ = parts
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file(
        {k: torch.zeros_like(v) if "lora_B" in k else v for k, v in tensors.items()},
        tmp_path / "adapter_model.safetensors",
    )
    (tmp_path / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    with pytest.raises(UserError, match="every lora_B is zero"):
        gradient_model(config, tmp_path)


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["text.n=null"], "set text.n to how many"),
        (["caption.n=80000"], "leave .* rows to choose from; give a smaller n"),
        (["visual.select=knn"], "the visual data are what others are chosen against"),
        (["text.select=random", "caption.select=first"], "none of them chooses rows by gradients"),
        (["phase=3"], "none of them chooses rows by gradients"),
        (["visual.data=world:visual?n=8", "eval_fraction=0.1"], "rows to choose caption rows against"),
        (["selection.layers=("], "nor a regular expression"),
        (["phase=1", "caption.n=null"], "set caption.n to how many"),
        (["phase=1", "caption.n=80000"], "leave .* rows to choose from; give a smaller n"),
        (["phase=1,2", "caption.n=5"], "the caption phase has 4 rows to choose text rows against, .* or caption.n"),
        (["selection.layers=foo"], "fits none of"),
        (["selection.preprocess=unit,whiten"], "selection.preprocess has 'whiten'; takes unit, centre, dedup"),
        (["selection.gradients=sgd"], "selection.gradients: got 'sgd'"),
    ],
)
def test_errors_before_anything_is_computed(arguments, message, tmp_path, capsys):
    error = error_line(capsys, main, f"out={tmp_path}", *SETTINGS, *arguments)
    assert re.search(message, error), error
    assert not list(tmp_path.rglob("*.safetensors"))


def test_dry_run_chooses_nothing(tmp_path, capsys):
    for command in (main, train):
        assert command([f"out={tmp_path}", *SETTINGS, "phase=2", "dry_run=true"]) == 0
        shown = capsys.readouterr().out
        assert f"capped_ot will choose {N} of " in shown and f"{N} to train on" in shown
    assert not list(tmp_path.rglob("*.safetensors"))


def test_none_is_no_preprocessing_and_null_the_default():
    for word, steps in (("none", []), ("[]", []), ("null", None), ("unit", ["unit"])):
        assert parse(TrainConfig, [f"selection.preprocess={word}"], "train").selection.preprocess == steps


def test_nothing_to_choose_against():
    config = parse(TrainConfig, ["text.select=knn", "text.n=5", "text.data=a.jsonl"], "train")
    with pytest.raises(UserError, match=r"set visual\.data or caption\.data"):
        check_selection(config, [TEXT])


def test_what_decides_a_selection():
    def settings(*more: str) -> TrainConfig:
        return parse(TrainConfig, ["out=nowhere", *SETTINGS, *more], "train")

    plain = settings("text.select=random")
    assert target_phase(plain, TEXT) == CAPTION and target_phase(settings("caption.data=[]"), TEXT) == VISUAL
    assert "selection" not in settings_of(plain, TEXT)
    assert settings_of(plain, TEXT) == settings_of(settings("text.select=random", "selection.width=512"), TEXT)
    assert selection_settings(settings(), TEXT)["target_selection"]["n"] == N
    for change in ("visual.data=world:visual?n=61", "caption.n=23", "caption.select=knn", "selection.width=512"):
        assert settings_of(settings(), TEXT) != settings_of(settings(change), TEXT), change
    assert settings_of(settings(), TEXT) == settings_of(settings("visual.learning_rate=1", "caption.epochs=3"), TEXT)


# ---- slow: real kills, two processes ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_kill_9_during_extraction(tmp_path, monkeypatch):
    """Killed while features are written, three times; the shards end in the bytes of an uninterrupted run."""
    many = ["caption.data=world:caption?n=2600", "phase=2"]
    assert main([f"out={tmp_path / 'straight'}", *SETTINGS, *many]) == 0
    killed, kills, shown = tmp_path / "killed", 0, ""
    folder = killed / "selection" / "phase2-caption"
    while not (folder / "settings.json").exists():
        command = [sys.executable, "-m", "rovrm.select", f"out={killed}", *SETTINGS, *many]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        before = set(folder.glob("pool/features-*.safetensors"))
        while process.poll() is None:
            if kills < 3 and set(folder.glob("pool/features-*.safetensors")) - before:
                time.sleep(0.3 * kills)
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.01)
        shown = process.communicate()[0]
    assert kills == 3 and "rows have their features from before" in shown
    straight = tmp_path / "straight" / "selection" / "phase2-caption"
    assert contents(folder) == contents(straight) and len(contents(folder)) == 7
    for file in ("selected.json", "scores.npy"):
        assert (folder / file).read_bytes() == (straight / file).read_bytes()


@pytest.mark.slow
def test_two_processes_share_the_shards(tmp_path):
    """The warm-up of two processes has another batch, so theirs is taken over; extraction alone is compared."""
    many = [*SETTINGS, "caption.data=world:caption?n=1400", "phase=2"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*torchrun, "-m", "rovrm.select", f"out={tmp_path}", *many]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "selection" / "phase2-caption"
    before, chosen = contents(folder), (folder / "selected.json").read_text()
    assert len(before) == 5
    for path in folder.rglob("features-*.safetensors"):
        path.unlink()
    (folder / "settings.json").unlink()
    assert main([f"out={tmp_path}", *many]) == 0
    assert contents(folder) == before and (folder / "selected.json").read_text() == chosen


def test_the_norms_kept_are_those_of_the_loss(tmp_path):
    store = Store(tmp_path, ["a", "b"], {})
    store.write(0, torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([0.5, 0.25]))
    units, norms = store.load()
    assert norms.tolist() == [2.5, 0.5] and torch.allclose(units.float().norm(dim=1), torch.ones(2), atol=1e-3)
