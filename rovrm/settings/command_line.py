"""The front of every command: a recipe and a command line become a typed dataclass, or one line says why not.

    config = parse(TrainConfig, ["recipe=run.yaml", "text.n=1000", "--batch-tokens", "8192", "--dry-run"], "train")

`key=value`, `--key value`, `--key=value` and a bare `--flag` are alike; the command line wins over the recipe, the
last of a repeated key wins, and `--help` prints the comments beside the dataclass's fields.

    words of the command line -> (key, text)    here, `_pairs`
    lines of the recipe -> (key, value)         recipes.py, and here `_unfolded`
    key -> a place in the dataclass             here, `_place`; hints.py guesses what an unknown key was meant to be
    text or value -> what the place takes       values.py; OmegaConf converts and checks it

Mistakes are collected on the way and told together. Imports stay light so that `--help` answers at once.
"""

import io
import logging
import os
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args

from omegaconf import OmegaConf

from rovrm.common.errors import UserError, broken_torchvision, is_full, quoted, refuse, trouble_in_words
from rovrm.settings.fields import Setting, settings, type_in_words, usage
from rovrm.settings.hints import right_key
from rovrm.settings.recipes import read_recipe, write_recipe
from rovrm.settings.values import BOOLEANS, value_for, value_of_name, value_of_text

Config = TypeVar("Config")
Known = dict[str, Setting]  # the settings of the command, by key

# ---- what commands call: parse, run, save ----------------------------------------------------------------------------


def parse(config_class: type[Config], argv: list[str], prog: str, below: dict[str, Any] | None = None) -> Config:
    """An instance of a settings dataclass from the words of a command line.

    Args:
        config_class: the dataclass.
        argv: the words. `--help` and `-h` among them print every key with its type, default and comment, and leave
            with status 0.
        prog: the command's name in that text.
        below: values under those of the recipe, which are under those of the command line: a mapping like a recipe's.

    Raises:
        UserError: for unknown keys, values that a key does not take or needs, and a bad recipe. It has one line, or
            where several things are wrong a line for each.
    """
    if "--help" in argv or "-h" in argv:
        print(usage(config_class, prog))
        raise SystemExit(0)
    known = {setting.key: setting for setting in settings(config_class)}
    mistakes: list[str] = []
    pairs = _pairs(argv, known, mistakes)
    givens = _from_mapping(below or {}, known, "")
    recipes = [text for key, text in pairs if key == "recipe"]
    if recipes:
        givens += _from_recipe(recipes[-1], known, mistakes)
    givens += [Given(key, text, True, "") for key, text in pairs if key != "recipe"]

    config = OmegaConf.structured(config_class)
    for given in givens:  # later ones win
        try:
            _assign(config, known, given)
        except UserError as error:
            mistakes.append(f"{error}{given.origin}")
    refuse(mistakes)
    _check_required(config, config_class, known)
    return OmegaConf.to_object(config)  # pyright: ignore[reportReturnType]


