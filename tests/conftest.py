"""Shared by all tests: no network, no telemetry, and tiny checkpoints built once per session."""

import functools
import os
import sys
from pathlib import Path

import pytest

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # a second thread gains tiny models nothing
sys.path.insert(0, str(Path(__file__).parent))  # so that `from families import ...` works from every test folder

import new_families
from families import FAMILIES, allow_missing_video_processor, make_family
from helpers import write_reward_model


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory):
    """`family_folder("qwen2_vl")`: the folder of that tiny checkpoint, written on first use. Do not write into it."""
    # Qwen-VL, InternVL, LLaVA-OneVision and SmolVLM processors cannot be built without torchvision, whose wheel does
    # not load beside a CPU torch, although only their *video* half needs it. For the rest of the session, and only
    # where torchvision cannot be imported, that half is replaced. Here and not at import: it costs seconds.
    allow_missing_video_processor()
    folders = {}

    def folder(name: str) -> Path:
        if name not in folders:
            make = make_family if name in FAMILIES else new_families.make_family
            folders[name] = make(name, tmp_path_factory.mktemp(name))
        return folders[name]

    return folder


@pytest.fixture(scope="module")
def loaded(family_folder):
    """`loaded("qwen2_vl")`: a reward model on that tiny checkpoint, and its processor."""
    from parity import load  # here, because it imports transformers

    return functools.cache(lambda name: load(family_folder(name)))


@pytest.fixture(scope="session")
def reward(tmp_path_factory) -> str:
    """The folder of a reward model with a random head on the shipped base. Do not write into it."""
    from rovrm.world.default import BASE

    return write_reward_model(BASE, tmp_path_factory.mktemp("reward"))


@pytest.fixture(scope="session")
def world_folder(tmp_path_factory):
    """`world_folder(8)`: a folder with text.jsonl, caption.jsonl, visual.jsonl and images/ of the world, 8 pairs each,
    written on first use. Do not write into it."""
    from rovrm.world.files import write_world

    folders = {}

    def folder(count: int) -> Path:
        if count not in folders:
            folders[count] = tmp_path_factory.mktemp("world") / f"{count}-pairs"
            write_world(folders[count], count)
        return folders[count]

    return folder
