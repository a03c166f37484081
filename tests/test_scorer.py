"""The scorer against the model's own forward, for all ways of giving prompts, images and checkpoints; TRL's calls."""

import base64
import json
import shutil
import threading

import numpy as np
import pytest
import torch
from helpers import change_json, close, encoded, forward_sizes, noise, refused, write_adapter_phase, write_reward_model

from rovrm import RewardScorer
from rovrm.common.errors import UserError

TOLERANCE = 1e-5
ANSWERS = ["A red cup.", "A red cup stands on it.", "", "No", "Two dogs!", "A red cup."]
QUESTION = "What is on the table?"


@pytest.fixture(scope="session")
def checkpoints(family_folder, tmp_path_factory):
    """{name: reward checkpoint folder} of a tiny LLaVA, a text model and a family that takes separate rows."""
    folders = {}
    for name in ("llava", "llama", "gemma3", "paligemma"):
        folders[name] = write_reward_model(family_folder(name), tmp_path_factory.mktemp("reward") / name, spread=0.3)
    return folders


@pytest.fixture(scope="module")
def scorer(checkpoints):
    return RewardScorer.from_pretrained(checkpoints["llava"], device="cpu")


@pytest.fixture(scope="module")
def image_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "photo.png"
    noise(0).save(path)
    return path


@pytest.fixture(scope="module")
def phase(family_folder, tmp_path_factory):
    return write_adapter_phase(family_folder("llava"), tmp_path_factory.mktemp("run") / "phase2-caption")


def separate(scorer, prompt, answer, images=()):
    """The oracle: one conversation through the chat template and the model's standard forward."""
    blocks = [{"type": "image"}] * len(images) + [{"type": "text", "text": prompt}]
    messages = [
        {"role": "user", "content": blocks},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]
    text = scorer.processor.apply_chat_template(messages, tokenize=False)
    special = not text.startswith(scorer.processor.tokenizer.bos_token)  # some templates write it themselves
    inputs = scorer.processor(text=[text], images=list(images) or None, return_tensors="pt", add_special_tokens=special)
    assert inputs["attention_mask"].all()
    with torch.no_grad():
        return scorer.model(**inputs).logits.item()


# ---- score -----------------------------------------------------------------------------------------------------------


def test_equals_the_models_own_separate_rows(scorer):
    expected = [separate(scorer, QUESTION, answer, [noise(0)]) for answer in ANSWERS]
    assert close(scorer.score(QUESTION, ANSWERS, images=noise(0)), expected)
    assert max(expected) - min(expected) > 0.1  # else the comparison shows nothing
    without = [separate(scorer, QUESTION, answer) for answer in ANSWERS]
    assert close(scorer.score(QUESTION, ANSWERS), without)
    assert not close(expected, without, 0.01)
    two = [noise(0), noise(1)]
    assert close(scorer.score(QUESTION, ["No"], images=two), [separate(scorer, QUESTION, "No", two)])


def test_images_as_path_pil_list_or_inside_messages(scorer, image_file):
    expected = scorer.score(QUESTION, ANSWERS, images=noise(0))
    for images in (str(image_file), image_file, [image_file], (noise(0),), [noise(0)]):
        assert scorer.score(QUESTION, ANSWERS, images=images) == expected
    text = {"type": "text", "text": QUESTION}
    inside = [{"role": "user", "content": [{"type": "image", "image": noise(0)}, text]}]
    placeholder = [{"role": "user", "content": [{"type": "image"}, text]}]
    assert scorer.score(inside, ANSWERS) == expected
    assert scorer.score(placeholder, ANSWERS, images=image_file) == expected
    assert scorer.score("<image>\n" + QUESTION, ANSWERS, images=image_file) == expected
    assert scorer.score(QUESTION, ANSWERS, images=[]) == scorer.score(QUESTION, ANSWERS)


def test_prompt_as_string_or_messages(scorer):
    expected = scorer.score(QUESTION, ANSWERS)
    assert scorer.score([{"role": "user", "content": QUESTION}], ANSWERS) == expected
    assert scorer.score([{"from": "human", "value": QUESTION}], ANSWERS) == expected
    said = [[{"role": "assistant", "content": answer}] for answer in ANSWERS]
    assert scorer.score(QUESTION, said) == expected
    turns = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": QUESTION},
    ]
    assert not close(scorer.score(turns, ANSWERS), expected, 1e-3)


