"""What the tiny base sees and how often it invents: printed by `python -m rovrm.world train` and `measure`.

    measure_base(model, processor)      # {"colour": ..., "greedy": ..., "sampled": ..., ...}

Rates are shares of scenes; the oracle reads the answers.
"""

import random
from typing import Any

import torch

from rovrm.data.example import Example
from rovrm.data.images import ImageRef
from rovrm.model.policy import Policy
from rovrm.tiny_base.base import encode_sample, padded
from rovrm.tiny_base.lessons import Sample
from rovrm.world.language import DESCRIBE, describe
from rovrm.world.oracle import judge
from rovrm.world.scenes import COLOURS, COLUMNS, ROWS, SHAPES, SIZES, Drawing, draw_scene

FACT_WORDS = {
    "size": SIZES,
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "row": ROWS,
    "column": COLUMNS,
}
BATCH = 100  # scenes read at once
AT_ONCE = 50  # scenes answered about at once
SAMPLES = 8  # answers per scene at temperature 1


@torch.inference_mode()
def fact_accuracy(
    model: Any, processor: Any, scenes: int = 500, seed: int = 1, held_out: bool = False
) -> dict[str, float]:
    """Top-1 accuracy of the next token at every word that states a fact, in true descriptions of unseen scenes."""
    rng, tokenizer = random.Random(f"facts:{seed}"), processor.tokenizer
    name_of = {}  # token -> what kind of fact it states; each of these words is one token
    for name, words in FACT_WORDS.items():
        for word in words:
            name_of[tokenizer.encode(f" {word}")[0]] = name
    right, seen = dict.fromkeys(FACT_WORDS, 0), dict.fromkeys(FACT_WORDS, 0)
    for _ in range(0, scenes, BATCH):
        drawings = [Drawing(draw_scene(rng, "picture", held_out), rng.getrandbits(32)) for _ in range(BATCH)]
        samples = []
        for drawing in drawings:
            question = rng.choice(DESCRIBE["picture"])
            samples.append(Sample(drawing, [(question, describe(drawing.scene, wording=rng.randrange(3)))]))
        batch = padded([encode_sample(sample, processor) for sample in samples], list(drawings), processor)
        labels = batch.pop("labels")[:, 1:].flatten().tolist()
        guesses = model(**batch).logits[:, :-1].argmax(-1).flatten().tolist()  # of the token behind each
        for token, guess in zip(labels, guesses, strict=True):
            if token in name_of:
                seen[name_of[token]] += 1
                right[name_of[token]] += int(token == guess)
    return {name: right[name] / max(seen[name], 1) for name in FACT_WORDS}


def measure_base(model: Any, processor: Any, scenes: int = 400, seed: int = 2) -> dict[str, float]:
    """Fact accuracies, also on joins of colour and shape that no training scene holds; the share of scenes whose
    description states something false, greedy and at temperature 1; the share of scenes in which all samples are false;
    the coverage of the samples."""
    rates = fact_accuracy(model, processor)
    for name, rate in fact_accuracy(model, processor, held_out=True).items():
        if name in ("colour", "shape"):
            rates[f"new join: {name}"] = rate

    rng = random.Random(f"describe:{seed}")
    drawings = [Drawing(draw_scene(rng, "picture"), rng.getrandbits(32)) for _ in range(scenes)]
    questions = [rng.choice(DESCRIBE["picture"]) for _ in drawings]
    examples = [picture_example(drawing, text) for drawing, text in zip(drawings, questions, strict=True)]
    policy = Policy(model, processor)
    greedy, sampled = [], []  # per scene the verdicts of its answers
    for start in range(0, scenes, AT_ONCE):
        batch = examples[start : start + AT_ONCE]
        for verdicts, n, temperature in ((greedy, 1, 0.0), (sampled, SAMPLES, 1.0)):
            answers = policy.sample(batch, n, temperature=temperature, max_new_tokens=96, seed=start)
            for number, candidates in enumerate(answers, start):
                scene, question = drawings[number].scene, questions[number]
                verdicts.append([judge(scene, question, candidate.text) for candidate in candidates])
    every_sample = [verdict for of_scene in sampled for verdict in of_scene]
    rates["greedy"] = sum(verdict.false for [verdict] in greedy) / scenes
    rates["sampled"] = sum(verdict.false for verdict in every_sample) / scenes / SAMPLES
    rates[f"all of {SAMPLES}"] = sum(all(verdict.false for verdict in of_scene) for of_scene in sampled) / scenes
    rates["coverage"] = sum(verdict.coverage for verdict in every_sample) / len(every_sample)
    return rates


def picture_example(drawing: Drawing, text: str) -> Example:
    """A prompt about a picture, without answers."""
    prompt = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
    return Example(text, "world", prompt, [""], [0], [ImageRef(drawing=drawing)])
