"""python -m rovrm.train, in-process on the shipped tiny base: what a run writes, resumes, continues and refuses."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import (
    QUICK,
    change_last_byte,
    error_line,
    output_of,
    read_json,
    read_lines,
    two_processes,
    without_times,
    write_lines,
)
from PIL import Image
from safetensors.torch import load_file

from rovrm.model.loading import weights_mark
from rovrm.model.scorer import RewardScorer
from rovrm.settings.command_line import parse
from rovrm.settings.keys import TrainConfig, with_rates
from rovrm.settings.phases import PHASES
from rovrm.train import main
from rovrm.training.setup import with_default
from rovrm.training.trainer import RewardTrainer
from rovrm.world.default import BASE, SECTIONS, SETTINGS

PAIRS = 64  # of each kind
NAMES = [phase.name for phase in PHASES]


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "adapter" / "adapter_model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def world(world_folder) -> Path:
    return world_folder(PAIRS)


@pytest.fixture(scope="module")
def settings(world) -> list[str]:
    """The command line of the three phases but for `out`: the shipped base, and a rate from which small data teach."""
    data = [f"{name}.data={world / name}.jsonl" for name in NAMES]
    rates = [f"{name}.learning_rate=1e-3" for name in NAMES]
    return [f"model={BASE}", *data, *rates, "eval_fraction=0.2", "lora_r=4", *QUICK]


@pytest.fixture(scope="module")
def run(tmp_path_factory, settings) -> Path:
    """The three phases. Do not write into it."""
    out = tmp_path_factory.mktemp("runs") / "three"
    assert main([f"out={out}", *settings]) == 0
    return out


def test_three_phases_write_what_they_promise(run):
    summary = read_json(run / "summary.json")
    assert list(summary) == ["phase1-text", "phase2-caption", "phase3-visual"]
    for name, record in summary.items():
        assert record["n_train"] + record["n_held_out"] + record["n_skipped"] == PAIRS
        assert record["n_skipped"] == record["n_long"] == 0 and 0.05 * PAIRS <= record["n_held_out"] <= 0.4 * PAIRS
        assert 0 <= record["accuracy"] <= 1 and record["loss"] > 0 and record["shared_rows"]
        folder = run / name
        scores = read_lines(folder / "scores.jsonl")
        assert len(scores) == record["n_held_out"]
        assert sum(s["results"] for s in scores) / len(scores) == pytest.approx(record["accuracy"])
        for file in (
            "adapter/adapter_config.json",
            "tokenizer.json",
            "rejected.jsonl",
            "trainer_log.jsonl",
            "phase.json",
        ):
            assert (folder / file).is_file()
        assert not list(folder.rglob("*.tmp"))
    assert (run / "phase3-visual" / "config.json").is_file() and not (run / "phase1-text" / "config.json").exists()
    assert (run / "config.yaml").is_file()


def test_phases_continue_one_adapter(run):
    """Keys stay; the projector is in it from phase 1, and moves in phase 3 alone; the trained tensors are float32."""
    phases = [weights(run / name) for name in ("phase1-text", "phase2-caption", "phase3-visual")]
    assert phases[0].keys() == phases[1].keys() == phases[2].keys()
    assert all(tensor.dtype == torch.float32 for tensor in phases[2].values())
    projector = [key for key in phases[0] if "projector" in key]
    lora = [key for key in phases[0] if "lora_" in key]
    assert projector and lora and not any("vision" in key for key in phases[0])
    for key in projector:
        assert torch.equal(phases[0][key], phases[1][key])
    assert not all(torch.equal(phases[1][key], phases[2][key]) for key in projector)
    for before, after in ((0, 1), (1, 2)):
        assert not all(torch.equal(phases[before][key], phases[after][key]) for key in lora)


def assert_scores_as_trained(folder: Path, world: Path, kind: str, tolerance: float = 1e-5) -> None:
    """The model in a phase's folder gives held-out pairs the scores that training wrote down, and knows their mean."""
    scorer, record = RewardScorer.from_pretrained(str(folder)), read_json(folder / "phase.json")
    assert (scorer.mean, scorer.std) == (record["reward_mean"], record["reward_std"])
    pairs = {row["id"]: row for row in read_lines(world / f"{kind}.jsonl")}
    for scored in read_lines(folder / "scores.jsonl")[:5]:
        pair = pairs[scored["id"]]
        image = str(world / pair["image"]) if "image" in pair else None
        found = scorer.score(pair["prompt"], [pair["chosen"], pair["rejected"]], images=image)
        assert found == pytest.approx([scored["scores_chosen"], scored["scores_rejected"]], abs=tolerance)


