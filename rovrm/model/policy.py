"""A vision-language model as a policy: answers sampled for prompts about images, with their log-probabilities.

    policy = Policy.from_pretrained("llava-hf/llava-1.5-7b-hf")
    policy.sample(examples, n=8, seed=0)      # [[Candidate("A cup.", logprob=-3.1, tokens=4, cut=False), ...], ...]

`examples` are `rovrm.data.example.Example`; only prompt and images are read. Each prompt goes through the model once,
images included, up to its last token; of that state every answer gets a copy, from which `generate` of transformers
goes on. A family that shares no rows (`why_not_shared`) has its prompt repeated for every answer instead.
"""

import inspect
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria

from rovrm.common.errors import UserError, offline
from rovrm.data.example import Example
from rovrm.model.chat import ChatTemplate, encode
from rovrm.model.collator import TOKEN_KEYS, why_not_shared
from rovrm.model.loading import load_config, load_processor, numeric_type

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
GREEDY = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
AT_ONCE = 131_072  # padded tokens of prompts and answers in one call of generate


@dataclass(frozen=True, slots=True)
class Candidate:
    """One answer.

    logprob: the sum of its tokens' log-probabilities (nats) at temperature 1, end of sequence included.
    tokens: their number.
    cut: whether there is no end of sequence among them, so that the text may stop in the middle.
    """

    text: str
    logprob: float
    tokens: int
    cut: bool


