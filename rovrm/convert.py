"""Converts reward models of other projects into an ordinary checkpoint folder, which everything here loads.

    python -m rovrm.convert in=robust_visual_reward_model base=llava-hf/llava-1.5-7b-hf out=runs/release
    python -m rovrm.convert in=Skywork-VL-Reward-7B out=runs/skywork

The layout is found from the files:

1. The RoVRM release, and what its authors' code saves for LLaVA (NiuTrans/Vision-LLM-Alignment, `ViRewardModel`): keys
   `rwtranrsformer.*` (sic) for the LLaVA and `v_head.weight` for the head, whole or in shards. Neither a config of the
   whole model nor a processor is in it: `base` names the LLaVA that it was trained from (its weights are not read). The
   chat template that is written is the authors' `llava` prompt.
2. LLaMA-Factory, ms-swift, Skywork-VL-Reward: a language-model folder and `value_head.safetensors` (or .bin) with
   `v_head.summary.weight` and `.bias`. Processor and chat template stay the folder's own.

Both read the reward at the last token that is not padding, as our models do. Weights keep their numeric type, the head
becomes float32, every key must find its place. A pickle (.bin) is read as tensors alone, never as code; an index may
name files of its own folder alone. Writes `out`: weights, config, processor, modeling.py, a README card; loads it again
and prints its rewards of fixed short answers. Where a step fails, `out` is left as it was. Where the result departs
from the original:

1. Our head has no bias. Theirs adds the same number to every reward, so the order is the same: it is printed, and kept
   in the config as `value_head_bias`. It is no `reward_mean`: normalize=True means the mean of held-out rewards.
2. The authors' code cuts a conversation after 512 text tokens; ours is not cut.
3. It gives a row without a picture an all-zero one behind `<image>`. Without a picture our prompt has neither; a
   picture of the one colour (123, 117, 104), the mean of CLIP's pixels, comes near to theirs.
4. Its training (not its scoring) also strips the letters of `USER:` and `ASSISTANT:` off both ends of the question.
"""

import os
import pickle
import re
import sys
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

from rovrm.common.errors import UserError, first_line
from rovrm.common.files import check_new, new_folder
from rovrm.settings.command_line import parse, run
from rovrm.settings.keys import ConvertConfig

if TYPE_CHECKING:
    import torch

PREFIX = "rwtranrsformer."
LLAVA_PARTS = {"vision_tower", "multi_modal_projector", "language_model"}
BUFFERS = re.compile(r"\.(position_ids|inv_freq)$")  # older versions of transformers saved them; nothing is learned
HEAD_FILES = ("value_head.safetensors", "value_head.bin")
WEIGHT, BIAS = "v_head.summary.weight", "v_head.summary.bias"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")

# LLAVA_TEMPLATE of the authors' training/utils/data/DST.py: a system line, the image right behind "USER: ", no blank
# before the answer. The tokenizer puts bos in front; the reward is read at the eos behind the answer. Earlier turns,
# which their reward data hold inside the question, end with eos as in LLaVA's own format.
SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
TEMPLATE = r"""
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
{%- endfor -%}""".replace("SYSTEM", SYSTEM)


@dataclass
class Source:
    """A reward model as found: our keys but for what transformers renames itself, and where the rest comes from."""

    layout: str
    weights: "dict[str, torch.Tensor]"  # with score.weight (1, hidden)
    config: str  # folder or hub id with the config
    processor: str  # folder or hub id with the processor
    template: str = ""  # chat template that replaces the processor's own
    bias: float = 0.0
    notes: list[str] = field(default_factory=list)  # for the user and the card