def test_one_response_and_identical_responses(scorer):
    assert close(scorer.score(QUESTION, ["No"]), [separate(scorer, QUESTION, "No")])
    one, two, three = scorer.score(QUESTION, ["No", "No", "Yes"])
    assert abs(one - two) < TOLERANCE < abs(one - three)


@pytest.mark.parametrize("family", ["llava", "llama", "gemma3", "paligemma"])
def test_batches_keep_order_and_do_not_matter(checkpoints, family):
    scorer = RewardScorer.from_pretrained(str(checkpoints[family]), device="cpu")
    assert scorer.collator.shared == (family != "paligemma")
    examples = []
    for i in range(5):
        image = None if family == "llama" or i % 3 == 0 else [noise(i, (64, 48) if i % 2 else (40, 80))]
        examples.append({"prompt": QUESTION * (1 + i % 4), "responses": ANSWERS[: 1 + i], "images": image})
    alone = [scorer.score(e["prompt"], e["responses"], e["images"]) for e in examples]
    for batch_tokens in (60, 16384):
        batched = scorer.score_batch(examples, batch_tokens=batch_tokens)
        assert [len(many) for many in batched] == [len(e["responses"]) for e in examples]
        assert close(sum(batched, []), sum(alone, []))
    assert close(sum(scorer.score_batch(examples[::-1], batch_tokens=1)[::-1], []), sum(alone, []))
    assert scorer.score_batch([]) == []


def test_no_forward_holds_more_than_batch_tokens(scorer, monkeypatch):
    sizes = forward_sizes(monkeypatch, scorer.model)
    many = [f"Answer number {i} of many, which goes on for a while." for i in range(12)]
    whole = scorer.score_batch([{"prompt": QUESTION, "responses": many, "images": noise(0)}])
    assert len(sizes) == 1 and sizes[0][1] > 150
    parts = scorer.score_batch([{"prompt": QUESTION, "responses": many, "images": noise(0)}], batch_tokens=150)
    assert len(sizes) > 2 and max(tokens for _, tokens in sizes[1:]) <= 150
    assert close(whole, parts)


def test_workers_change_nothing(checkpoints, image_file):
    scorer = RewardScorer.from_pretrained(checkpoints["llava"], device="cpu", workers=1)
    rows = [{"prompt": f"{QUESTION} {i}", "responses": ANSWERS[:2], "images": image_file} for i in range(40)]
    rows[7] = rows[7] | {"images": None, "prompt": "", "id": "bad"}
    found = scorer.measure(rows)
    assert [i for i, e in enumerate(found) if isinstance(e, UserError)] == [7] and "bad" in str(found[7])
    del rows[7]
    rewards = scorer.score_batch(rows, batch_tokens=512)
    scorer.workers = 0
    assert close(rewards, scorer.score_batch(rows, batch_tokens=512))


def test_threads_may_share_a_scorer(scorer):
    expected, found = scorer.score(QUESTION, ANSWERS, images=noise(0)), []
    calls = [
        threading.Thread(target=lambda: found.append(scorer.score(QUESTION, ANSWERS, images=noise(0))))
        for _ in range(6)
    ]
    for call in calls:
        call.start()
    for call in calls:
        call.join()
    assert found == [expected] * 6


def test_normalize_is_exact(checkpoints):
    scorer = RewardScorer.from_pretrained(checkpoints["llava"], device="cpu")
    refused(lambda: scorer.score(QUESTION, ANSWERS, normalize=True), "reward_mean", "normalize=False")
    scorer.mean, scorer.std = 0.25, 0.5
    plain = scorer.score(QUESTION, ANSWERS)
    assert scorer.score(QUESTION, ANSWERS, normalize=True) == [(reward - 0.25) / 0.5 for reward in plain]


def test_pairs_and_rankings_of_a_preference_data_set(scorer):
    pair = {"prompt": QUESTION, "chosen": "Yes", "rejected": "No", "images": [noise(0)], "ranks": [1, 0]}
    assert scorer.score_batch([pair])[0] == scorer.score(QUESTION, ["Yes", "No"], noise(0))
    assert scorer.score_batch([{"question": QUESTION, "response": "Yes"}])[0] == scorer.score(QUESTION, ["Yes"])
    with_system = scorer.score([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}], ["Yes"])
    assert scorer.score_batch([{"prompt": "Hi", "system": "Be brief.", "responses": ["Yes"]}])[0] == with_system


