"""Adapters: which weights train in which phase, how a phase's adapter is loaded and merged, and what lies beside it.

An adapter is PEFT's LoRA on the language model. The scalar head and the projector, the modules between the vision tower
and the language model, train in full and are saved with it.
"""

import os
import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel

from rovrm.common.errors import UserError, described
from rovrm.common.files import read_json
from rovrm.model.chat import prepare_template
from rovrm.model.loading import (
    PROJECTORS,
    dtype_on,
    is_reward_model,
    load_config,
    load_processor,
    load_reward_model,
    logger,
    usable_device,
)

ADAPTER = "adapter"
ADAPTER_REMEDY = "copy it again, give the model that it was trained on, or save it anew with the PEFT installed here"


def training_processor(
    base: str, start: str, chat_template: str = "", trust_remote_code: bool = False, config: Any = None
) -> Any:
    """The processor that a reward model is trained and saved with: the one of what training starts from.

    Rewards are read in its own chat template. A language model's template, and one that a file gives, is prepared for
    that (`rovrm.model.chat.prepare_template`).

    Args:
        base: the base model.
        start: what training starts from: the base, a checkpoint, or an adapter's folder.
        chat_template: a file with another template; empty for the processor's own.
        config: the base's, where it is loaded already.
    """
    config = config or load_config(base, trust_remote_code)
    place = processor_of(Path(start), base) if has_adapter(start) else start
    processor = load_processor(place, chat_template, trust_remote_code, config)
    if chat_template or (place == base and not is_reward_model(config)):
        prepare_template(processor)
    return processor


# ---- what trains -----------------------------------------------------------------------------------------------------


def projector_names(model: nn.Module) -> list[str]:
    """Dotted names of the projector modules; the members of a ModuleList one by one, as PEFT wants them."""
    names = []
    for name, module in model.named_modules():
        if name.rsplit(".", 1)[-1] not in PROJECTORS:  # by the last part: families put them at different depths
            continue
        names += [f"{name}.{i}" for i in range(len(module))] if isinstance(module, nn.ModuleList) else [name]
    return names


def lora_config(model: PreTrainedModel, r: int, alpha: int, dropout: float) -> Any:
    """LoRA on every linear layer of the language model; the projector and, of a reward model, `score` are trained and
    saved in full, in the adapter.

    Args:
        r, alpha, dropout: as in `peft.LoraConfig`.
    """
    from peft import LoraConfig

    # By a pattern of the names: PEFT's `all-linear` would adapt the vision tower too.
    decoder = model.get_decoder()
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    layers = {name.rsplit(".", 1)[-1] for name, m in decoder.named_modules() if isinstance(m, nn.Linear)}
    pattern = rf"{re.escape(prefix)}\..*\.({'|'.join(sorted(layers))})"
    head = ["score"] if hasattr(model, "score") else []
    return LoraConfig(
        task_type="SEQ_CLS" if head else None,
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=pattern,
        modules_to_save=[*head, *projector_names(model)],
    )


def add_adapter(model: PreTrainedModel, base: str, r: int, alpha: int, dropout: float) -> Any:
    """The model with a fresh adapter on it, which remembers its base by name, or by its absolute folder."""
    from peft import get_peft_model

    # PEFT writes this into adapter_config.json; a relative folder would be another one elsewhere.
    if os.path.isdir(base):
        model.name_or_path = os.path.abspath(base)
    return get_peft_model(model, lora_config(model, r, alpha, dropout))


def load_adapter(model: PreTrainedModel, folder: str, trainable: bool) -> Any:
    """The model with the adapter of a folder on it. trainable: with gradients, to train it further.

    Raises:
        UserError: the adapter's weights are not exactly those that it puts on this model. PEFT itself loads an adapter
            of other names or with a layer missing, and leaves the rest as it was.
    """
    from peft import PeftModel, get_peft_model_state_dict

    weights = os.path.join(folder, "adapter_model.safetensors")
    if not os.path.isfile(weights):
        raise UserError(f"{folder!r} holds no adapter_model.safetensors; give a folder that rovrm.train wrote")
    if trainable:  # PEFT loads what it saves in full in the base's type: bfloat16 would round it
        for name in [*projector_names(model), *(["score"] if hasattr(model, "score") else [])]:
            model.get_submodule(name).float()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys")  # said below, as an error
            adapted = PeftModel.from_pretrained(model, folder, is_trainable=trainable)
    except (KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"the adapter {folder!r} does not fit its model: {described(error)}; {ADAPTER_REMEDY}"
        ) from error
    expected = get_peft_model_state_dict(adapted, save_embedding_layers=False).keys()
    with safe_open(weights, "pt") as file:
        found = set(file.keys())
    parts = {"missing": sorted(expected - found), "unexpected": sorted(found - expected)}
    if faults := "; ".join(f"{len(keys)} weights {what}, such as {keys[0]}" for what, keys in parts.items() if keys):
        raise UserError(f"the adapter {folder!r} does not fit its model: {faults}; {ADAPTER_REMEDY}")
    return adapted


