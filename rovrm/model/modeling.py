"""Reward models: any vision-language (or text) model of transformers with one scalar head.

`XForSequenceClassification` exists here for every X for which transformers has `XForConditionalGeneration` or
`XForCausalLM`: ask for `modeling.LlavaForSequenceClassification` and module-level `__getattr__` makes it. The
class holds the family's own backbone as `model` and one bias-free `score` (hidden -> 1), so a checkpoint has exactly
the language model's keys plus `score.weight`.

This file is copied into every checkpoint, where `AutoModelForSequenceClassification.from_pretrained(folder,
trust_remote_code=True)` runs it without rovrm: it imports torch and transformers only.
"""

import re

import torch
import transformers
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.modeling_outputs import SequenceClassifierOutput

SUFFIX = "ForSequenceClassification"
LM_SUFFIXES = ("ForConditionalGeneration", "ForCausalLM")


def shared_prefix_mask(segment_ids: torch.Tensor) -> torch.Tensor:
    """Who may attend to whom in rows `[prefix | r_1 | ... | r_k]`.

    segment_ids: (rows, tokens); 0 the shared prefix, 1..k the responses, -1 padding.
    Returns a boolean (rows, 1, tokens, tokens), true where the query (dimension 2) sees the key (dimension 3): keys
    that are not later, in the prefix or in the query's own response. Padding sees itself, lest its softmax be 0/0.
    """
    tokens = segment_ids.shape[1]
    query, key = segment_ids[:, :, None], segment_ids[:, None, :]
    causal = torch.ones(tokens, tokens, dtype=torch.bool, device=segment_ids.device).tril()
    visible = causal & ((key == 0) | ((key == query) & (key > 0)))  # (rows, tokens, tokens)
    return (visible | torch.eye(tokens, dtype=torch.bool, device=segment_ids.device))[:, None]


class RewardModel(PreTrainedModel):
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
        segment_ids: torch.Tensor | None = None,
        reward_positions: torch.Tensor | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput:
        """Rewards of every response in the batch, float32, as `logits`.

        input_ids: (rows, tokens). With `segment_ids` (rows, tokens; see `shared_prefix_mask`) and `reward_positions`
        (rows, k; the index of each response's last token, -1 where a row has fewer than k) the logits are (rows, k),
        NaN-free and meaningless at -1. With neither, they are (rows, 1), read at the last token that
        `attention_mask` (rows, tokens) attends to, whichever side the padding is on. position_ids: (rows, tokens), or
        (3, rows, tokens) for the M-RoPE families. Everything else (pixel_values, ...) goes to the backbone.
        """
        mask = attention_mask if segment_ids is None else self._attention_mask(segment_ids)
        outputs = self.model(
            input_ids=input_ids, attention_mask=mask, position_ids=position_ids, use_cache=False, **kwargs
        )
        hidden = outputs.last_hidden_state  # (rows, tokens, hidden)
        if reward_positions is None:
            reward_positions = _last_attended(attention_mask, hidden)  # (rows, 1)
        index = reward_positions.clamp(min=0).to(hidden.device)
        rows = torch.arange(hidden.shape[0], device=hidden.device)[:, None]
        picked = hidden[rows, index]  # (rows, k, hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            rewards = self.score(picked.to(self.score.weight.dtype)).squeeze(-1).float()
        if self.training and kwargs.get("pixel_values") is None:
            rewards = rewards + self._zero_of_unused()
        return SequenceClassifierOutput(logits=rewards)

    def _attention_mask(self, segment_ids: torch.Tensor) -> torch.Tensor:
        """The shared-prefix mask as numbers added to the attention scores, (rows, 1, tokens, tokens).

        A boolean mask is right with sdpa only: eager attention would add its ones and zeros to the scores. sdpa turns
        booleans into such numbers anyway, once per layer.
        """
        implementation = self.config.get_text_config()._attn_implementation
        if implementation not in ("sdpa", "eager"):
            raise ValueError(
                "shared-prefix rows need attn_implementation sdpa or eager, the model was loaded with "
                f"{implementation!r}; load it with sdpa or set rows=separate"
            )
        device = segment_ids.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.dtype
        visible = shared_prefix_mask(segment_ids)
        mask = torch.zeros(visible.shape, dtype=dtype, device=segment_ids.device)
        return mask.masked_fill_(~visible, torch.finfo(dtype).min)

    def _zero_of_unused(self) -> torch.Tensor:
        """0 * (the parameters that only images reach). Added to the rewards of a batch without images, it gives these
        parameters a gradient too: DistributedDataParallel waits for the gradient of every parameter."""
        text = {id(p) for n, p in self.get_decoder().named_parameters() if "cross_attn" not in n}
        text.update(id(p) for p in self.score.parameters())
        unused = [p for p in self.parameters() if p.requires_grad and id(p) not in text]
        return 0.0 * sum((p.sum() for p in unused), torch.zeros((), device=self.device))


def _last_attended(attention_mask: torch.Tensor | None, hidden: torch.Tensor) -> torch.Tensor:
    """(rows, 1): the index of each row's last attended token, whichever side the padding is on."""
    rows, tokens = hidden.shape[:2]
    if attention_mask is None:
        return torch.full((rows, 1), tokens - 1, device=hidden.device)
    order = torch.arange(1, tokens + 1, device=attention_mask.device)  # grows to the right, and is 0 where masked
    return (attention_mask.ne(0) * order).argmax(dim=1, keepdim=True)


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