@pytest.mark.parametrize(("name", "kind"), [("phase1-text", "text"), ("phase3-visual", "visual")])
def test_a_phase_folder_scores_as_it_was_trained(run, world, name, kind):
    """One with an adapter alone, and the last, which is merged."""
    assert_scores_as_trained(run / name, world, kind)


def test_the_last_phase_keeps_its_adapter_too(run, world):
    merged = RewardScorer.from_pretrained(str(run / "phase3-visual"))
    adapted = RewardScorer.from_pretrained(BASE, adapter=str(run / "phase3-visual" / "adapter"))
    pair = read_lines(world / "visual.jsonl")[0]
    answers, picture = [pair["chosen"], pair["rejected"]], str(world / pair["image"])
    one, other = (scorer.score(pair["prompt"], answers, images=picture) for scorer in (merged, adapted))
    assert one == pytest.approx(other, abs=1e-5)


def test_the_card_gives_accuracy_with_its_interval(run):
    record = read_json(run / "phase3-visual" / "phase.json")
    low, high = record["accuracy_ci95"]
    told = f"{record['accuracy']:.3f} ({low:.3f} to {high:.3f}, n={record['n_held_out']})"
    assert f"Held-out accuracy {told}" in (run / "phase3-visual" / "README.md").read_text()
    assert all("train_loss" not in entry for entry in read_lines(run / "phase3-visual" / "trainer_log.jsonl"))


def test_finished_phases_are_not_run_again(run, settings, capsys):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("adapter_model.safetensors")}
    assert "phase 2 (caption) is finished" in output_of(capsys, main, f"out={run}", *settings)
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("adapter_model.safetensors")}


def test_other_settings_in_the_same_folder_are_refused(run, settings, capsys):
    message = error_line(capsys, main, f"out={run}", "seed=7", *settings)
    assert "begun with other settings (seed: 0, now 7)" in message and "give another out=" in message


