"""Language models that give the log-probabilities of answers: what a policy is trained by.

    model = load_policy_model("llava-hf/llava-1.5-7b-hf")         # the model's own class, with a second forward
    output = model(**batch)                                       # a batch of AnswerCollator
    output.logps                                                  # (conversations,) float32: log pi(answer | prompt)

The model is the family's own class (`LlavaForConditionalGeneration`) and saves as that. Behind shared prompts a batch's
answers are exactly the second stage of a prefix state, so the head and the log-softmax run on the tokens of answers
alone.
"""

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from rovrm.common.errors import UserError
from rovrm.model import modeling
from rovrm.model.loading import CONFIG, WEIGHTS, check_keys, four_bit, is_reward_model, load_config, loading

BOTH_WAYS = {"paligemma"}
CAPPED = {"gemma4"}  # families with images whose own class caps its logits; those of text alone all do
LOGITS = 2**27  # that are held at a time; more are computed in parts, and again in backward: 0.5 GB in float32


@dataclass
class AnswerLogps(ModelOutput):
    """Of each conversation of a batch, both (conversations,).

    logps: float32, the sum of its answer's log-probabilities in nats, end of turn included.
    tokens: how many they are.
    """

    logps: Tensor = None  # type: ignore[assignment]  # a ModelOutput has defaults
    tokens: Tensor = None  # type: ignore[assignment]


class AnswerLikelihood(modeling.PrefixStates):
    """The forward of a policy in training; `likelihood_class` puts it on a family's language model, whose own forward
    runs where no `answer_starts` are given."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        owners: Tensor | None = None,
        answer_input_ids: Tensor | None = None,
        answer_attention_mask: Tensor | None = None,
        answer_position_ids: Tensor | None = None,
        answer_starts: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The log-probabilities of the answers, `AnswerLogps`; arguments as in `modeling.RewardModel.forward`, and

        Args:
            answer_starts: (rows of input_ids,) the number of tokens before the answers, padding not counted. What the
                answers to one prompt have in common belongs to its row of input_ids; it is counted in each of them.
        """
        if answer_starts is None:
            inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
            return super().forward(**inputs, **kwargs)
        prompts = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids, **kwargs}
        assert input_ids is not None and attention_mask is not None
        if owners is None:
            hidden = self.model(**prompts, use_cache=False).last_hidden_state
            output = self._sums(hidden[:, :-1], *_counted(input_ids, attention_mask, answer_starts))
        else:
            assert answer_input_ids is not None and answer_attention_mask is not None
            prompt_hidden, hidden = self._answers(
                prompts, owners, answer_input_ids, answer_attention_mask, answer_position_ids
            )
            common = self._sums(prompt_hidden[:, :-1], *_counted(input_ids, attention_mask, answer_starts))
            before = attention_mask.sum(1)[owners]  # (conversations,) tokens before each row of answer_input_ids
            first = prompt_hidden[owners, -1:]  # prompts are padded on the left; it predicts the first token
            targets, counted = _counted(
                answer_input_ids, answer_attention_mask, answer_starts[owners] - before, first=0
            )
            own = self._sums(torch.cat([first, hidden[:, :-1]], 1), targets, counted)
            output = AnswerLogps(own.logps + common.logps[owners], own.tokens + common.tokens[owners])
        if self.training and not self._is_sharded():
            output.logps = output.logps + self._zero_of_others(self._head(), input_ids.device)
        return output

    def _sums(self, hidden: Tensor, targets: Tensor, counted: Tensor) -> AnswerLogps:
        """Sums of the targets' log-probabilities over each row.

        Args:
            hidden: (rows, tokens, hidden) that predict the targets.
            targets: (rows, tokens).
            counted: (rows, tokens) bool, whether a target belongs to an answer.
        """
        states, wanted, rows = hidden[counted], targets[counted], counted.nonzero()[:, 0]
        vocabulary = self._head().weight.shape[0]
        size = max(1, LOGITS // vocabulary)
        parts = []
        for part, chosen in zip(states.split(size), wanted.split(size), strict=True):
            if len(states) > size and torch.is_grad_enabled():
                parts.append(checkpoint(self._logps, part, chosen, use_reentrant=False))
            else:
                parts.append(self._logps(part, chosen))
        logps = torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)
        sums = torch.zeros(len(hidden), device=hidden.device).index_add(0, rows, logps)
        return AnswerLogps(sums, counted.sum(1))

    def _logps(self, states: Tensor, targets: Tensor) -> Tensor:
        """(n,) float32 log-probabilities of targets (n,), from the states (n, hidden) that predict them."""
        logits = self._head()(states).float()
        logits = logits * getattr(self, "logit_scale", 1.0)  # Cohere's
        cap = getattr(self.config.get_text_config(), "final_logit_softcapping", None)  # Gemma's
        if cap is not None and (self.config.model_type in CAPPED or not hasattr(self.config, "vision_config")):
            logits = torch.tanh(logits / cap) * cap
        return logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]

    def _head(self) -> Any:
        return self.get_output_embeddings()


def _counted(ids: Tensor, mask: Tensor, starts: Tensor, first: int = 1) -> tuple[Tensor, Tensor]:
    """(targets, counted), both (rows, tokens - first): the tokens from `first` on, and which belong to an answer.

    Args:
        ids, mask: (rows, tokens), padded on either side.
        starts: (rows,) tokens of the row before the answer, padding not counted; it may be negative.
        first: 1 where nothing predicts a row's first token, 0 where something does.
    """
    number = mask.cumsum(1) - 1  # of each token in its row, padding not counted
    counted = mask.bool() & (number >= starts.clamp_min(first)[:, None])
    return ids[:, first:], counted[:, first:]


def likelihood_class(name: str, config: Any) -> type[PreTrainedModel]:
    """The class of a checkpoint's architecture with `AnswerLikelihood` on it, under its own name. Raises UserError for
    a reward model and for what is no language model."""
    architecture = (config.architectures or ["none"])[0]
    if is_reward_model(config):
        raise UserError(f"model {name!r} is a reward model; give the language model that is to be aligned")
    try:
        modeling.family_prefix(architecture)
        lm_class = getattr(transformers, architecture)
    except (ValueError, AttributeError) as error:
        raise UserError(f"model {name!r}: {error}") from error
    if config.model_type in BOTH_WAYS:
        raise UserError(
            f"model {name!r}: in {config.model_type} every token sees those behind it, so answers have no probability "
            "in one forward; train another family"
        )
    return type(lm_class.__name__, (AnswerLikelihood, lm_class), {"__module__": lm_class.__module__})


def load_policy_model(
    name: str, dtype: torch.dtype = torch.float32, quantize: bool = False, trust_remote_code: bool = False
) -> PreTrainedModel:
    """A language model that gives log-probabilities of answers. Arguments as in `loading.load_reward_model`.

    Raises:
        UserError: for a reward model, or where keys are missing or unexpected.
    """
    config = load_config(name, trust_remote_code)
    model_class: Any = likelihood_class(name, config)
    options: dict[str, Any] = {"quantization_config": four_bit()} if quantize else {}
    with loading("model", name, CONFIG + WEIGHTS):
        config._attn_implementation = None  # the class's own, sdpa or eager: flash attention takes no right padding
        model, info = model_class.from_pretrained(name, config=config, dtype=dtype, output_loading_info=True, **options)
    check_keys(name, info, set())
    return model