def convert(argv: list[str]) -> None:
    config = parse(ConvertConfig, argv, "python -m rovrm.convert")
    folder, out = Path(config.input), Path(config.output)
    check_new(out)
    if not folder.is_dir():
        raise UserError(f"in={config.input!r} is no folder; download the model: hf download ID --local-dir FOLDER")
    from rovrm.model.loading import CONFIG, PROCESSOR, damaged, loading, of_damage
    from rovrm.model.saving import save_merged

    source = find_source(folder, config.base)
    print(f"{folder}: {source.layout}")
    with loading("the processor of", source.processor, PROCESSOR):
        processor = their_processor(source, config.chat_template)
    with loading("the model of", source.config, CONFIG):
        model = our_model(folder, source)
    print(*source.notes, sep="\n")
    with new_folder(out) as made:
        save_merged(model, processor, made, "float32", {}, _card(config, source, processor))  # "float32": casts nothing
        del model
        try:
            processor.save_pretrained(made)
            print_rewards(made)
        except BaseException as error:  # a UserError too: it names a row and not what made the model fail at it
            if isinstance(error, OSError) or not of_damage(error):  # an OSError is the disk's
                raise
            what = f"no rewards from the weights of {str(folder)!r} with the processor of"
            raise damaged(what, source.processor, PROCESSOR, error) from error
    print(f"wrote {out}")


# ---- reading ---------------------------------------------------------------------------------------------------------


def find_source(folder: Path, base: str) -> Source:
    """What the folder holds, told by its files. Raises UserError for neither layout, or half of one."""
    where = f"in={str(folder)!r}"
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"{where} is an adapter; merge it first and convert that (llamafactory-cli export with stage: rm); one of "
            "rovrm's own needs no converting: give its phase folder as model=, or merge it with rovrm.merge"
        )
    weights = read_weights(folder)
    head_file = next((folder / name for name in HEAD_FILES if (folder / name).is_file()), None)
    if any(key.startswith(PREFIX) for key in weights):
        return _release(where, weights, base)
    if weights and (head_file is not None or any(key.startswith("v_head.") for key in weights)):
        return _value_head(folder, weights, head_file, base)
    if "score.weight" in weights:
        raise UserError(f"{where} has a score head already; give it to the other commands as model=")
    found = f"{len(weights)} keys such as {next(iter(weights))}" if weights else f"no {' or '.join(WEIGHT_FILES)}"
    raise UserError(
        f"{where} has no known layout: it holds {found}; takes keys {PREFIX}* and v_head.weight (RoVRM release), or a "
        f"language model with {' or '.join(HEAD_FILES)}"
    )


def _release(where: str, weights: "dict[str, torch.Tensor]", base: str) -> Source:
    """The authors' ViRewardModel. Its LLaVA is that of transformers in 2024, whose names transformers still reads, so
    only the prefix goes."""
    strange = {key.split(".")[1] for key in weights if key.startswith(PREFIX)} - LLAVA_PARTS
    if strange:
        raise UserError(
            f"{where} holds {', '.join(f'{PREFIX}{part}.*' for part in sorted(strange))}, which LLaVA has not: another "
            "model_architecture of the authors' code, and no model here is known to compute the same; give a llava one"
        )
    if "v_head.weight" not in weights:
        raise UserError(f"{where} holds {PREFIX}* but no v_head.weight; give a folder with all shards of the model")
    if not base:
        raise UserError(
            f"{where} holds neither processor nor config of the whole model; give the LLaVA that it was trained from, "
            "such as base=llava-hf/llava-1.5-7b-hf"
        )
    ours = {key.removeprefix(PREFIX): value for key, value in weights.items() if not BUFFERS.search(key)}
    ours["score.weight"] = ours.pop("v_head.weight")
    notes = [
        "chat template: the authors' llava prompt; the reward is read at the eos behind the answer",
        "rows without a picture: theirs have an all-zero one; a picture of colour (123, 117, 104) comes near it",
    ]
    return Source("a reward model of the RoVRM authors' code", ours, base, base, TEMPLATE, notes=notes)


