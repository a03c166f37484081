"""Real chat templates: everything that is said stands in the text once, for policies and reward models alike."""

import datetime
import shutil
from pathlib import Path

import pytest
import torch
from helpers import REAL, change_json, output_of, write_lines
from safetensors.torch import load_file

from rovrm.common.errors import UserError
from rovrm.data.example import Example
from rovrm.data.images import ImageRef
from rovrm.data.messages import to_messages
from rovrm.model.adapters import training_processor
from rovrm.model.chat import ChatTemplate, _first_cut, prepare_template
from rovrm.model.collator import RewardCollator
from rovrm.model.loading import load_config, load_processor
from rovrm.model.policy import Policy
from rovrm.training.checks import check_examples

TEMPLATES = REAL / "chat_templates"
LLAVA = TEMPLATES / "llava-hf__llava-1.5-7b-hf"
FILES = sorted(TEMPLATES.glob("*/chat_template*.jinja"))
TEXT_MODELS = ("Qwen2.5-7B", "Qwen3-8B", "Llama-3.1", "Llama-3.2-3B")
needs_templates = pytest.mark.skipif(not FILES, reason="the real chat templates are not there")

SYSTEM = {"role": "system", "content": "Be honest."}
TURNS = [
    {"role": "user", "content": "First question?"},
    {"role": "assistant", "content": "Former answer."},
    {"role": "user", "content": "Second question?"},
]
PICTURED = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "First question?"}]}, *TURNS[1:]]
BETWEEN = [{"type": "text", "text": "Here"}, {"type": "image"}, {"type": "text", "text": "there"}, {"type": "image"}]
CONVERSATIONS = {
    "turns": (TURNS, 0),
    "system": ([SYSTEM, *TURNS], 0),
    "image": (PICTURED, 1),
    "system and image": ([SYSTEM, *PICTURED], 1),
    "two images": ([{"role": "user", "content": [*BETWEEN, {"type": "text", "text": "Which?"}]}], 2),
}
REFUSED = {  # what the template itself cannot write
    ("llava-v1.6-vicuna-7b-hf/chat_template.candidate-b", "system"): "repeats the system's text",
    ("llava-v1.6-vicuna-7b-hf/chat_template.candidate-b", "system and image"): "repeats the system's text",
    ("Llama-3.2-11B-Vision-Instruct/chat_template", "system and image"): "incompatible with system messages",
}


def name_of(file: Path) -> str:
    return f"{file.parent.name.split('__')[-1]}/{file.stem}"


def example(prompt, images: int = 0, responses=("This one.", "That one.")) -> Example:
    return Example("1", "", prompt, list(responses), list(range(len(responses))), [ImageRef()] * images)


@pytest.fixture
def processor_with(family_folder):
    """A processor (of a text model: a tokenizer) with the template of a file."""

    def make(file: Path):
        processor = load_processor(str(family_folder("llava")))
        processor = processor.tokenizer if any(part in str(file) for part in TEXT_MODELS) else processor
        processor.chat_template = file.read_text()
        return processor

    return make


@needs_templates
@pytest.mark.parametrize("shape", CONVERSATIONS)
@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_every_part_stands_in_the_text_exactly_once(processor_with, file: Path, shape: str):
    processor = processor_with(file)
    prompt, images = CONVERSATIONS[shape]
    if images and not hasattr(processor, "tokenizer"):
        with pytest.raises(UserError, match="this is a text model"):
            ChatTemplate(processor).prompt(example(prompt, images))
        return
    prepare_template(processor)
    chat = ChatTemplate(processor)
    if reason := REFUSED.get((name_of(file), shape)):
        for render in (chat.prompt, chat.conversations):
            with pytest.raises(UserError, match=reason) as caught:
                render(example(prompt, images))
            assert "\n" not in str(caught.value)
        return
    asked, (first, second) = chat.prompt(example(prompt, images)), chat.conversations(example(prompt, images))
    texts = [message["content"] for message in prompt if isinstance(message["content"], str)]
    for message in prompt:
        texts += [block["text"] for block in message["content"] if isinstance(block, dict) and "text" in block]
    for text in (asked, first, second):
        assert [text.count(part) for part in texts] == [1] * len(texts)
        assert "'text'" not in text
    assert first.count("This one.") == second.count("That one.") == 1
    assert "This one." not in asked
    if "onevision" not in str(file) or "conversion" in str(file):  # its own generation prompt lacks a blank
        assert first.startswith(asked)