def run(main: Callable[[list[str]], int | None], argv: list[str], prog: str) -> int:
    """Runs a command and returns its exit status.

    A UserError goes to stderr as it is, without a traceback, and gives status 2; so does trouble of the operating
    system, such as a full disk, a name that is too long or a missing permission. Ctrl-C gives 130.

    Args:
        main: the command; what it returns is the status, None stands for 0.
        argv: the words of its command line.
        prog: its name in messages.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # as stderr is: a file's name may hold any byte
        sys.stdout.reconfigure(errors="backslashreplace")
    # PEFT asks transformers by an old name; nothing that a user could mend.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
    logging.basicConfig(format="%(message)s")
    logging.getLogger("rovrm").setLevel(logging.INFO)  # where images were found, fewer rows than asked for
    try:
        status = main(argv) or 0
        sys.stdout.flush()
        return status
    except UserError as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # nobody reads what is printed, as behind `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # what a shell says of a command that a closed pipe ended
    except Exception as error:
        if broken := broken_torchvision(error):
            print(f"{prog}: error: {broken}", file=sys.stderr)
            return 2
        if not isinstance(error, OSError) and not is_full(error):
            raise
        print(f"{prog}: error: {trouble_in_words(error)}; mend that, and the same command goes on", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130


def save(config: Any, path: str | os.PathLike) -> None:
    """Writes a settings dataclass as YAML that `recipe=` reads back. Raises UserError where it cannot be written."""
    by_name = asdict(config)
    by_key = {f.metadata.get("key", f.name): by_name[f.name] for f in fields(config)}
    try:
        write_recipe(Path(path), by_key)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None


# ---- words of the command line ---------------------------------------------------------------------------------------


def _pairs(argv: list[str], known: Known, mistakes: list[str]) -> list[tuple[str, str]]:
    """(key, text) of every setting on the command line, in order. Words that are none are added to `mistakes`."""
    pairs = []
    words = deque(argv)
    while words:
        word = words.popleft()
        is_flag = word.startswith("--")
        key, equals, text = word.removeprefix("--").partition("=")
        if not key or key.startswith("-") or not (equals or is_flag):
            remedy = f"recipe={word}" if word.endswith((".yaml", ".yml")) else "key=value or --key value"
            mistakes.append(f"{quoted(word)} is not a setting: write {remedy} (--help lists the keys)")
        elif equals:
            pairs.append((key, text))
        else:
            try:
                pairs.append((key, _text_of_flag(key, words, known)))
            except UserError as error:
                mistakes.append(str(error))
    return pairs


def _text_of_flag(key: str, words: deque[str], known: Known) -> str:
    """The value of `--key`: the next word, which is taken off `words`, or `true` where the key makes sense alone.

    A key that makes sense alone is a boolean, or may hold anything. Raises UserError where a value is missing.
    """
    value_follows = bool(words) and not words[0].startswith("--")
    if key == "recipe":
        takes, hint = "a file", str
    else:
        try:
            place = _place(key, "", known)
        except UserError:  # unknown, which is said later, with its value
            return words.popleft() if value_follows and not _is_setting(words[0], known) else ""
        takes, hint = place.setting.takes, place.hint
    if hint is bool and not (value_follows and words[0].lower() in BOOLEANS):
        return "true"
    if hint is Any and not (value_follows and not _is_setting(words[0], known)):
        return "true"
    if not value_follows:
        raise UserError(f"--{key}: got no value, takes {takes}")
    return words.popleft()


def _is_setting(word: str, known: Known) -> bool:
    """Whether a word is `key=value` with a key of ours, or with one inside a section or mapping of ours."""
    key, equals, _ = word.partition("=")
    heads = {"recipe", *(name.split(".")[0] for name in known)}
    return bool(equals) and key.split(".")[0].replace("-", "_") in heads


# ---- what is given ---------------------------------------------------------------------------------------------------


class Given(NamedTuple):
    """A key with its value, as it was given.

    Args:
        key: as it was written.
        value: the text that was typed, or what a recipe holds.
        is_typed: whether it was typed on the command line.
        origin: what is added to messages about it: the recipe's name.
    """

    key: str
    value: Any
    is_typed: bool
    origin: str


def _from_recipe(path: str, known: Known, mistakes: list[str]) -> list[Given]:
    """What a recipe gives. One that cannot be read gives nothing and is added to `mistakes`."""
    try:
        return _from_mapping(read_recipe(path), known, f" (in {path})")
    except UserError as error:
        mistakes.append(str(error))
        return []


def _from_mapping(mapping: dict, known: Known, origin: str) -> list[Given]:
    return [Given(key, value, False, origin) for key, value in _unfolded(mapping, known)]


def _unfolded(mapping: dict, known: Known, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(key, value) of a recipe, the keys of a section as `text.n`. An empty section or mapping gives nothing."""
    for name, value in mapping.items():
        key = f"{prefix}{name}"
        plain = key.replace("-", "_")
        is_section = any(other.startswith(f"{plain}.") for other in known)
        is_mapping = plain in known and known[plain].is_mapping
        if is_section and isinstance(value, dict):
            yield from _unfolded(value, known, f"{key}.")
        elif value is not None or not (is_section or is_mapping):
            yield key, value


