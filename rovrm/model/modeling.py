"""Reward models: any vision-language (or text) model of transformers with one scalar head.

`XForSequenceClassification` exists here for every X for which transformers has `XForConditionalGeneration` or
`XForCausalLM`: ask for `modeling.LlavaForSequenceClassification` and module-level `__getattr__` makes it. The
class holds the family's own backbone as `model` and one bias-free `score` (hidden -> 1), so a checkpoint has exactly
the language model's keys plus `score.weight`.

This file is copied into every checkpoint, where `AutoModelForSequenceClassification.from_pretrained(folder,
trust_remote_code=True)` runs it without rovrm: it imports torch and transformers only.
"""

import copy
import re
from typing import Any

import torch
import transformers
from torch import nn
from torch.distributed import fsdp
from transformers import AutoModel, DynamicCache, PreTrainedModel
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import SequenceClassifierOutput

FSDP = (fsdp.FSDPModule, fsdp.FullyShardedDataParallel)
SUFFIX = "ForSequenceClassification"
LM_SUFFIXES = ("ForConditionalGeneration", "ForCausalLM")


class PrefixCache(DynamicCache):
    """The state of a model behind some prefixes: what a first forward leaves, and later forwards go on from.

        state = PrefixCache(model.config)
        model(prefixes, past_key_values=state)
        model(answers, past_key_values=state.of(owners))

    Other caches grow with each forward. Backward would then meet tensors that have changed since, and a layer that
    activation checkpointing runs again would append its keys twice. Here every forward works on copies of the layers:
    what the first leaves goes to `after`, and what a later one adds is dropped. Gradients flow through the state.

    Args:
        config: the model's config; it names the kind of each layer.
    """

    def __init__(self, config):
        super().__init__(config=config)  # `layers` never change: here they are empty, in `of` they are `after`
        self.after = [_copy(layer) for layer in self.layers]
        self.owners: torch.Tensor | None = None
        self.kept: set[tuple] = set()  # what the first forward has left already
        self.cross_attention = getattr(config.get_text_config(), "cross_attention_layers", None) or []

    def of(self, owners: torch.Tensor) -> "PrefixCache":
        """The state that answers go on from. owners: (answers,), the number of each answer's prefix."""
        state = copy.copy(self)
        state.layers, state.owners = list(self.after), owners
        for i in self.cross_attention:  # Mllama reads these keys past the cache's methods
            state.layers[i] = state._of_owners(i)
        return state

    @property
    def nbytes(self) -> int:
        """Of the state behind the prefixes, in all layers."""
        tensors = []
        for layer in self.after:
            for value in vars(layer).values():
                tensors += [v for v in (value.values() if isinstance(value, dict) else [value]) if torch.is_tensor(v)]
        return sum(tensor.nbytes for tensor in tensors)

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        return self._layer("keys", layer_idx).update(key_states, value_states, *args, **kwargs)

    def get_conv_state(self, layer_idx, state_idx=0):
        layer = self._of_owners(layer_idx)
        return layer.conv_states[state_idx] if layer.has_previous_state[state_idx] else None

    def update_conv_state(self, conv_states, layer_idx, state_idx=0, **kwargs):
        layer = self._layer(("conv", state_idx), layer_idx)
        return layer.update_conv_state(conv_states, state_idx, **kwargs)

    def get_recurrent_state(self, layer_idx, state_idx=0):
        layer = self._of_owners(layer_idx)
        return layer.recurrent_states[state_idx] if layer.has_previous_state[state_idx] else None

    def update_recurrent_state(self, recurrent_states, layer_idx, state_idx=0, **kwargs):
        layer = self._layer(("recurrent", state_idx), layer_idx)
        return layer.update_recurrent_state(recurrent_states, state_idx, **kwargs)

    def _layer(self, part, layer_idx) -> Any:
        """The layer that an update may write to: the one that is kept, in the first forward; else a copy to drop."""
        if self.owners is None and (part, layer_idx) not in self.kept:
            self.kept.add((part, layer_idx))
            return self.after[layer_idx]
        return self._of_owners(layer_idx)

    def _of_owners(self, layer_idx) -> Any:
        """A copy of a layer, with a row for each answer."""
        layer = _copy(self.layers[layer_idx])
        if self.owners is not None:
            layer.reorder_cache(self.owners)
        return layer


