"""Weights that are sharded over two processes, as FSDP2 does it: gradients, runs and checkpoints of one process."""

import json
import shutil

import pytest
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from families import FAMILIES, make_family
from helpers import QUICK, error_line, read_json, read_lines, two_processes
from peft import get_peft_model
from test_prefix_states import example
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers.modeling_layers import GradientCheckpointingLayer

from rovrm.model.adapters import lora_config
from rovrm.model.batches import LOSS_KEYS
from rovrm.model.collator import RewardCollator
from rovrm.model.loading import load_processor, load_reward_model
from rovrm.model.scorer import RewardScorer
from rovrm.train import main
from rovrm.training.losses import compare, preference_loss
from rovrm.training.sharding import layer_classes
from rovrm.world.default import BASE


def build(folder: str, lora: bool, checkpointing: bool):
    torch.manual_seed(0)  # of the head
    model = load_reward_model(folder).train()
    if lora:
        model = get_peft_model(model, lora_config(model, r=4, alpha=8, dropout=0.0))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.1)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def backward(model, collator, ranks: range) -> float:
    """Of examples with and without images, a batch for each rank, each with lengths of its own."""
    total = torch.zeros(())
    for rank in ranks:
        batch = collator([example(2, 1, 10 + rank), example(3, 1, 200 + rank), example(2, 0, 3 * 10**rank)])
        rewards = model(**{key: value for key, value in batch.items() if key not in LOSS_KEYS}).logits[:, 0]
        total = total + preference_loss(compare(rewards, batch["labels"], batch["list_ids"]), batch["margins"])
    total.backward()
    return total.item()


def gradients(model) -> dict[str, torch.Tensor]:
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            found[name] = parameter.grad.full_tensor() if hasattr(parameter.grad, "full_tensor") else parameter.grad
    return found


def sharded(model):
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("wrap, lora", [(sharded, False), (sharded, True), (DistributedDataParallel, False)])
def test_gradients_of_two_processes_are_those_of_one(tmp_path, wrap, lora: bool, checkpointing: bool):
    """The whole model, with the vision tower, of which LLaVA does not use the last layer."""
    folder = str(make_family("llava", tmp_path / "llava"))

    def main(argv: list[str]) -> int:
        distributed.init_process_group("gloo")
        rank = distributed.get_rank()
        alone = build(folder, lora, checkpointing)
        collator = RewardCollator(load_processor(folder), alone.config)
        assert collator.shared
        backward(alone, collator, range(2))
        together = wrap(build(folder, lora, checkpointing))
        for _ in range(2):  # DistributedDataParallel finds in the second step what the first left unfinished
            together.zero_grad()
            backward(together, collator, range(rank, rank + 1))
        expected = gradients(alone)
        found = {name.removeprefix("module."): gradient for name, gradient in gradients(together).items()}
        assert found.keys() <= expected.keys() and len(found) > len(expected) / 2
        largest = max(gradient.abs().max() for gradient in expected.values())
        for name, gradient in expected.items():  # both take the mean over processes
            gap = (found.get(name, torch.zeros(())) - gradient / 2).abs().max()
            assert gap < 1e-6 * largest, name
        print(f"{len(expected)} gradients agree")
        distributed.destroy_process_group()
        return 0

    assert two_processes(main, [], tmp_path / "log").count("gradients agree") == 2


# ---- rovrm.train with trainer.fsdp=true ------------------------------------------------------------------------------


def test_fsdp_is_refused_where_accelerate_would_not_shard(tmp_path, capsys, monkeypatch):
    command = ["phase=1", f"model={BASE}", f"out={tmp_path / 'run'}", "text.data=world:text?n=8", *QUICK]
    line = error_line(capsys, main, *command, "trainer.fsdp=true")
    assert "trainer.fsdp=True shards the weights over several GPUs, and this is a single process" in line
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # as accelerate's launcher sets it
    assert "ACCELERATE_USE_FSDP=true shards" in error_line(capsys, main, *command)
    monkeypatch.undo()

    def refusing(argv: list[str]) -> int:
        assert main(argv) == 2
        return 0

    printed = two_processes(refusing, [*command, "trainer.fsdp=true"], tmp_path / "log")
    assert "these processes run on the CPU; launch it on GPUs" in printed
    assert not list((tmp_path / "run").glob("phase*"))