def _value_head(folder: Path, weights: "dict[str, torch.Tensor]", head_file: Path | None, base: str) -> Source:
    """A language model with TRL's former value head beside it, or among its weights."""
    head = {key: weights.pop(key) for key in list(weights) if key.startswith("v_head.")}
    head = head if head_file is None else _tensors(head_file)
    if set(head) not in ({WEIGHT}, {WEIGHT, BIAS}) or (BIAS in head and tuple(head[BIAS].shape) != (1,)):
        found = ", ".join(f"{key} {tuple(value.shape)}" for key, value in sorted(head.items())) or "nothing"
        raise UserError(f"the head of in={str(folder)!r} holds {found}; takes {WEIGHT} (1, hidden) and {BIAS} (1,)")
    places = []
    for name in ("config.json", "tokenizer_config.json"):
        places.append(str(folder) if (folder / name).is_file() else base)
        if not places[-1]:
            raise UserError(f"in={str(folder)!r} holds no {name}; give the model that it was trained from: base=...")
    bias = float(head[BIAS]) if BIAS in head else 0.0
    notes = [f"value head: our rewards lack its bias {bias:.6g}, kept in the config as value_head_bias"] if bias else []
    weights["score.weight"] = head[WEIGHT]
    return Source("a language model with a value head", weights, *places, bias=bias, notes=notes)


def read_weights(folder: Path) -> "dict[str, torch.Tensor]":
    """All tensors of a folder's safetensors, or without any of its pickles; empty where there are neither. Raises
    UserError for a missing shard."""
    for name in WEIGHT_FILES:
        index = folder / f"{name}.index.json"
        files = _shards(index) if index.is_file() else [folder / name]
        if index.is_file() or files[0].is_file():
            return {key: tensor for file in files for key, tensor in _tensors(file).items()}
    return {}


def _shards(index: Path) -> list[Path]:
    """The files that an index names. Raises UserError for one that is not in the index's folder. A file there may be a
    link to elsewhere, as all are in the hub's cache: links are made by the owner of the folder, names by a stranger."""
    from rovrm.common.files import read_json

    table = read_json(index).get("weight_map")
    names = list(table.values()) if isinstance(table, dict) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{index} names no files of weights under weight_map; download it again")
    files = []
    for name in sorted(set(names)):
        path = PureWindowsPath(name)  # it knows both slashes, roots and drives
        if path.anchor or ".." in path.parts:
            raise UserError(f"{index} names {name!r}, outside of its folder: nothing is read there; mend the name")
        if not os.path.isfile(index.parent / name):
            raise UserError(f"in={str(index.parent)!r} lacks {name!r}, which {index.name} names; download it again")
        files.append(index.parent / name)
    return files


def _tensors(file: Path) -> "dict[str, torch.Tensor]":
    """The tensors of one file. A pickle is never run: torch refuses whatever in it is no tensor."""
    import torch
    from safetensors.torch import load_file

    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise UserError(
            f"{file} is a pickle with more than tensors in it{f' ({name[1]})' if name else ''}, which could run code, "
            "or a damaged one, and was not loaded; download it again, or ask its author for safetensors"
        ) from None
    except Exception as error:  # of damaged bytes torch's unpickler raises whatever stumbles first
        raise UserError(f"{file} cannot be read ({first_line(error)[:120]}); download it again") from error
    plain = isinstance(tensors, dict) and all(isinstance(key, str) for key in tensors)
    if not plain or not all(_is_plain(value) for value in tensors.values()):
        raise UserError(f"{file} holds no plain dictionary of tensors; give the file of the model's weights")
    return tensors


def _is_plain(value: Any) -> bool:
    """Whether a value is a tensor with real numbers in it, neither sparse nor packed."""
    import torch

    plain = isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type == "cpu"
    return plain and not value.is_quantized and not value.is_complex()


# ---- making ours -----------------------------------------------------------------------------------------------------