# ---- into the dataclass ----------------------------------------------------------------------------------------------


class Place(NamedTuple):
    """Where the value of a key goes.

    Args:
        setting: the setting.
        name: the name inside of it where it is a mapping and the key was `trainer.NAME` or `columns.NAME`; else "".
        hint: the type of the value.
    """

    setting: Setting
    name: str
    hint: Any

    @property
    def path(self) -> str:
        return f"{self.setting.path}.{self.name}" if self.name else self.setting.path


def _place(key: str, value: Any, known: Known) -> Place:
    """Where the value of a key goes. Raises UserError for an unknown key, with a guess what it was meant to be."""
    plain = key.replace("-", "_")
    if plain in known:
        return Place(known[plain], "", known[plain].hint)
    for name, setting in known.items():
        if plain.startswith(f"{name}.") and setting.is_mapping and plain != f"{name}.":
            hint = get_args(setting.hint)[1]
            # Names of settings are written with `_`; those of columns are the user's own, and stay as they are.
            inner = plain if hint is Any else key
            return Place(setting, inner[len(name) + 1 :], hint)
    inside = [name for name in known if name.startswith(f"{plain}.")]
    if inside:
        raise UserError(f"{key}: got {quoted(value)}, takes its own keys: {', '.join(inside)}")
    for setting in known.values():
        if setting.path == plain:  # the name of the field, where the key is another: `input`, typed as `in`
            raise UserError(f"unknown key {key} (got {quoted(value)}): did you mean {setting.key}?")
    raise UserError(f"unknown key {key} (got {quoted(value)}): {right_key(plain, known)}")


def _assign(config: Any, known: Known, given: Given) -> None:
    """Sets one key of the OmegaConf `config`. Raises UserError that says what the key got and what it takes."""
    place = _place(given.key, given.value, known)
    setting = place.setting
    if place.name and place.hint is str and given.value == "":
        example = f"{given.key}=NAME"
        raise UserError(f"{given.key}: got nothing, takes a name, as {example}; or leave it out ({setting.comment})")
    value = value_of_text(given.value, place.hint) if given.is_typed else given.value
    if not _is_taken(config, place, value):
        key = given.key if place.name else setting.key
        takes = type_in_words(place.hint, "", key) if place.name else setting.takes
        raise UserError(f"{key}: got {quoted(given.value)}, takes {takes}")


def _is_taken(config: Any, place: Place, value: Any) -> bool:
    """Sets a value, and says whether it is of the right type and within the setting's limit."""
    setting = place.setting
    try:
        if place.name:
            value = value_of_name(place.name, value, place.hint, setting.is_text)
        else:
            value = value_for(value, place.hint, setting.is_text)
        OmegaConf.update(config, place.path, value, merge=False)
        stored = OmegaConf.select(config, place.path)
        return setting.limit is None or stored is None or setting.limit.holds(stored)
    except Exception:  # OmegaConf has many; whichever it is, what helps is what the key takes
        return False


def _check_required(config: Any, config_class: type, known: Known) -> None:
    """Raises UserError for a setting that has no default and was not given."""
    # `out` is required even with a default: an empty folder name would mean the working directory.
    required = OmegaConf.missing_keys(OmegaConf.structured(config_class)) | {"out"}
    for setting in known.values():
        if setting.path in required and OmegaConf.select(config, setting.path, default="") == "":
            raise UserError(f"{setting.key}: got nothing, takes {setting.takes} ({setting.comment})")