def as_on_gpus(argv: list[str]) -> int:
    """The command in processes that tell accelerate they are on GPUs; they stay on the CPU, which FSDP2 can."""
    plain = PartialState.__init__

    def init(self, *args, **kwargs):
        plain(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = init
    return main(argv)


LORA, FULL = ["lora_r=4", "lora_dropout=0"], ["tuning=full", "text.learning_rate=1e-4", "visual.learning_rate=1e-4"]
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "more",
    [
        [*LORA, "trainer.activation_checkpointing=true"],
        [*FULL, "dtype=bfloat16"],
        pytest.param([*LORA, "dtype=bfloat16"], marks=SLOW),
        pytest.param([*LORA, "phase=1,3", "text.data=world:text?n=19"], marks=SLOW),
        pytest.param([*FULL, "phase=1,3", "text.data=world:text?n=19"], marks=SLOW),
    ],
)
def test_a_sharded_run_is_that_of_one_process(tmp_path, more):
    """The same losses, an uneven last batch among them, and checkpoints that hold every weight."""
    common = ["phase=3", f"model={BASE}", "visual.data=world:visual?n=27", "visual.eval_data=world:visual?n=9&seed=9"]
    common += ["visual.learning_rate=1e-3", "text.learning_rate=1e-3", "eval_fraction=0.3", "batch_size=4"]
    common += ["trainer.logging_steps=1", *QUICK, *more]
    assert main([*common, f"out={tmp_path / 'one'}", "trainer.gradient_accumulation_steps=2"]) == 0
    sharded = [*common, f"out={tmp_path / 'two'}", "trainer.fsdp=true"]
    assert "2 processes" in two_processes(as_on_gpus, sharded, tmp_path / "log")
    folders = [tmp_path / name / "phase3-visual" for name in ("one", "two")]
    one, two = ([entry for entry in read_lines(f / "trainer_log.jsonl") if "loss" in entry] for f in folders)
    exact = "dtype=bfloat16" not in more
    assert len(one) == len(two) > 2
    for a, b in zip(one, two, strict=True):
        for key in ("loss", "margin", "mean_reward", "grad_norm"):
            assert a[key] == pytest.approx(b[key], abs=1e-4 if exact else 0.05), (a["step"], key)
    rewards = [[line["scores_chosen"] for line in read_lines(f / "scores.jsonl")] for f in folders]
    assert rewards[0] == pytest.approx(rewards[1], abs=1e-4 if exact else 0.05)
    assert any(reward != torch.tensor(reward).bfloat16().item() for reward in rewards[1])  # none was rounded
    # It loads, keeps its promised rewards, and is what one process has trained.
    picture = [{"prompt": "What is it?", "responses": ["A cup.", "A dog."]}]
    scores = [RewardScorer.from_pretrained(f).score_batch(picture)[0] for f in folders]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4 if exact else 0.05)
    apart = ("checkpoints", "memory.json")  # the memory of a sharded step is not predicted
    names = [sorted(path.name for path in f.iterdir() if path.name not in apart) for f in folders]
    assert names[0] == names[1]
    assert read_json(folders[0] / "config.json")["auto_map"] == read_json(folders[1] / "config.json")["auto_map"]


@pytest.mark.parametrize("settings", [{"activation_checkpointing": True}, {"version": 1}])
def test_what_fsdp_would_do_wrong_is_refused(tmp_path, settings):
    file = tmp_path / "fsdp.json"
    file.write_text(json.dumps(settings))
    command = ["phase=1", f"model={BASE}", "text.data=world:text?n=8", f"out={tmp_path / 'run'}", "eval_fraction=0.3"]

    def refusing(argv: list[str]) -> int:
        assert as_on_gpus(argv) == 2
        return 0

    command += ["trainer.fsdp=true", f"trainer.fsdp_config={file}", *QUICK]
    printed = two_processes(refusing, command, tmp_path / "log")
    assert f"trainer.fsdp_config: {next(iter(settings))}" in printed


@SLOW
@pytest.mark.parametrize("tuning", [LORA, FULL])
@pytest.mark.parametrize("kind", ["FULL_STATE_DICT", "SHARDED_STATE_DICT"])
def test_a_sharded_run_goes_on_from_its_checkpoint(tmp_path, kind, tuning):
    """As one that was not interrupted."""
    file, out = tmp_path / "fsdp.json", tmp_path / "run"
    file.write_text(json.dumps({"state_dict_type": kind}))
    command = ["phase=3", f"model={BASE}", "visual.data=world:visual?n=48", "visual.learning_rate=1e-3", *tuning]
    command += ["batch_size=4", "trainer.save_steps=2", "trainer.fsdp=true", f"trainer.fsdp_config={file}"]
    command += ["trainer.activation_checkpointing=true", "eval_fraction=0.3", f"out={out}", *QUICK]
    two_processes(as_on_gpus, command, tmp_path / "log")
    folder = out / "phase3-visual"
    whole = read_lines(folder / "scores.jsonl")
    (folder / "phase.json").unlink()
    checkpoints = sorted((folder / "checkpoints").iterdir(), key=lambda path: int(path.name.split("-")[1]))
    shutil.rmtree(checkpoints.pop())
    printed = two_processes(as_on_gpus, command, tmp_path / "again")
    assert f"from {checkpoints[-1]}" in printed
    for one, two in zip(whole, read_lines(folder / "scores.jsonl"), strict=True):
        assert one["scores_chosen"] == pytest.approx(two["scores_chosen"], abs=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_each_layer_is_sharded_by_itself(family_folder, name):
    model = load_reward_model(str(family_folder(name)))
    adapted = get_peft_model(model, lora_config(model, r=4, alpha=8, dropout=0.0))
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
    plugin.transformer_cls_names_to_wrap = layer_classes(adapted)
    plugin.set_auto_wrap_policy(adapted)
    policy = fsdp2_prepare_auto_wrap_policy(plugin, adapted)
    assert all(policy(layer) for layer in model.get_decoder().layers)