@needs_templates
@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_the_last_token_ends_the_answer(processor_with, file: Path):
    """A conversation ends with the template's end of turn, with the end of sequence where it has none; once, however
    often the template is prepared."""
    processor = processor_with(file)
    before = processor.chat_template
    bare = ChatTemplate(processor).ending()
    prepare_template(processor)
    prepared = processor.chat_template
    prepare_template(processor)
    assert processor.chat_template == prepared
    tokenizer = getattr(processor, "tokenizer", processor)
    ending = ChatTemplate(processor).ending()
    assert ending == (bare if bare.strip() else bare + tokenizer.eos_token)
    assert (prepared == before) == (bool(bare.strip()) and "strftime_now" not in before)
    assert ("llava-1.5" in str(file) or "vicuna" in str(file)) == (not bare.strip())


@needs_templates
@pytest.mark.parametrize("file", [f for f in FILES if "strftime_now" in f.read_text()], ids=name_of)
def test_no_template_writes_the_date(processor_with, file: Path):
    processor = processor_with(file)
    today = datetime.date.today().strftime("%d %b %Y")
    assert today in ChatTemplate(processor).prompt(example(TURNS))
    prepare_template(processor)
    text = ChatTemplate(processor).prompt(example(TURNS))
    assert today not in text and "26 Jul 2024" in text


@needs_templates
@pytest.mark.parametrize("file", [f for f in FILES if "</think>" in f.read_text() and "Qwen" in str(f)], ids=name_of)
def test_thoughts_are_kept_or_refused(processor_with, file: Path):
    chat = ChatTemplate(processor_with(file))
    thought = "<think>\nIt is a cup.\n</think>\n\nA cup."
    [text] = chat.conversations(example(TURNS, responses=[thought]))
    assert text.count("It is a cup.") == text.count("A cup.") == text.count("<think>") == 1
    earlier = [TURNS[0], {"role": "assistant", "content": thought}, TURNS[2]]
    with pytest.raises(UserError, match="does not write all of the assistant's text '<think>.*chat_template=FILE"):
        chat.conversations(example(earlier))


def test_a_template_that_reads_the_first_block_alone_gets_one(family_folder):
    processor = load_processor(str(family_folder("llava")))
    processor.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'][0]['text'] }}|{% endfor %}"
    blocks = [{"type": "text", "text": "One."}, {"type": "text", "text": "Two."}]
    prompt = [TURNS[0], {"role": "assistant", "content": blocks}, TURNS[2]]
    [text] = ChatTemplate(processor).conversations(example(prompt, responses=["Three."]))
    assert text == "user: First question?|assistant: One.\nTwo.|user: Second question?|assistant: Three.|"
    both = [{"role": "user", "content": blocks}]
    with pytest.raises(UserError, match="drops the user's text; change it"):
        ChatTemplate(processor).prompt(example(both))


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", ""),  # takes strings
        ("{% for m in messages %}{{ m['role'] }}{% endfor %}", "drops the user's text"),
        ("{{ messages[-1]['content'][0]['text'] }}", "drops the user's text"),
        ("{% for m in messages %}{{ m['content'][0]['text'] * 2 }}{% endfor %}", "repeats the user's text"),
        ("{% for m in messages|reverse %}{{ m['content'][0]['text'] }}{% endfor %}", "moves the .* out of its place"),
        ("{% for m in messages %}{{ m['content'][0]['text'][:60] }}{% endfor %}", "does not write all of the user's"),
    ],
)
def test_templates_that_lose_something_are_refused(family_folder, template: str, reason: str):
    processor = load_processor(str(family_folder("llava")))
    processor.chat_template = template
    long = example([{"role": "user", "content": "Word. " * 20}])
    if not reason:
        assert ChatTemplate(processor).conversations(long)[0].count("Word.") == 20
        return
    with pytest.raises(UserError, match=reason):
        ChatTemplate(processor).conversations(long)


