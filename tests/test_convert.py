"""`python -m rovrm.convert`, called as main(argv): what others' code says of a conversation, the converted folder says.

Their models are written here anew, after their code: the LLaVA of the RoVRM authors with `<image>` as one token that
the picture's patches replace and one state per text token, and TRL's former value head on a language model.
"""

import json
import pickle
import shutil

import pytest
import torch
from families import _randomise
from helpers import change_json, error_line, output_of, read_json
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    CLIPVisionModel,
    LlamaForCausalLM,
    LlavaConfig,
)

from rovrm import RewardScorer
from rovrm.convert import main

QUESTION, ANSWERS = "What is on the table?", ["A red cup.", "A red cup stands on the wooden table.", "", "Two dogs!"]
LINE = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
PICTURE = Image.radial_gradient("L").convert("RGB")


# ---- the authors' model ----------------------------------------------------------------------------------------------


class TheirTower(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.vision_model = CLIPVisionModel(config)  # its names had this level until transformers 5


class TheirProjector(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.linear_1 = nn.Linear(config.vision_config.hidden_size, config.text_config.hidden_size)
        self.linear_2 = nn.Linear(config.text_config.hidden_size, config.text_config.hidden_size)


class TheirLlava(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.image_token = config.image_token_index
        self.vision_tower = TheirTower(config.vision_config)
        self.multi_modal_projector = TheirProjector(config)
        self.language_model = LlamaForCausalLM(config.text_config)

    def forward(self, ids, pixels):
        """One last hidden state per token: that of the last patch for `<image>`. All attention masks are one."""
        states = self.vision_tower.vision_model(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        project = self.multi_modal_projector
        patches = project.linear_2(nn.functional.gelu(project.linear_1(states)))  # (rows, patches, hidden)
        words = self.language_model.get_input_embeddings()(ids)
        at = [row.tolist().index(self.image_token) for row in ids]
        merged = torch.stack([torch.cat([w[:i], p, w[i + 1 :]]) for w, p, i in zip(words, patches, at, strict=True)])
        hidden = self.language_model(inputs_embeds=merged, output_hidden_states=True).hidden_states[-1]
        skip = patches.shape[1] - 1
        return torch.stack([torch.cat([h[:i], h[i + skip :]]) for h, i in zip(hidden, at, strict=True)])


class TheirReward(nn.Module):
    def __init__(self, config, pad):
        super().__init__()
        self.v_head = nn.Linear(config.text_config.hidden_size, 1, bias=False)
        self.rwtranrsformer = TheirLlava(config)
        self.pad = pad

    @torch.no_grad()
    def forward(self, ids, pixels):
        values = self.v_head(self.rwtranrsformer(ids, pixels)).squeeze(-1)
        return torch.stack([v[(row != self.pad).nonzero()[-1].item()] for v, row in zip(values, ids, strict=True)])


def their_ids(tokenizer, image=True):
    """Their prompt and answers as one right-padded batch of token ids, `<image>` one token each."""
    prompt = f"{LINE} USER: {'<image>' + chr(10) if image else ''}{QUESTION} ASSISTANT:"
    rows = [tokenizer(prompt + answer)["input_ids"] for answer in ANSWERS]
    rows = [torch.tensor([*row, tokenizer.eos_token_id]) for row in rows]
    assert all(row[0] == tokenizer.bos_token_id for row in rows)
    return pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)


def write_shards(folder, weights, stem, save):
    """Two files and their index, as transformers and DeepSpeed write them."""
    folder.mkdir()
    name, kind = stem.split(".")
    place = {key: f"{name}-0000{1 + i % 2}-of-00002.{kind}" for i, key in enumerate(weights)}
    for file in set(place.values()):
        save({key: weights[key] for key in weights if place[key] == file}, folder / file)
    (folder / f"{stem}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": place}))
    return folder


@pytest.fixture(scope="module")
def release(family_folder, tmp_path_factory):
    """(their model, its weights as their code saves them, the folder of the LLaVA that it was trained from)"""
    base = family_folder("llava")
    config = LlavaConfig.from_pretrained(base)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = TheirReward(config, AutoTokenizer.from_pretrained(base).pad_token_id).eval()
    _randomise(model, 5)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    return model, weights, base


@pytest.fixture(scope="module")
def converted(release, tmp_path_factory):
    _, weights, base = release  # shards of safetensors and nothing else, as it was published
    folder = tmp_path_factory.mktemp("their")
    write_shards(folder / "in", weights, "model.safetensors", save_file)
    assert main([f"in={folder / 'in'}", f"base={base}", f"out={folder / 'out'}"]) == 0
    return folder / "out"


def pixels_of(base, picture=PICTURE):
    one = AutoProcessor.from_pretrained(base).image_processor(picture, return_tensors="pt")["pixel_values"]
    return one.expand(len(ANSWERS), -1, -1, -1)


def scores(folder, images=None):
    return torch.tensor(RewardScorer.from_pretrained(folder, device="cpu").score(QUESTION, ANSWERS, images=images))


def test_their_names_are_those_of_their_code(release):
    _, weights, _ = release
    for key in (
        "v_head.weight",
        "rwtranrsformer.vision_tower.vision_model.embeddings.patch_embedding.weight",
        "rwtranrsformer.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight",
        "rwtranrsformer.multi_modal_projector.linear_1.bias",
        "rwtranrsformer.language_model.model.layers.1.mlp.gate_proj.weight",
        "rwtranrsformer.language_model.lm_head.weight",
    ):
        assert key in weights


def test_release_gives_their_rewards(release, converted):
    model, _, base = release
    expected = model(their_ids(AutoTokenizer.from_pretrained(base)), pixels_of(base))
    found = scores(converted, PICTURE)
    assert expected.std() > 0.05 and (found - expected).abs().max() < 1e-5
    other = Image.linear_gradient("L").convert("RGB")
    moved = model(their_ids(AutoTokenizer.from_pretrained(base)), pixels_of(base, other))
    assert (moved - expected).abs().max() > 1e-3 and (scores(converted, other) - moved).abs().max() < 1e-5


def test_release_without_a_picture(release, converted):
    """Their code puts an all-zero picture there: our model of it is the same, our prompt has none."""
    model, _, base = release
    tokenizer = AutoTokenizer.from_pretrained(base)
    blank = torch.zeros_like(pixels_of(base))
    expected = model(their_ids(tokenizer), blank)
    scorer = RewardScorer.from_pretrained(converted, device="cpu")
    patches = 16
    for i, row in enumerate(their_ids(tokenizer)):
        ids = row[row != tokenizer.pad_token_id].tolist()
        at = ids.index(tokenizer.convert_tokens_to_ids("<image>"))
        ids = torch.tensor([ids[:at] + [ids[at]] * patches + ids[at + 1 :]])
        with torch.no_grad():
            found = scorer.model(input_ids=ids, pixel_values=blank[:1], attention_mask=torch.ones_like(ids)).logits
        assert (found[0, 0] - expected[i]).abs() < 1e-5
    near = scores(converted, Image.new("RGB", (32, 32), (123, 117, 104)))
    far = scores(converted, Image.new("RGB", (32, 32)))
    assert (near - expected).abs().max() < 0.2 * (far - expected).abs().max()

    ids = their_ids(tokenizer, image=False)
    with torch.no_grad():
        hidden = model.rwtranrsformer.language_model(ids, output_hidden_states=True).hidden_states[-1]
        values = model.v_head(hidden).squeeze(-1)
    alone = torch.stack([v[(row != model.pad).sum() - 1] for v, row in zip(values, ids, strict=True)])
    assert (scores(converted) - alone).abs().max() < 1e-5


@pytest.mark.parametrize("layout", ["whole", "shards"])
def test_release_in_pickles(release, converted, tmp_path, capsys, layout):
    _, weights, base = release
    old = "rwtranrsformer.vision_tower.vision_model.embeddings.position_ids"
    weights = {key: value.half() for key, value in weights.items()} | {old: torch.arange(17)[None]}
    folder = tmp_path / "in"
    if layout == "shards":
        write_shards(folder, weights, "pytorch_model.bin", torch.save)
    else:
        folder.mkdir()
        torch.save(weights, folder / "pytorch_model.bin")
    out = tmp_path / "out"
    printed = output_of(capsys, main, f"in={folder}", f"base={base}", f"out={out}")
    assert "RoVRM authors" in printed and "weights stay float16" in printed and f"wrote {out}" in printed
    *table, last = printed[printed.index("read back") :].splitlines()[1:]
    promised = [line["reward"] for line in read_json(out / "expected_rewards.json")["conversations"]]
    assert [float(line.split()[0]) for line in table] == pytest.approx(promised, abs=1e-4) and last == f"wrote {out}"
    stored = load_file(out / "model.safetensors")
    assert {w.dtype for key, w in stored.items() if key != "score.weight"} == {torch.float16}
    assert stored["score.weight"].dtype == torch.float32
    spread = scores(converted, PICTURE)
    assert 0 < (scores(out, PICTURE) - spread).abs().max() < 0.05 * spread.std()
    config = read_json(out / "config.json")
    assert config["architectures"] == ["LlavaForSequenceClassification"] and "reward_mean" not in config
    card = (out / "README.md").read_text()
    assert str(folder) in card and "llava prompt" in card and (out / "modeling.py").is_file()


def test_release_template(converted):
    processor = AutoProcessor.from_pretrained(converted)

    def render(*turns, **options):
        messages = [{"role": role, "content": content} for role, content in turns]
        return processor.apply_chat_template(messages, tokenize=False, **options)

    image, text = {"type": "image"}, {"type": "text", "text": "\nWhat is it?\n"}
    answer = [{"type": "text", "text": "A cup. "}]
    expected = f"{LINE} USER: <image>\nWhat is it? ASSISTANT:A cup. </s>"
    assert render(("user", [image, text]), ("assistant", answer)) == expected
    assert render(("user", [text, image]), ("assistant", "A cup. ")) == expected  # their code moves the image in front
    assert render(("user", "What is it?")) == f"{LINE} USER: What is it? ASSISTANT:"
    assert render(("system", "Be short."), ("user", "Hm?"), ("assistant", "No.")) == (
        "Be short. USER: Hm? ASSISTANT:No.</s>"
    )
    twice = render(("user", [image, text]), ("assistant", "Yes."), ("user", "Sure?"), ("assistant", "No."))
    assert twice == f"{LINE} USER: <image>\nWhat is it? ASSISTANT:Yes.</s>USER: Sure? ASSISTANT:No.</s>"
    assert (converted / "chat_template.jinja").read_text() == processor.chat_template


# ---- a language model with a value head ------------------------------------------------------------------------------


class TheirHead(nn.Module):
    """TRL's: a linear layer with a bias on the last hidden states, in the layer's own type."""

    def __init__(self, width, seed=7):
        super().__init__()
        self.summary = nn.Linear(width, 1)
        _randomise(self, seed)
        self.summary.bias.data.fill_(-1.75)

    @torch.no_grad()
    def forward(self, model, inputs):
        hidden = model(**inputs, output_hidden_states=True).hidden_states[-1].to(self.summary.weight.dtype)
        values = self.summary(hidden).squeeze(-1)
        return values.gather(-1, inputs["attention_mask"].sum(-1, keepdim=True) - 1).squeeze(-1)

    def keys(self):
        return {f"v_head.{key}": value.clone() for key, value in self.state_dict().items()}


def their_rewards(folder, head, image):
    """Theirs for each answer: the folder's own template, tokenizer and language model."""
    vision = image is not None
    auto = AutoModelForImageTextToText if vision else AutoModelForCausalLM
    model = auto.from_pretrained(folder, dtype=torch.float32).eval()
    processor = (AutoProcessor if vision else AutoTokenizer).from_pretrained(folder)
    found = []
    for answer in ANSWERS:
        question = [{"type": "image"}, {"type": "text", "text": QUESTION}] if vision else QUESTION
        said = [{"type": "text", "text": answer}] if vision else answer
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": said}]
        text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
        bos = getattr(processor, "tokenizer", processor).bos_token
        options = {"return_tensors": "pt", "add_special_tokens": not (bos and text.startswith(bos))}
        inputs = processor(text=[text], images=[image], **options) if vision else processor([text], **options)
        found.append(head(model, dict(inputs))[0])
    return torch.stack(found)


@pytest.mark.parametrize("family", ["qwen2_vl", "llava", "llama"])
def test_value_head_gives_their_rewards(family_folder, tmp_path, capsys, family):
    folder = shutil.copytree(family_folder(family), tmp_path / "in")
    head, image = TheirHead(32), None if family == "llama" else PICTURE
    save_file(head.keys(), folder / "value_head.safetensors", metadata={"format": "pt"})
    expected = their_rewards(folder, head, image)
    out = tmp_path / "out"
    printed = output_of(capsys, main, f"in={folder}", f"out={out}")
    assert "value head" in printed and "-1.75" in printed and "value_head_bias" in printed
    found = scores(out, image)
    assert expected.std() > 0.05 and (found + -1.75 - expected).abs().max() < 1e-5
    config = read_json(out / "config.json")
    assert config["value_head_bias"] == -1.75 and "reward_mean" not in config
    assert "lack its bias -1.75" in (out / "README.md").read_text()
    ours, theirs = RewardScorer.from_pretrained(out), AutoTokenizer.from_pretrained(folder)
    assert AutoTokenizer.from_pretrained(out).get_vocab() == theirs.get_vocab()
    assert ours.model.config.value_head_bias == -1.75


def test_value_head_in_bfloat16(family_folder, tmp_path, capsys):
    """The head among the weights, the weights in bfloat16 pickles: nothing is rounded, nothing stays behind."""
    folder = shutil.copytree(family_folder("llama"), tmp_path / "in")
    weights = {key: value.bfloat16() for key, value in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    head = TheirHead(32).bfloat16()
    head.summary.bias.data.zero_()
    torch.save(weights | head.keys(), folder / "pytorch_model.bin")
    assert "bias" not in output_of(capsys, main, f"in={folder}", f"out={tmp_path / 'out'}")
    stored = load_file(tmp_path / "out/model.safetensors")
    assert torch.equal(stored.pop("score.weight"), head.summary.weight.float())
    assert stored.keys() == {key for key in weights if key != "lm_head.weight"}
    assert all(torch.equal(value, weights[key]) for key, value in stored.items())
    assert "value_head_bias" not in read_json(tmp_path / "out/config.json")


def test_what_base_lends(family_folder, tmp_path):
    """A folder of weights and head alone takes config and processor from base; a file can replace the template."""
    base, folder = family_folder("llama"), tmp_path / "in"
    folder.mkdir()
    shutil.copy(base / "model.safetensors", folder)
    torch.save(TheirHead(32).keys(), folder / "value_head.bin")
    template = tmp_path / "plain.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}{{ eos_token }}")
    assert main([f"in={folder}", f"base={base}", f"out={tmp_path / 'out'}", f"chat_template={template}"]) == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == template.read_text()
    template.write_text("{{ strftime_now('%d %b %Y') }} " + template.read_text())  # as Llama 3.1's
    assert main([f"in={folder}", f"base={base}", f"out={tmp_path / 'dated'}", f"chat_template={template}"]) == 0
    [expected, *_] = read_json(tmp_path / "dated" / "expected_rewards.json")["conversations"]
    assert expected["text"].startswith("26 Jul 2024 What is")  # on every day


# ---- what is refused -------------------------------------------------------------------------------------------------


class Command:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.fixture
def refused(capsys, tmp_path):
    def check(*argv):
        out = [] if any(word.startswith("out=") for word in argv) else [f"out={tmp_path / 'new'}"]
        message = error_line(capsys, main, *argv, *out)
        assert not (tmp_path / "new").exists()
        return message

    return check


def test_refused_folders(family_folder, converted, tmp_path, refused):
    base, empty = family_folder("llama"), tmp_path / "empty"
    empty.mkdir()
    assert "hf download" in refused(f"in={tmp_path / 'missing'}")
    assert "no known layout" in refused(f"in={empty}") and "rwtranrsformer" in refused(f"in={empty}")
    assert "value_head.safetensors" in refused(f"in={base}") and "keys such as" in refused(f"in={base}")
    assert "has a score head already" in refused(f"in={converted}")
    assert "not an empty folder" in refused(f"in={base}", f"out={base}")
    (empty / "adapter_config.json").write_text("{}")
    assert "merge it first" in refused(f"in={empty}")


def test_refused_releases(release, family_folder, tmp_path, refused):
    _, weights, base = release
    folder = tmp_path / "in"
    folder.mkdir()

    def written(**changes):
        changed = weights | changes
        save_file({key: value for key, value in changed.items() if value is not None}, folder / "model.safetensors")
        return f"in={folder}", f"base={base}"

    norm = "rwtranrsformer.language_model.model.norm.weight"
    assert "base=llava-hf/llava-1.5-7b-hf" in refused(written()[0])
    assert "is a llama model" in refused(written()[0], f"base={family_folder('llama')}")
    assert "no v_head.weight" in refused(*written(**{"v_head.weight": None}))
    assert "shape (1, 16)" in refused(*written(**{"v_head.weight": torch.zeros(1, 16)}))
    assert "1 missing, such as model.language_model.norm.weight" in refused(*written(**{norm: None}))
    extra = refused(*written(**{"rwtranrsformer.language_model.model.norm.lora_left_weight": torch.zeros(2)}))
    assert "1 unexpected" in extra and "norm.lora_left_weight" in extra
    assert "1 of another shape" in refused(*written(**{norm: torch.zeros(16)}))
    own = {"rwtranrsformer.vis_encoder.x": torch.zeros(1), "rwtranrsformer.projection.0.weight": torch.zeros(1)}
    message = refused(*written(**own))
    assert "rwtranrsformer.projection.*, rwtranrsformer.vis_encoder.*" in message and "give a llava one" in message
    assert "rwtranrsformer.image_newline.*" in refused(*written(**{"rwtranrsformer.image_newline": torch.zeros(1)}))
    copy = shutil.copytree(base, tmp_path / "base")
    change_json(copy / "tokenizer_config.json", pad_token="</s>")
    assert "no padding token of its own" in refused(written()[0], f"base={copy}")
    shards = write_shards(tmp_path / "shards", weights, "model.safetensors", save_file)
    (shards / "model-00002-of-00002.safetensors").unlink()
    assert "lacks 'model-00002-of-00002.safetensors'" in refused(f"in={shards}", f"base={base}")


def test_refused_heads(family_folder, tmp_path, refused):
    folder = shutil.copytree(family_folder("llama"), tmp_path / "in")

    def written(**head):
        save_file(head, folder / "value_head.safetensors")
        return f"in={folder}"

    assert "weight (32,)" in refused(written(weight=torch.zeros(32)))
    wide = {"v_head.summary.weight": torch.zeros(1, 64), "v_head.summary.bias": torch.zeros(1)}
    message = refused(written(**wide))
    assert "shape (1, 64)" in message and "(1, 32)" in message
    fitting = wide | {"v_head.summary.weight": torch.zeros(1, 32)}
    assert "summary.bias (2,)" in refused(written(**fitting | {"v_head.summary.bias": torch.zeros(2)}))
    (folder / "chat_template.jinja").unlink()
    assert "chat_template=FILE" in refused(written(**fitting))
    (folder / "config.json").unlink()
    assert "no config.json" in refused(written(**fitting))


def test_a_pickle_never_runs(release, tmp_path, refused):
    _, weights, base = release
    folder, mark = tmp_path / "in", tmp_path / "mark"
    folder.mkdir()
    torch.save(weights | {"rwtranrsformer.language_model.extra": Command(mark)}, folder / "pytorch_model.bin")
    message = refused(f"in={folder}", f"base={base}")
    assert "more than tensors" in message and "open" in message and "safetensors" in message
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Command(mark), protocol=2))
    assert "not loaded" in refused(f"in={folder}", f"base={base}")
    assert not mark.exists()
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04 cut short")
    assert "download it again" in refused(f"in={folder}", f"base={base}")
    torch.save([torch.zeros(1)], folder / "pytorch_model.bin")
    assert "no plain dictionary" in refused(f"in={folder}", f"base={base}")
    (folder / "model.safetensors").write_bytes(b"cut short")
    assert "download it again" in refused(f"in={folder}", f"base={base}")