# ---- errors ----------------------------------------------------------------------------------------------------------


def test_rows_score_as_they_train(scorer):
    """Prompts inside transcripts or messages, answers in columns of other names: the conversations of training."""
    from rovrm.data.loading import as_examples

    user, good, bad = (
        {"role": role, "content": text} for role, text in (("user", "Q?"), *[("assistant", t) for t in "AB"])
    )
    talk = "\n\nHuman: Hello.\n\nAssistant: Hi!\n\nHuman: Q?\n\nAssistant:"
    turns = [{"from": "human", "value": "Q?"}]
    rows = [
        {"chosen": f"{talk} A.", "rejected": f"{talk} B."},
        {"chosen": [user, good], "rejected": [user, bad]},
        {"prompt": "Q?", "chosen": [user, good], "rejected": [user, bad], "score_chosen": 2, "score_rejected": 1},
        {"prompt": "Q?", "chosen": [good], "rejected": [bad]},
        {"conversations": turns, "chosen": {"from": "gpt", "value": "A"}, "rejected": {"from": "gpt", "value": "B"}},
        {"conversations": [*turns, {"from": "gpt", "value": ["A", "B", "C"]}]},
        {"instruction": "Q?", "input": "More.", "output_1": "A", "output_2": "B", "label": 1},
        {"instruction": "Q?", "input": "More.", "chosen": "A", "rejected": "B"},
        {"ds_name": "x", "image": noise(1), "text": json.dumps({"question": "Q?", "chosen": "A", "rejected": "B"})},
    ]
    for row in rows:
        [example] = as_examples([row])
        assert scorer.score_batch([row])[0] == close_to(scorer.score_batch([example])[0]), row
    swapped = rows[6] | {"label": 2}  # in the row's own order, whichever is better
    assert scorer.score_batch([swapped])[0] == close_to(scorer.score_batch([rows[6]])[0])
    refused(lambda: scorer.score_batch([{"chosen": f"{talk} A.", "rejected": "\n\nHuman: B"}]), "transcripts share no")
    refused(
        lambda: scorer.score_batch([{"query": "Q", "response": ["A", "B"]}]), "call the column `responses`", "query"
    )
    rated = [{"response": "A", "overall_score": 2}, {"response": "B", "overall_score": 1}, {"response": "C"}]
    refused(lambda: scorer.score_batch([{"instruction": "Q?", "completions": rated}]), "no rating", "`responses`")
    assert len(scorer.score_batch([{"instruction": "Q?", "completions": rated[:2]}])[0]) == 2


def close_to(rewards):
    return pytest.approx(rewards, abs=TOLERANCE)


def test_images_that_are_refused(scorer, tmp_path):
    def scored(images, prompt=QUESTION):
        return lambda: scorer.score(prompt, ["Yes"], images=images)

    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "clip.mp4").write_bytes(b"0")
    refused(scored("nowhere/photo.jpg"), "nowhere/photo.jpg", "not found")
    refused(scored(tmp_path / "cut.png"), "cut.png", "not an image")
    refused(scored(tmp_path / "clip.mp4"), "clip.mp4", "video")
    refused(scored("https://example.org/a.jpg"), "https://example.org/a.jpg", "URL")
    refused(scored(b"\x89PNG"), "image of 4 bytes", "not an image in a format read here")
    for empty in ("", [""], " "):
        refused(scored(empty), "example 0: images = ", "the name is empty; give a path, or null for a row without an")
    refused(scored(np.zeros((4, 4, 3), dtype=np.uint8)), "ndarray of shape (4, 4, 3)", "Image.fromarray")
    refused(scored([torch.zeros(3, 4, 4)]), "Tensor of shape (3, 4, 4)")
    refused(scored(None, "<image>\nWhat is it?"), "asks for image 1")
    refused(lambda: scorer.score_batch([{"prompt": "Hi", "responses": ["Yes"], "videos": ["a.mp4"]}]), "video")


def test_images_under_other_keys_are_refused(scorer, image_file):
    def scored(**more):
        return lambda: scorer.score_batch([{"prompt": QUESTION, "responses": ["Yes"], "id": "x7", **more}])

    for more in ({"img": str(image_file)}, {"img": noise(0)}, {"photos": [noise(0)]}):
        refused(scored(**more), f"example x7: {next(iter(more))} = ", "a key that is not read; give all of them as `im")
    refused(scored(images=[noise(0)], mask=noise(1)), "example x7: mask = ")
    plain = scorer.score(QUESTION, ["Yes"], images=image_file)
    assert scored(image=str(image_file), file=str(image_file), photo="none.png", notes="a")() == [plain]