def their_processor(source: Source, chat_template: str) -> Any:
    """The processor with the chat template of the training. Raises UserError where there is none."""
    from rovrm.model.loading import load_config, load_processor

    settings = load_config(source.config)
    if source.template and settings.model_type != "llava":
        raise UserError(f"base={source.config!r} is a {settings.model_type} model; give the LLaVA it was trained from")
    processor = load_processor(source.processor, chat_template, config=settings)
    if source.template and processor.tokenizer.pad_token_id in (None, processor.tokenizer.eos_token_id):
        raise UserError(
            f"the tokenizer of base={source.config!r} has no padding token of its own, without which the authors' code "
            "does not read the reward at eos; give the base that it was trained from"
        )
    processor.chat_template = processor.chat_template if chat_template or not source.template else source.template
    if processor.chat_template is None:
        raise UserError(f"the processor of {source.processor!r} has no chat template; give one: chat_template=FILE")
    return processor


def our_model(folder: Path, source: Source) -> Any:
    """Our model of the source's weights, in their numeric type, the head in float32. Raises UserError unless every key
    finds its place."""
    import torch

    from rovrm.model.loading import check_keys, load_config, no_key_table, reward_class, set_head

    settings: Any = load_config(source.config)
    made: Any = reward_class(source.config, settings)
    width, head = settings.get_text_config().hidden_size, source.weights["score.weight"]
    if tuple(head.shape) != (1, width):
        raise UserError(
            f"the head of in={str(folder)!r} has shape {tuple(head.shape)}, but the model of {source.config!r} takes "
            f"(1, {width}); give the model that it was trained from: base=..."
        )
    layers = settings.get_text_config().num_hidden_layers
    if layers > len(source.weights):  # building them could take hours
        raise UserError(
            f"the config of {source.config!r} asks for {layers} layers, but in={str(folder)!r} holds "
            f"{len(source.weights)} tensors; give the model that it was trained from: base=..."
        )
    set_head(settings)
    if source.bias:
        settings.value_head_bias = source.bias
    kinds = {value.dtype for key, value in source.weights.items() if key != "score.weight"}
    kinds = {kind for kind in kinds if kind.is_floating_point} or {torch.float32}
    if any(kind.itemsize < 2 for kind in kinds):
        raise UserError(f"the weights of in={str(folder)!r} are quantized ({kinds}); give the model before that")
    dtype = reduce(torch.promote_types, kinds)  # the one that rounds none of them
    options = {"attn_implementation": "sdpa", "output_loading_info": True, "ignore_mismatched_sizes": True}
    with no_key_table():
        model, info = made.from_pretrained(None, config=settings, state_dict=source.weights, dtype=dtype, **options)
    check_keys(str(folder), info, set())
    source.notes.append(f"weights stay {str(dtype).removeprefix('torch.')}; the head is float32")
    return model.eval()


def print_rewards(out: Path) -> None:
    """Loads the folder as any user would and prints what it thinks of a few fixed short answers."""
    from rovrm.model.saving import ANSWERS, QUESTIONS, sample_rewards
    from rovrm.model.scorer import RewardScorer

    scorer = RewardScorer.from_pretrained(out)
    rewards = sample_rewards(scorer.model, scorer.processor)
    print("read back; its rewards of", *(f"{answer!r}" for answer in ANSWERS))
    for i, question in enumerate(QUESTIONS):
        row = rewards[i * len(ANSWERS) :][: len(ANSWERS)]
        print(f"  {question:<30}", *(f"{reward:10.4f}" for reward in row))


def _card(config: ConvertConfig, source: Source, processor: Any) -> str:
    from rovrm.model.saving import quick_start

    notes = "\n".join(f"- {note}" for note in source.notes)
    return f"""---
library_name: transformers
pipeline_tag: text-classification
tags: [reward-model, rovrm]
---
# Reward model

One scalar reward for a response to a prompt (about an image); higher is better. Converted by rovrm from
`{config.input}`: {source.layout}{f", config and processor from `{config.base}`" if config.base else ""}.

{notes}

```python
{quick_start(processor)}
```
With rovrm: `RewardScorer.from_pretrained(folder).score(prompt, answers, images="photo.jpg")`.
"""


def main(argv: list[str] | None = None) -> int:
    return run(convert, sys.argv[1:] if argv is None else argv, "rovrm.convert")


if __name__ == "__main__":
    sys.exit(main())