class Policy:
    """A model that answers.

    Args:
        model: any model of transformers that generates from text, or from text and images. Its generation settings are
            replaced: it samples from its own distribution.
        processor: its processor; of a text model its tokenizer.
    """

    def __init__(self, model: Any, processor: Any):
        self.model, self.processor, self.chat = model.eval(), processor, ChatTemplate(processor)
        self.shared = why_not_shared(model.config) is None
        self.tokenizer = getattr(processor, "tokenizer", processor)
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        # A model's own generation settings may filter or penalise (min_p, repetition_penalty): then these would not be
        # samples of the policy, and their log-probabilities and the bound on their KL divergence would be another's.
        # Its special tokens are kept.
        token_ids = {key: getattr(model.generation_config, key, None) for key in TOKEN_IDS}
        if token_ids["eos_token_id"] is None:  # answers would never end
            token_ids["eos_token_id"] = self.tokenizer.eos_token_id
        model.generation_config = GenerationConfig(**{key: ids for key, ids in token_ids.items() if ids is not None})

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike, *, device: str = "", dtype: str = "auto", trust_remote_code: bool = False
    ) -> "Policy":
        """Loads a folder or hub id.

        Args:
            device: where the model runs; empty for the GPU if there is one, else the CPU.
            dtype: numbers of the model; `auto` is bfloat16 on a GPU that has it, else float32.
            trust_remote_code: lets the checkpoint run code of its own.

        Raises:
            UserError: for a checkpoint that does not generate (a reward model), or does not load.
        """
        from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

        config = load_config(os.fspath(name), trust_remote_code)
        if (config.architectures or ["none"])[0].endswith("ForSequenceClassification"):
            raise UserError(f"policy={os.fspath(name)!r} is a reward model; give a model that generates text")
        auto = AutoModelForCausalLM if getattr(config, "vision_config", None) is None else AutoModelForImageTextToText
        place = device or ("cuda" if torch.cuda.is_available() else "cpu")
        number = numeric_type(dtype, use_cpu=place == "cpu")
        try:
            model: Any = auto.from_pretrained(name, dtype=number, trust_remote_code=trust_remote_code)
        except (OSError, ValueError) as error:
            reason = f"{str(error).splitlines()[0]}{offline(name)}"
            raise UserError(f"cannot load the policy {os.fspath(name)!r}: {reason}") from error
        return cls(model.to(place), load_processor(os.fspath(name), "", trust_remote_code, config))

    @torch.inference_mode()
    def sample(
        self,
        examples: Sequence[Example],
        n: int = 1,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_new_tokens: int = 256,
        seed: int = 0,
    ) -> list[list[Candidate]]:
        """n candidates for each example. The same seed and the same batch of examples give the same candidates.

        Args:
            examples: all with images, or all without.
            temperature: 0 is greedy, and n must then be 1.
            top_p: share of the probability that the sampled tokens come from; 1 for all.
            max_new_tokens: of one answer, at most.

        Returns:
            One list of n candidates per example, in order.
        """
        if temperature == 0 and n > 1:
            raise UserError(f"n={n} greedy answers would be the same one; set a temperature above 0, or n=1")
        torch.manual_seed(seed)
        options: dict[str, Any] = GREEDY
        if temperature > 0:
            options = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
        options = options | {"max_new_tokens": max_new_tokens, "pad_token_id": self.tokenizer.pad_token_id}
        return self._sample(list(examples), n, options)

    def _sample(self, examples: list[Example], n: int, options: dict[str, Any]) -> list[list[Candidate]]:
        """As `sample`. Where padded prompts and answers hold more than AT_ONCE tokens, the longer half of the prompts
        goes by itself, and of a single prompt half the candidates: one long prompt must not widen all the others."""
        inputs = self.inputs(examples)
        lengths = inputs["attention_mask"].sum(dim=1).tolist()
        rows = n * len(examples)
        if rows > 1 and rows * (max(lengths) + options["max_new_tokens"]) > AT_ONCE:
            if len(examples) == 1:
                return [self._sample(examples, n - n // 2, options)[0] + self._sample(examples, n // 2, options)[0]]
            order = sorted(range(len(examples)), key=lambda i: lengths[i])
            answers: dict[int, list[Candidate]] = {}
            for half in (order[: len(order) // 2], order[len(order) // 2 :]):
                of_half = self._sample([examples[i] for i in half], n, options)
                answers.update(zip(half, of_half, strict=True))
            return [answers[i] for i in range(len(examples))]
        log_probs = _LogProbs()
        hook = self.model.register_forward_hook(log_probs.keep)
        try:
            sequences = self.model.generate(**self._start(inputs, n), **options, stopping_criteria=[log_probs])
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"{n} answers to each of {len(examples)} prompts do not fit into memory; lower batch_size or "
                f"max_new_tokens ({str(error).splitlines()[0]})"
            ) from error
        finally:
            hook.remove()
        tokens = sequences[:, inputs["input_ids"].shape[1] :]  # behind the prompts, which are padded on the left
        candidates = self._candidates(tokens, torch.stack(log_probs.steps, dim=1))
        return [candidates[i : i + n] for i in range(0, len(candidates), n)]

    def _start(self, inputs: dict[str, Any], n: int) -> dict[str, Any]:
        """What n answers to each prompt go on from: its tokens n times, with n copies of the state that one run of all
        but the last token leaves."""
        prompts, tokens = inputs["input_ids"].shape
        if n == 1 or tokens == 1 or not self.shared:
            return inputs | {"num_return_sequences": n}
        before = {key: value[:, :-1] if key in TOKEN_KEYS else value for key, value in inputs.items()}
        before |= GREEDY | {"pad_token_id": self.tokenizer.pad_token_id}
        # The library's own run gives padded rows and Qwen-VL's their positions; its new token is dropped.
        state = self.model.generate(**before, max_new_tokens=1, return_dict_in_generate=True).past_key_values
        owners = torch.arange(prompts, device=self.model.device).repeat_interleave(n)
        state.reorder_cache(owners)
        backbone: Any = getattr(self.model, "model", None)
        if getattr(backbone, "rope_deltas", None) is not None:  # Qwen-VL's positions: a state outside the cache
            backbone.rope_deltas = backbone.rope_deltas[owners]
        return {key: inputs[key][owners] for key in TOKEN_KEYS & inputs.keys()} | {"past_key_values": state}

    def inputs(self, examples: Sequence[Example]) -> dict[str, Any]:
        """The prompts as a batch on the model's device, padded on the left."""
        texts = [self.chat.prompt(example) for example in examples]
        images = [[ref.open() for ref in example.images] for example in examples]
        if any(images) and not all(images):
            raise UserError("prompts with and without images cannot be sampled in one batch; sample them apart")
        batch = encode(self.processor, texts, images, padding_side="left")
        if "token_type_ids" not in inspect.signature(self.model.forward).parameters:
            batch.pop("token_type_ids", None)
        return {key: value.to(self.model.device) for key, value in batch.items()}

    def _candidates(self, tokens: torch.Tensor, log_probs: torch.Tensor) -> list[Candidate]:
        """Candidates from the tokens behind the prompts and their log-probabilities, both (candidates, steps)."""
        ends = self.model.generation_config.eos_token_id
        ends = torch.tensor(ends if isinstance(ends, list) else [ends], device=tokens.device)
        is_end = torch.isin(tokens, ends).int()
        counted = (is_end.cumsum(dim=1) - is_end) == 0  # up to and including the first end
        answers = [row[keep].tolist() for row, keep in zip(tokens, counted, strict=True)]
        texts = self.tokenizer.batch_decode(answers, skip_special_tokens=True)
        sums = (log_probs * counted).sum(dim=1).tolist()
        cut = (is_end.sum(dim=1) == 0).tolist()
        return [Candidate(texts[i].strip(), sums[i], len(answers[i]), cut[i]) for i in range(len(texts))]


class _LogProbs(StoppingCriteria):
    """The log-probabilities of tokens as they are chosen, from the model's logits before any penalty or temperature.

    transformers calls it after every step, as a criterion that stops nothing. So it holds one step's logits at a time,
    where `output_logits=True` would hold those of all steps.
    """

    def __init__(self) -> None:
        self.logits: torch.Tensor | None = None
        self.steps: list[torch.Tensor] = []  # each (candidates,)

    def keep(self, model: Any, args: Any, output: Any) -> None:
        self.logits = output.logits[:, -1]

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        assert self.logits is not None
        self.steps.append(self.logits.float().log_softmax(-1).gather(-1, input_ids[:, -1:])[:, 0])
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