def test_rows_that_are_refused(scorer):
    def scored(**row):
        return lambda: scorer.score_batch([row])

    refused(scored(prompt=QUESTION), "example 0", "responses")
    refused(scored(prompt=QUESTION, responses="Yes", id="x7"), "example x7", "list of one or more responses")
    for null, other in (("rejected", "chosen"), ("chosen", "rejected")):
        row = {null: None, other: "Yes"}
        refused(scored(prompt=QUESTION, **row), f"example 0: {null} is null beside {other}; fill it in or leave it out")
    pair = {"chosen": "Yes", "rejected": "No"}  # a data set of several formats has nulls in the columns of the others
    assert len(scored(prompt=QUESTION, responses=None, response=None, **pair)()[0]) == 2
    refused(scored(prompt=QUESTION, chosen=None, rejected=None), "list of one or more responses")
    refused(scored(prompt=QUESTION, responses=[]), "list of one or more responses")
    refused(scored(prompt=QUESTION, responses=["Yes", 3]), "responses", "3")
    refused(scored(responses=["Yes"]), "prompt")
    refused(scored(prompt="", responses=["Yes"]), "the prompt is empty")
    refused(scored(prompt=[{"role": "assistant", "content": "Hi"}], responses=["Yes"]), "user")
    refused(lambda: scorer.score_batch([["Hi", "Yes"]]), "mapping", "list")
    assert len(scorer.score("", ["Yes"], images=noise(0))) == 1  # an image may be all of the prompt


def test_over_long_conversation(checkpoints):
    scorer = RewardScorer.from_pretrained(checkpoints["llava"], device="cpu")
    scorer.max_length = 40
    refused(lambda: scorer.score(QUESTION, ["Yes", "word " * 50]), "tokens", "max_length=40")
    assert len(scorer.score(QUESTION, ["Yes"])) == 1


def test_a_reward_that_is_not_finite_is_no_reward(checkpoints):
    scorer = RewardScorer.from_pretrained(checkpoints["llava"], device="cpu")
    scorer.model.score.weight.data.fill_(float("nan"))
    refused(lambda: scorer.score(QUESTION, ["Yes"]), "nan", "dtype=float32")


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def test_adapter_folders(phase, family_folder, checkpoints):
    base = str(family_folder("llava"))
    scorer = RewardScorer.from_pretrained(str(phase), device="cpu")
    rewards = scorer.score(QUESTION, ANSWERS, images=noise(0))
    assert close(rewards, [separate(scorer, QUESTION, answer, [noise(0)]) for answer in ANSWERS])
    assert (scorer.mean, scorer.std) == (0.5, 2.0)
    assert scorer.score(QUESTION, ["No"], normalize=True)[0] == (scorer.score(QUESTION, ["No"])[0] - 0.5) / 2
    for name, adapter in ((base, phase), (base, phase / "adapter"), (phase / "adapter", None)):
        other = RewardScorer.from_pretrained(name, adapter=adapter, device="cpu")
        assert other.score(QUESTION, ANSWERS, images=noise(0)) == rewards and other.mean == 0.5
    onto_reward = RewardScorer.from_pretrained(checkpoints["llava"], adapter=phase, device="cpu")
    assert close(onto_reward.score(QUESTION, ANSWERS, images=noise(0)), rewards)  # the adapter's head wins


def test_what_is_no_reward_model(family_folder, phase, tmp_path):
    load = RewardScorer.from_pretrained
    refused(lambda: load(family_folder("llava")), "no reward model", "LlavaForConditionalGeneration", "rovrm.train")
    refused(lambda: load(tmp_path), str(tmp_path), "phase folder")
    refused(lambda: load(tmp_path / "missing"), "missing")
    refused(lambda: load(family_folder("llava"), adapter=tmp_path), str(tmp_path), "adapter_config.json")
    for name, value, word in (("a", "/gone/base", "/gone/base"), ("b", None, "None")):
        copy = shutil.copytree(phase, tmp_path / name)
        change_json(copy / "adapter/adapter_config.json", base_model_name_or_path=value)
        refused(lambda copy=copy: load(copy), word, "base_model_name_or_path")
    headless = {"modules_to_save": None, "base_model_name_or_path": str(family_folder("llava"))}
    change_json(copy / "adapter/adapter_config.json", **headless)
    refused(lambda: load(copy), "no reward model", "score")


