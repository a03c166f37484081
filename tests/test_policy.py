"""n answers from one run of a prompt, against n rows of it: the same tokens and log-probabilities from fewer runs."""

import pytest
from families import FAMILIES, TEXT_FAMILIES
from helpers import noise
from transformers import AutoModelForCausalLM

from rovrm.data.example import Example
from rovrm.data.images import ImageRef
from rovrm.model.loading import load_processor
from rovrm.model.policy import Policy

N = 3
SEPARATE = ["paligemma"]
TOWERS = ("vision_tower", "visual", "vision_model")
QUESTIONS = ["What is on the table, please?", "How many?"]


@pytest.fixture(scope="module")
def loaded(family_folder):
    cache = {}

    def load(name) -> Policy:
        if name not in cache:
            cache[name] = Policy.from_pretrained(family_folder(name), device="cpu")
        return cache[name]

    return load


def prompt(question: str, *sizes: tuple[int, int]) -> Example:
    images = [ImageRef(image=noise(number + len(question), size)) for number, size in enumerate(sizes)]
    return Example("e", "test", [{"role": "user", "content": question}], [""], [0], images)


def batches(name: str) -> list[list[Example]]:
    """Two prompts of different lengths and one alone; with images of different sizes, one and two of them."""
    text = [prompt(question) for question in QUESTIONS]
    if name in TEXT_FAMILIES:
        return [text, text[:1]]
    pictured = [prompt(QUESTIONS[0], (64, 48)), prompt(QUESTIONS[1], (40, 80), (64, 64))]
    return [text, pictured, pictured[:1]]


def n_rows(policy: Policy, examples: list[Example], **options):
    """The twin: every answer is the only one to a prompt of its own, in the same order."""
    repeated = [example for example in examples for _ in range(N)]
    return [found[0] for found in policy.sample(repeated, 1, **options)]


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_are_those_of_n_rows(loaded, name):
    policy = loaded(name)
    assert policy.shared == (name not in SEPARATE)
    for examples in batches(name):
        for temperature, top_p in ((1.0, 0.95), (1e-6, 1.0)):
            options = {"seed": 1, "max_new_tokens": 10, "temperature": temperature, "top_p": top_p}
            found = [one for answers in policy.sample(examples, N, **options) for one in answers]
            expected = n_rows(policy, examples, **options)
            assert [(one.text, one.tokens, one.cut) for one in found] == [
                (one.text, one.tokens, one.cut) for one in expected
            ]
            assert [one.logprob for one in found] == pytest.approx(
                [one.logprob for one in expected], rel=1e-6, abs=1e-5
            )
            if temperature == 1.0:
                assert len({one.text for one in found}) == len(found)
        greedy = [answers[0].text for answers in policy.sample(examples, temperature=0, max_new_tokens=10)]
        assert [one.text for one in found] == [text for text in greedy for _ in range(N)]  # the coldest samples


@pytest.mark.parametrize("name", FAMILIES)
def test_each_prompt_is_run_once(loaded, name):
    """n answers take the pixels that one takes, and one row per prompt; from its last token on they have their own."""
    policy = loaded(name)
    examples = batches(name)[1 if name not in TEXT_FAMILIES else 0]
    pixels: list[int] = []
    tokens: list[tuple[int, ...]] = []
    decoder = policy.model.get_decoder()
    hooks = [decoder.register_forward_pre_hook(lambda *call: tokens.append(_shape(*call)), with_kwargs=True)]
    for key, module in policy.model.named_modules():
        if key.split(".")[-1] in TOWERS and not any(part in TOWERS for part in key.split(".")[:-1]):
            hooks.append(module.register_forward_pre_hook(lambda *call: pixels.append(_count(*call)), with_kwargs=True))
    try:
        policy.sample(examples, 1, max_new_tokens=4)
        pixels_of_one, (rows, length) = sum(pixels), tokens[0]
        pixels.clear()
        tokens.clear()
        policy.sample(examples, N, max_new_tokens=4)
    finally:
        for hook in hooks:
            hook.remove()
    assert len(hooks) == (1 if name in TEXT_FAMILIES else 2) and rows == len(examples)
    if name in SEPARATE:
        assert tokens[0] == (N * rows, length)
        return
    assert tokens[0] == (rows, length - 1) and set(tokens[1:]) == {(N * rows, 1)}
    assert sum(pixels) == pixels_of_one and (pixels_of_one > 0) == (name not in TEXT_FAMILIES)


def _shape(module, args, kwargs) -> tuple[int, ...]:
    """(rows, tokens) of a call of the language model."""
    given = kwargs["input_ids"] if kwargs.get("input_ids") is not None else kwargs["inputs_embeds"]
    return tuple(given.shape[:2])


def _count(module, args, kwargs) -> int:
    """Numbers in the pixels of a call of the vision tower."""
    return (args[0] if args else kwargs.get("pixel_values", kwargs.get("hidden_states"))).numel()


def test_a_prompt_of_one_token_has_nothing_to_share(family_folder):
    processor = load_processor(str(family_folder("qwen2")))
    processor.chat_template = "{%- for m in messages -%}{{ m['content'] }}{%- endfor -%}"
    policy = Policy(AutoModelForCausalLM.from_pretrained(family_folder("qwen2")), processor)
    assert policy.inputs([prompt("x")])["input_ids"].shape == (1, 1)
    options = {"seed": 3, "max_new_tokens": 6}
    found = policy.sample([prompt("x")], N, **options)[0]
    expected = n_rows(policy, [prompt("x")], **options)
    assert [one.text for one in found] == [one.text for one in expected] and len({one.text for one in found}) == N