@needs_templates
@pytest.mark.parametrize("file", [f for f in FILES if not any(part in str(f) for part in TEXT_MODELS)], ids=name_of)
def test_texts_around_images_are_not_joined(processor_with, file: Path):
    """Some templates move images in front and join the texts, where one may stand without a blank."""
    processor = processor_with(file)
    prompt, images = CONVERSATIONS["two images"]
    chat, asked = ChatTemplate(processor), example(prompt, images)
    for text in (chat.prompt(asked), *chat.conversations(asked)):
        assert "Here" in text and "there" in text and "Which?" in text
        assert "Herethere" not in text and "thereWhich" not in text


TRIMMED = ("gemma-3", "gemma-4-E2B-it/chat_template.jinja")  # templates that strip the texts of a turn


@needs_templates
@pytest.mark.parametrize("file", [f for f in FILES if not any(part in str(f) for part in TEXT_MODELS)], ids=name_of)
def test_the_line_break_behind_an_image_stands_once(processor_with, file: Path):
    chat = ChatTemplate(processor_with(file))

    def behind(text: str) -> str:
        content = to_messages(text)
        return chat.prompt(example(content, 1)).partition("What?")[0][-2:]

    kept = behind("<image>\nWhat?")
    assert kept != "\n\n" or behind("<image>What?") == kept  # one break, or the template's own
    assert kept.endswith("\n") or any(part in str(file) for part in TRIMMED)
    assert behind("<image>What?").endswith("\n") == chat._breaks
    two = chat.prompt(example(to_messages("<image>\n<image>\nWhat?"), 2))
    assert "\n\nWhat?" not in two or behind("<image>What?") == "\n\n"


@pytest.mark.parametrize(
    ("family", "token"), [("llava", "</s>"), ("qwen2_vl", "<|im_end|>"), ("qwen2_vl", "<|im_start|>")]
)
def test_an_answer_cannot_end_its_turn(family_folder, family: str, token: str):
    chat = ChatTemplate(load_processor(str(family_folder(family))))
    with pytest.raises(UserError, match="the response 'A cup.* holds .* marks turns; remove it"):
        chat.conversations(example(TURNS, responses=[f"A cup.{token}"]))
    [text] = chat.conversations(example(TURNS, responses=["Written <s>through</s >, <pad> and {{ braces }} [INST]."]))
    assert "<s>through" in text


def test_images_that_a_template_drops_are_refused(family_folder):
    processor = load_processor(str(family_folder("llava")))
    only_first = "{% for m in messages %}{% if m['content'][0]['type'] == 'image' %}<image>{% endif %}"
    only_first += "{{ m['content'][-1]['text'] }}{% endfor %}"
    processor.chat_template = only_first
    chat = ChatTemplate(processor)
    pictures = [{"role": "user", "content": [{"type": "image"}] * 2 + [{"type": "text", "text": "Which?"}]}]
    with pytest.raises(UserError, match="writes 0 placeholders for 2 images"):
        chat.prompt(example(pictures, 2))


# ---- LLaVA as it is, but for its size --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_llava(tmp_path_factory) -> Path:
    """llava-1.5-7b-hf's own tokenizer, template and processor, before a model of the same family with small layers."""
    if not LLAVA.is_dir():
        pytest.skip("the real files of llava-1.5-7b-hf are not there")
    from transformers import AutoConfig, LlavaForConditionalGeneration

    folder = tmp_path_factory.mktemp("llava-1.5")
    for file in LLAVA.glob("*.json"):
        shutil.copy(file, folder)
    shutil.copy(LLAVA / "chat_template.jinja", folder)
    config = AutoConfig.from_pretrained(folder, dtype="float32")
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    for part in (config.text_config, config.vision_config):
        for key, value in small.items():
            setattr(part, key, value)
    config.text_config.num_key_value_heads = 2
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    return folder