def test_device_and_dtype(checkpoints, phase):
    load = RewardScorer.from_pretrained
    refused(lambda: load(checkpoints["llava"], device="gpu"), "device='gpu'", "cpu")
    refused(lambda: load(checkpoints["llava"], dtype="int3"), "dtype='int3'", "bfloat16")
    for folder in (checkpoints["llava"], phase):
        exact = load(folder, device="cpu").score(QUESTION, ANSWERS, images=noise(0))
        for dtype in ("bfloat16", torch.bfloat16):
            rough = load(folder, device="cpu", dtype=dtype)
            assert rough.model.get_decoder().layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
            heads = [p.dtype for name, p in rough.model.named_parameters() if "score" in name]
            assert heads and set(heads) == {torch.float32}
            rewards = rough.score(QUESTION, ANSWERS, images=noise(0))
            assert close(rewards, exact, 0.1) and rewards != exact


# ---- reward: TRL's call ----------------------------------------------------------------------------------------------


@pytest.fixture
def forwards(scorer, monkeypatch):
    """(rows of prompts, padded tokens) of each forward."""
    return forward_sizes(monkeypatch, scorer.model)


def chat(question, *images):
    blocks = [{"type": "image", "image": image} for image in images] + [{"type": "text", "text": question}]
    return [{"role": "user", "content": blocks}]


def assistant(text):
    return [{"role": "assistant", "content": text}]


def test_reward_of_strings(scorer, forwards):
    prompts = ["How many?"] * 3 + [QUESTION]
    completions = ["One.", "Two.", "", "A cup."]
    rewards = scorer.reward(
        prompts=prompts, completions=completions, completion_ids=[[1]] * 4, difficulty=[1, 2, 3, 4], trainer_state=None
    )
    assert sum(rows for rows, _ in forwards) == 2  # the three samples of one prompt share theirs
    each = [scorer.score(p, [c])[0] for p, c in zip(prompts, completions, strict=True)]
    assert close(rewards, each) and all(isinstance(reward, float) for reward in rewards)
    assert scorer.reward.__name__ == "reward"


