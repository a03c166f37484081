"""Loading checkpoints: configs, processors and reward models, with one line that says what is wrong with a damaged one.

    model = load_reward_model("llava-hf/llava-1.5-7b-hf")       # a language model with a fresh head, or a reward model
    processor = load_processor("llava-hf/llava-1.5-7b-hf")

Loading goes through the classes of rovrm/model/modeling.py and stops unless the checkpoint's keys are exactly right: a
missing key would leave weights random with only a log line to tell. Everything is safetensors.
"""

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoProcessor, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file

from rovrm.common.errors import UserError, broken_torchvision, first_line, offline
from rovrm.common.files import read_json
from rovrm.model import modeling
from rovrm.model.chat import ChatTemplate
from rovrm.model.video import without_video

logger = logging.getLogger(__name__)

# The files of a checkpoint's folder, as patterns: of the config, the weights and the processor.
CONFIG, WEIGHTS = ("config.json",), ("model*.safetensors*",)
PROCESSOR = ("*token*", "merges.txt", "vocab.json", "*processor_config.json", "chat_template*")
# Modules between the vision tower and the language model, over all families of transformers that we know.
PROJECTORS = (
    "multi_modal_projector", "connector", "merger", "deepstack_merger_list", "embed_vision", "aligner",
    "visual_embeddings_table",
)  # fmt: skip
SAMPLES, SAMPLE = 1024, 2**14  # of a file of weights, for its mark: files of up to 16 MiB are read whole


def load_processor(name: str, chat_template: str = "", trust_remote_code: bool = False, config: Any = None) -> Any:
    """The processor of a checkpoint; of a text model the tokenizer.

    Args:
        name: a folder or hub id.
        chat_template: a file that replaces its chat template; empty for its own.
        config: the model's, where `name` is a folder with a processor alone.
    """
    options = {"trust_remote_code": trust_remote_code}
    config = config or load_config(name, trust_remote_code)
    auto = AutoTokenizer if getattr(config, "vision_config", None) is None else AutoProcessor
    with loading("the processor of", name, PROCESSOR), without_video():
        processor = auto.from_pretrained(name, **options)
    if auto is AutoProcessor and not hasattr(processor, "tokenizer"):  # what AutoProcessor gives for a lone tokenizer
        raise UserError(
            f"{name!r} holds no image processor beside its tokenizer; copy the base model's processor into it"
        )
    if not chat_template and is_reward_model(config):
        _check_reading(name, processor, config)
    if chat_template:
        path = Path(chat_template)
        if not path.is_file():
            raise UserError(f"chat_template={chat_template!r} is no file; give a file with a Jinja template")
        try:
            processor.chat_template = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UserError(f"chat_template={chat_template!r} cannot be read ({error}); give UTF-8 text") from error
    return processor


def _check_reading(name: str, processor: Any, config: Any) -> None:
    """Raises UserError for a classifier of others whose own class reads at another token than ours: with the end of
    turn as padding, in front of it."""
    tokenizer = getattr(processor, "tokenizer", processor)
    pad = getattr(config.get_text_config(), "pad_token_id", None)
    if pad is None or getattr(config, "auto_map", None) or not getattr(processor, "chat_template", None):
        return
    ending = tokenizer(ChatTemplate(processor).ending().strip(), add_special_tokens=False)["input_ids"]
    if pad in ending[-1:]:
        token = tokenizer.convert_ids_to_tokens(pad)
        raise UserError(
            f"{name!r} has its end of turn {token!r} as padding (pad_token_id={pad}), so its own class reads the "
            "reward in front of it, and rovrm at it; score it with transformers, or train a new head with rovrm.train"
        )


def load_config(name: str, trust_remote_code: bool = False) -> Any:
    """The checkpoint's config. Raises UserError for a folder or hub id that holds none."""
    if os.path.isdir(name) and not os.path.isfile(os.path.join(name, "config.json")):
        raise UserError(f"model {name!r} is a folder without config.json; give a checkpoint folder or a hub id")
    if not os.path.isdir(name) and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise UserError(f"model {name!r} is no folder; give a checkpoint folder or a hub id (owner/name)")
    with loading("the config of model", name, CONFIG):
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
        if not all(isinstance(architecture, str) for architecture in config.architectures or []):
            raise ValueError(f"architectures is {config.architectures!r}")
        return config