def photo(shade: int = 90) -> ImageRef:
    from PIL import Image

    return ImageRef(image=Image.new("RGB", (80, 60), (shade, 30, 160)))


def asked(policy: Policy, prompt, images: int = 0) -> str:
    ids = policy.inputs([Example("1", "", prompt, [""], [0], [photo()] * images)])["input_ids"]
    return policy.tokenizer.decode(ids[0])


@torch.inference_mode()
def score_of_answer(policy: Policy, prompt, images: int, answer: str) -> float:
    """The log-probability of an answer behind what the policy is asked."""
    inputs = policy.inputs([Example("1", "", prompt, [""], [0], [photo()] * images)])
    own = policy.tokenizer(answer, return_tensors="pt", add_special_tokens=False)["input_ids"]
    start = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], own], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    logits = policy.model(**inputs).logits[0, start - 1 : -1].log_softmax(-1)
    return logits.gather(-1, own[0, :, None]).sum().item()


@pytest.mark.parametrize("shape", [name for name in CONVERSATIONS if name != "two images"])
def test_llava_policy_reads_all_that_is_said(tiny_llava: Path, shape: str):
    policy = Policy.from_pretrained(tiny_llava, device="cpu")
    prompt, images = CONVERSATIONS[shape]
    text = asked(policy, prompt, images)
    for message in prompt:
        content = message["content"] if isinstance(message["content"], str) else message["content"][-1]["text"]
        assert text.count(content) == 1
    assert text.count("<image>") == 576 * images
    whole = score_of_answer(policy, prompt, images, "A cup.")
    for i, message in enumerate(prompt):
        content = message["content"]
        other = "Other words." if isinstance(content, str) else [content[0], {"type": "text", "text": "Other words."}]
        changed = [*prompt[:i], message | {"content": other}, *prompt[i + 1 :]]
        assert abs(score_of_answer(policy, changed, images, "A cup.") - whole) > 1e-3
    sampled = policy.sample([Example("1", "", prompt, [""], [0], [photo()] * images)], 2, max_new_tokens=4)
    assert all(candidate.tokens for candidate in sampled[0])


def test_llava_reward_is_read_at_the_end_of_sequence(tiny_llava: Path):
    processor = training_processor(str(tiny_llava), str(tiny_llava))
    collator = RewardCollator(processor, load_config(str(tiny_llava)))
    answers = ["A cup.", "A cup on a table  "]
    batch = collator([Example("1", "", PICTURED, answers, [0, 1], [photo()])])
    lengths = batch["answer_attention_mask"].sum(1)
    assert batch["answer_input_ids"][[0, 1], lengths - 1].tolist() == [2, 2]  # </s>
    texts = collator.chat.conversations(Example("1", "", PICTURED, answers, [0, 1], [photo()]))
    turns = "USER: <image>\nFirst question? ASSISTANT: Former answer. USER: Second question? ASSISTANT:"
    assert texts[0] == f"{turns} A cup. </s>"


