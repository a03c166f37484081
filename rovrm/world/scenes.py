"""Scenes whose every fact is known: a few things with a size, a colour, a kind and a place, drawn or noted down.

    scene = draw_scene(random.Random("any text"), "picture")
    scene.things[0]                     # Thing(size="large", colour="red", kind="circle", place="top left", owner="")
    Drawing(scene, seed=7)()            # PIL image, 72 x 72

There are two domains. `picture`: shapes on a 3 x 3 grid, which can be drawn. `notes`: who keeps what where, text only;
it shares words (colours, sizes) with the pictures but no scene. Kinds, colours and places within a scene differ, so
that "the circle" and "the red thing" are one thing.
"""

import math
import random
from dataclasses import dataclass, replace
from typing import Any, Literal

Domain = Literal["picture", "notes"]
DOMAINS = ("picture", "notes")
COLOURS = {
    "red": (214, 45, 40),
    "green": (50, 160, 60),
    "blue": (40, 90, 205),
    "yellow": (240, 205, 30),
    "purple": (135, 60, 165),
    "orange": (245, 135, 25),
}
SIZES = ("small", "large")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
ITEMS = ("cup", "hat", "book", "ball", "bag", "key")
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")
CELLS = tuple(f"{row} {column}" for row in ROWS for column in COLUMNS)
ROOMS = ("kitchen", "garden", "hall", "office", "attic", "cellar")
OWNERS = ("Ann", "Ben", "Eva", "Max", "Mia", "Tom")
# Colour and shape that no training scene joins: what a model knows of them it has put together itself.
HELD_OUT = frozenset({("red", "star"), ("blue", "ring"), ("green", "square"), ("orange", "cross")})
DISTINCT = ("colour", "kind", "place", "owner")  # attributes that differ within a scene, in the order they are drawn
COUNTS = (2, 3, 4)  # of things, equally likely, so that one more and one less are too (see `edit_count`)
WIDTH = 72  # pixels of a picture, and of its 3 x 3 cells of 24, which are the patches of the tiny vision tower
CELL = WIDTH // 3
RADIUS = {"small": 5.5, "large": 10.0}  # pixels


@dataclass(frozen=True, slots=True)
class Thing:
    """One thing of a scene. owner: who keeps it, in notes; empty in pictures."""

    size: str
    colour: str
    kind: str
    place: str
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Scene:
    """Things in reading order: pictures row by row, notes by owner."""

    domain: Domain
    things: tuple[Thing, ...]

    def with_things(self, things: list[Thing]) -> "Scene":
        """The same domain with other things, put in reading order, which therefore tells nothing about an edit."""

        def reading_order(thing: Thing) -> int:
            return CELLS.index(thing.place) if self.domain == "picture" else OWNERS.index(thing.owner)

        return replace(self, things=tuple(sorted(things, key=reading_order)))

    def held_out(self) -> bool:
        """Whether a thing joins a colour and a shape that training scenes never join."""
        return any((thing.colour, thing.kind) in HELD_OUT for thing in self.things)


def values(domain: Domain, attribute: str) -> tuple[str, ...]:
    """All values of an attribute in a domain."""
    by_attribute = {
        "size": SIZES,
        "colour": tuple(COLOURS),
        "kind": SHAPES if domain == "picture" else ITEMS,
        "place": CELLS if domain == "picture" else ROOMS,
        "owner": OWNERS,
    }
    return by_attribute[attribute]


def draw_scene(rng: random.Random, domain: Domain, held_out: bool | None = False) -> Scene:
    """A scene of 2 to 4 things. held_out: False for scenes without held-out joins of colour and shape (training), True
    for scenes with one, None for either."""
    while True:
        count = rng.choice(COUNTS)
        # Sampled without replacement: these four differ within a scene, sizes need not.
        colours, kinds, places, owners = (rng.sample(values(domain, a), count) for a in DISTINCT)
        sizes = [rng.choice(SIZES) for _ in range(count)]
        things = []
        for i in range(count):
            owner = owners[i] if domain == "notes" else ""
            things.append(Thing(sizes[i], colours[i], kinds[i], places[i], owner))
        scene = Scene(domain, ()).with_things(things)
        if held_out is None or domain == "notes" or scene.held_out() == held_out:
            return scene


