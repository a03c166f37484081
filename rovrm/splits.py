"""The split by group: no image, and no prompt without an image, stands on both sides of it.

held_out = hold_out(group_keys(examples, image_hashes), fraction=0.02, seed=0)
"""

import hashlib
from collections.abc import Sequence

from rovrm.errors import UserError
from rovrm.examples import Example
from rovrm.messages import normalise, text_of


def group_keys(examples: Sequence[Example], image_hashes: Sequence[Sequence[str]]) -> list[str]:
    """The split group of each example: those that share an image, directly or through others, else the same prompt.

    image_hashes: `content_hash` of each image of each example. The key of an image group is its smallest hash, so that
    it depends on other rows only where they join two images into one group.
    """
    parent: dict[str, str] = {}

    def root(node: str) -> str:
        while parent.setdefault(node, node) != node:
            parent[node] = node = parent[parent[node]]
        return node

    for hashes in image_hashes:
        for other in hashes[1:]:
            low, high = sorted((root(hashes[0]), root(other)))
            parent[high] = low
    return [
        f"image:{root(hashes[0])}" if hashes else f"text:{_prompt_hash(example)}"
        for example, hashes in zip(examples, image_hashes, strict=True)
    ]


def _prompt_hash(example: Example) -> str:
    turns = [normalise(text_of(message["content"])) for message in example.prompt]
    return hashlib.sha1("\n".join(turns).encode(), usedforsecurity=False).hexdigest()


def hold_out(keys: Sequence[str], fraction: float, seed: int = 0) -> list[bool]:
    """Which examples are held out: those whose group's hash, with the seed, falls under the fraction.

    Whether a group is held out depends on nothing but its key, so an image is held out in every phase and data set.
    Only where that would hold out no group, or every one, of two or more, the group of the smallest hash is taken, or
    that of the largest left: what a slightly larger or smaller fraction would do. Fraction 0 holds out nothing.
    """
    if not 0 <= fraction < 1:
        raise UserError(f"held-out fraction {fraction} takes a number from 0 to below 1")
    places = {key: int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8]) / 2**64 for key in set(keys)}
    held = {key for key, place in places.items() if place < fraction}
    ordered = sorted(places, key=lambda key: (places[key], key))
    if fraction and len(ordered) > 1:
        held = held or {ordered[0]}
        held = held - {ordered[-1]} if len(held) == len(ordered) else held
    return [key in held for key in keys]