def test_llava_trained_by_the_command_keeps_its_reading_place(tiny_llava: Path, tmp_path: Path, capsys):
    from rovrm import RewardScorer, merge, train
    from rovrm.model.saving import quick_start

    rows = []
    for i in range(12):
        picture = photo(20 * i).open()
        exif = picture.getexif()
        exif[0x0112] = 6  # Orientation: lies on its side
        picture.putalpha(picture.convert("L"))
        picture.save(tmp_path / f"{i}.png", exif=exif)
        rows.append({"image": f"{i}.png", "prompt": f"What is it, {i}?", "chosen": f"A cup {i}.", "rejected": "A dog."})
    write_lines(tmp_path / "pairs.jsonl", *rows)
    out = tmp_path / "run"
    command = f"phase=3 model={tiny_llava} visual.data={tmp_path}/pairs.jsonl out={out} lora_r=2 workers=0"
    assert train.main([*command.split(), "eval_fraction=0.25", "trainer.max_steps=1"]) == 0
    folder = out / "phase3-visual"
    scorer = RewardScorer.from_pretrained(folder)
    weights = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert all(weight.any() for name, weight in weights.items() if "lora_B" in name)  # the only step took its rate
    assert scorer.collator.chat.ending() == " </s>"
    [score] = scorer.score("What is on the table?", ["A cup."], images=str(tmp_path / "3.png"))
    code = quick_start(scorer.processor).replace('folder = "."', f"folder = {str(folder)!r}")
    exec(code.replace("photo.jpg", str(tmp_path / "3.png")), {})  # what the model card says, without rovrm
    assert float(capsys.readouterr().out.strip().splitlines()[-1]) == pytest.approx(score, abs=1e-5)
    copied = tmp_path / "copied"
    shutil.copytree(folder / "adapter", copied)  # all there is of it, without its phase folder
    roads = [RewardScorer.from_pretrained(copied), RewardScorer.from_pretrained(tiny_llava, adapter=copied)]
    assert merge.main([f"model={copied}", f"out={tmp_path / 'merged'}"]) == 0
    roads.append(RewardScorer.from_pretrained(tmp_path / "merged"))
    for other in roads:
        [again] = other.score("What is on the table?", ["A cup."], images=str(tmp_path / "3.png"))
        assert again == pytest.approx(score, abs=1e-5)


def test_a_phase_goes_on_in_the_template_of_its_start(tiny_llava: Path, tmp_path: Path, capsys):
    """With `init_from`, and when a run is gone on with that a former version or another template began."""
    from rovrm import train

    other = "{% for m in messages %}### {{ m['role'] }}: {{ m['content'][0]['text'] }}\n{% endfor %}"
    other += "{% if add_generation_prompt %}### assistant:{% endif %}"
    (tmp_path / "other.jinja").write_text(other)
    rows = [{"prompt": f"What is it, {i}?", "chosen": f"A cup {i}.", "rejected": "A dog."} for i in range(12)]
    write_lines(tmp_path / "pairs.jsonl", *rows)
    command = f"model={tiny_llava} text.data={tmp_path}/pairs.jsonl lora_r=2 workers=0 trainer.max_steps=1".split()
    command += ["eval_fraction=0.25"]
    assert train.main(["phase=1", f"out={tmp_path / 'one'}", f"chat_template={tmp_path}/other.jinja", *command]) == 0
    start = tmp_path / "one" / "phase1-text"
    assert load_processor(str(start), config=load_config(str(tiny_llava))).chat_template.startswith(other)
    for place in (start, start / "adapter"):
        again = ["phase=1", f"out={tmp_path / 'two'}", f"init_from={place}", "dry_run=true", *command]
        assert "### user: What is it" in output_of(capsys, train.main, *again)
    for name in ("chat_template.jinja", "adapter/chat_template.jinja"):  # as a former version left it
        shutil.copy(LLAVA / "chat_template.jinja", start / name)
    assert "ASSISTANT: A dog. '" in output_of(capsys, train.main, *again)


def test_the_trainer_prepares_a_processor_it_is_given(tiny_llava: Path, tmp_path: Path):
    from rovrm.model.loading import load_reward_model
    from rovrm.training.trainer import RewardConfig, RewardTrainer

    processor = load_processor(str(tiny_llava))
    arguments = RewardConfig(str(tmp_path), report_to="none", use_cpu=True)
    pair = {"prompt": "What is it?", "chosen": "A cup.", "rejected": "A dog."}
    RewardTrainer(load_reward_model(str(tiny_llava)), arguments, [pair], None, processor)
    assert ChatTemplate(processor).ending() == " </s>"