def _copy(layer: Any) -> Any:
    """A cache layer that may be written to while the other stays as it is; tensors are shared until replaced."""
    twin = copy.copy(layer)
    for name, value in vars(layer).items():
        if isinstance(value, dict):  # the states of linear attention, by number
            setattr(twin, name, dict(value))
    return twin


class PrefixStates(PreTrainedModel):
    """For a model whose backbone is `self.model`: what conversations about one prompt begin with is run once, and the
    answers go on from its state (`PrefixCache`)."""

    model: Any

    def get_decoder(self):
        return self.model.get_decoder()  # the inherited one looks for it by a prefix, which Llama 4 has otherwise

    def _answers(self, prompts, owners, input_ids, attention_mask, position_ids) -> tuple[torch.Tensor, torch.Tensor]:
        """The hidden states of prompts, which are run once, and of their answers: (prompts, prompt tokens, hidden) and
        (conversations, answer tokens, hidden)."""
        self._keep_cache_under_checkpointing()
        state = PrefixCache(self.config)
        # use_cache=False makes no cache of its own, and takes the one that is given.
        prompt_hidden = self.model(**prompts, past_key_values=state, use_cache=False).last_hidden_state
        answers = {
            "input_ids": input_ids,
            "attention_mask": torch.cat([prompts["attention_mask"][owners], attention_mask], dim=1),
            "position_ids": position_ids,
        }
        backbone = self.get_decoder()
        if "cross_attention_mask" in prompts:  # (prompts, tokens, images, tiles), of Mllama, whose decoder needs more
            backbone = self.model
            last = prompts["cross_attention_mask"][owners, -1:]  # an answer sees the images that its prompt's end sees
            answers["cross_attention_mask"] = last.expand(-1, input_ids.shape[1], -1, -1)
        hidden = backbone(**answers, past_key_values=state.of(owners), use_cache=False).last_hidden_state
        if self.training and self._is_sharded():
            # Shards are gathered for a layer's backward when the gradient of its output comes. The last layer's output
            # for the prompts is used by nothing, only its keys and values are: zeros make it come.
            hidden = hidden + (0.0 * prompt_hidden[:, -1]).sum()  # of tokens that are no padding
        return prompt_hidden, hidden

    def _is_sharded(self) -> bool:
        """Whether FSDP or DeepSpeed keeps each process a part of the weights."""
        return is_deepspeed_zero3_enabled() or any(isinstance(module, FSDP) for module in self.modules())

    def _keep_cache_under_checkpointing(self) -> None:
        """Lets checkpointed layers read the prefix's state. transformers takes the cache away from them, because a
        layer that is run again would write to it twice; to a PrefixCache it writes once."""
        for layer in self.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                layer._can_checkpoint_with_cache = True
                how = getattr(getattr(layer, "_gradient_checkpointing_func", None), "keywords", {})
                if layer.gradient_checkpointing and layer.training and how.get("use_reentrant"):
                    raise ValueError(
                        "activation checkpointing with use_reentrant=True loses the gradients of the prompt; set "
                        "activation_checkpointing_kwargs use_reentrant=False, or rows=separate"
                    )

    def _zero_of_others(self, head: nn.Module, device: torch.device) -> torch.Tensor:
        """0 * (the parameters that texts do not reach). Added to what a head makes of the states, it gives each a
        gradient: there are batches without images, and towers with layers that are not used (CLIP's last, in LLaVA),
        while DistributedDataParallel waits for the gradient of every parameter."""
        text = {id(p) for n, p in self.get_decoder().named_parameters() if "cross_attn" not in n}
        text.update(id(p) for p in head.parameters())
        others = [p for p in self.parameters() if p.requires_grad and id(p) not in text]
        return sum(((0.0 * p).sum().to(device) for p in others), torch.zeros((), device=device))


