"""Partial answers that go on from a state, against full forwards; where steps end."""

import pytest
import torch
from helpers import noise

from rovrm.alignment.steps import StepRules, _Growing, sample_steps
from rovrm.common.errors import UserError
from rovrm.data.example import Example
from rovrm.data.images import ImageRef
from rovrm.data.loading import load_examples
from rovrm.model.beams import Beams
from rovrm.model.policy import Policy
from rovrm.world.default import BASE


def prompts(images: bool) -> list[Example]:
    texts = ["What is on the table?", "Describe the image in one sentence, please. It is not clear from the image."]
    return [
        Example(
            f"p{i}", "test", [{"role": "user", "content": text}], [], [], [ImageRef(image=noise(i))] if images else []
        )
        for i, text in enumerate(texts)
    ]


def full_logits(policy: Policy, example: Example, tokens: list[int]) -> torch.Tensor:
    """(vocabulary,) what follows a prompt and these tokens, from one forward of them alone."""
    inputs = policy.inputs([example])
    size = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([tokens], dtype=torch.long)], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in inputs:
            inputs[name] = torch.nn.functional.pad(inputs[name], (0, inputs["input_ids"].shape[1] - size))
    with torch.no_grad():
        return policy.model(**inputs).logits[0, -1].float()


@pytest.mark.parametrize(
    "name",
    ["llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "gemma3", "idefics3", "llava_mistral_sliding", "llama"],
)
def test_beams_equal_full_forwards(family_folder, name):
    """Two prompts, left padding, rows that grow by different numbers of tokens, copies and a selection between."""
    policy = Policy.from_pretrained(family_folder(name), device="cpu", dtype="float32")
    examples = prompts(getattr(policy.model.config, "vision_config", None) is not None)
    beams = Beams.of_prompts(policy, examples)
    answers, owners = [[], []], [0, 1]
    drawn = torch.Generator().manual_seed(0)
    worst = 0.0
    for chosen in ([0, 0, 0, 1, 1], [4, 1, 1, 0], [2, 3, 0, 0, 1]):
        beams = beams.select(chosen)
        answers, owners = [list(answers[i]) for i in chosen], [owners[i] for i in chosen]
        live = torch.ones(len(chosen), dtype=torch.bool)
        for _ in range(5):
            live = live & (torch.rand(len(chosen), generator=drawn) < 0.8)
            live[0] = True  # the longest
            tokens = torch.randint(20, 200, (len(chosen),), generator=drawn)
            beams.append(tokens, live)
            for row, (token, grows) in enumerate(zip(tokens.tolist(), live.tolist(), strict=True)):
                if grows:
                    answers[row].append(token)
        for row, answer in enumerate(answers):
            expected = full_logits(policy, examples[owners[row]], answer)
            worst = max(worst, (beams.logits[row].log_softmax(-1) - expected.log_softmax(-1)).abs().max().item())
    assert worst < 2e-4, worst
    assert len({len(answer) for answer in answers}) > 1
    beams = beams.select(range(5))
    beams.append(torch.zeros(5, dtype=torch.long), torch.tensor([True, False, True, True, True]))
    with pytest.raises(ValueError, match="may go on after select"):
        beams.append(torch.zeros(5, dtype=torch.long), torch.tensor([True, True, True, True, True]))


def test_steps_of_the_world_are_what_the_policy_would_say():
    """Clauses as steps: their log-probabilities are those of a full forward, and joined they are the answer."""
    policy = Policy.from_pretrained(BASE, device="cpu", dtype="float32")
    calls = []
    policy.model.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    examples = load_examples("world:visual?n=2&questions=describe").examples
    beams = Beams.of_prompts(policy, examples)
    rules = StepRules(delimiters=(",", " and", "."), tokens=40)
    generator, eos = torch.Generator().manual_seed(1), {policy.model.generation_config.eos_token_id}
    paths = {row: (owner, [], "", 0.0) for row, owner in enumerate((0, 1))}
    for _ in range(3):
        beams, steps = sample_steps(
            beams, [tokens for _, tokens, _, _ in paths.values()], 3, rules, policy.tokenizer, eos, generator
        )
        before = list(paths.values())
        grown = []
        for step in steps:
            owner, tokens, text, logprob = before[step.parent]
            grown.append((owner, [*tokens, *step.tokens], text + step.text, logprob + step.logprob, step))
        for owner, tokens, text, logprob, step in grown:
            expected, so_far = 0.0, []
            for token in tokens:
                expected += full_logits(policy, examples[owner], so_far).log_softmax(-1)[token].item()
                so_far.append(token)
            assert logprob == pytest.approx(expected, abs=1e-4)
            assert text == policy.tokenizer.decode(tokens, skip_special_tokens=True)
            if step.ended == "delimiter":
                assert text.endswith((",", " and", ".")) and tokens[-1] not in eos
            assert (step.ended == "eos") == (tokens[-1] in eos) and not eos & set(tokens[:-1])
        going = [i for i, path in enumerate(grown) if path[4].ended != "eos"][::2]
        if not going:
            break
        beams, paths = beams.select([grown[i][4].row for i in going]), {k: grown[i][:4] for k, i in enumerate(going)}


class Words:
    """A tokenizer of whole words with the white space before them."""

    def __init__(self, words: list[str]):
        self.words = words

    def decode(self, tokens: list[int], skip_special_tokens: bool = True) -> str:
        return "".join(self.words[token] for token in tokens)


@pytest.mark.parametrize(
    ("words", "ended", "kept"),
    [
        (["A", " cup", ".", " It"], "delimiter", 3),  # a sentence
        (["It", " is", " 3", ".", "5", " m", ".", " So"], "delimiter", 7),  # a decimal
        (["Mr", ".", " Fox", " is", " here", ".", " He"], "delimiter", 6),  # an abbreviation
        (["J", ".", " Fox", "!", " He"], "delimiter", 4),  # an initial
        (["He", " said", ' "', "no", ".", '"', " Then"], "delimiter", 6),  # a closing quotation mark
        (["Is", " it", "?", "EOS"], "eos", 4),  # the end of the answer
        (["EOS"], "eos", 1),  # an answer may end with no more text
        (["a"] * 9, "cap", 5),  # too long a step
        (["e.g", ".", " this", " one", "."], None, 5),  # what follows is not known yet
    ],
)
def test_where_a_step_ends(words, ended, kept):
    tokenizer = Words([*words, "EOS"])
    step = _Growing([], tokenizer, StepRules(tokens=5 if ended == "cap" else 70))
    eos = {i for i, word in enumerate(words) if word == "EOS"}
    for token in range(len(words)):
        if not step.take(token, -1.0, eos):
            break
    assert step.ended == ended and len(step.tokens) == kept and step.logprob == -kept
    assert step.take(0, -1.0, eos) is (ended is None)  # an ended step takes no more


def test_families_without_a_state_per_token_are_refused(family_folder):
    policy = Policy.from_pretrained(family_folder("qwen3_5_text"), device="cpu", dtype="float32")
    with pytest.raises(UserError, match="linear_attention, which search"):
        Beams.of_prompts(policy, prompts(False))
