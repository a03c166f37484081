"""Damaged copies of a model's files, for tests: cut, flipped and exchanged bytes, JSON with values of other types, and
pickles of odd objects. All of it follows from the random generator."""

import copy
import json
import random
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

ODD_VALUES: list[Any] = [None, True, -1, 0, 3, 1.5, 1e300, "", "x", "\ud800", [], ["a", 1], {}, {"a": [1]}, [[[]]]]
ODD_PICKLES: list[Any] = [
    None,
    [],
    "text",
    {1: torch.zeros(2)},
    {"a": None},
    {"a": {"b": torch.zeros(2)}},
    {"a": torch.zeros(2, dtype=torch.complex64)},
    {"a": torch.eye(3).to_sparse()},
    {"a": torch.zeros(2, device="meta")},
    {"a": torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8)},
    {},
    torch.zeros(3),
    {"v_head.weight": torch.zeros(())},
    {"rwtranrsformer": torch.zeros(1)},
    {"rwtranrsformer.": torch.zeros(1)},
    OrderedDict(a=torch.zeros(1)),
]
TEMPLATES = [
    "{% for m in messages %}",
    "{{ messages[0].x.y() }}",
    "{{ 1 / 0 }}",
    "{{ raise_exception('no') }}",
    "{% include 'x' %}",
    "{{ messages | nothing }}",
    "",
    "the same",
    "{{ ''.__class__.__mro__ }}",
    "{{ range(10 ** 9) | list }}",
]


def damage(folder: Path, rng: random.Random, outside: Path) -> tuple[Path, bytes]:
    """Damages one file of a folder; returns its path and what it held. outside: a folder that odd paths lead into."""
    path = rng.choice([path for path in sorted(folder.iterdir()) if path.suffix not in (".py", ".md")])
    before = path.read_bytes()
    if path.suffix == ".json" and rng.random() < 0.7:
        odd = [*ODD_VALUES, str(outside / "a.bin"), f"../{outside.name}/a.bin", f"/../..{outside / 'a.bin'}"]
        found = _with_odd_value(json.loads(before), odd, rng)
        path.write_bytes(json.dumps(found).encode())
    elif path.suffix == ".bin" and rng.random() < 0.3:
        torch.save(rng.choice(ODD_PICKLES), path, _use_new_zipfile_serialization=rng.random() < 0.5)
    elif path.suffix == ".jinja" and rng.random() < 0.6:
        path.write_text(rng.choice(TEMPLATES))
    else:
        path.write_bytes(_other_bytes(before, rng))
    return path, before


def _other_bytes(content: bytes, rng: random.Random) -> bytes:
    kind, at = rng.randrange(6), rng.randrange(len(content) + 1)
    if rng.random() < 0.5:
        at = min(at, rng.randrange(2000))  # headers and pickled structure are at the beginning, tensors behind
    found = bytearray(content)
    if kind == 0:
        return content[:at]
    if kind == 1:
        del found[at : at + rng.randrange(1, 50)]
    elif kind == 2:
        found[at:at] = rng.randbytes(rng.randrange(1, 20))
    elif kind == 3:
        found[at : at + 200] = bytes(200)
    elif kind == 4:
        for _ in range(rng.randrange(1, 9)):
            found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    else:
        for place in range(at, min(at + rng.randrange(1, 9), len(found))):
            found[place] = rng.randrange(256)
    return bytes(found)


def _with_odd_value(content: Any, odd: list[Any], rng: random.Random) -> Any:
    """A copy with one value, anywhere in it, exchanged or taken out."""
    if rng.random() < 0.05 or not isinstance(content, dict) or not content:
        return rng.choice(odd)
    content = copy.deepcopy(content)
    inner = content
    while True:
        key = rng.choice(sorted(inner) if isinstance(inner, dict) else range(len(inner)))
        child = inner[key]
        if isinstance(child, dict | list) and child and rng.random() < 0.8:
            inner = child
        elif rng.random() < 0.2:
            del inner[key]
            return content
        else:
            inner[key] = rng.choice(odd)
            return content
