"""The embedded default of `python -m rovrm.train`: a tiny LLaVA with random weights and a few generated pairs.

It shows that everything runs, in a minute and without a download; a random base learns nothing worth quoting.
`write_demo(folder)` writes `base/` (an HF folder), `text.jsonl`, `caption.jsonl`, `visual.jsonl` and `images/`.
"""

import json
import random
import shutil
from pathlib import Path
from typing import Any

COLOURS = {"red": (214, 40, 40), "green": (44, 160, 44), "blue": (31, 90, 200), "yellow": (240, 200, 20)}
SHAPES = ("circle", "square", "triangle")
PLACES = ("left", "right")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ 'ASSISTANT: ' }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ 'USER: ' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for block in message['content'] %}"
    "{% if block['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ block['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ ' ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
)


def write_demo(folder: Path, pairs: int = 200, seed: int = 0) -> None:
    """Writes the tiny base and `pairs` preference pairs for each phase, the same for the same seed; whole or not at
    all."""
    temporary = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / "images").mkdir(parents=True)
    rng = random.Random(seed)
    scenes = [_scene(rng) for _ in range(pairs)]
    names = [f"images/{i:03d}.png" for i in range(pairs)]
    for scene, name in zip(scenes, names, strict=True):
        _draw(scene).save(temporary / name)
    pictured = list(zip(scenes, names, strict=True))
    rows = {
        "text": [_sum(rng) for _ in range(pairs)],
        "caption": [_pair(rng, s) | {"caption": _caption(s), "image": name} for s, name in pictured],
        "visual": [_pair(rng, s) | {"image": name} for s, name in pictured],
    }
    for name, content in rows.items():
        lines = [json.dumps({"id": f"{name}-{i}"} | row) for i, row in enumerate(content)]
        (temporary / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    corpus = [str(value) for content in rows.values() for row in content for value in row.values()]
    save_tiny_llava(temporary / "base", corpus, seed)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.replace(folder)


def save_tiny_llava(folder: Path, corpus: list[str], seed: int = 0) -> None:
    """A random LlavaForConditionalGeneration of about 0.2M parameters with its processor, as an ordinary HF folder."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaForConditionalGeneration

    processor = llava_processor(corpus, image_size=48, patch_size=16)
    vision = CLIPVisionConfig(
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=48,
        patch_size=16,
        initializer_range=0.1,
    )
    text = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=16384,
        initializer_range=0.1,  # so that random weights let words and images through to the head
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(llava_config(vision, text, processor))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def llava_config(vision: Any, text: Any, processor: Any) -> Any:
    """The LlavaConfig that joins a CLIP tower's and a Llama's config with the processor's token ids."""
    from transformers import LlavaConfig

    tokenizer = processor.tokenizer
    text.vocab_size = len(tokenizer)
    text.pad_token_id, text.bos_token_id = tokenizer.pad_token_id, tokenizer.bos_token_id
    text.eos_token_id = tokenizer.eos_token_id
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_layer=-1,
    )


def llava_processor(corpus: list[str], image_size: int, patch_size: int) -> Any:
    """A LlavaProcessor with a byte-level BPE tokenizer trained on `corpus`."""
    from transformers import CLIPImageProcessorPil, LlavaProcessor

    size = {"height": image_size, "width": image_size}
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=size, crop_size=size),
        tokenizer=_tokenizer(corpus),
        patch_size=patch_size,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        num_additional_image_tokens=1,
    )


def _tokenizer(corpus: list[str]):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<image>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="right",
    )


def _scene(rng: random.Random) -> list[tuple[str, str, str]]:
    """Two objects (colour, shape, place) of different shape and colour."""
    shapes, colours = rng.sample(SHAPES, 2), rng.sample(list(COLOURS), 2)
    return list(zip(colours, shapes, PLACES, strict=True))


def _draw(scene):
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (96, 72), (235, 235, 235))
    draw = ImageDraw.Draw(image)
    for colour, shape, place in scene:
        x, y, r = (26 if place == "left" else 70), 36, 18
        box, fill = (x - r, y - r, x + r, y + r), COLOURS[colour]
        if shape == "circle":
            draw.ellipse(box, fill=fill)
        elif shape == "square":
            draw.rectangle(box, fill=fill)
        else:
            draw.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=fill)
    return image


def _caption(scene) -> str:
    return "The picture shows " + " and ".join(f"a {c} {s} on the {p}" for c, s, p in scene) + "."


def _pair(rng: random.Random, scene) -> dict[str, str]:
    """A question about one object; the rejected answer takes the other object's colour or a colour that is absent."""
    colour, shape, _ = rng.choice(scene)
    wrong = rng.choice([c for c in COLOURS if c != colour])
    return {
        "prompt": f"What colour is the {shape}?",
        "chosen": f"The {shape} is {colour}.",
        "rejected": f"The {shape} is {wrong}.",
    }


def _sum(rng: random.Random) -> dict[str, str]:
    a, b = rng.randint(2, 49), rng.randint(2, 49)
    wrong = a + b + rng.choice([-10, -1, 1, 10])
    return {"prompt": f"What is {a} plus {b}?", "chosen": f"It is {a + b}.", "rejected": f"It is {wrong}."}