def test_a_removed_phase_is_trained_again_to_the_same_bits(run, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(run, again)
    shutil.rmtree(again / "phase3-visual")
    assert main([f"recipe={run / 'config.yaml'}", f"out={again}"]) == 0
    assert same(weights(again / "phase3-visual"), weights(run / "phase3-visual"))
    first, second = (read_json(out / "phase3-visual" / "phase.json") for out in (run, again))
    assert without_times(first) == without_times(second)


def test_a_cut_off_checkpoint_is_passed_over(world, tmp_path, capsys):
    """Killed while saving: the newest checkpoint has no whole trainer_state.json; the one before it is used."""
    out = tmp_path / "cut"
    command = ["phase=1", f"out={out}", f"model={BASE}", f"text.data={world}/text.jsonl", "text.learning_rate=1e-3"]
    command += ["trainer.max_steps=6", "trainer.save_steps=2", "trainer.save_total_limit=3", "lora_r=4", *QUICK]
    assert main(command) == 0
    folder = out / "phase1-text"
    expected = weights(folder)
    for path in folder.iterdir():  # as it was before the phase had ended
        if path.name not in ("checkpoints", "settings.json", "trainer_log.jsonl", "rejected.jsonl"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    newest = max((folder / "checkpoints").iterdir(), key=lambda p: int(p.name.split("-")[1]))
    state = (newest / "trainer_state.json").read_text()
    (newest / "trainer_state.json").write_text(state[: len(state) // 2])
    printed = output_of(capsys, main, *command)
    assert f"{newest} was cut off" in printed and "checkpoints/checkpoint-" in printed
    assert same(weights(folder), expected)
    steps = [entry["step"] for entry in read_lines(folder / "trainer_log.jsonl")]
    assert steps == sorted(steps)


def test_a_checkpoint_may_go_while_training_goes_on_from_it(world, tmp_path, monkeypatch):
    """Interrupted in its third step, a run goes on from its second, whose checkpoint is removed as newer ones come."""
    command = ["phase=1", f"out={tmp_path}", f"model={BASE}", f"text.data={world}/text.jsonl", "lora_r=4", *QUICK]
    command += ["trainer.max_steps=6", "trainer.save_steps=1"]
    steps, inner = [], RewardTrainer.training_step

    def interrupted(*given):
        steps.append(given)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return inner(*given)

    with monkeypatch.context() as patch:
        patch.setattr(RewardTrainer, "training_step", interrupted)
        assert main(command) == 130
    checkpoints = tmp_path / "phase1-text" / "checkpoints"
    assert {path.name for path in checkpoints.iterdir()} == {"checkpoint-1", "checkpoint-2"}
    assert main(command) == 0
    assert {path.name for path in checkpoints.iterdir()} == {"checkpoint-5", "checkpoint-6"}
    assert [entry["step"] for entry in read_lines(tmp_path / "phase1-text" / "trainer_log.jsonl")][-1] == 6


def test_full_tuning_writes_full_checkpoints(world, tmp_path):
    out = tmp_path / "full"
    command = ["phase=1,3", "tuning=full", f"out={out}", f"model={BASE}", "trainer.max_steps=3"]
    data = [f"text.data={world}/text.jsonl", f"visual.data={world}/visual.jsonl"]
    assert main([*command, *data, *QUICK]) == 0
    for name, kind in (("phase1-text", "text"), ("phase3-visual", "visual")):
        assert_scores_as_trained(out / name, world, kind)
        assert (out / name / "modeling.py").is_file() and not (out / name / "adapter").exists()


def test_full_tuning_resumes_with_the_checkpoints_weights(world, tmp_path):
    """Cut off behind its last checkpoint, and between two: weights and record end bit-equal. The checkpoint's names
    are those of the base family, not of the reward model."""
    command = ["phase=3", "tuning=full", f"model={BASE}", f"visual.data={world}/visual.jsonl"]
    command += ["trainer.max_steps=6", "trainer.save_steps=3", "visual.learning_rate=1e-3", *QUICK]
    assert main([f"out={tmp_path / 'whole'}", *command]) == 0
    whole = tmp_path / "whole" / "phase3-visual"
    for cut in (6, 3):
        out = shutil.copytree(tmp_path / "whole", tmp_path / f"cut-at-{cut}")
        folder = out / "phase3-visual"
        for path in (folder / "phase.json", folder / "model.safetensors"):
            path.unlink()
        if cut == 3:
            shutil.rmtree(folder / "checkpoints" / "checkpoint-6")
        assert main([f"out={out}", *command]) == 0
        assert same(load_file(folder / "model.safetensors"), load_file(whole / "model.safetensors"))
        assert without_times(read_json(folder / "phase.json")) == without_times(read_json(whole / "phase.json"))


def test_the_best_checkpoint_is_loaded_with_all_its_weights(world, tmp_path):
    out = tmp_path / "best"
    command = ["phase=3", "tuning=full", f"out={out}", f"model={BASE}", f"visual.data={world}/visual.jsonl", *QUICK]
    command += ["trainer.max_steps=6", "trainer.save_steps=3", "visual.learning_rate=1e-3", "trainer.eval_steps=3"]
    command += ["trainer.eval_strategy=steps", "trainer.load_best_model_at_end=true"]
    assert main([*command, "trainer.metric_for_best_model=eval_loss"]) == 0
    folder = out / "phase3-visual"
    states = [read_json(path) for path in folder.glob("checkpoints/*/trainer_state.json")]
    best = max(states, key=lambda state: state["global_step"])["best_model_checkpoint"]
    assert same(load_file(folder / "model.safetensors"), load_file(Path(best) / "model.safetensors"))
    assert read_json(folder / "phase.json")["loss"] == pytest.approx(
        min(row["eval_loss"] for row in read_lines(folder / "trainer_log.jsonl") if "eval_loss" in row)
    )


def test_init_from_overrides_the_previous_phase(run, world, tmp_path, capsys):
    out = tmp_path / "from"
    command = ["phase=3", f"out={out}", f"model={BASE}", f"init_from={run / 'phase1-text'}"]
    assert f"from {run / 'phase1-text' / 'adapter'}" in output_of(
        capsys, main, *command, f"visual.data={world}/visual.jsonl", "trainer.max_steps=2", *QUICK
    )


def test_phases_go_on_from_a_full_checkpoint(run, world, settings, tmp_path):
    """init_from= a merged checkpoint: later phases put the adapter on *that* base, and the exported model scores the
    held-out pairs as training did."""
    from rovrm.merge import main as merge

    assert merge([f"model={run / 'phase1-text'}", f"out={tmp_path / 'merged'}"]) == 0
    out = tmp_path / "on"
    command = [f"out={out}", f"init_from={tmp_path / 'merged'}", *settings, "trainer.max_steps=3"]
    assert main(["phase=2..3", *command]) == 0
    assert_scores_as_trained(out / "phase3-visual", world, "visual")


def test_a_phase_belongs_to_what_it_started_from(settings, tmp_path, capsys):
    """Phase 3 alone, then all three in the same folder: the old phase 3 never saw the first two, and is refused; and
    1,3 leaves a caption phase in the folder out."""
    out = tmp_path / "order"
    command = [f"out={out}", *settings, "trainer.max_steps=1"]
    assert main(["phase=3", *command]) == 0
    message = error_line(capsys, main, "phase=1..3", *command)
    assert "phase3-visual was begun with other settings (start: " in message
    assert f"it started from {BASE} and would now start from {out / 'phase2-caption'};" in message
    shutil.rmtree(out / "phase3-visual")
    assert main(["phase=1..2", *command]) == 0
    assert f"from {out / 'phase1-text' / 'adapter'}" in output_of(capsys, main, "phase=1,3", *command)
    assert list(read_json(out / "summary.json")) == ["phase1-text", "phase3-visual"]


def test_a_phase_alone_starts_from_the_base(run, settings, tmp_path, capsys):
    """Beside finished phases too: it says so, its record stands alone, and it ends as in a folder of its own."""
    alone, beside, settings = tmp_path / "alone", tmp_path / "beside", [*settings, "trainer.max_steps=4"]
    for name in ("phase1-text", "phase2-caption", "split.json"):
        source = run / name
        shutil.copytree(source, beside / name) if source.is_dir() else shutil.copy(source, beside / name)
    assert "would continue it" not in output_of(capsys, main, "phase=3", f"out={alone}", *settings)
    shown = output_of(capsys, main, "phase=3", f"out={beside}", *settings)
    assert f"phase 3 (visual) starts from the base {BASE}, not from {beside / 'phase2-caption'}" in shown
    assert f"init_from={beside / 'phase2-caption'} would continue it" in shown
    assert same(weights(alone / "phase3-visual"), weights(beside / "phase3-visual"))
    assert list(read_json(beside / "summary.json")) == ["phase3-visual"]


def test_the_last_phase_of_a_full_run_is_no_baseline(run, settings, capsys):
    """Asked for alone it is refused, and says what it started from; continued by name it is the phase that is there."""
    message = error_line(capsys, main, "phase=3", f"out={run}", *settings)
    assert f"it started from phase 2 (caption) and would now start from {BASE}" in message
    assert "phase=1..3" in message and "give another out=" in message
    shown = output_of(capsys, main, "phase=3", f"out={run}", f"init_from={run / 'phase2-caption'}", *settings)
    assert "phase 3 (visual) is finished" in shown and "starts from the base" not in shown


def test_what_is_held_out_trains_in_no_phase_nor_later_run(world, settings, tmp_path, capsys):
    """eval_data of the visual phase among the caption rows, and another run with another seed that goes on from it."""
    held, captions, out, on = (tmp_path / name for name in ("held.jsonl", "captions.jsonl", "out", "on"))
    lines = [
        row | {"image": str(world / row["image"]), "caption": "Some shapes."}
        for row in read_lines(world / "visual.jsonl")
    ]
    write_lines(held, *lines[:20])
    write_lines(captions, *lines)
    command = [*settings, f"caption.data={captions}", "trainer.max_steps=1"]
    assert main(["phase=2..3", f"out={out}", f"visual.eval_data={held}", *command]) == 0
    record = read_json(out / "summary.json")["phase2-caption"]
    assert record["n_skipped"] == 20 and record["n_train"] + record["n_held_out"] == PAIRS - 20
    reasons = [row["reason"] for row in read_lines(out / "phase2-caption" / "rejected.jsonl")]
    assert len(reasons) == 20 and all("visual.eval_data has the same image" in reason for reason in reasons)
    assert main(["phase=2", f"out={on}", f"init_from={out / 'phase3-visual'}", "seed=4", *command]) == 0
    first, second = (read_json(folder / "split.json") for folder in (out, on))
    assert list(second) == ["phase2-caption", "init_from"]
    trained, not_trained = (
        {image for row in first["phase2-caption"][side] for image in row} for side in ("train", "held_out")
    )
    new = second["phase2-caption"]
    assert not_trained == {image for row in new["held_out"] for image in row}
    assert trained == {image for row in new["train"] for image in row} and len(new["left_out"]) == 20


def test_a_broken_model_is_no_finished_phase(world, tmp_path, capsys):
    out = tmp_path / "nan"
    command = ["phase=3", f"out={out}", f"model={BASE}", "visual.learning_rate=1e30"]
    assert (
        "not finite"
        in error_line(capsys, main, *command, f"visual.data={world}/visual.jsonl", "trainer.max_steps=4", *QUICK)
        and not (out / "phase3-visual" / "phase.json").exists()
    )


def test_a_phase_that_learned_nothing_says_so(tmp_path, capsys):
    """At a rate that moves nothing the accuracy is chance's; at one that breaks the head all rewards are equal."""
    data = [f"model={BASE}", "visual.data=world:visual?n=120", "eval_fraction=0.3", "trainer.max_steps=2", *QUICK]
    printed = output_of(capsys, main, "phase=3", f"out={tmp_path / 'still'}", "visual.learning_rate=1e-9", *data)
    assert "WARNING: visual: held-out accuracy" in printed and "cannot be told from chance. Try" in printed
    record = read_json(tmp_path / "still" / "summary.json")["phase3-visual"]
    low, high = record["accuracy_ci95"]
    assert low < 0.5 < high and low < record["accuracy"] < high and len(record["warnings"]) == 1
    wild = ["tuning=full", "visual.learning_rate=1e4"]
    assert "WARNING: visual: all rewards on the held-out examples are equal (0)" in output_of(
        capsys, main, "phase=3", f"out={tmp_path / 'wild'}", *wild, *data
    )


def test_the_default_rate_learns_from_a_newcomers_file(tmp_path, capsys):
    """`rovrm.world write`, then `rovrm.train phase=3` with nothing but the data given (300 pairs, 100 held out)."""
    from rovrm.world import __main__ as world

    assert world.main(["write", f"out={tmp_path / 'data'}", "n=400", "seed=2"]) == 0
    command = [f"model={BASE}", f"visual.data={tmp_path / 'data' / 'visual.jsonl'}", "eval_fraction=0.25", "workers=0"]
    assert main(["phase=3", f"out={tmp_path / 'run'}", *command]) == 0
    record = read_json(tmp_path / "run" / "summary.json")["phase3-visual"]
    assert record["accuracy"] >= 0.8 and not record["warnings"]
    assert "learning rate 0.0003 x 38 steps = 0.011 (tuning=lora)" in output_of(
        capsys, main, "phase=3", f"out={tmp_path / 'dry'}", "dry_run=true", *command
    )


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["tuning=full", "visual.learning_rate=1e-4"]])
def test_bfloat16_learns_as_float32_does(tmp_path, more):
    """1,000 pairs, and 400 others to ask: chance is .5, and two standard errors are .02 at .95."""
    command = ["phase=3", f"model={BASE}", "visual.data=world:visual?n=1000", *QUICK, *more]
    accuracies = {}
    for dtype in ("float32", "bfloat16"):
        out = tmp_path / dtype
        held_out = "visual.eval_data=world:visual?n=400&seed=9"
        assert main([*command, held_out, f"dtype={dtype}", f"out={out}"]) == 0
        accuracies[dtype] = read_json(out / "summary.json")["phase3-visual"]["accuracy"]
        if not more:
            assert all(weight.dtype == torch.float32 for weight in weights(out / "phase3-visual").values())
    assert accuracies["bfloat16"] > 0.85 and abs(accuracies["bfloat16"] - accuracies["float32"]) < 0.04, accuracies


def test_other_data_do_not_go_on_from_a_checkpoint(world, tmp_path, capsys):
    out, file = tmp_path / "data", tmp_path / "text.jsonl"
    lines = (world / "text.jsonl").read_text().splitlines(keepends=True)
    file.write_text("".join(lines))
    command = ["phase=1", f"out={out}", f"model={BASE}", f"text.data={file}", "trainer.max_steps=4"]
    command += ["trainer.save_steps=2", "lora_r=4", *QUICK]
    assert main(command) == 0
    (out / "phase1-text" / "phase.json").unlink()  # as if it had been interrupted
    file.write_text("".join(lines[: PAIRS // 2]))
    assert "checkpoints made with another data" in error_line(capsys, main, *command)
    file.write_text("".join(lines))
    assert main(command) == 0


@pytest.fixture
def pictures(world, tmp_path) -> Path:
    """A copy of the visual pairs and their pictures, to change."""
    shutil.copytree(world / "images", tmp_path / "data" / "images")
    shutil.copy(world / "visual.jsonl", tmp_path / "data")
    return tmp_path / "data"


def forget(folder: Path, *keys: str) -> None:
    """As a version before these marks left it."""
    settings = read_json(folder / "settings.json")
    for key in keys:
        settings.pop(key, None)
        settings["plan"].pop(key, None)
    (folder / "settings.json").write_text(json.dumps(settings))


def test_other_pictures_do_not_go_on_from_a_checkpoint(pictures, tmp_path, capsys):
    """Under the same names. A run of before pictures were noted goes on, and says that it cannot tell."""
    out = tmp_path / "out"
    command = ["phase=3", f"out={out}", f"model={BASE}", f"visual.data={pictures}/visual.jsonl", "eval_fraction=0.2"]
    command += ["trainer.max_steps=4", "trainer.save_steps=2", *QUICK]
    assert main(command) == 0
    folder, expected = out / "phase3-visual", weights(out / "phase3-visual")
    (folder / "phase.json").unlink()  # as if it had been interrupted
    held = {pair["id"] for pair in read_lines(folder / "scores.jsonl")}
    path = next(pictures / pair["image"] for pair in read_lines(pictures / "visual.jsonl") if pair["id"] not in held)
    before = path.read_bytes()
    Image.new("RGB", (64, 64), "red").save(path)  # of the size of before, and on the same side of the split
    message = error_line(capsys, main, *command)
    assert "checkpoints made with another content of images" in message
    assert "restore the content of images, give another out=, or remove that folder" in message
    path.write_bytes(before)
    shutil.rmtree(folder / "checkpoints" / "checkpoint-4")
    forget(folder, "images", "weights")
    shown = output_of(capsys, main, *command)
    assert f"{folder} was made by a version that did not note its images: taken as unchanged" in shown
    assert f"{folder} was made by a version that did not note the weights of its base: taken as unchanged" in shown
    assert same(weights(folder), expected)
    assert "taken as unchanged" not in output_of(capsys, main, *command)  # noted now


def test_other_weights_of_the_base_are_other_settings(world, tmp_path, capsys):
    """Under the same name: refused, finished or not."""
    base, out = tmp_path / "base", tmp_path / "out"
    shutil.copytree(BASE, base)
    command = ["phase=1", f"out={out}", f"model={base}", f"text.data={world}/text.jsonl", "trainer.max_steps=1", *QUICK]
    assert main(command) == 0
    path = base / "model.safetensors"
    change_last_byte(path)
    assert "phase1-text was begun with other settings (weights: " in error_line(capsys, main, *command)
    forget(out / "phase1-text", "weights")
    assert "did not note the weights of its base: taken as unchanged" in output_of(capsys, main, *command)


def test_the_mark_of_weights_is_of_sizes_headers_and_samples(tmp_path):
    """Of small files every byte counts; of large ones an even part is read."""
    header = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    content = bytearray(len(header).to_bytes(8, "little") + header + bytes(60_000_000))
    path, marks = tmp_path / "model.safetensors", []
    changes = [(0, 0), (20, 1), (len(content) // 1024 * 1000, 1), (len(content), 1)]
    for place, value in changes:
        changed = content[:place] + bytes([value] if value else []) + content[place + bool(value) :]
        path.write_bytes(changed)
        marks.append(weights_mark(str(tmp_path)))
    assert len(set(marks)) == len(changes)
    path.write_bytes(content[:1000])
    small = weights_mark(str(tmp_path))
    path.write_bytes(content[:777] + b"1" + content[778:1000])
    assert weights_mark(str(tmp_path)) not in (small, *marks)


def test_a_run_of_before_splits_and_marks_goes_on(run, settings, tmp_path, capsys):
    """All phases, the last begun again: it ends in the same bits, and says what it does not know."""
    old = tmp_path / "old"
    shutil.copytree(run, old)
    (old / "split.json").unlink()
    for name in ("phase1-text", "phase2-caption", "phase3-visual"):
        forget(old / name, "images", "weights")
    for path in ("phase.json", "adapter", "scores.jsonl"):
        target = old / "phase3-visual" / path
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    shown = output_of(capsys, main, f"out={old}", *settings)
    assert "was begun by a version that kept no split.json" in shown and "taken as unchanged" in shown
    assert same(weights(old / "phase3-visual"), weights(run / "phase3-visual"))


def test_card_of_a_text_model_runs(family_folder, run, world, tmp_path):
    """The quick start in the card, run as it stands, gives the scorer's score; also for a text model."""
    out = tmp_path / "text"
    picture = str(world / read_lines(world / "visual.jsonl")[0]["image"])
    data = f"text.data={world}/text.jsonl"
    assert main(["phase=1", f"out={out}", f"model={family_folder('qwen2')}", data, "trainer.max_steps=1", *QUICK]) == 0
    folder = out / "phase1-text"
    for place, pictured in ((folder, False), (run / "phase3-visual", True)):
        code = (place / "README.md").read_text().split("```python\n")[1].split("```")[0]
        printed = []
        code = code.replace('"."', repr(str(place))).replace('"photo.jpg"', repr(picture))
        exec(code, {"print": printed.append})
        prompt, answer = ("What is on the table?", "A cup.") if pictured else ("What is 2 plus 3?", "It is 5.")
        images = picture if pictured else None
        expected = RewardScorer.from_pretrained(str(place)).score(prompt, [answer], images=images)
        assert printed == pytest.approx(expected, abs=1e-5)


def test_bfloat16_storage_prints_the_measured_change(world, tmp_path, capsys):
    out = tmp_path / "half"
    command = ["phase=3", f"out={out}", f"model={BASE}", "save_dtype=bfloat16", "trainer.max_steps=2"]
    assert "stored in bfloat16: the rewards of 7 fixed answers move by" in output_of(
        capsys, main, *command, f"visual.data={world}/visual.jsonl", *QUICK
    )
    stored = load_file(out / "phase3-visual" / "model.safetensors")
    assert stored.pop("score.weight").dtype == torch.float32
    assert all(tensor.dtype == torch.bfloat16 for tensor in stored.values())


def test_full_tuning_is_stored_in_bfloat16_too(world, tmp_path, capsys):
    """The last phase alone, which others start from; training goes on from it in float32."""
    out = tmp_path / "half"
    command = ["tuning=full", f"model={BASE}", "save_dtype=bfloat16", "trainer.max_steps=2", *QUICK]
    command += [f"text.data={world}/text.jsonl", f"visual.data={world}/visual.jsonl", "visual.learning_rate=1e-3"]
    assert (
        output_of(capsys, main, "phase=1,3", f"out={out}", *command).count(
            "stored in bfloat16: the rewards of 7 fixed answers move by"
        )
        == 1
    )
    assert {t.dtype for t in load_file(out / "phase1-text" / "model.safetensors").values()} == {torch.float32}
    folder = out / "phase3-visual"
    stored = load_file(folder / "model.safetensors")
    assert stored.pop("score.weight").dtype == torch.float32
    assert all(tensor.dtype == torch.bfloat16 for tensor in stored.values())
    assert (
        not (folder / "full.tmp").exists() and (folder / "README.md").is_file() and (folder / "modeling.py").is_file()
    )
    assert_scores_as_trained(folder, world, "visual", tolerance=0.05)
    on = tmp_path / "on"
    assert main(["phase=3", f"out={on}", f"init_from={folder}", *command, "save_dtype=float32"]) == 0
    assert {t.dtype for t in load_file(on / "phase3-visual" / "model.safetensors").values()} == {torch.float32}


# ---- no model given: the shipped default -----------------------------------------------------------------------------


def defaulted(*argv: str) -> TrainConfig:
    return with_default(parse(TrainConfig, list(argv), "train"), list(argv), "train")


def test_no_model_means_the_shipped_default(capsys):
    config = defaulted()
    assert "no model= given" in capsys.readouterr().out
    assert config.model == BASE and (Path(BASE) / "config.json").is_file()
    assert {key: getattr(config, key) for key in SETTINGS} == SETTINGS
    for name in NAMES:
        section = vars(getattr(config, name))
        assert section == vars(getattr(TrainConfig(), name)) | SECTIONS[name]
        assert section["data"] and all(source.startswith(f"world:{name}?") for source in section["data"])
    given = parse(TrainConfig, ["model=some/where"], "train")
    assert with_default(given, ["model=some/where"], "train") == with_rates(given)
    assert not capsys.readouterr().out


def test_given_keys_win_over_the_shipped_default(tmp_path):
    """Also those given with the value that they have when a model is given, and those of a recipe."""
    usual = TrainConfig()
    argv = ["visual.epochs=1", "text.learning_rate=2e-5", "caption.data=mine.jsonl", "seed=3"]
    config = defaulted(*argv, "eval_fraction=0.3")
    assert (config.model, config.seed, config.eval_fraction) == (BASE, 3, 0.3)
    assert vars(config.visual) == vars(usual.visual) | SECTIONS["visual"] | {"epochs": 1.0}
    assert vars(config.text) == vars(usual.text) | SECTIONS["text"] | {"learning_rate": 2e-5}
    assert vars(config.caption) == vars(usual.caption) | SECTIONS["caption"] | {"data": ["mine.jsonl"]}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("visual:\n  epochs: 3\n  n: 7\ntext:\n  learning_rate: 0.5\n")
    config = defaulted(f"recipe={recipe}", "text.learning_rate=0.25")
    assert (config.visual.epochs, config.visual.n, config.text.learning_rate) == (3.0, 7, 0.25)
    assert config.visual.data == SECTIONS["visual"]["data"]


def test_dry_run_prints_and_writes_no_model(tmp_path, capsys):
    out = tmp_path / "dry"
    data = [f"{name}.data=world:{name}?n=60" for name in NAMES]
    printed = output_of(capsys, main, f"out={out}", "dry_run=true", "eval_fraction=0.2", *data, *QUICK)
    for part in (
        "no model= given",
        f"model {BASE}: rows are shared",
        "phase 1 (text)",
        "phase 2 (caption)",
        "phase 3 (visual)",
        "image tokens of a prompt",
        "tokens of a response",
        "optimizer steps",
        "GiB",
        "rank 0: '<s>USER:",
    ):
        assert part in printed
    assert not list(out.glob("phase*/adapter")) and not (out / "summary.json").exists()


# ---- two processes ---------------------------------------------------------------------------------------------------


def test_two_processes_match_one(tmp_path):
    """The same global batch, and an uneven last batch: losses agree to 1e-4."""
    common = [
        "phase=3",
        f"model={BASE}",
        "visual.data=world:visual?n=59",
        "visual.eval_data=world:visual?n=24&seed=9",
        "visual.learning_rate=1e-3",
        "lora_dropout=0",
    ]
    common += ["batch_size=4", "trainer.logging_steps=1", *QUICK]
    assert main([*common, f"out={tmp_path / 'one'}", "trainer.gradient_accumulation_steps=2"]) == 0
    assert "2 processes" in two_processes(main, [*common, f"out={tmp_path / 'two'}"], tmp_path / "log.txt")
    logs = [read_lines(tmp_path / name / "phase3-visual" / "trainer_log.jsonl") for name in ("one", "two")]
    one, two = ([entry for entry in log if "loss" in entry] for log in logs)
    assert len(one) == len(two) > 5
    for a, b in zip(one, two, strict=True):
        for key in ("loss", "accuracy", "margin", "mean_reward", "num_tokens"):
            assert a[key] == pytest.approx(b[key], abs=1e-4), (a["step"], key)
    records = [read_json(tmp_path / name / "phase3-visual" / "phase.json") for name in ("one", "two")]
    assert records[0]["loss"] == pytest.approx(records[1]["loss"], abs=1e-4)
    assert records[0]["n_train"] == records[1]["n_train"] and records[0]["n_train"] % 8  # uneven: 2 processes, 4 each
