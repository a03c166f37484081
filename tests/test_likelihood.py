"""Log-probabilities of answers behind shared prompts against transformers' own classes, one conversation at a time."""

import pytest
import torch
from families import FAMILIES, has_torchvision
from helpers import REAL
from new_families import NEEDS_TORCHVISION, NEW_TEXT_FAMILIES, NEW_VISION_FAMILIES
from parity import ANSWERS, batches, max_images, noise_image
from test_prefix_states import TEMPLATES

from rovrm.common.errors import UserError
from rovrm.data.example import Example
from rovrm.model import likelihood
from rovrm.model.answer_collator import AnswerCollator
from rovrm.model.batches import LOSS_KEYS
from rovrm.model.chat import encode, prepare_template
from rovrm.model.likelihood import load_policy_model
from rovrm.model.loading import load_config, load_processor

NAMES = [name for name in (*FAMILIES, *NEW_VISION_FAMILIES, *NEW_TEXT_FAMILIES) if name != "paligemma"]
ABSENT = pytest.mark.skipif(not has_torchvision(), reason="its image processor needs torchvision")


def plain_class(folder):
    """The checkpoint in transformers' own class, as everybody else loads it."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(folder)
    auto = AutoModelForCausalLM if getattr(config, "vision_config", None) is None else AutoModelForImageTextToText
    return auto.from_pretrained(folder, dtype=torch.float32).eval()


def oracle(model, processor, chat, example: Example) -> list[tuple[float, int]]:
    """(log pi, tokens) of each answer, from the logits of its conversation alone: of what stands behind the tokens that
    the prompt with its generation prompt and all of the conversations begin with."""
    images = [ref.open() for ref in example.images]
    inputs = [encode(processor, [text], [images]) for text in chat.conversations(example)]
    prompt = encode(processor, [chat.prompt(example)], [images])["input_ids"][0].tolist()
    rows = [batch["input_ids"][0].tolist() for batch in inputs]
    start = 0
    while all(len(row) > start < len(prompt) and row[start] == prompt[start] for row in rows):
        start += 1
    found = []
    for batch, row in zip(inputs, rows, strict=True):
        with torch.no_grad():
            logps = model(**batch).logits[0].double().log_softmax(-1)
        of_answer = logps[torch.arange(start - 1, len(row) - 1), torch.tensor(row[start:], dtype=torch.long)]
        found.append((of_answer.sum().item(), len(of_answer)))
    return found


def logps_of(model, collator, examples):
    batch = collator(examples)
    output = model(**{key: value for key, value in batch.items() if key not in LOSS_KEYS})
    return output.logps, output.tokens, batch["list_ids"]


@pytest.mark.parametrize("name", [pytest.param(n, marks=ABSENT) if n in NEEDS_TORCHVISION else n for n in NAMES])
def test_log_probabilities_are_those_of_the_plain_class(family_folder, name):
    folder = family_folder(name)
    model, processor = load_policy_model(str(folder)).eval(), load_processor(str(folder))
    plain = plain_class(folder)
    for rows in ("auto", "separate"):
        collator = AnswerCollator(processor, model.config, rows)
        for examples in batches(model, processor, 6) if rows == "auto" else [batches(model, processor, 3)[0][:1]]:
            with torch.no_grad():
                found, tokens, list_ids = logps_of(model, collator, examples)
            for i, example in enumerate(examples):
                expected = oracle(plain, processor, collator.chat, example)
                of_example = zip(found[list_ids == i].tolist(), tokens[list_ids == i].tolist(), strict=True)
                for (logp, count), (want, length), answer in zip(of_example, expected, ANSWERS, strict=False):
                    assert count == length, (rows, example.id, answer)
                    assert logp == pytest.approx(want, rel=1e-5, abs=1e-4), (rows, example.id, answer)
    assert max_images(model) == 0 or len({round(logp, 3) for logp in found.tolist()}) > 1


def test_long_answers_are_computed_in_parts_with_the_same_gradients(family_folder, monkeypatch):
    folder = family_folder("llava")
    model, processor = load_policy_model(str(folder)).train(), load_processor(str(folder))
    collator = AnswerCollator(processor, model.config)
    [examples] = batches(model, processor, 4)
    found = []
    for limit in (likelihood.LOGITS, 5 * model.config.text_config.vocab_size):
        monkeypatch.setattr(likelihood, "LOGITS", limit)
        model.zero_grad()
        logps, _, _ = logps_of(model, collator, examples)
        (logps * torch.linspace(-1, 1, len(logps))).sum().backward()
        found.append((logps.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    (one, gradients), (other, in_parts) = found
    assert torch.allclose(one, other, rtol=1e-6)
    assert gradients.keys() == in_parts.keys()
    assert all(torch.allclose(gradients[n], in_parts[n], rtol=1e-4, atol=1e-5) for n in gradients)


def test_without_answer_starts_the_forward_is_the_models_own(family_folder):
    folder = family_folder("qwen2_vl")
    model, plain, processor = load_policy_model(str(folder)).eval(), plain_class(folder), load_processor(str(folder))
    [examples] = batches(model, processor, 2)
    chat = AnswerCollator(processor, model.config).chat
    inputs = encode(processor, [chat.prompt(examples[0])], [[ref.open() for ref in examples[0].images]])
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, plain(**inputs).logits)


def test_it_saves_as_the_plain_class(family_folder, tmp_path):
    folder = family_folder("llava")
    model = load_policy_model(str(folder))
    model.save_pretrained(tmp_path)
    saved, plain = plain_class(tmp_path), plain_class(folder)
    assert type(saved) is type(plain) and saved.config.architectures == plain.config.architectures
    for (name, one), (other_name, other) in zip(saved.named_parameters(), plain.named_parameters(), strict=True):
        assert name == other_name and torch.equal(one, other)


def test_models_that_give_no_likelihood_are_refused(family_folder, reward):
    with pytest.raises(UserError, match="is a reward model; give the language model"):
        load_policy_model(reward)
    with pytest.raises(UserError, match="sees those behind it"):
        load_policy_model(str(family_folder("paligemma")))


@pytest.mark.parametrize("name", TEMPLATES)
def test_under_real_templates_the_answer_is_the_answer(family_folder, name):
    """What counts is the answer with its end of turn, and nothing of the prompt: decoded, it begins with the answer,
    and the prompt before it ends where a policy begins to write."""
    file = REAL / "chat_templates" / TEMPLATES[name] / "chat_template.jinja"
    if not file.is_file():
        pytest.skip("the real chat templates are not there")
    processor = load_processor(str(family_folder(name)), str(file))
    prepare_template(processor)
    collator = AnswerCollator(processor, load_config(str(family_folder(name))))
    tokenizer = collator.tokenizer
    for images in (0, 1) if collator.image_token_id >= 0 else (0,):
        pictures = [noise_image(i) for i in range(images)]
        question = [{"role": "user", "content": "What is on the table?"}]
        example = Example("e", "test", question, ["A red cup.", "Two dogs, 3 cats!"], [0, 1], pictures)
        batch = collator([example])
        starts, owners = batch["answer_starts"], batch.get("owners", torch.arange(2))
        for i, answer in enumerate(example.responses):
            row = batch["input_ids"][owners[i]][batch["attention_mask"][owners[i]].bool()].tolist()
            if "owners" in batch:
                row += batch["answer_input_ids"][i][batch["answer_attention_mask"][i].bool()].tolist()
            start = int(starts[owners[i]])
            written = tokenizer.decode(row[start:])
            assert written.strip().startswith(answer), (images, written)
            ending = written.strip().removeprefix(answer).strip()
            assert ending and any(token in ending for token in tokenizer.added_tokens_encoder)
            prompt = tokenizer.decode(tokenizer.encode(collator.chat.prompt(example)), skip_special_tokens=True)
            before = tokenizer.decode(row[:start], skip_special_tokens=True)
            assert before.strip()[-20:] == prompt.strip()[-20:]
