"""Our model and our processor of a reward model that rovrm/conversion/layouts.py has read.

The processor comes first, since it is cheaper to refuse:

    processor = build_processor(foreign, chat_template="")
    model = build_model(Path("Skywork-VL-Reward-7B"), foreign)
"""

from functools import reduce
from pathlib import Path
from typing import Any

import torch

from rovrm.common.errors import UserError
from rovrm.conversion.layouts import ForeignModel
from rovrm.model.chat import fix_date
from rovrm.model.loading import check_keys, load_config, load_processor, no_key_table, reward_class, set_head


def build_processor(foreign: ForeignModel, chat_template: str) -> Any:
    """The processor with the chat template that the model was trained with.

    Args:
        foreign: the reward model.
        chat_template: a file with a template that wins over every other; empty for none.

    Raises:
        UserError: there is no chat template, or the base of the release cannot be what it was trained from.
    """
    config = load_config(foreign.config)
    if foreign.template and config.model_type != "llava":
        raise UserError(f"base={foreign.config!r} is a {config.model_type} model; give the LLaVA it was trained from")
    processor = load_processor(foreign.processor, chat_template, config=config)
    # The authors' code reads the reward at the last token that is no padding. Were eos the padding token, that would be
    # the token before eos, and our rewards, which are read at eos, would be others.
    if foreign.template and processor.tokenizer.pad_token_id in (None, processor.tokenizer.eos_token_id):
        raise UserError(
            f"the tokenizer of base={foreign.config!r} has no padding token of its own, without which the authors' "
            "code does not read the reward at eos; give the base that it was trained from"
        )
    if foreign.template and not chat_template:
        processor.chat_template = foreign.template
    if processor.chat_template is None:
        raise UserError(f"the processor of {foreign.processor!r} has no chat template; give one: chat_template=FILE")
    fix_date(processor)
    return processor


def build_model(folder: Path, foreign: ForeignModel) -> Any:
    """Our reward model with the foreign weights, in their numeric type, the head in float32.

    Notes the numeric type in `foreign.notes`. Raises UserError unless every key finds its place.
    """
    config: Any = load_config(foreign.config)
    model_class: Any = reward_class(foreign.config, config)
    _check_shapes(folder, foreign, config.get_text_config())
    set_head(config)
    if foreign.bias:
        config.value_head_bias = foreign.bias
    dtype = _widest_type(folder, foreign)
    with no_key_table():
        model, info = model_class.from_pretrained(
            None,
            config=config,
            state_dict=foreign.weights,
            dtype=dtype,
            attn_implementation="sdpa",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # check_keys refuses them, in one line
        )
    check_keys(str(folder), info, set())
    foreign.notes.append(f"weights stay {str(dtype).removeprefix('torch.')}; the head is float32")
    return model.eval()


def _check_shapes(folder: Path, foreign: ForeignModel, text_config: Any) -> None:
    """Raises UserError where the config's width or number of layers cannot be that of the weights."""
    width, head_shape = text_config.hidden_size, tuple(foreign.weights["score.weight"].shape)
    if head_shape != (1, width):
        raise UserError(
            f"the head of in={str(folder)!r} has shape {head_shape}, but the model of {foreign.config!r} takes "
            f"(1, {width}); give the model that it was trained from: base=..."
        )
    layers = text_config.num_hidden_layers
    if layers > len(foreign.weights):  # building that many could take hours
        raise UserError(
            f"the config of {foreign.config!r} asks for {layers} layers, but in={str(folder)!r} holds "
            f"{len(foreign.weights)} tensors; give the model that it was trained from: base=..."
        )


def _widest_type(folder: Path, foreign: ForeignModel) -> torch.dtype:
    """The numeric type that rounds none of the weights, the head aside. Raises UserError for quantized weights."""
    dtypes = {tensor.dtype for key, tensor in foreign.weights.items() if key != "score.weight"}
    dtypes = {dtype for dtype in dtypes if dtype.is_floating_point} or {torch.float32}
    if any(dtype.itemsize < 2 for dtype in dtypes):
        raise UserError(f"the weights of in={str(folder)!r} are quantized ({dtypes}); give the model before that")
    return reduce(torch.promote_types, dtypes)
