"""The layouts of other projects' reward models, recognised by the files and keys of a folder.

    foreign = read_foreign_model(Path("Skywork-VL-Reward-7B"), base="")
    foreign.layout           # "a language model with a value head"

1. The RoVRM release, and what its authors' code saves for LLaVA (NiuTrans/Vision-LLM-Alignment, `ViRewardModel`): keys
   `rwtranrsformer.*` (sic) for the LLaVA and `v_head.weight` for the head.
2. LLaMA-Factory, ms-swift and Skywork-VL-Reward: a language-model folder and, in a file beside it or among its weights,
   TRL's former value head, `v_head.summary.weight` and `v_head.summary.bias`.

Neither layout is rebuilt here: rovrm/conversion/build.py makes our model and processor of a ForeignModel.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

import torch

from rovrm.common.errors import UserError
from rovrm.conversion.weights import WEIGHT_FILES, read_tensors, read_weights
from rovrm.model.adapters import has_adapter

# ---- layout 1 --------------------------------------------------------------------------------------------------------

RELEASE_PREFIX = "rwtranrsformer."
LLAVA_PARTS = {"vision_tower", "multi_modal_projector", "language_model"}
BUFFERS = re.compile(r"\.(position_ids|inv_freq)$")  # older versions of transformers saved them; nothing is learned

# LLAVA_TEMPLATE of the authors' training/utils/data/DST.py: a system line, the image right behind "USER: ", no blank
# before the answer. The tokenizer puts bos in front; the reward is read at the eos behind the answer. Earlier turns,
# which their reward data hold inside the question, end with eos as in LLaVA's own format.
SYSTEM_LINE = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
RELEASE_TEMPLATE = r"""
{%- macro text(c) -%}
{{ c if c is string else c | selectattr('type', 'eq', 'text') | join(attribute='text') }}
{%- endmacro -%}
{%- macro images(c) -%}
{{ '<image>\n' * (0 if c is string else c | selectattr('type', 'eq', 'image') | list | length) }}
{%- endmacro -%}
{{- (text(messages[0]['content']) if messages[0]['role'] == 'system' else "SYSTEM") + ' ' -}}
{%- for m in messages -%}
{%- if m['role'] == 'user' -%}
{{ 'USER: ' + images(m['content']) + text(m['content']).strip('\n') + ' ASSISTANT:' }}
{%- elif m['role'] == 'assistant' -%}{{ text(m['content']) + eos_token }}
{%- endif -%}
{%- endfor -%}""".replace("SYSTEM", SYSTEM_LINE)

# ---- layout 2 --------------------------------------------------------------------------------------------------------

HEAD_FILES = ("value_head.safetensors", "value_head.bin")
HEAD_WEIGHT, HEAD_BIAS = "v_head.summary.weight", "v_head.summary.bias"


@dataclass
class ForeignModel:
    """A reward model of another project, read into memory.

    layout: the layout in words, for the user and the model card.
    weights: under our keys, as far as transformers does not rename them itself; `score.weight` has shape (1, hidden).
    config, processor: the folders or hub ids that hold the two.
    template: the chat template that replaces the processor's own; empty where the processor keeps its own.
    bias: the number that their head adds to every reward and ours does not.
    notes: what the user should know about the conversion; building the model adds to them.
    """

    layout: str
    weights: dict[str, torch.Tensor]
    config: str
    processor: str
    template: str = ""
    bias: float = 0.0
    notes: list[str] = field(default_factory=list)


def read_foreign_model(folder: Path, base: str) -> ForeignModel:
    """The reward model in a folder, in whichever known layout it is.

    Args:
        folder: the folder to convert.
        base: folder or hub id of the model that it was trained from; lends config and processor where the folder has
            none.

    Raises:
        UserError: the folder has no known layout, or only a part of one.
    """
    where = f"in={str(folder)!r}"
    if has_adapter(folder):
        raise UserError(
            f"{where} is an adapter; merge it first and convert that (llamafactory-cli export with stage: rm); one of "
            "rovrm's own needs no converting: give its phase folder as model=, or merge it with rovrm.merge"
        )
    weights = read_weights(folder)
    head_file = _head_file(folder)
    has_head = head_file is not None or any(key.startswith("v_head.") for key in weights)
    if any(key.startswith(RELEASE_PREFIX) for key in weights):
        return _from_release(where, weights, base)
    if weights and has_head:
        return _from_value_head(folder, weights, head_file, base)
    if "score.weight" in weights:
        raise UserError(f"{where} has a score head already; give it to the other commands as model=")
    if weights:
        content = f"{len(weights)} keys such as {next(iter(weights))}"
    else:
        content = f"no {' or '.join(WEIGHT_FILES)}"
    raise UserError(
        f"{where} has no known layout: it holds {content}; takes keys {RELEASE_PREFIX}* and v_head.weight (RoVRM "
        f"release), or a language model with {' or '.join(HEAD_FILES)}"
    )


def _head_file(folder: Path) -> Path | None:
    for name in HEAD_FILES:
        if (folder / name).is_file():
            return folder / name
    return None


def _from_release(where: str, weights: dict[str, torch.Tensor], base: str) -> ForeignModel:
    """Layout 1. Its LLaVA has the names that transformers used in 2024 and still reads, so only the prefix goes."""
    parts = {key.split(".")[1] for key in weights if key.startswith(RELEASE_PREFIX)}
    unknown = sorted(parts - LLAVA_PARTS)
    if unknown:
        raise UserError(
            f"{where} holds {', '.join(f'{RELEASE_PREFIX}{part}.*' for part in unknown)}, which LLaVA has not: another "
            "model_architecture of the authors' code, and no model here is known to compute the same; give a llava one"
        )
    if "v_head.weight" not in weights:
        raise UserError(
            f"{where} holds {RELEASE_PREFIX}* but no v_head.weight; give a folder with all shards of the model"
        )
    if not base:
        raise UserError(
            f"{where} holds neither processor nor config of the whole model; give the LLaVA that it was trained from, "
            "such as base=llava-hf/llava-1.5-7b-hf"
        )
    ours = {key.removeprefix(RELEASE_PREFIX): value for key, value in weights.items() if not BUFFERS.search(key)}
    ours["score.weight"] = ours.pop("v_head.weight")
    return ForeignModel(
        layout="a reward model of the RoVRM authors' code",
        weights=ours,
        config=base,
        processor=base,
        template=RELEASE_TEMPLATE,
        notes=[
            "chat template: the authors' llava prompt; the reward is read at the eos behind the answer",
            "rows without a picture: theirs have an all-zero one; a picture of colour (123, 117, 104) comes near it",
        ],
    )


def _from_value_head(folder: Path, weights: dict[str, torch.Tensor], head_file: Path | None, base: str) -> ForeignModel:
    """Layout 2. `head_file` is None where the head is among the model's own weights."""
    head = {key: weights.pop(key) for key in list(weights) if key.startswith("v_head.")}
    if head_file is not None:  # wins over a head among the weights
        head = read_tensors(head_file)
    bias_fits = HEAD_BIAS not in head or tuple(head[HEAD_BIAS].shape) == (1,)
    if set(head) not in ({HEAD_WEIGHT}, {HEAD_WEIGHT, HEAD_BIAS}) or not bias_fits:
        content = ", ".join(f"{key} {tuple(value.shape)}" for key, value in sorted(head.items())) or "nothing"
        raise UserError(
            f"the head of in={str(folder)!r} holds {content}; takes {HEAD_WEIGHT} (1, hidden) and {HEAD_BIAS} (1,)"
        )
    bias = float(head[HEAD_BIAS]) if HEAD_BIAS in head else 0.0
    weights["score.weight"] = head[HEAD_WEIGHT]
    foreign = ForeignModel(
        layout="a language model with a value head",
        weights=weights,
        config=_folder_with("config.json", folder, base),
        processor=_folder_with("tokenizer_config.json", folder, base),
        bias=bias,
    )
    if bias:
        foreign.notes.append(f"value head: our rewards lack its bias {bias:.6g}, kept in the config as value_head_bias")
    return foreign


def _folder_with(name: str, folder: Path, base: str) -> str:
    """The folder itself where it holds the file, else the base, which may be a hub id."""
    if (folder / name).is_file():
        return str(folder)
    if not base:
        raise UserError(f"in={str(folder)!r} holds no {name}; give the model that it was trained from: base=...")
    return base
