"""CLIP as CSR's calibrator: on a folder in the format of openai/clip-vit-large-patch14-336, and the world's own."""

import json
import random
from pathlib import Path

import pytest
import torch
from helpers import refused
from transformers import CLIPConfig, CLIPModel, CLIPProcessor

from rovrm.alignment.calibrators import ClipCalibrator, Partial
from rovrm.data.loading import load_examples
from rovrm.tiny_base.clip import clauses_of, make_clip
from rovrm.world.__main__ import main as world
from rovrm.world.language import describe
from rovrm.world.scenes import draw_scene

LEGACY_END = 2  # eos_token_id in OpenAI's config.json, which is another token: CLIP then reads at the highest id


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """A folder as the hub's: slow tokenizer files and preprocessor_config.json."""
    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
    names = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(names | {"unk_token": "<|endoftext|>", "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"})
    )
    sizes = {"crop_size": 32, "size": 32, "image_mean": [0.48] * 3, "image_std": [0.27] * 3, "resample": 3}
    steps = dict.fromkeys(("do_center_crop", "do_normalize", "do_resize"), True)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(sizes | steps | {"feature_extractor_type": "CLIPFeatureExtractor"})
    )
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = small | {"vocab_size": len(tokens), "eos_token_id": LEGACY_END, "max_position_embeddings": 77}
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(text_config=text, vision_config=small | {"image_size": 32, "patch_size": 8}, projection_dim=8)
    )
    model.save_pretrained(folder)
    return folder


def examples(count: int = 2):
    return load_examples(f"world:visual?n={count}&questions=describe").examples


def test_scores_are_100_cosines_and_none_below_0(clip):
    texts = ["a cat", "b c d", "cat cat cat", "z"]
    scores = ClipCalibrator(str(clip)).scores(examples(), [[Partial("", text, text) for text in texts]] * 2)
    model, processor = CLIPModel.from_pretrained(clip), CLIPProcessor.from_pretrained(clip)
    for example, found in zip(examples(), scores, strict=True):
        inputs = processor(text=texts, images=example.images[0].open(), padding=True, return_tensors="pt")
        with torch.no_grad():
            output = model(**inputs)
        cosines = output.logits_per_image[0] / model.logit_scale.exp()  # transformers' own
        assert found == pytest.approx((100 * cosines).clamp_min(0).tolist(), abs=1e-4)


def test_what_is_longer_than_it_reads_is_cut_and_counted(clip):
    calibrator = ClipCalibrator(str(clip))
    long = " ".join("abcd" * 30)
    [[cut, longer]] = calibrator.scores(examples(1), [[Partial("", long, ""), Partial("", long + " z", "")]])
    assert calibrator.truncated == 2 and cut == longer


def test_what_is_no_clip_is_refused(tmp_path):
    assert "is no CLIP model" in refused(lambda: ClipCalibrator(str(tmp_path)))


def test_the_worlds_clip_learns_which_clause_goes_with_a_picture(tmp_path, capsys):
    losses: list[str] = []
    make_clip(tmp_path, steps=30, report=losses.append)
    assert float(losses[-1].split()[-1]) < 5.2  # ln 128 = 4.85 is chance at the end, the first steps are above it
    [[right, _]] = ClipCalibrator(str(tmp_path)).scores(
        examples(1), [[Partial("", "a red ring", ""), Partial("", "", "")]]
    )
    assert 0 <= right <= 100
    assert world(["clip", f"out={tmp_path}"]) == 2 and "holds a model already" in capsys.readouterr().err


def test_clauses_are_the_parts_that_a_search_makes():
    scene = draw_scene(random.Random(0), "picture")
    text = describe(scene)
    parts = clauses_of(text)
    assert " ".join(parts) == text and len(parts) == len(scene.things)
    assert all(part.endswith((",", " and", ".")) for part in parts)
