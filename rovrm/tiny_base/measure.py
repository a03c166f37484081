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
from rovrm.tiny_base.base import encode, padded
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


@torch.inference_mode()
def fact_accuracy(
    model: Any, processor: Any, scenes: int = 500, seed: int = 1, held_out: bool = False
) -> dict[str, float]:
    """Top-1 accuracy of the next token at every word that states a fact, in true descriptions of unseen scenes."""
    rng, tokenizer = random.Random(f"facts:{seed}"), processor.tokenizer
    owner = {tokenizer.encode(f" {word}")[0]: name for name, words in FACT_WORDS.items() for word in words}
    right, seen = dict.fromkeys(FACT_WORDS, 0), dict.fromkeys(FACT_WORDS, 0)
    for _ in range(0, scenes, 100):
        drawings = [Drawing(draw_scene(rng, "picture", held_out), rng.getrandbits(32)) for _ in range(100)]
        samples = [
            Sample(d, [(rng.choice(DESCRIBE["picture"]), describe(d.scene, wording=rng.randrange(3)))])
            for d in drawings
        ]
        batch = padded([encode(sample, processor) for sample in samples], list(drawings), processor)
        labels = batch.pop("labels")
        guessed = model(**batch).logits[:, :-1].argmax(-1)
        for token, guess in zip(labels[:, 1:].flatten().tolist(), guessed.flatten().tolist(), strict=True):
            if token in owner:
                seen[owner[token]] += 1
                right[owner[token]] += token == guess
    return {name: right[name] / max(seen[name], 1) for name in FACT_WORDS}


def measure_base(model: Any, processor: Any, scenes: int = 400, seed: int = 2) -> dict[str, float]:
    """Fact accuracies, and the share of scenes whose description states something false: greedy and at temperature 1;
    coverage of the sampled ones, and the share of scenes in which all of 8 samples are false."""
    found = fact_accuracy(model, processor)
    found |= {
        f"new join: {k}": v
        for k, v in fact_accuracy(model, processor, held_out=True).items()
        if k in ("colour", "shape")
    }
    rng = random.Random(f"describe:{seed}")
    drawings = [Drawing(draw_scene(rng, "picture"), rng.getrandbits(32)) for _ in range(scenes)]
    asked = [rng.choice(DESCRIBE["picture"]) for _ in drawings]
    examples = [picture_example(d, text) for d, text in zip(drawings, asked, strict=True)]
    policy = Policy(model, processor)
    false: dict[str, list[list[bool]]] = {"greedy": [], "sampled": []}
    covered: list[float] = []
    for start in range(0, scenes, 50):
        some = examples[start : start + 50]
        for name, n in (("greedy", 1), ("sampled", 8)):
            answers = policy.sample(some, n, temperature=float(n > 1), max_new_tokens=96, seed=start)
            for number, many in enumerate(answers, start):
                verdicts = [judge(drawings[number].scene, asked[number], answer.text) for answer in many]
                false[name].append([v.false for v in verdicts])
                covered += [v.coverage for v in verdicts] if n > 1 else []
    return found | {
        "greedy": sum(map(sum, false["greedy"])) / scenes,
        "sampled": sum(map(sum, false["sampled"])) / scenes / 8,
        "all of 8": sum(map(all, false["sampled"])) / scenes,
        "coverage": sum(covered) / len(covered),
    }


def picture_example(drawing: Drawing, text: str) -> Example:
    """A prompt about a picture, without answers."""
    prompt = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
    return Example(text, "world", prompt, [""], [0], [ImageRef(drawing=drawing)])
