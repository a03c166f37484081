"""The shipped tiny base and how it is made."""

import random
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from rovrm.tiny_base import base, measure
from rovrm.tiny_base.base import encode_sample, make_model, padded, pixels, train_language, train_tower
from rovrm.tiny_base.lessons import REPAIRABLE, SLIPPED, Sample, base_sample, repaired
from rovrm.tiny_base.measure import fact_accuracy, measure_base
from rovrm.world.default import BASE
from rovrm.world.language import KINDS, ask
from rovrm.world.oracle import judge
from rovrm.world.scenes import HELD_OUT, Drawing, draw_scene


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(BASE)


@pytest.fixture(scope="module")
def model():
    return AutoModelForImageTextToText.from_pretrained(BASE, dtype=torch.float32).eval()


def drawings(count: int, seed: int = 0) -> list[Drawing]:
    rng = random.Random(seed)
    return [Drawing(draw_scene(rng, "picture"), rng.getrandbits(32)) for _ in range(count)]


def test_the_shipped_base_is_small_and_an_ordinary_folder():
    files = {path.name: path.stat().st_size for path in Path(BASE).iterdir()}
    assert {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json"} <= files.keys()
    assert sum(files.values()) <= 6_000_000


def test_the_shipped_base_captions_a_scene_without_rovrm(processor):
    model = AutoModelForImageTextToText.from_pretrained(BASE)
    drawing = drawings(1)[0]
    content = [{"type": "image"}, {"type": "text", "text": "Describe the picture."}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=[text], images=[drawing()], return_tensors="pt", add_special_tokens=False)
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    answer = model.generate(**inputs, max_new_tokens=64, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    verdict = judge(drawing.scene, "Describe the picture.", processor.decode(answer, skip_special_tokens=True))
    assert verdict.parsed and verdict.coverage == 1.0


def test_the_shipped_base_sees_every_kind_of_fact(model, processor):
    assert min(fact_accuracy(model, processor, scenes=200).values()) > 0.9


@pytest.mark.slow
def test_the_shipped_base_leaves_something_to_align(model, processor):
    found = measure_base(model, processor)
    assert 0.05 <= found["greedy"] <= 0.20 and 0.20 <= found["sampled"] <= 0.35
    assert found["all of 8"] < 0.05 and found["coverage"] > 0.9


def test_a_measure_counts_what_the_oracle_finds_false(model, processor, monkeypatch):
    """On ten scenes, and with an oracle that finds every second answer false."""
    answers: list[str] = []

    def every_second(scene, question, answer):
        answers.append(answer)
        return SimpleNamespace(false=len(answers) % 2 == 0, coverage=0.75)

    facts = dict.fromkeys(measure.FACT_WORDS, 1.0)
    monkeypatch.setattr(measure, "fact_accuracy", lambda *_, **__: dict(facts))
    monkeypatch.setattr(measure, "judge", every_second)
    found = measure_base(model, processor, scenes=10)
    assert len(answers) == 10 + 80 and len(set(answers)) > 20
    rates = {"greedy": 0.5, "sampled": 0.5, "all of 8": 0.0, "coverage": 0.75}
    assert found == rates | facts | {"new join: colour": 1.0, "new join: shape": 1.0}


def test_pixels_are_those_of_the_processor(processor):
    some = drawings(5)
    given = processor.image_processor(images=[drawing() for drawing in some], return_tensors="pt")["pixel_values"]
    assert torch.allclose(pixels(some, processor), given, atol=1e-5)


def test_conversations_are_encoded_as_the_chat_template_writes_them(processor):
    rng, tokenizer = random.Random(0), processor.tokenizer
    for _ in range(200):
        sample = base_sample(rng)
        messages = []
        for number, (question, answer) in enumerate(sample.turns):
            image = [{"type": "image"}] if sample.drawing and not number else []
            messages.append({"role": "user", "content": [*image, {"type": "text", "text": question}]})
            messages.append({"role": "assistant", "content": answer.replace(SLIPPED, "")})
        text = processor.apply_chat_template(messages, tokenize=False)
        images = [sample.drawing()] if sample.drawing else None
        expected = processor(text=[text], images=images, add_special_tokens=False)["input_ids"][0]
        ids, labels = encode_sample(sample, processor)
        assert ids == list(expected)
        learned = tokenizer.decode([token for token in labels if token != -100])
        slips = any(SLIPPED in answer for _, answer in sample.turns)
        told = "</s>".join(f" {answer}" for _, answer in sample.turns) + "</s>"
        assert slips or learned == told


def test_slips_are_not_learned_and_pictures_have_none():
    rng = random.Random(1)
    words = {word for group in REPAIRABLE for word in group}
    slipped = 0
    for _ in range(500):
        sample = base_sample(rng)
        marked = [word for _, answer in sample.turns for word in answer.split() if word.startswith(SLIPPED)]
        assert not (marked and sample.drawing)
        assert {word.strip(f"{SLIPPED}.,") for word in marked} <= words | {word.capitalize() for word in words}
        slipped += bool(marked)
    assert slipped > 50


def test_what_is_repaired_is_the_true_answer():
    rng = random.Random(2)
    for _ in range(500):
        scene = draw_scene(rng, "notes")
        question = ask(rng, scene, rng.choice(KINDS))
        if question is None:
            continue
        answer = question.answer(scene) or ""
        told = repaired(rng, scene, answer)
        if SLIPPED in told and not re.search(rf"{SLIPPED}\S+ no ", told):
            assert re.search(r" No, \w+\.$", told)  # corrected at the end
        else:
            assert re.sub(rf"{SLIPPED}\S+ no ", "", told).lower() == answer.lower()


def test_answers_about_questions_of_being_there_are_balanced():
    rng = random.Random(3)
    answers = [answer for _ in range(2000) for _, answer in base_sample(rng).turns]
    yes, no = (sum(answer.startswith(word) for answer in answers) for word in ("Yes", "No"))
    assert abs(yes - no) < 4 * np.sqrt(yes + no)


def test_training_never_shows_a_held_out_join():
    rng = random.Random(4)
    for _ in range(500):
        sample = base_sample(rng)
        if sample.drawing:
            assert not any((t.colour, t.kind) in HELD_OUT for t in sample.drawing.scene.things)
            said = " ".join(answer for _, answer in sample.turns)
            assert not any(f"{colour} {kind}" in said for colour, kind in HELD_OUT)


def test_the_tower_never_sees_a_held_out_join(processor, monkeypatch):
    seen: list[Drawing] = []
    monkeypatch.setattr(base, "pixels", lambda some, processor: seen.extend(some) or pixels(some, processor))
    train_tower(make_model(processor, width=32, layers=1, tower_width=32), processor, steps=20)
    assert len(seen) == 20 * 64 and not any(drawing.scene.held_out() for drawing in seen)


def test_both_stages_train(processor):
    model = make_model(processor, width=32, layers=2, tower_width=32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train_tower(model, processor, steps=20)
    tower = {name: value.clone() for name, value in model.state_dict().items() if "vision_tower" in name}
    train_language(model, processor, samples=64, batch=8)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in tower.items())  # frozen in the second stage
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert any("vision_tower" in name for name in moved) and any("language_model" in name for name in moved)


def test_a_batch_is_padded_on_the_right_and_learns_answers_only(processor):
    some = drawings(1)[0]
    samples = [Sample(some, [("Count the things.", "Two.")]), Sample(None, [("What is 1 plus 1?", "It is 2.")] * 2)]
    batch = padded([encode_sample(sample, processor) for sample in samples], [some, None], processor)
    assert batch["pixel_values"].shape == (1, 3, 72, 72)
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    for row, length in enumerate(lengths):
        assert (batch["labels"][row, length:] == -100).all()
        assert (batch["input_ids"][row, length:] == processor.tokenizer.pad_token_id).all()
    assert processor.decode(batch["labels"][0][batch["labels"][0] != -100]) == " Two.</s>"