def test_a_reward_model_keeps_the_template_it_was_trained_with(tiny_llava: Path, tmp_path: Path):
    """A checkpoint whose reward was trained at the template's blank is read there for ever."""
    from rovrm.model.loading import load_reward_model

    folder = tmp_path / "old"
    load_reward_model(str(tiny_llava)).save_pretrained(folder)
    load_processor(str(tiny_llava)).save_pretrained(folder)
    processor = training_processor(str(folder), str(folder))
    assert processor.chat_template == (LLAVA / "chat_template.jinja").read_text()


# ---- policies of families with particular inputs ---------------------------------------------------------------------


@pytest.mark.parametrize("family", ["paligemma", "gemma3", "qwen2_vl", "mllama"])
def test_greedy_answers_are_the_same_in_a_batch_and_alone(family_folder, family: str):
    policy = Policy.from_pretrained(family_folder(family), device="cpu")
    questions = ["What is it?", "Describe the picture in one sentence, please, with all that is on the table."]
    examples = []
    for i, text in enumerate(questions):
        prompt = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
        examples.append(Example(str(i), "", prompt, [""], [0], [photo(60 + 90 * i)]))
    together = policy.sample(examples, temperature=0, max_new_tokens=5)
    alone = [policy.sample([one], temperature=0, max_new_tokens=5)[0] for one in examples]
    for [first], [second] in zip(together, alone, strict=True):
        assert first.text == second.text
        assert first.logprob == pytest.approx(second.logprob, abs=1e-3)


def test_samples_are_not_filtered_by_the_models_own_settings(family_folder, tmp_path: Path):
    """min_p=1 would make every sample the greedy answer, and a penalty would change that."""
    folder = tmp_path / "policy"
    shutil.copytree(family_folder("llava"), folder)
    plain = Policy.from_pretrained(folder, device="cpu")
    settings = {"min_p": 1.0, "repetition_penalty": 5.0, "do_sample": True, "no_repeat_ngram_size": 1}
    change_json(folder / "generation_config.json", **settings)
    filtered = Policy.from_pretrained(folder, device="cpu")
    prompt = [Example("1", "", [{"role": "user", "content": "What is it?"}], [""], [0])]
    options = {"max_new_tokens": 8, "seed": 1}
    assert filtered.sample(prompt, 8, **options) == plain.sample(prompt, 8, **options)
    assert len({c.text for c in filtered.sample(prompt, 8, **options)[0]}) > 1
    assert filtered.sample(prompt, temperature=0) == plain.sample(prompt, temperature=0)


def test_a_policy_that_names_no_end_takes_its_tokenizers(family_folder, tmp_path: Path):
    folder = tmp_path / "policy"
    shutil.copytree(family_folder("llava"), folder)
    (folder / "generation_config.json").write_text("{}")
    policy = Policy.from_pretrained(folder, device="cpu")
    assert policy.model.generation_config.eos_token_id == policy.tokenizer.eos_token_id
    prompt = [Example("1", "", [{"role": "user", "content": "What is it?"}], [""], [0])]
    [[one, other]] = policy.sample(prompt, 2, max_new_tokens=3)
    assert one.tokens == other.tokens == 3 and one.cut


def test_answers_of_the_same_tokens_are_no_pair(family_folder):
    """Qwen3's template writes an empty thought before an answer without one."""
    folder = str(family_folder("qwen3"))
    processor = load_processor(folder)
    if not (TEMPLATES / "Qwen__Qwen3-8B").is_dir():
        pytest.skip("the real chat templates are not there")
    processor.chat_template = (TEMPLATES / "Qwen__Qwen3-8B" / "chat_template.jinja").read_text()
    collator = RewardCollator(processor, load_config(folder))
    same = example(TURNS, responses=["Yes.", "<think>\n\n</think>\n\nYes."])
    checked = check_examples([same, example(TURNS, responses=["Yes.", "No."])], collator, 512)
    assert len(checked.examples) == 1
    [record] = checked.rejected
    assert record["field"] == "responses 1 and 2" and "same tokens" in record["reason"]


