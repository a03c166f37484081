"""Which LoRA layers count in a selection, and which of them are balanced together.

Where the warm-up has seen the target alone, the last quarter of the decoder layers tells best which side of the target
a row is on; below, gradients say what a row is about (data_selection/README.md). Nothing below the lowest layer that
counts is run backward.
"""

import math
import re
from typing import Any

from torch import nn

from data_selection.gradients import lora_layers
from rovrm.common.errors import UserError

LAST = "last="


def check_layers(words: str) -> None:
    """Raises UserError for `selection.layers` that are neither a share, nor `all`, nor a regular expression."""
    if words.startswith(LAST):
        try:
            holds = 0 < float(words.removeprefix(LAST)) <= 1
        except ValueError:
            holds = False
        if not holds:
            raise UserError(f"selection.layers={words}; give a share above 0 and up to 1, such as last=0.25")
        return
    try:
        re.compile(words)
    except re.error as error:
        raise UserError(
            f"selection.layers={words!r} is neither last=SHARE, nor all, nor a regular expression ({error})"
        ) from error


def chosen_layers(words: str, model: Any) -> dict[str, nn.Linear]:
    """The LoRA layers of a PEFT model that `selection.layers` names. Raises UserError where there are none."""
    layers = lora_layers(model)
    if words == "all":
        return layers
    if words.startswith(LAST):
        numbers = {name: _decoder_layer(name, model) for name in layers}
        present = sorted({number for number in numbers.values() if number is not None})
        last = present[-math.ceil(float(words.removeprefix(LAST)) * len(present)) :]
        return {name: layer for name, layer in layers.items() if numbers[name] in last}
    chosen = {name: layer for name, layer in layers.items() if re.search(words, name)}
    if not chosen:
        raise UserError(
            f"selection.layers={words!r} fits none of {len(layers)} LoRA layers, such as {next(iter(layers))}"
        )
    return chosen


def layer_groups(layers: dict[str, nn.Linear], model: Any) -> dict[str, str]:
    """By a LoRA layer's name its group, such as `5.lora_B`: the A, or the B, matrices of one decoder layer."""
    return {name: f"{_decoder_layer(name, model)}.{'lora_A' if '.lora_A.' in name else 'lora_B'}" for name in layers}


def _decoder_layer(name: str, model: Any) -> int | None:
    """The number of the decoder layer that a module belongs to: the first number in its name below the decoder."""
    decoder = model.get_base_model().get_decoder()
    prefix = next(prefix for prefix, module in model.named_modules() if module is decoder)
    found = re.search(r"\.(\d+)\.", name.removeprefix(prefix))
    return int(found[1]) if found else None