def test_reward_of_messages_with_images_inside(scorer, forwards):
    """As TRL builds them: every sample of a prompt holds its own decoded copy of the image."""
    prompts = [chat("How many?", noise(i // 2)) for i in range(6)]
    completions = [assistant(text) for text in ("One.", "Two.", "Three.", "Four.", "Five.", "Six.")]
    rewards = scorer.reward(prompts=prompts, completions=completions, images=[[noise(i // 2)] for i in range(6)])
    assert sum(rows for rows, _ in forwards) == 3
    assert close(rewards, scorer.reward(prompts=prompts, completions=completions))
    assert close(rewards, scorer.reward(prompts=prompts, completions=completions, image=[None] * 6))
    each = [scorer.score("How many?", [c[0]["content"]], images=noise(i // 2))[0] for i, c in enumerate(completions)]
    assert close(rewards, each)
    blocks = [assistant([{"type": "text", "text": c[0]["content"]}]) for c in completions]
    assert close(rewards, scorer.reward(prompts=prompts, completions=blocks))


def test_reward_with_an_image_column(scorer, forwards, image_file):
    prompts = [[{"role": "user", "content": "How many?"}]] * 5
    images = [[noise(0)], [noise(0)], None, [], str(image_file)]
    rewards = scorer.reward(prompts, [assistant("Two.")] * 5, images=images, extra=[None] * 5)
    assert sum(rows for rows, _ in forwards) == 3  # an image in memory and one in a file are not compared
    with_image, without = (scorer.score("How many?", ["Two."], images=i)[0] for i in (noise(0), None))
    assert close(rewards, [with_image, with_image, without, without, with_image])
    assert close(rewards, scorer.reward(prompts, [assistant("Two.")] * 5, image=images))


def test_reward_with_images_in_the_column_and_more_in_the_prompt(scorer, forwards):
    """TRL puts the column's images into the empty blocks of a prompt, beside those that the prompt brought."""
    prompt = [*chat("And here?", noise(0)), *assistant("One."), *chat("How many?", noise(1))]
    for images in ([noise(1)], noise(1), [], None):
        assert scorer.reward([prompt], [assistant("Two.")], images=[images]) == scorer.score(prompt, ["Two."])
    # The blocks decide which picture is theirs, whatever the order of the column.
    assert scorer.score(prompt, ["Two."], images=[noise(1), noise(0)]) == scorer.score(prompt, ["Two."])
    swapped = [*chat("And here?", noise(1)), *assistant("One."), *chat("How many?", noise(0))]
    assert not close(scorer.score(swapped, ["Two."]), scorer.score(prompt, ["Two."]), 1e-3)
    refused(
        lambda: scorer.score(prompt, ["Two."], images=[noise(1), noise(2)]), "a block of the prompt names a picture"
    )


def test_reward_drops_the_space_behind_the_template(scorer):
    """Templates that end in "ASSISTANT:" make a policy begin with a space, which no training data have."""
    expected = scorer.score(QUESTION, ["A cup."]) * 3
    spaced = [" A cup.", assistant(" A cup."), assistant([{"type": "text", "text": "\n A cup."}])]
    assert scorer.reward([QUESTION] * 3, spaced) == pytest.approx(expected, abs=TOLERANCE)
    assert not close(scorer.score(QUESTION, [" A cup."]), expected[:1], 1e-3)
    assert close(scorer.reward([QUESTION], ["   "]), scorer.score(QUESTION, [""]))


def test_reward_refuses_videos_and_scores_the_last_of_several_turns(scorer):
    refused(lambda: scorer.reward(["Hi"], ["Yes"], videos=[["a.mp4"]]), "video")
    assert scorer.reward(["Hi"], ["Yes"], videos=[None]) == scorer.reward(["Hi"], ["Yes"], videos=None)
    turns = [*assistant("Hello"), {"role": "user", "content": QUESTION}, *assistant("A cup.")]
    prompt = [{"role": "user", "content": "Hi"}]
    assert scorer.reward([prompt], [turns]) == scorer.score(prompt + turns[:-1], ["A cup."])


def test_reward_is_none_for_a_completion_that_cannot_be_scored(scorer, caplog):
    """TRL leaves such a completion out of its prompt's baseline; the run goes on."""
    good = ["A cup.", "A dog."]
    completions = [good[0], "long " * scorer.max_length, good[1]]
    with caplog.at_level("WARNING"):
        rewards = scorer.reward([QUESTION] * 3, completions)
    assert rewards[1] is None and "longer than max_length" in caplog.text
    assert close([rewards[0], rewards[2]], scorer.score(QUESTION, good))
    caplog.clear()
    with caplog.at_level("WARNING"):
        assert scorer.reward([QUESTION] * 2, completions[1:2] * 2) == [None, None]
    assert len(caplog.records) == 1 and "no reward for 2 of 2 completions" in caplog.text


TOOLS = [
    {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": {}}}]},
    {"role": "tool", "content": "42"},
    {"role": "assistant", "content": "It is 42."},
]


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        (TOOLS, "tool_calls"),
        (TOOLS[:2], "does not end with the assistant's turn"),
        (TOOLS[1:2], "does not end with the assistant's turn"),
        ([TOOLS[2], {"role": "tool", "content": "7"}], "does not end with the assistant's turn"),
        ([{"role": "user", "content": "And?"}], "does not end with the assistant's turn"),
        ([], "does not end with the assistant's turn"),
        ([{"role": "assistant", "content": "5", "reasoning_content": "2+3"}], "reasoning_content"),
        ([TOOLS[1], TOOLS[2]], "unknown role"),
        (None, "a text or a list of turns"),
        (5, "a text or a list of turns"),
        ([{"role": "assistant", "content": 5}], "text"),
        ("<image> It is 42.", "'<image>'"),
        ("It is <|image_pad|> 42.", "<|image_pad|>"),
        ("<start_of_image>", "<start_of_image>"),
        ("[IMG] 42", "[IMG]"),
    ],
)
def test_one_odd_completion_gets_none_and_the_others_their_rewards(scorer, caplog, odd, reason):
    good = assistant("It is 42.")
    prompt = [{"role": "user", "content": "What is x?"}]
    expected = scorer.score("What is x?", ["It is 42."])[0]
    with caplog.at_level("WARNING"):
        rewards = scorer.reward([prompt] * 4, [good, odd, odd, good])
    assert rewards[1:3] == [None, None] and close([rewards[0], rewards[3]], [expected] * 2)
    assert len(caplog.records) == 1 and reason in caplog.text
    assert scorer.reward([prompt], [odd]) == [None]


def test_a_picture_that_is_missing_gives_none(scorer, tmp_path, caplog):
    (tmp_path / "empty.png").write_bytes(b"")
    images = [str(tmp_path / "none.png"), str(tmp_path / "empty.png"), noise(0)]
    rewards = scorer.reward([QUESTION] * 3, ["A cup."] * 3, images=images)
    assert rewards[:2] == [None, None] and close(rewards[2:], scorer.score(QUESTION, ["A cup."], images=noise(0)))
    assert "no such file" in caplog.text and "empty, 0 bytes" in caplog.text


@pytest.mark.parametrize("column", ["picture", "image_path", "img_path", "photos", "url"])
def test_a_column_of_pictures_that_is_not_read_is_refused(scorer, image_file, column):
    held = {"bytes": b"x", "path": None}
    for cell in (
        noise(0),
        [noise(0)],
        str(image_file),
        "elsewhere/none.JPG",
        held,
        [held],
        "data:image/png;base64,AA==",
        base64.b64encode(encoded(noise(0))).decode(),
        encoded(noise(0)),
        np.asarray(noise(0)),
    ):
        cells = {column: [None, cell]}
        refused(lambda cells=cells: scorer.reward([QUESTION] * 2, ["A."] * 2, **cells), column, "`images`", "sample 1")
        refused(
            lambda cells=cells: scorer.reward([QUESTION] * 2, ["A."] * 2, images=None, image=[None] * 2, **cells),
            column,
        )
    named = scorer.reward([QUESTION], ["A."], images=[noise(0)], **{column: ["train/1.png"]})
    assert close(named, scorer.score(QUESTION, ["A."], images=noise(0)))  # beside a picture a text may name it


def test_a_column_with_an_address_or_sound_is_refused(scorer):
    for column, cell in (
        ("image_url", "https://example.org/a?id=1"),
        ("audio", {"array": [0.1]}),
        ("videos", ["a.mp4"]),
    ):
        refused(lambda c=column, v=cell: scorer.reward([QUESTION], ["A."], **{c: [v]}), column, "sample 0")
    assert close(scorer.reward([QUESTION], ["A."], link=["https://example.org/a"]), scorer.score(QUESTION, ["A."]))


def test_lists_of_other_lengths_and_a_prompt_that_is_none(scorer):
    refused(lambda: scorer.reward([QUESTION] * 2, ["A."]), "completions: 1 for 2 prompts")
    refused(lambda: scorer.reward([QUESTION] * 2, ["A."] * 2, images=[noise(0)]), "images: 1 for 2 prompts")
    rewards = scorer.reward([None, QUESTION], ["A."] * 2)
    assert rewards[0] is None and close(rewards[1:], scorer.score(QUESTION, ["A."]))


def test_image_and_images_are_read_sample_by_sample(scorer):
    with_image, without = (scorer.score(QUESTION, ["A."], images=i)[0] for i in (noise(0), None))
    found = scorer.reward([QUESTION] * 3, ["A."] * 3, images=[None, [noise(0)], []], image=[noise(0), None, None])
    assert close(found, [with_image, with_image, without])
    both = {"images": [[noise(0)]], "image": [noise(1)]}
    refused(lambda: scorer.reward([QUESTION], ["A."], **both), "image")


def test_the_limit_of_pixels_of_a_row(reward):
    scorer = RewardScorer.from_pretrained(reward, device="cpu")
    scorer.max_pixels = 5000
    rows = [{"prompt": QUESTION, "responses": ["A."], "images": [noise(0)] * n} for n in (1, 2)]
    good, bad = scorer.score_or_error(rows)
    assert len(good) == 1 and "example 1: image in memory (64, 48): 64 x 48 pixels, where max_pixels" in str(bad)


def test_rows_of_any_shape_are_scored_or_refused(reward):
    scorer = RewardScorer.from_pretrained(reward, device="cpu")
    odd = [{"id": 10**5000}, {"prompt": 5}, {"images": [{1: 2}]}, {"ranks": object()}, {3: 4}]
    found = scorer.score_or_error([{"prompt": QUESTION, "responses": ["A."]} | row for row in odd])
    assert [isinstance(one, UserError) for one in found] == [False, True, True, False, False]
