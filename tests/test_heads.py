"""Heads and adapters that others made, or that a trainer of others would lose: read as their makers read them, or
refused."""

from pathlib import Path

import pytest
import torch
from helpers import close, pairs, refused, write_adapter_phase, write_reward_model
from safetensors.torch import load_file, save_file

from rovrm.model.adapters import adapted_base, load_adapter
from rovrm.model.collator import give_pad_token
from rovrm.model.loading import load_processor, load_reward_model
from rovrm.model.scorer import RewardScorer
from rovrm.training.trainer import RewardConfig, RewardTrainer
from rovrm.world.default import BASE

PATH = "base_model.model."
LAYER = f"{PATH}model.language_model.layers.1."


def without(part: str):
    return lambda name: None if part in name else name


OTHERS = {
    "older layout": (
        lambda name: name.replace("model.language_model.", "language_model.model."),
        "unexpected, such as",
    ),
    "older projector": (
        lambda name: name.replace(f"{PATH}model.multi", f"{PATH}multi"),
        "multi_modal_projector.linear_1",
    ),
    "no layer": (without(LAYER), f"missing, such as {LAYER}"),
    "one weight less": (without("layers.0.mlp.down_proj.lora_B"), "1 weights missing, such as"),
    "no head": (without(".score."), "base_model.model.score.weight"),
    "no projector": (without("multi_modal_projector"), "multi_modal_projector"),
    "more": (lambda name: name.replace("layers.0.mlp.up_proj", "layers.7.mlp.up_proj"), "layers.7.mlp.up_proj"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_an_adapter_that_does_not_fit_is_refused_on_every_road(tmp_path, kind):
    rename, words = OTHERS[kind]
    file = write_adapter_phase(BASE, tmp_path) / "adapter" / "adapter_model.safetensors"
    weights = {rename(name): tensor for name, tensor in load_file(file).items() if rename(name)}
    save_file(weights, file)
    folder = str(file.parent)
    roads = (
        lambda: RewardScorer.from_pretrained(tmp_path, device="cpu"),
        lambda: load_adapter(load_reward_model(BASE), folder, trainable=True),
        lambda: adapted_base(BASE, folder),
    )
    for road in roads:
        refused(road, folder, "does not fit its model", words, "copy it again")


def test_an_adapter_of_another_shape_is_refused(tmp_path):
    file = write_adapter_phase(BASE, tmp_path) / "adapter" / "adapter_model.safetensors"
    save_file({name: torch.cat([tensor, tensor]) for name, tensor in load_file(file).items()}, file)
    refused(lambda: load_adapter(load_reward_model(BASE), str(file.parent), False), "does not fit its model")


@pytest.mark.parametrize("task", [None, "CAUSAL_LM", "FEATURE_EXTRACTION", "SEQ_CLS"])
def test_lora_of_any_task_type_trains_the_head_and_saves_it(tmp_path, task):
    from peft import LoraConfig

    lora = LoraConfig(target_modules=["q_proj", "v_proj"], task_type=task)
    args = RewardConfig(
        str(tmp_path), max_steps=2, learning_rate=1e-2, use_cpu=True, report_to="none", disable_tqdm=True
    )
    model = load_reward_model(BASE)
    before = model.score.weight.detach().clone()
    trainer = RewardTrainer(model, args, pairs(4), processing_class=load_processor(BASE), peft_config=lora)
    trainer.train()
    trainer.save_model(str(tmp_path / "out"))
    saved = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert not torch.equal(saved[f"{PATH}score.weight"], before)
    loaded = load_adapter(load_reward_model(BASE), str(tmp_path / "out"), trainable=False)
    assert torch.equal(loaded.base_model.model.score.weight, saved[f"{PATH}score.weight"])
    assert lora.task_type == task


def write_classifier(base: Path, folder: Path, labels: int = 1, **ids: int) -> str:
    """A text model with a head as transformers' own class saves it."""
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels)
    model.score.weight.data.normal_(std=0.3)
    for name, value in ids.items():
        setattr(model.config, name, value)
    model.save_pretrained(folder)
    load_processor(str(base)).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_classifier_of_others_is_read_where_its_own_class_reads_it_or_refused(family_folder, tmp_path, family):
    from transformers import AutoModelForSequenceClassification

    tokenizer = load_processor(str(family_folder(family)))
    ends = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}])
    ends = ends["input_ids"] if not isinstance(ends, list) else ends
    last = len(ends) - 1 if tokenizer.decode(ends[-1]).strip() else len(ends) - 2
    folder = write_classifier(family_folder(family), tmp_path / "eos", pad_token_id=ends[last])
    refused(
        lambda: RewardScorer.from_pretrained(folder, device="cpu"), folder, "as padding", "score it with transformers"
    )

    folder = write_classifier(family_folder(family), tmp_path / "pad", pad_token_id=tokenizer.bos_token_id or 0)
    scorer = RewardScorer.from_pretrained(folder, device="cpu", dtype="float32")
    own = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    [example] = scorer.measure([{"prompt": "Hi", "responses": ["Ho"]}])
    [text] = scorer.collator.chat.conversations(example)
    batch = tokenizer([text], return_tensors="pt", add_special_tokens=not text.startswith(tokenizer.bos_token or "\0"))
    with torch.no_grad():
        assert close(own(**batch).logits[0].tolist(), scorer.score("Hi", ["Ho"]))


