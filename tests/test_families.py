"""The tiny checkpoints are real: their processors render and encode, their models see every image and every word."""

import pytest
import torch
from families import FAMILIES, TEXT_FAMILIES, VISION_FAMILIES, has_torchvision
from helpers import noise, read_json
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

PER_SHAPE = ("llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "idefics3", "smolvlm", "internvl")


def user(text, n_images=0):
    return {"role": "user", "content": [{"type": "image"}] * n_images + [{"type": "text", "text": text}]}


def assistant(text):
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


@pytest.fixture(scope="module")
def load(family_folder):
    loaded = {}

    def pair(name):
        if name not in loaded:
            text = name in TEXT_FAMILIES
            processor = (AutoTokenizer if text else AutoProcessor).from_pretrained(family_folder(name))
            model = (AutoModelForCausalLM if text else AutoModelForImageTextToText).from_pretrained(family_folder(name))
            loaded[name] = processor, model.eval()
        return loaded[name]

    return pair


def encode(processor, messages, images=None):
    rendered = processor.apply_chat_template(messages, tokenize=False)
    given = {"images": [images]} if images else {}
    return rendered, processor(text=[rendered], **given, return_tensors="pt")


def last_hidden(model, batch):
    with torch.inference_mode():
        output = model(**{k: v for k, v in batch.items() if k != "labels"}, output_hidden_states=True)
    assert torch.isfinite(output.logits).all()
    return output.hidden_states[-1][0, -1]


def moved(a, b):
    return ((a - b).norm() / a.norm()).item()


@pytest.mark.parametrize("n_images", [1, 2])
@pytest.mark.parametrize("name", VISION_FAMILIES)
def test_images_are_rendered_encoded_and_seen(load, name, n_images):
    processor, model = load(name)
    messages = [user("What is this?", n_images), assistant("A cup.")]
    images = [noise(seed) for seed in range(n_images)]
    rendered, batch = encode(processor, messages, images)
    assert rendered.count(processor.image_token) == n_images
    assert batch["input_ids"].shape[0] == 1 and batch["pixel_values"].is_floating_point()
    reference = last_hidden(model, batch)
    for swapped in range(n_images):
        other = [noise(99) if i == swapped else image for i, image in enumerate(images)]
        if name == "llava_mistral_sliding" and swapped < n_images - 1:
            continue  # out of the window's reach
        assert moved(reference, last_hidden(model, encode(processor, messages, other)[1])) > 1e-2


@pytest.mark.parametrize("name", FAMILIES)
def test_words_are_seen_and_text_alone_works(load, name):
    processor, model = load(name)
    if name == "paligemma":
        with pytest.raises(ValueError, match="`images` are expected"):
            encode(processor, [user("What?"), assistant("A cup.")])
        images = [noise(0)]
    else:
        images = None

    def hidden(word):
        content = f"{word}?" if name in TEXT_FAMILIES else user(f"{word}?", len(images or []))["content"]
        answer = "A cup." if name in TEXT_FAMILIES else assistant("A cup.")["content"]
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
        return last_hidden(model, encode(processor, messages, images)[1])

    assert moved(hidden("1"), hidden("2")) > 1e-2


@pytest.mark.parametrize("name", FAMILIES)
def test_checkpoint_is_small_float32_and_ordinary(load, family_folder, name):
    _, model = load(name)
    assert sum(p.numel() for p in model.parameters()) < 1_000_000
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not any((p == p.flatten()[0]).all() for p in model.parameters() if p.numel() > 1)
    config = read_json(family_folder(name) / "config.json")
    assert not any(key.endswith("attn_implementation") for key in config)
    assert (family_folder(name) / "model.safetensors").is_file()


@pytest.mark.parametrize("name", FAMILIES)
def test_chat_template_takes_turns_system_strings_and_generation_prompt(load, name):
    processor, _ = load(name)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "First question"},
        {"role": "assistant", "content": "First answer"},
        {"role": "user", "content": "Second question"},
    ]
    prompt = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    full = processor.apply_chat_template([*messages, {"role": "assistant", "content": "Second answer"}], tokenize=False)
    places = [full.index(m["content"]) for m in messages] + [full.index("Second answer")]
    assert places == sorted(places)
    assert not full.rstrip("\n").endswith("Second answer")  # an end-of-turn token follows
    if name != "llava_onevision":  # its prompt ends in "assistant\n", its answers start with "assistant \n"
        assert full.startswith(prompt)


@pytest.mark.parametrize("name", FAMILIES)
def test_tokenizer_survives_loading_and_takes_any_text(load, name):
    processor, _ = load(name)
    tokenizer = getattr(processor, "tokenizer", processor)
    text = "Grüße, 東京 and 🙂\n\n  two  spaces\tA cup's 2024!"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    built = FAMILIES[name]()[2]
    built = getattr(built, "tokenizer", built)
    for string in (text, "".join(tokenizer.all_special_tokens)):
        assert tokenizer(string)["input_ids"] == built(string)["input_ids"]


@pytest.mark.parametrize("name", PER_SHAPE)
def test_image_shape_changes_the_number_of_tokens(load, name):
    processor, _ = load(name)
    messages = [user("What?", 1)]
    square, wide = noise(0, (64, 64)), noise(0, (96, 32))
    lengths = [encode(processor, messages, [image])[1]["input_ids"].shape[1] for image in (square, wide)]
    assert lengths[0] != lengths[1] and max(lengths) < 100


def test_the_sliding_window_really_slides(load):
    """Two layers with windows of 16 look back 30 tokens; the twin without a window looks back all the way."""
    for name, sees in (("llava_mistral", True), ("llava_mistral_sliding", False)):
        processor, model = load(name)
        late = " word" * 40
        a, b = (encode(processor, [user(f"{first}{late}")])[1] for first in "12")
        assert a["input_ids"].shape == b["input_ids"].shape
        change = moved(last_hidden(model, a), last_hidden(model, b))
        assert (change > 1e-4) if sees else (change == 0)


def test_same_seed_same_weights(tmp_path, family_folder):
    from families import make_family
    from safetensors.torch import load_file

    once = load_file(family_folder("qwen2_vl") / "model.safetensors")
    again = load_file(make_family("qwen2_vl", tmp_path) / "model.safetensors")
    assert once.keys() == again.keys() and all(torch.equal(once[key], again[key]) for key in once)


@pytest.mark.skipif(has_torchvision(), reason="needs an environment without torchvision")
def test_the_video_stand_in_refuses_videos_and_names_the_real_class(load, family_folder):
    processor, _ = load("qwen2_vl")
    with pytest.raises(ImportError, match="video needs torchvision"):
        processor.video_processor("film.mp4")
    saved = read_json(family_folder("qwen2_vl") / "processor_config.json")
    assert saved["video_processor"]["video_processor_type"] == "Qwen2VLVideoProcessor"
