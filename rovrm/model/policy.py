"""A vision-language model as a policy: answers sampled for prompts about images, with their log-probabilities.

    policy = Policy.from_pretrained("llava-hf/llava-1.5-7b-hf")
    policy.sample(examples, n=8, seed=0)      # one list of n Candidates per example

`examples` are `rovrm.data.example.Example`; only prompt and images are read.
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
from rovrm.model.loading import load_config, load_processor, numeric_type

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
AT_ONCE = 131_072  # padded tokens of prompts and answers in one call of generate


@dataclass(frozen=True, slots=True)
class Candidate:
    """text; logprob: the sum of its tokens' log-probabilities (nats) at temperature 1, end of sequence included;
    tokens: their number; cut: no end of sequence among them, so that the text may stop in the middle."""

    text: str
    logprob: float
    tokens: int
    cut: bool


class Policy:
    """model: any model of transformers that generates from text and images; processor: its processor."""

    def __init__(self, model: Any, processor: Any):
        self.model, self.processor, self.chat = model.eval(), processor, ChatTemplate(processor)
        self.tokenizer = getattr(processor, "tokenizer", processor)
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        # A model's own generation settings may filter or penalise (min_p, repetition_penalty): then these would not be
        # samples of the policy, and their log-probabilities and the bound on their KL divergence would be another's.
        given = {key: getattr(model.generation_config, key, None) for key in TOKEN_IDS}
        if given["eos_token_id"] is None:  # answers would never end
            given["eos_token_id"] = self.tokenizer.eos_token_id
        model.generation_config = GenerationConfig(**{key: ids for key, ids in given.items() if ids is not None})

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike, *, device: str = "", dtype: str = "auto", trust_remote_code: bool = False
    ) -> "Policy":
        """Loads a folder or hub id. Raises UserError for a checkpoint that does not generate (a reward model)."""
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
            why = f"{str(error).splitlines()[0]}{offline(name)}"
            raise UserError(f"cannot load the policy {os.fspath(name)!r}: {why}") from error
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
        """n candidates for each example; temperature 0 is greedy (n must be 1). The same seed and the same batch of
        examples give the same candidates. Examples with and without images cannot be mixed in one call."""
        if temperature == 0 and n > 1:
            raise UserError(f"n={n} greedy answers would be the same one; set a temperature above 0, or n=1")
        torch.manual_seed(seed)
        options = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if temperature > 0:
            options = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
        options |= {"max_new_tokens": max_new_tokens, "pad_token_id": self.tokenizer.pad_token_id}
        return self._sample(list(examples), n, options)

    def _sample(self, examples: list[Example], n: int, options: dict[str, Any]) -> list[list[Candidate]]:
        """As `sample`. Where padded prompts and answers hold more than AT_ONCE tokens, the longer half of the prompts
        goes by itself, and of a single prompt half the candidates: one long prompt must not widen all the others."""
        inputs = self._inputs(examples)
        lengths = inputs["attention_mask"].sum(dim=1).tolist()
        if n * len(examples) * (max(lengths) + options["max_new_tokens"]) > AT_ONCE and n * len(examples) > 1:
            if len(examples) == 1:
                return [self._sample(examples, n - n // 2, options)[0] + self._sample(examples, n // 2, options)[0]]
            order = sorted(range(len(examples)), key=lambda i: lengths[i])
            halves = [order[: len(order) // 2], order[len(order) // 2 :]]
            parts = [answer for half in halves for answer in self._sample([examples[i] for i in half], n, options)]
            return [parts[order.index(i)] for i in range(len(examples))]
        log_probs = _LogProbs()
        hook = self.model.register_forward_hook(log_probs.keep)
        try:
            sequences = self.model.generate(**inputs, **options, num_return_sequences=n, stopping_criteria=[log_probs])
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"{n} answers to each of {len(examples)} prompts do not fit into memory; lower batch_size or "
                f"max_new_tokens ({str(error).splitlines()[0]})"
            ) from error
        finally:
            hook.remove()
        found = self._candidates(sequences[:, inputs["input_ids"].shape[1] :], torch.stack(log_probs.steps, dim=1))
        return [found[i : i + n] for i in range(0, len(found), n)]

    def _inputs(self, examples: Sequence[Example]) -> dict[str, Any]:
        texts = [self.chat.prompt(example) for example in examples]
        images = [[ref.open() for ref in e.images] for e in examples]
        if any(images) and not all(images):
            raise UserError("prompts with and without images cannot be sampled in one batch; sample them apart")
        batch = encode(self.processor, texts, images, padding_side="left")
        if "token_type_ids" not in inspect.signature(self.model.forward).parameters:
            batch.pop("token_type_ids", None)
        return {key: value.to(self.model.device) for key, value in batch.items()}

    def _candidates(self, tokens: torch.Tensor, chosen: torch.Tensor) -> list[Candidate]:
        """tokens, behind the prompt, and their log-probabilities: (candidates, steps)."""
        ends = self.model.generation_config.eos_token_id
        ends = torch.tensor(ends if isinstance(ends, list) else [ends], device=tokens.device)
        ended = torch.isin(tokens, ends).int()
        counted = (ended.cumsum(dim=1) - ended) == 0  # up to and including the first end
        sums, lengths = (chosen * counted).sum(dim=1).tolist(), counted.sum(dim=1).tolist()
        texts = self.tokenizer.batch_decode(
            [row[keep].tolist() for row, keep in zip(tokens, counted, strict=True)], skip_special_tokens=True
        )
        cut = (ended.sum(dim=1) == 0).tolist()
        return [Candidate(t.strip(), s, n, c) for t, s, n, c in zip(texts, sums, lengths, cut, strict=True)]


class _LogProbs(StoppingCriteria):
    """The log-probabilities of tokens as they are chosen, from the model's logits before any penalty or temperature. It
    holds one step's logits, where `output_logits=True` holds those of all steps. Stops nothing."""

    def __init__(self) -> None:
        self.logits: torch.Tensor | None = None
        self.steps: list[torch.Tensor] = []  # each (candidates,)

    def keep(self, model: Any, args: Any, output: Any) -> None:
        self.logits = output.logits[:, -1]

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        assert self.logits is not None
        self.steps.append(self.logits.float().log_softmax(-1).gather(-1, input_ids[:, -1:])[:, 0])
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