@pytest.mark.parametrize("labels", [2, 3, 5])
def test_a_head_of_several_labels_is_refused_by_their_number(family_folder, tmp_path, labels):
    folder = write_classifier(family_folder("llama"), tmp_path, labels)
    refused(lambda: RewardScorer.from_pretrained(folder, device="cpu"), folder, f"num_labels={labels}", "num_labels=1")


@pytest.mark.parametrize("family", ["llama", "mllama", "qwen3"])
@pytest.mark.parametrize("pad", ["none", "eos"])
def test_no_checkpoint_of_ours_is_padded_with_the_end_of_turn(family_folder, tmp_path, family, pad):
    processor = load_processor(str(family_folder(family)))
    tokenizer = getattr(processor, "tokenizer", processor)
    tokenizer.pad_token = tokenizer.eos_token if pad == "eos" else None
    args = RewardConfig(str(tmp_path), max_steps=1, use_cpu=True, report_to="none", disable_tqdm=True)
    model = load_reward_model(str(family_folder(family)))
    trainer = RewardTrainer(model, args, pairs(4), processing_class=processor)
    trainer.train()
    trainer.save_model(str(tmp_path / "out"))
    saved = load_reward_model(str(tmp_path / "out")).config.get_text_config()
    assert saved.pad_token_id is None or saved.pad_token_id != tokenizer.eos_token_id


def test_the_token_that_pads(family_folder):
    tokenizer = load_processor(str(family_folder("llama")))
    size = len(tokenizer)
    tokenizer.pad_token = None
    give_pad_token(tokenizer)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id and len(tokenizer) == size
    before = tokenizer.pad_token = tokenizer.convert_ids_to_tokens(5)
    give_pad_token(tokenizer)
    assert tokenizer.pad_token == before


def test_a_reward_model_of_ours_with_the_end_of_turn_as_padding_is_read_as_before(family_folder, tmp_path):
    folder = write_reward_model(family_folder("llama"), tmp_path, spread=0.3)
    before = RewardScorer.from_pretrained(folder, device="cpu").score("Hi", ["Ho", "So"])
    model = load_reward_model(folder)
    model.config.pad_token_id = load_processor(folder).eos_token_id
    model.save_pretrained(folder)
    assert close(RewardScorer.from_pretrained(folder, device="cpu").score("Hi", ["Ho", "So"]), before)