def edit(rng: random.Random, scene: Scene, attribute: str, index: int, bound: float) -> Scene | None:
    """The scene with one attribute of one thing changed; None where the drawn edit does not exist.

    Edits are symmetric: the edit back is drawn with the same probability, so nothing in a text alone tells a scene from
    its edit.

    Args:
        rng: draws the edit.
        scene: what is edited.
        attribute: of the thing.
        index: the thing's place in the scene.
        bound: the probability that the value is exchanged with another thing's, so that the wrong value is one that is
            present but belongs elsewhere; else it becomes one that no thing has (a size: the other size).
    """
    things, thing = list(scene.things), scene.things[index]
    if rng.random() < bound:
        other = rng.choice([i for i in range(len(things)) if i != index])
        own_value, other_value = getattr(thing, attribute), getattr(things[other], attribute)
        if own_value == other_value:
            return None
        things[index] = replace(thing, **{attribute: other_value})
        things[other] = replace(things[other], **{attribute: own_value})
        return scene.with_things(things)
    present = {thing.size} if attribute == "size" else {getattr(t, attribute) for t in things}
    absent = [value for value in values(scene.domain, attribute) if value not in present]
    things[index] = replace(thing, **{attribute: rng.choice(absent)})
    return scene.with_things(things)


def edit_count(rng: random.Random, scene: Scene) -> Scene | None:
    """The scene with one thing more or less, within 2 to 4; None where the drawn edit leaves that range."""
    things = list(scene.things)
    if rng.random() < 0.5:
        if len(things) == min(COUNTS):
            return None
        del things[rng.randrange(len(things))]
        return scene.with_things(things)
    if len(things) == max(COUNTS):
        return None
    attributes = {}
    for attribute in DISTINCT:
        if attribute == "owner" and scene.domain == "picture":
            continue
        present = {getattr(thing, attribute) for thing in things}
        absent = [value for value in values(scene.domain, attribute) if value not in present]
        attributes[attribute] = rng.choice(absent)
    return scene.with_things([*things, Thing(size=rng.choice(SIZES), **attributes)])


# ---- drawing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Drawing:
    """A picture that is drawn when it is called: the same scene and seed give the same pixels."""

    scene: Scene
    seed: int

    def __call__(self, scale: int = 1) -> Any:
        """RGB image of 72 x 72 pixels, times `scale`. The seed moves each thing by up to 1.5 pixels either way, varies
        radius and colours a little, and picks the grey of the background."""
        from PIL import Image, ImageDraw

        rng = random.Random(self.seed)
        background = (rng.randint(222, 246),) * 3
        image = Image.new("RGB", (WIDTH * scale, WIDTH * scale), background)
        canvas = ImageDraw.Draw(image)
        for thing in self.scene.things:
            row, column = divmod(CELLS.index(thing.place), 3)
            x = (column + 0.5) * CELL + rng.uniform(-1.5, 1.5)
            y = (row + 0.5) * CELL + rng.uniform(-1.5, 1.5)
            radius = RADIUS[thing.size] * rng.uniform(0.95, 1.05)
            colour = tuple(max(0, min(255, part + rng.randint(-12, 12))) for part in COLOURS[thing.colour])
            _draw_shape(canvas, thing.kind, x * scale, y * scale, radius * scale, colour, background)
        return image


def _draw_shape(
    canvas: Any, shape: str, x: float, y: float, r: float, fill: tuple[int, ...], background: tuple[int, ...]
) -> None:
    """Draws a shape around (x, y); r: half of its width, about."""
    if shape in ("circle", "ring"):
        canvas.ellipse((x - r, y - r, x + r, y + r), fill=fill)
        if shape == "ring":
            canvas.ellipse((x - r * 0.5, y - r * 0.5, x + r * 0.5, y + r * 0.5), fill=background)
    elif shape == "square":
        canvas.rectangle((x - r * 0.85, y - r * 0.85, x + r * 0.85, y + r * 0.85), fill=fill)
    elif shape == "triangle":
        canvas.polygon([(x, y - r), (x - r, y + r * 0.8), (x + r, y + r * 0.8)], fill=fill)
    elif shape == "star":
        corners = []
        for i in range(10):  # five tips, and between them five notches
            turn, length = math.pi * i / 5, r if i % 2 == 0 else r * 0.4
            corners.append((x + length * math.sin(turn), y - length * math.cos(turn)))
        canvas.polygon(corners, fill=fill)
    else:  # a cross
        canvas.rectangle((x - r, y - r * 0.3, x + r, y + r * 0.3), fill=fill)
        canvas.rectangle((x - r * 0.3, y - r, x + r * 0.3, y + r), fill=fill)
