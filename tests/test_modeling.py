"""Reward models of every family: weights, keys, round trips, the head, and loading without rovrm."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from families import FAMILIES, TEXT_FAMILIES
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from rovrm.common.errors import UserError
from rovrm.model import modeling
from rovrm.model.adapters import adapted_base, load_adapter, lora_config, projector_names, set_trainable
from rovrm.model.loading import damaged, load_reward_model


def keys_of(folder) -> set[str]:
    with safe_open(Path(folder) / "model.safetensors", "pt") as file:
        return set(file.keys())


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_weights_are_the_language_models(family_folder, tmp_path, name):
    """Loaded tensors equal the LM's, not only in name; saved keys are the LM's plus score.weight; both read back."""
    folder = family_folder(name)
    auto = AutoModelForCausalLM if name in TEXT_FAMILIES else AutoModelForImageTextToText
    lm = auto.from_pretrained(folder)
    reward = load_reward_model(str(folder))
    own = dict(reward.named_parameters())
    for key, tensor in lm.named_parameters():
        if not key.startswith("lm_head"):
            assert torch.equal(own.pop(key), tensor), key
    assert set(own) == {"score.weight"}
    reward.save_pretrained(tmp_path)
    assert keys_of(tmp_path) - keys_of(folder) == {"score.weight"}
    assert all(key.endswith("lm_head.weight") for key in keys_of(folder) - keys_of(tmp_path))
    again = load_reward_model(str(tmp_path))
    for (key, tensor), (other_key, other) in zip(reward.named_parameters(), again.named_parameters(), strict=True):
        assert key == other_key and torch.equal(tensor, other)
    assert again.config.get_text_config().num_labels == again.config.num_labels == 1
    assert again.config.problem_type == "regression"
    assert type(again).__name__ == again.config.architectures[0]


def test_missing_weights_stop_the_load(family_folder, tmp_path):
    folder = family_folder("qwen2_5_vl")
    for file in folder.iterdir():
        if file.is_file() and file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    dropped = next(key for key in tensors if "layers.0" in key)
    save_file({k: v for k, v in tensors.items() if k != dropped}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="1 missing, such as .*layers.0"):
        load_reward_model(str(tmp_path))
    save_file(tensors | {"model.extra.weight": torch.zeros(2)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="1 unexpected, such as .*extra.weight"):
        load_reward_model(str(tmp_path))


def test_errors_name_the_model(tmp_path):
    with pytest.raises(UserError, match="folder without config.json"):
        load_reward_model(str(tmp_path))
    with pytest.raises(UserError, match="is no folder"):
        load_reward_model("./nowhere/at/all")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertForMaskedLM"]}))
    with pytest.raises(UserError, match="BertForMaskedLM"):
        load_reward_model(str(tmp_path))


def test_head_stays_float32(family_folder, tmp_path):
    load_reward_model(str(family_folder("llava"))).save_pretrained(tmp_path)
    saved = modeling.LlavaForSequenceClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    model = load_reward_model(str(family_folder("llava")), torch.bfloat16)
    assert model.score.weight.dtype == saved.score.weight.dtype == torch.float32
    assert model.get_decoder().embed_tokens.weight.dtype == torch.bfloat16
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert model(input_ids=ids).logits.dtype == torch.float32


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="NoSuchForConditionalGeneration"):
        _ = modeling.NoSuchForSequenceClassification
    with pytest.raises(AttributeError):
        _ = modeling.something_else


@pytest.mark.parametrize("name", ["llava", "qwen3_vl", "idefics3", "mllama", "llama"])
def test_lora_trains_the_language_model_score_and_projector(family_folder, name):
    from peft import get_peft_model

    for visual in (False, True):
        base = load_reward_model(str(family_folder(name)), torch.bfloat16)
        decoder = {id(p) for p in base.get_decoder().parameters()}
        names = projector_names(base)
        model = get_peft_model(base, lora_config(base, 4, 8, 0.0))
        set_trainable(model, visual=visual, full=False)
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        assert all(p.dtype == torch.float32 for p in trained.values())
        assert not any(id(p) in decoder for p in trained.values())
        lora = [n for n in trained if "lora_" in n]
        assert lora and all("language_model" in n or "text_model" in n or name == "llama" for n in lora)
        assert any(n.endswith("score.modules_to_save.default.weight") for n in trained)
        projected = [n for n in trained if any(f".{p}.modules_to_save" in n for p in names)]
        assert bool(projected) == (visual and name != "llama")
        others = set(trained) - set(lora) - set(projected)
        assert all("score" in n for n in others)


def test_full_tuning_leaves_the_vision_tower(family_folder):
    for visual in (False, True):
        model = load_reward_model(str(family_folder("qwen3_vl")))
        set_trainable(model, visual=visual, full=True)
        trained = {n for n, p in model.named_parameters() if p.requires_grad}
        assert "score.weight" in trained and "model.language_model.embed_tokens.weight" in trained
        tower = {n for n in trained if n.startswith("model.visual.")}
        assert all("merger" in n for n in tower) and bool(tower) == visual


def test_text_batches_touch_the_projector_with_zero(family_folder):
    model = load_reward_model(str(family_folder("llava")))
    set_trainable(model, visual=True, full=True)
    model.train()
    model(input_ids=torch.tensor([[5, 6, 7]])).logits.sum().backward()
    gradients = [p.grad for n, p in model.named_parameters() if "projector" in n]
    assert gradients and all(g is not None and g.abs().max() == 0 for g in gradients)


def test_bfloat16_weights_would_not_learn_at_the_papers_rate(family_folder):
    """Why every trained tensor is float32: at 1e-6 Adam steps vanish in bfloat16's rounding."""

    def moved(dtype):
        weight = torch.nn.Parameter(load_reward_model(str(family_folder("llama"))).score.weight.detach().to(dtype))
        before = weight.detach().clone()
        optimizer = torch.optim.AdamW([weight], lr=1e-6, weight_decay=0)
        for _ in range(50):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        return (weight.detach() != before).float().mean().item()

    assert moved(torch.float32) == 1.0
    assert moved(torch.bfloat16) < 0.5


