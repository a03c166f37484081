"""Reads the tensors of a model folder: safetensors or pickles, in one file or in shards.

    weights = read_weights(Path("robust_visual_reward_model"))      # {"v_head.weight": tensor, ...}

The folder may come from a stranger. A pickle is read as tensors alone and never run as code, and an index of shards may
name files of its own folder alone.
"""

import os
import pickle
import re
from pathlib import Path, PureWindowsPath
from typing import Any

import torch
from safetensors.torch import load_file

from rovrm.common.errors import UserError, first_line
from rovrm.common.files import read_json

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # in order of preference


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder's safetensors, or else those of its pickles; empty where the folder has neither.

    Raises:
        UserError: a shard is missing, lies outside of the folder, or cannot be read as tensors.
    """
    for name in WEIGHT_FILES:
        index = folder / f"{name}.index.json"
        if index.is_file():
            files = shard_files(index)  # all names are checked before the first file is opened
        elif (folder / name).is_file():
            files = [folder / name]
        else:
            continue
        weights: dict[str, torch.Tensor] = {}
        for file in files:
            weights |= read_tensors(file)
        return weights
    return {}


def shard_files(index: Path) -> list[Path]:
    """The files that an index of shards names, each once. Raises UserError for one outside of the index's folder.

    A file in the folder may still be a link to elsewhere, as all files of the hub's cache are: the links were made by
    the owner of the folder, while the names in the index come from a stranger.
    """
    weight_map = read_json(index).get("weight_map")  # tensor name -> file name
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{index} names no files of weights under weight_map; download it again")
    files = []
    for name in sorted(set(names)):
        path = PureWindowsPath(name)  # on every system: it knows both slashes, roots and drives
        if path.anchor or ".." in path.parts:
            raise UserError(f"{index} names {name!r}, outside of its folder: nothing is read there; mend the name")
        if not os.path.isfile(index.parent / name):
            raise UserError(f"in={str(index.parent)!r} lacks {name!r}, which {index.name} names; download it again")
        files.append(index.parent / name)
    return files


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of one file. Raises UserError for a file that is damaged or holds anything but plain tensors."""
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # with weights_only torch refuses whatever is no tensor
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise UserError(
            f"{file} is a pickle with more than tensors in it{f' ({name[1]})' if name else ''}, which could run code, "
            "or a damaged one, and was not loaded; download it again, or ask its author for safetensors"
        ) from None
    except Exception as error:  # on damaged bytes torch's unpickler raises whatever it stumbles over first
        raise UserError(f"{file} cannot be read ({first_line(error)[:120]}); download it again") from error
    if not _is_dictionary_of_tensors(content):
        raise UserError(f"{file} holds no plain dictionary of tensors; give the file of the model's weights")
    return content


def _is_dictionary_of_tensors(content: Any) -> bool:
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        return False
    return all(_is_plain_tensor(value) for value in content.values())


def _is_plain_tensor(value: Any) -> bool:
    """Whether a value is a dense tensor of real numbers, neither sparse nor quantized."""
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.device.type != "cpu":
        return False
    return not value.is_quantized and not value.is_complex()
