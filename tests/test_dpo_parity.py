"""The loss and every gradient of DPO and IPO against TRL's own DPOTrainer, on text, pictures and both."""

import copy
import os

import pytest
import torch
from datasets import Dataset
from helpers import REAL, noise
from peft import get_peft_model

from rovrm.alignment.objectives import Objective
from rovrm.alignment.reference import answer_logps, set_reference
from rovrm.alignment.trainer import PolicyTrainer
from rovrm.data.example import Example
from rovrm.data.images import ImageRef
from rovrm.data.loading import load_examples
from rovrm.model.adapters import lora_config
from rovrm.model.chat import prepare_template
from rovrm.model.likelihood import load_policy_model
from rovrm.model.loading import load_processor
from rovrm.training.trainer import RewardConfig

ANSWERS = [
    ("A red cup stands on it.", "A blue cup."),
    ("Two dogs.", "A cat, and three dogs are there."),
    ("No.", "Yes."),
]
MIXES = {"pictures": [True, True, True], "text": [False, False, False], "both": [True, False, True]}


def examples(mix: str) -> list[Example]:
    made = []
    for i, ((chosen, rejected), pictured) in enumerate(zip(ANSWERS, MIXES[mix], strict=True)):
        images = [ImageRef(image=noise(i))] if pictured else []
        question = [{"role": "user", "content": f"What is on table {i}?"}]
        made.append(Example(f"e{i}", "test", question, [chosen, rejected], [0, 1], images))
    return made


def moved(model, seed: int):
    """The model with its weights moved a little, so that it is not its own reference."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return model


def trl_loss(folder, processor, data: list[Example], loss_type: str, tmp_path):
    """TRL's loss of one batch, and its gradients by name."""
    from transformers import AutoModelForImageTextToText
    from trl import DPOConfig, DPOTrainer

    rows = [
        {
            "images": [ref.open() for ref in example.images],
            "prompt": copy.deepcopy(example.prompt),
            "chosen": [{"role": "assistant", "content": example.responses[0]}],
            "rejected": [{"role": "assistant", "content": example.responses[1]}],
        }
        for example in data
    ]
    arguments = DPOConfig(
        output_dir=str(tmp_path),
        beta=0.3,
        loss_type=[loss_type],
        max_length=None,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        per_device_train_batch_size=len(rows),
    )
    reference = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    policy = moved(AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32), 1)
    pictured = Dataset.from_list([row for row in rows if row["images"]] or [rows[0] | {"images": [noise(0)]}])
    trainer = DPOTrainer(policy, reference, args=arguments, train_dataset=pictured, processing_class=processor)
    batch = trainer.data_collator(rows)
    policy.train()
    loss = trainer.compute_loss(policy, batch)
    loss.backward()
    return loss.item(), {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}


def our_loss(folder, processor, data: list[Example], loss_type: str, tmp_path):
    arguments = RewardConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    objective = Objective(loss_type, beta=0.3)
    policy = moved(load_policy_model(str(folder)), 1)
    trainer = PolicyTrainer(policy, arguments, data, None, processor, objective=objective)
    reference = load_policy_model(str(folder))
    set_reference(trainer.train_examples, answer_logps(reference, trainer.collator, trainer.train_examples))
    batch = trainer.collator(trainer.train_examples) | {"example_ids": torch.arange(len(data))}
    policy.train()
    loss = trainer.compute_loss(policy, batch)
    loss.backward()
    return loss.item(), {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "internvl"])
def test_loss_and_gradients_are_those_of_trl(family_folder, name, mix, tmp_path):
    folder = family_folder(name)
    processor = load_processor(str(folder))
    prepare_template(processor)
    if name == "llava":  # whose template leaves <s> to the tokenizer: TRL's collator for pictures would train without
        processor.chat_template = "{{ bos_token }}" + processor.chat_template
    for loss_type in ("sigmoid", "ipo") if mix == "both" else ("sigmoid",):
        theirs, their_gradients = trl_loss(folder, processor, examples(mix), loss_type, tmp_path)
        ours, our_gradients = our_loss(folder, processor, examples(mix), loss_type, tmp_path)
        assert ours == pytest.approx(theirs, rel=1e-5)
        size = torch.stack([gradient.norm() for gradient in their_gradients.values()]).norm()
        for parameter, gradient in their_gradients.items():  # some are zero but for rounding: biases of keys
            error = (our_gradients[parameter] - gradient).norm()
            assert error < 1e-5 * gradient.norm() + 1e-6 * size, (loss_type, parameter, error / gradient.norm())


# ---- real weights ----------------------------------------------------------------------------------------------------


def adapted(model):
    """The model with an adapter that is not zero, the same on every model of its kind."""
    torch.manual_seed(1)  # of A
    model = get_peft_model(model, lora_config(model, 8, 16, 0.0))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in sorted(model.named_parameters()):
        if "lora_B" in name:
            parameter.data = 0.02 * torch.randn(parameter.shape, generator=generator)
        parameter.requires_grad_("lora_" in name)
    return model


def named_gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.slow
def test_on_real_weights(tmp_path):
    """SmolLM2-135M-Instruct, of whose folder ROVRM_SMOLLM2 tells: short pairs, the gradients of an adapter."""
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer

    folder, file = os.environ.get("ROVRM_SMOLLM2", ""), REAL / "text_prefs" / "llamafactory_dpo_en_demo.json"
    if not folder or not file.is_file():
        pytest.skip("ROVRM_SMOLLM2 names no folder, or the real pairs are not there")
    pairs = sorted(load_examples(str(file)).examples, key=lambda e: len(str(e.prompt)) + sum(map(len, e.responses)))[:4]
    rows = [
        {
            "prompt": copy.deepcopy(pair.prompt),
            "chosen": [{"role": "assistant", "content": pair.responses[pair.ranks.index(0)]}],
            "rejected": [{"role": "assistant", "content": pair.responses[pair.ranks.index(1)]}],
        }
        for pair in pairs
    ]
    processor = load_processor(folder)
    common = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none", "bf16": False}
    common |= {"gradient_checkpointing": False, "per_device_train_batch_size": 4}
    policy = adapted(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    arguments = DPOConfig(**common, beta=0.3, max_length=None)
    data = Dataset.from_list(rows)
    trainer = DPOTrainer(policy, reference, args=arguments, train_dataset=data, processing_class=processor)
    theirs = trainer.compute_loss(policy.train(), next(iter(trainer.get_train_dataloader())))
    theirs.backward()

    model = load_policy_model(folder)
    trainer = PolicyTrainer(
        adapted(model), RewardConfig(**common), pairs, None, load_processor(folder), objective=Objective(beta=0.3)
    )
    plain = load_policy_model(folder)
    set_reference(trainer.train_examples, answer_logps(plain, trainer.collator, trainer.train_examples))
    batch = trainer.collator(trainer.train_examples) | {"example_ids": torch.arange(4)}
    ours = trainer.compute_loss(trainer.model.train(), batch)
    ours.backward()
    their_gradients, our_gradients = named_gradients(policy), named_gradients(trainer.model)
    assert their_gradients.keys() == our_gradients.keys() and len(our_gradients) > 300
    errors = [((our_gradients[n] - g).norm() / g.norm()).item() for n, g in their_gradients.items()]
    print(f"losses {theirs.item():.7f} and {ours.item():.7f}; worst gradient {max(errors):.1e} of {len(errors)}")
    assert abs(ours.item() - theirs.item()) < 3e-5 * theirs.item()  # of sums over hundreds of tokens
    assert max(errors) < 1e-3