def test_merge_equals_the_adapter(family_folder, tmp_path):
    from peft import get_peft_model

    folder = str(family_folder("llava"))
    torch.manual_seed(1)
    base = load_reward_model(folder)
    model = get_peft_model(base, lora_config(base, 4, 8, 0.0))
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.eval().save_pretrained(tmp_path)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        merged = adapted_base(folder, str(tmp_path)).merge_and_unload().eval()
        torch.testing.assert_close(merged(input_ids=ids).logits, expected, atol=1e-5, rtol=0)
        loaded = load_adapter(load_reward_model(folder), str(tmp_path), trainable=False).eval()
        assert torch.equal(loaded(input_ids=ids).logits, expected)


STRANGER = """
import json, sys, torch
assert "rovrm" not in sys.modules
from transformers import AutoModelForSequenceClassification
for folder in sys.argv[1:]:
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        print(json.dumps(model(**torch.load(folder + "/batch.pt")).logits.flatten().tolist()))
assert not any(name == "rovrm" or name.startswith("rovrm.") for name in sys.modules)
"""


def test_checkpoint_loads_without_rovrm(family_folder, tmp_path):
    """In a process that never imports rovrm, with an image, to 1e-6."""
    from PIL import Image
    from transformers import AutoProcessor

    folders, expected = [], []
    for name in ("llava", "qwen2_5_vl"):
        folder = tmp_path / name
        model, processor = (
            load_reward_model(str(family_folder(name))).eval(),
            AutoProcessor.from_pretrained(family_folder(name)),
        )
        model.save_pretrained(folder)
        content = [{"type": "image"}, {"type": "text", "text": "What?"}]
        text = processor.apply_chat_template([{"role": "user", "content": content}])
        batch = dict(processor(text=[text], images=[Image.new("RGB", (64, 48), (9, 90, 200))], return_tensors="pt"))
        torch.save(batch, folder / "batch.pt")
        with torch.no_grad():
            expected.append(model(**batch).logits.flatten().tolist())
        folders.append(str(folder))
    environment = os.environ | {"PYTHONPATH": "", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, *folders],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-6)


def test_a_missing_package_is_to_be_installed(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    remedies = {"needs the Torchvision library": "the index that torch came from", "needs timm": "install that package"}
    for words, remedy in remedies.items():
        message = str(damaged("cannot load the processor of", str(tmp_path), ("*token*",), ImportError(words)))
        assert words in message and remedy in message and "copy it again" not in message