@pytest.mark.parametrize(
    "extra", ["{% for i in range(99999) %}forever and ever {% endfor %}", "{{ messages[0]['content'] * 40 }}"]
)
def test_a_template_that_prints_without_end_is_refused(processor_with, tmp_path, extra: str) -> None:
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0]['content'] }}" + extra)
    with pytest.raises(UserError, match=r"the chat template (prints \d+ characters for a conversation of|repeats)"):
        ChatTemplate(processor_with(tmp_path / "chat_template.jinja")).conversations(example(TURNS[:1]))


def test_half_a_character_is_refused(family_folder) -> None:
    chat = ChatTemplate(load_processor(str(family_folder("llava"))))
    with pytest.raises(UserError, match=r"holds '\\ud83d', half a character"):
        chat.conversations(example(TURNS, responses=["So \ud83d!", "No."]))
    with pytest.raises(UserError, match="half a character"):
        chat.prompt(example([{"role": "user", "content": "\ud83d"}]))


def test_a_part_that_is_squeezed_to_nothing_is_passed_over() -> None:
    parts = [("user", "Why?"), ("assistant", "<think></think>"), ("user", "gone")]
    assert "does not write all of the user's text 'gone'" in _first_cut("Why?", parts)


@needs_templates
@pytest.mark.parametrize("file", [f for f in FILES if "<think>" in f.read_text()], ids=name_of)
def test_an_answer_that_ends_the_thought_of_its_prompt_is_that_thought(processor_with, file: Path):
    """Where the template's own prompt opens a thought, an answer begins inside it."""
    chat = ChatTemplate(processor_with(file))
    for bare in ("Two and three.\n</think>\n\nFive.", "\nHm.\n</think>\n\n5", "So.</think>5"):
        whole = "<think>\n" + bare.lstrip()
        if not any(text.endswith("<think>") for text in chat.openings()):
            continue
        expected = chat.conversations(example(TURNS, responses=[whole]))
        assert chat.conversations(example(TURNS, responses=[bare])) == expected


@pytest.mark.parametrize(
    "mark",
    [
        "<image>",
        "<image 1>",
        "<|image_pad|>",
        "<|image|>",
        "<start_of_image>",
        "<image_soft_token>",
        "<IMG_CONTEXT>",
        "[IMG]",
        "<|vision_start|>",
        "<fake_token_around_image>",
        "<|image_1|>",
    ],
)
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3", "qwen3"])
def test_no_answer_holds_what_stands_for_an_image_in_any_family(family_folder, family, mark):
    chat = ChatTemplate(load_processor(str(family_folder(family))))
    with pytest.raises(UserError, match="holds the image token .*, and an answer holds text only"):
        chat.conversations(example(TURNS, responses=["Fine.", f"Here: {mark}"]))
    assert chat.conversations(example(TURNS, responses=["<img src='a.png'> and an image.", "a < image > b"]))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3", "llama", "qwen3"])
def test_a_prompt_that_is_rendered_already_is_not_wrapped_again(family_folder, family):
    chat = ChatTemplate(load_processor(str(family_folder(family))))
    rendered = chat.prompt(example(TURNS))
    with pytest.raises(UserError, match="the prompt holds .* by which this model's chat template marks turns"):
        chat.conversations(example([{"role": "user", "content": rendered}]))


@pytest.mark.parametrize("mark", ["<|image_1|>", "<ImageHere>", "[IMG]", "<IMG_CONTEXT>", "<start_of_image>"])
def test_a_prompt_with_another_familys_place_for_an_image_is_refused(family_folder, mark):
    """Its image would be put in front, and the mark be read as letters."""
    chat = ChatTemplate(load_processor(str(family_folder("llava"))))
    asked = [{"role": "user", "content": f"First: {mark} Which?"}]
    with pytest.raises(UserError, match="the prompt holds .* which image is meant is not known; write <image>"):
        chat.conversations(example(asked, images=1))
    assert chat.conversations(example(asked))  # a question about the mark itself