@contextmanager
def loading(what: str, name: str, files: tuple[str, ...]) -> Iterator[None]:
    """Around the loading of a checkpoint: whatever is raised inside becomes a UserError of one line.

    Args:
        what: what is loaded, in words that the name follows.
        name: the folder or hub id.
        files: patterns of the files that are read, of which the message names those that may be the cause.
    """
    try:
        yield
    except BaseException as error:  # Rust's panics are no Exceptions
        if isinstance(error, UserError) or not of_damage(error):
            raise
        if broken := broken_torchvision(error):
            raise broken from error
        raise damaged(f"cannot load {what}", name, files, error) from error


def of_damage(error: BaseException) -> bool:
    """Whether a damaged file may have raised it: transformers raises any type there is, and Rust's panics, whose class
    cannot be imported, are no Exceptions."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def damaged(what: str, name: str, files: tuple[str, ...], error: BaseException) -> UserError:
    """The error about a checkpoint that does not load: what went wrong, with which model, why, and which files of its
    folder may be the cause; where JSON files among them cannot be read, those alone. Arguments as in `loading`."""
    paths = set()
    if os.path.isdir(name):
        paths = {path for pattern in files for path in Path(name).glob(pattern)}
    suspects = [path for path in sorted(paths) if _is_broken(path)] or sorted(paths)
    remedy = f"; mend {', '.join(path.name for path in suspects)} there, or copy it again" if suspects else ""
    if isinstance(error, ImportError):  # nothing is damaged: a package is missing
        remedy = "; install that package"
        if "torchvision" in str(error).lower():  # for image processors that have no other half
            remedy = "; install torchvision from the index that torch came from"
    reason = " ".join(str(error).split())[:300]
    if not reason or not isinstance(error, OSError | ValueError | UserError):  # whose texts say nothing without it
        reason = f"{type(error).__name__} {reason}".strip()
    return UserError(f"{what} {name!r}: {reason}{offline(name)}{remedy}")


def _is_broken(path: Path) -> bool:
    try:
        return path.suffix == ".json" and not read_json(path)
    except UserError:
        return True


def weights_mark(name: str) -> str:
    """A mark of a checkpoint's or adapter's weights, by which a run notices that they are others than before.

    It costs little for many gigabytes: a hash of each safetensors file's name, size and header and of evenly spaced
    samples of its bytes; of a hub id the commit that is in use.
    """
    if not os.path.isdir(name):
        try:
            snapshot = Path(str(cached_file(name, "config.json"))).parent  # .../snapshots/COMMIT
            return f"commit {snapshot.name}"
        except OSError as error:
            raise UserError(f"cannot load the config of model {name!r}: {first_line(error)}{offline(name)}") from error
    digest = hashlib.sha256()
    for path in sorted(Path(name).glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}:".encode())
        with path.open("rb") as file:
            header = file.read(8)  # of safetensors: the length of the JSON that follows, with names and shapes
            digest.update(header + file.read(min(int.from_bytes(header, "little"), size)))
            places = range(0, size, SAMPLE) if size <= SAMPLES * SAMPLE else range(0, size, size // SAMPLES)
            for place in places:
                file.seek(place)
                digest.update(file.read(SAMPLE))
    return digest.hexdigest()[:16]


def load_reward_model(
    name: str, dtype: torch.dtype = torch.float32, quantize: bool = False, trust_remote_code: bool = False
) -> PreTrainedModel:
    """A reward model from a language-model checkpoint (fresh `score`) or from a reward checkpoint (all weights).

    Args:
        name: a folder or hub id.
        dtype: of the weights; the head stays float32 at any.
        quantize: 4-bit NF4 through bitsandbytes (QLoRA).

    Raises:
        UserError: when the keys are not exactly the language model's (plus `score.weight`).
    """
    config = load_config(name, trust_remote_code)
    options: dict[str, Any] = {"quantization_config": four_bit()} if quantize else {}
    with loading("model", name, CONFIG + WEIGHTS), no_key_table():
        model_class: Any = reward_class(name, config)
        if is_reward_model(config) and config.num_labels != 1:
            raise UserError(
                f"model {name!r} has a head of num_labels={config.num_labels} labels, and a reward model has one; give "
                "a checkpoint with num_labels=1, or the language model that it was made from"
            )
        set_head(config)
        config._attn_implementation = None  # the class's own, sdpa or eager: flash attention takes no right padding
        model, info = model_class.from_pretrained(name, config=config, dtype=dtype, output_loading_info=True, **options)
    fresh = not is_reward_model(config)  # the head of a language model's checkpoint is not in it
    check_keys(name, info, {"score.weight"} if fresh else set())
    model.score.float()  # transformers keeps a loaded head in float32, but makes a fresh one in `dtype`
    return model


@contextmanager
def no_key_table() -> Iterator[None]:
    """Keeps transformers from printing its table of missing keys: `check_keys` looks, and a fresh score is no news."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def reward_class(name: str, config: Any) -> type[PreTrainedModel]:
    """The class of `modeling` for a checkpoint's architecture. Raises UserError where no reward head fits on it."""
    try:
        return getattr(modeling, modeling.family_prefix((config.architectures or ["none"])[0]) + modeling.SUFFIX)
    except (ValueError, AttributeError) as error:
        raise UserError(f"model {name!r}: {error}") from error