class RewardModel(PrefixStates):
    """Backbone, scalar head and forward of every reward model; `__getattr__` below adds the family's own base class."""

    _keys_to_ignore_on_load_unexpected = [r"^lm_head\."]
    _keep_in_fp32_modules_strict = {"score"}

    def __init__(self, config):
        super().__init__(config)
        self.model = AutoModel.from_config(config)
        self.score = nn.Linear(config.get_text_config().hidden_size, 1, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        owners: torch.Tensor | None = None,
        answer_input_ids: torch.Tensor | None = None,
        answer_attention_mask: torch.Tensor | None = None,
        answer_position_ids: torch.Tensor | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput:
        """Rewards, float32, as `logits` (conversations, 1), read at the last token of each that is attended to,
        whichever side the padding is on.

        Without `owners`, a row of input_ids (conversations, tokens) is a whole conversation. With them, a row of
        input_ids (prompts, tokens) is what the conversations about one prompt begin with; conversation i is row
        owners[i] of it, and then row i of answer_input_ids (conversations, answer tokens). The prompt and its images go
        through the model once, and the answers go on from its state (`PrefixCache`): the rewards are the same.

        Args:
            attention_mask, answer_attention_mask: of the shapes of their ids. Prompts are padded on the left, because
                the state of linear attention decays over padding behind them, and answers on the right.
            position_ids, answer_position_ids: of the shapes of their ids, or (3, rows, tokens) for the M-RoPE families;
                an answer's go on from its prompt's. Required with owners, else optional.
            kwargs: pixel_values and the like, for the backbone.

        Raises:
            ValueError: with owners, under activation checkpointing with use_reentrant=True, which would lose the
                gradients that flow through the state.
        """
        if owners is None:
            hidden = self.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                use_cache=False,
                **kwargs,
            ).last_hidden_state
            last = _last_attended(attention_mask, hidden)
        else:
            _, hidden = self._answers(
                {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids, **kwargs},
                owners,
                answer_input_ids,
                answer_attention_mask,
                answer_position_ids,
            )
            last = _last_attended(answer_attention_mask, hidden)
        picked = hidden[torch.arange(len(hidden), device=hidden.device), last]  # (conversations, hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            rewards = self.score(picked.to(self.score.weight.dtype)).float()
        if self.training and not self._is_sharded():
            rewards = rewards + self._zero_of_others(self.score, rewards.device)
        return SequenceClassifierOutput(logits=rewards)


def _last_attended(attention_mask: torch.Tensor | None, hidden: torch.Tensor) -> torch.Tensor:
    """(rows,): the index of each row's last attended token, whichever side the padding is on."""
    rows, tokens = hidden.shape[:2]
    if attention_mask is None:
        return torch.full((rows,), tokens - 1, device=hidden.device)
    order = torch.arange(1, tokens + 1, device=attention_mask.device)  # grows to the right, and is 0 where masked
    return (attention_mask.ne(0) * order).argmax(dim=1).to(hidden.device)


def language_model_class(prefix: str) -> type[PreTrainedModel]:
    """The language-model class of the family `prefix` ("Llava", "Qwen2_5_VL", ...). Raises AttributeError."""
    for suffix in LM_SUFFIXES:
        lm_class = getattr(transformers, prefix + suffix, None)
        if lm_class is not None:
            return lm_class
    names = " nor ".join(prefix + suffix for suffix in LM_SUFFIXES)
    raise AttributeError(f"transformers {transformers.__version__} has neither {names}")


def family_prefix(architecture: str) -> str:
    """The Llava of LlavaForConditionalGeneration. Raises ValueError for neither a language nor a reward model."""
    match = re.fullmatch(rf"(\w+?)(?:{'|'.join(LM_SUFFIXES)}|{SUFFIX})", architecture)
    if match is None:
        raise ValueError(
            f"architecture {architecture!r} is no language model that a reward head fits on; "
            f"it must end in {', '.join(LM_SUFFIXES)} or {SUFFIX}"
        )
    return match[1]


def _make_class(name: str) -> type[PreTrainedModel]:
    """The reward model's class of a family: RewardModel on the base class of the family's language model, which knows
    its backbone, its config and how its weights are initialised."""
    lm_class = language_model_class(name.removesuffix(SUFFIX))
    base = next(b for b in lm_class.__bases__ if issubclass(b, PreTrainedModel))
    reward_class = type(name, (RewardModel, base), {"__module__": __name__, "config_class": lm_class.config_class})
    # transformers renames checkpoint keys by class name and skips classes from outside the library: without this,
    # Qwen2-VL's language weights stay random and LLaVA's are saved under names that nothing else reads.
    mapping = get_checkpoint_conversion_mapping(lm_class.__name__) or get_checkpoint_conversion_mapping(
        lm_class.config_class.model_type  # type: ignore[union-attr]
    )
    if mapping:
        register_checkpoint_conversion_mapping(name, mapping, overwrite=True)
    reward_class.register_for_auto_class("AutoModelForSequenceClassification")
    return reward_class


def __getattr__(name: str):
    """Makes a class when it is first asked for, and keeps it: a second one of the same name would be another class."""
    if not name.endswith(SUFFIX) or name == SUFFIX:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = _make_class(name)
    return globals()[name]