def set_trainable(model: nn.Module, visual: bool, full: bool) -> None:
    """Chooses what trains: adapter (or language model, with `full`, and its head) and score; the projector only in the
    visual phase; the vision tower never.

    What trains becomes float32: bfloat16 weights would round the paper's updates of 1e-6 away.

    Args:
        visual: whether this is the visual phase.
        full: whether the whole language model trains; else `model` has an adapter on it.
    """
    projectors = [f".{name}." for name in PROJECTORS]
    decoder: set[int] = set()
    if full:
        head = model.get_output_embeddings()  # type: ignore[operator]  # None of a reward model
        for module in (model.get_decoder(), head):  # type: ignore[operator]
            decoder |= {id(p) for p in module.parameters()} if module is not None else set()
    for name, parameter in model.named_parameters():
        # PEFT keeps a module that trains in full twice: as `original_module`, which stays, and in `modules_to_save`.
        if any(part in f".{name}" for part in projectors):
            trains = visual and (full or ".modules_to_save." in name)
        elif full:
            trains = id(parameter) in decoder or name.startswith("score.")
        else:
            trains = "lora_" in name or ".score.modules_to_save." in name
        parameter.requires_grad_(trains)
        if trains and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()


# ---- adapters of finished phases -------------------------------------------------------------------------------------


def has_adapter(folder: str | os.PathLike) -> bool:
    """Whether a folder is that of an adapter."""
    return os.path.isfile(os.path.join(folder, "adapter_config.json"))


def adapter_folder(name: str | os.PathLike) -> Path:
    """The folder of a phase's adapter: `name` itself or its `adapter/`. Raises UserError where there is none."""
    for folder in (Path(name), Path(name) / ADAPTER):
        if has_adapter(folder):
            return folder
    if os.path.isfile(os.path.join(name, "config.json")):
        raise UserError(f"{os.fspath(name)!r} is a whole checkpoint, it holds no adapter; use it as it is")
    raise UserError(
        f"{os.fspath(name)!r} holds neither config.json nor {ADAPTER}/adapter_config.json; give a phase folder of "
        "rovrm.train"
    )


def base_of(adapter: Path) -> str:
    """The base model that an adapter was trained on, a folder or a hub id. Raises UserError when it is not there."""
    settings = adapter / "adapter_config.json"
    base = read_json(settings).get("base_model_name_or_path")
    if not base or ((os.path.isabs(base) or base.startswith(".")) and not os.path.isdir(base)):
        raise UserError(
            f"the base model {base!r} of the adapter {str(adapter)!r} is not there; put it back, or write its place "
            f"into base_model_name_or_path of {settings}"
        )
    return base


def brings_head(adapter: Path) -> bool:
    """Whether the adapter holds a trained `score`; PEFT takes one without, and leaves the head random."""
    return "score" in (read_json(adapter / "adapter_config.json").get("modules_to_save") or [])


def phase_record(folder: Path) -> dict[str, Any]:
    """The record of a finished phase (phase.json), empty where there is none."""
    path = folder / "phase.json"
    return read_json(path) if path.is_file() else {}


def processor_of(adapter: Path | None, base: str) -> str:
    """Where the processor lies, with the chat template of the training: in the adapter's folder or the one above, else
    with the base, which is said. adapter: None for a base without one."""
    if adapter is None:
        return base
    for folder in (adapter, adapter.parent):
        if (folder / "tokenizer_config.json").is_file():
            return str(folder)
    logger.warning(
        "%s holds no processor, as an earlier version wrote it: the base's is taken; was it trained with another "
        "chat template, copy the processor files of its phase folder into it",
        adapter,
    )
    return base


def adapted_base(base: str, adapter: str, trust_remote_code: bool = False) -> Any:
    """The adapter on its base, in float32 whatever the base was trained in: bfloat16 loses small updates when they are
    merged."""
    # A language model as the base gets a fresh head here, which the adapter's own then replaces.
    model = load_reward_model(base, torch.float32, trust_remote_code=trust_remote_code)
    return load_adapter(model, adapter, trainable=False)


class Loaded(NamedTuple):
    """A reward model that is ready to score. place: the folder or hub id whose expected rewards are its own. doubt: a
    reason why they may not be."""

    model: Any
    processor: Any
    place: str
    doubt: str


def load_to_score(
    name: str,
    adapter: str | os.PathLike | None,
    device: str | torch.device | None,
    dtype: str | torch.dtype,
    trust_remote_code: bool,
) -> Loaded:
    """A reward checkpoint, or an adapter on its base; arguments and errors as in `RewardScorer.from_pretrained`."""
    base, folder, doubt = name, None, ""
    place = usable_device(device)
    if adapter is not None:
        folder = adapter_folder(adapter)
        own = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
        if os.path.realpath(str(own)) != os.path.realpath(base):
            doubt = f"the adapter was trained on {own!r}, not on {base!r}"
    elif os.path.isdir(base) and not os.path.isfile(os.path.join(base, "config.json")):
        folder = adapter_folder(base)
        base = base_of(folder)
    config = load_config(base, trust_remote_code)
    if not is_reward_model(config) and not (folder is not None and brings_head(folder)):
        raise UserError(
            f"{os.fspath(adapter or name)!r} is no reward model (architecture "
            f"{(config.architectures or ['none'])[0]}, and no adapter with a trained `score`); train one with "
            "rovrm.train"
        )
    model: Any = load_reward_model(base, dtype_on(place, dtype), trust_remote_code=trust_remote_code)
    if folder is not None:
        model = load_adapter(model, str(folder), trainable=False)
        record = phase_record(folder.parent)  # a mean and spread of the base would be another model's
        model.config.reward_mean, model.config.reward_std = record.get("reward_mean"), record.get("reward_std")
    processor = load_processor(processor_of(folder, base), "", trust_remote_code, config)
    return Loaded(model.to(place), processor, str(folder or name), doubt)