def is_reward_model(config: Any) -> bool:
    """Whether the config is that of a model with a score head."""
    return (config.architectures or ["none"])[0].endswith(modeling.SUFFIX)


def set_head(config: Any) -> None:
    """One label, a plain scalar (`problem_type` regression: servers then apply no sigmoid), on root and text config."""
    config.num_labels = 1
    config.get_text_config().num_labels = 1
    config.problem_type = "regression"


def check_keys(name: str, info: dict[str, Any], expected: set[str]) -> None:
    """Raises UserError unless a loaded model lacked exactly the expected keys and met no others.

    info: transformers' loading info. expected: keys that are to be missing, because their weights are fresh.
    """
    missing, unexpected = set(info["missing_keys"]), set(info["unexpected_keys"])
    if missing == expected and not unexpected and not info["mismatched_keys"]:
        return
    parts = {
        "missing": sorted(missing - expected),
        "unexpected": sorted(unexpected),
        "of another shape": sorted(str(key[0]) for key in info["mismatched_keys"]),
        "present but should be fresh": sorted(expected - missing),
    }
    faults = "; ".join(f"{len(keys)} {what}, such as {keys[0]}" for what, keys in parts.items() if keys)
    raise UserError(f"the weights of {name!r} do not fit its architecture: {faults}; check weights and config.json")


def four_bit() -> Any:
    """The 4-bit settings of QLoRA. Raises UserError where bitsandbytes or a CUDA device is missing."""
    from transformers import BitsAndBytesConfig
    from transformers.utils.import_utils import is_bitsandbytes_available

    if not torch.cuda.is_available() or not is_bitsandbytes_available():
        raise UserError(
            "tuning=qlora needs a CUDA device and bitsandbytes (pip install bitsandbytes); or set tuning=lora"
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=["score", "lm_head", *PROJECTORS],
    )


def numeric_type(name: str, use_cpu: bool = False) -> torch.dtype:
    """The numeric type of a name; `auto` is bfloat16 where a GPU has it, else float32."""
    if name == "auto":
        fast = torch.cuda.is_available() and not use_cpu and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    return getattr(torch, name)


def usable_device(device: str | torch.device | None) -> torch.device:
    """The device by its name; None or "" for the GPU if there is one, else the CPU. Raises UserError for one that
    cannot be used."""
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=place)  # torch takes names of devices that are not there
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device={str(device)!r} cannot be used ({str(error).splitlines()[0]}); try cpu") from error
    return place


def dtype_on(device: torch.device, dtype: str | torch.dtype) -> torch.dtype:
    """The numeric type by its name; `auto` is bfloat16 on a GPU that has it, else float32. Raises UserError for an
    unknown name."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise UserError(f"dtype={dtype!r}: takes auto, float32, bfloat16 or float16")
    return numeric_type(dtype, use_cpu=device.type == "cpu")
