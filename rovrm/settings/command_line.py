"""The front of every command: a recipe and a command line become a typed dataclass, or one line says why not.

    config = parse(TrainConfig, ["recipe=run.yaml", "text.n=1000", "--batch-tokens", "8192", "--dry-run"], "train")

`key=value`, `--key value`, `--key=value` and a bare `--flag` are alike; the command line wins over the recipe, the
last of a repeated key wins, and `--help` prints the comments beside the dataclass's fields. OmegaConf checks and
converts the values; this file adds what it lacks: flags, `a,b` for a list, ranges, one-line errors, and `${` taken
literally. Imports stay light so that `--help` answers at once.
"""

import csv
import io
import logging
import os
import re
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from omegaconf import OmegaConf

from rovrm.common.disk import is_full, trouble_in_words
from rovrm.common.errors import UserError, refuse
from rovrm.settings.fields import Setting, settings, type_in_words, usage
from rovrm.settings.hints import right_key
from rovrm.settings.recipes import Dumper, Loader, read_recipe, show

# ---- what commands call: parse, run, save ---------------------------------------------------------------------------

Config = TypeVar("Config")
BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
NULLS = ("null", "none", "~")


def parse(config_class: type[Config], argv: list[str], prog: str, below: dict[str, Any] | None = None) -> Config:
    """An instance of `config_class` from the command line, below it the file that `recipe=` names, and below that the
    values of `below`, which is a mapping like a recipe's.

    Raises UserError with one line for an unknown key, an ill-typed or missing value, or a bad recipe, and with a line
    for each where there are several. `--help` and `-h` print every key with its type, default and comment, and leave
    with status 0.
    """
    if "--help" in argv or "-h" in argv:
        print(usage(config_class, prog))
        raise SystemExit(0)
    known = {setting.key: setting for setting in settings(config_class)}
    wrong: list[str] = []
    pairs = list(_pairs(argv, known, wrong))
    config = OmegaConf.structured(config_class)
    for key, value, typed, where in _given(pairs, below or {}, known, wrong):
        try:
            _assign(config, known, key, value, typed)
        except UserError as error:
            wrong.append(f"{error}{where}")
    refuse(wrong)
    required = OmegaConf.missing_keys(OmegaConf.structured(config_class)) | {"out"}
    for setting in known.values():
        empty = setting.path in required and OmegaConf.select(config, setting.path, default="") == ""
        if empty:  # an empty folder name would mean the working directory
            raise UserError(f"{setting.key}: got nothing, takes {setting.takes} ({setting.comment})")
    return OmegaConf.to_object(config)  # pyright: ignore[reportReturnType]


def run(main: Callable[[list[str]], int | None], argv: list[str], prog: str) -> int:
    """Runs a command's `main(argv)`: a UserError in it goes to stderr, without a traceback, and gives status 2, and so
    does trouble of the operating system (a full disk, a name too long, no permission); Ctrl-C gives 130."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # as stderr is: a file's name may hold any byte
        sys.stdout.reconfigure(errors="backslashreplace")
    logging.basicConfig(format="%(message)s")
    logging.getLogger("rovrm").setLevel(logging.INFO)  # where images were found, fewer rows than asked for
    try:
        return main(argv) or 0
    except UserError as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        if not isinstance(error, OSError) and not is_full(error):
            raise
        print(f"{prog}: error: {trouble_in_words(error)}; mend that, and the same command goes on", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{prog}: interrupted; nothing written so far is lost", file=sys.stderr)
        return 130


def save(config: Any, path: str | os.PathLike) -> None:
    """Writes `config` as YAML that `recipe=` reads back; whoever reads meanwhile sees the old file or the whole new."""
    path, plain = Path(path), asdict(config)
    values = {f.metadata.get("key", f.name): plain[f.name] for f in fields(config)}
    text = yaml.dump(values, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None


# ---- words of the command line --------------------------------------------------------------------------------------


def _pairs(argv: list[str], known: dict[str, Setting], wrong: list[str]) -> Iterator[tuple[str, str]]:
    """(key, text) for every setting on the command line, in order; words that are none go to `wrong`."""
    rest = deque(argv)
    while rest:
        word = rest.popleft()
        is_flag = word.startswith("--")
        key, equals, text = word.removeprefix("--").partition("=")
        if not key or key.startswith("-") or not (equals or is_flag):
            remedy = f"recipe={word}" if word.endswith((".yaml", ".yml")) else "key=value or --key value"
            wrong.append(f"{show(word)} is not a setting: write {remedy} (--help lists the keys)")
            continue
        try:
            yield key, text if equals else _flag_text(key, rest, known)
        except UserError as error:
            wrong.append(str(error))


def _flag_text(key: str, rest: deque[str], known: dict[str, Setting]) -> str:
    """The value of `--key`: the next word, or `true` where a bare flag makes sense and none follows."""
    follows = bool(rest) and not rest[0].startswith("--")
    try:
        hint = str if key == "recipe" else _find(known, key)[1]
    except UserError:  # an unknown key: said with its value, which is the next word unless that is a setting itself
        return rest.popleft() if follows and not _is_setting(rest[0], known) else ""
    if hint is bool and not (follows and rest[0].lower() in BOOLEANS):
        return "true"
    if hint is Any and (not follows or _is_setting(rest[0], known)):
        return "true"
    if not follows:
        takes = "a file" if key == "recipe" else _find(known, key)[0].takes
        raise UserError(f"--{key}: got no value, takes {takes}")
    return rest.popleft()


def _is_setting(word: str, known: dict[str, Setting]) -> bool:
    key, equals, _ = word.partition("=")
    heads = {"recipe", *(name.split(".")[0] for name in known)}
    return bool(equals) and key.split(".")[0].replace("-", "_") in heads


def _from_text(text: str, hint: Any) -> Any:
    """Text for a field that may hold anything, read as YAML: `[...]`, `{...}`, or a scalar. Other fields keep it."""
    if hint is not Any and get_origin(hint) is not dict:
        return text
    if text.lstrip().startswith(("[", "{")):
        try:
            return yaml.load(text, Loader=Loader)
        except Exception:  # as in `read_recipe`
            return text
    loader = Loader("")
    try:
        return loader.construct_object(yaml.ScalarNode(loader.resolve(yaml.ScalarNode, text, (True, False)), text))
    except ValueError:  # a number of thousands of digits
        return text


# ---- keys and values ------------------------------------------------------------------------------------------------


def _find(known: dict[str, Setting], key: str, got: Any = "") -> tuple[Setting, Any, str]:
    """(setting, type of the value, path) of a key as typed; `trainer.KEY` and `columns.NAME` reach into a mapping."""
    plain = key.replace("-", "_")
    if plain in known:
        return known[plain], known[plain].hint, known[plain].path
    for name, setting in known.items():
        if plain.startswith(f"{name}.") and get_origin(setting.hint) is dict and plain != f"{name}.":
            value_hint = get_args(setting.hint)[1]
            inner = (plain if value_hint is Any else key)[len(name) + 1 :]
            return setting, value_hint, f"{setting.path}.{inner}"
    inside = [name for name in known if name.startswith(f"{plain}.")]
    if inside:
        raise UserError(f"{key}: got {show(got)}, takes its own keys: {', '.join(inside)}")
    renamed = next((s.key for s in known.values() if s.path == plain), None)
    hint = f"did you mean {renamed}?" if renamed else right_key(plain, known)
    raise UserError(f"unknown key {key} (got {show(got)}): {hint}")


def _assign(config: Any, known: dict[str, Setting], key: str, got: Any, typed: bool) -> None:
    """Sets one key, or says in one line what it got and what it takes. typed: it was typed on the command line."""
    setting, hint, path = _find(known, key, got)
    if path != setting.path and hint is str and got == "":
        raise UserError(f"{key}: got nothing, takes a name, as {key}=NAME; or leave it out ({setting.comment})")
    value = _from_text(got, hint) if typed else got
    try:
        OmegaConf.update(config, path, _read(value, hint), merge=False)
        stored = OmegaConf.select(config, path)
        if setting.limit is None or stored is None or setting.limit.holds(stored):
            return
    except Exception:  # whatever a value is, what is told is what the key takes
        pass
    name, takes = (setting.key, setting.takes) if path == setting.path else (key, type_in_words(hint, "", key))
    quotes = " in quotes" if hint is str and isinstance(got, bool | float) else ""
    raise UserError(f"{name}: got {show(got)}, takes {takes}{quotes}")


def _read(value: Any, hint: Any) -> Any:
    """A value as OmegaConf takes it for a field of type `hint` (numbers and choices are left to OmegaConf)."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        kind = next(arg for arg in args if arg is not NoneType)
        if get_origin(kind) is list and isinstance(value, str) and value.lower() == "none":
            return []  # none of what the list may hold, where null stands for the default
        is_null = value is None or (isinstance(value, str) and value.lower() in NULLS)
        return None if is_null else _read(value, kind)
    if origin is list:
        return [_read(item, args[0]) for item in _expect(_split(value) if isinstance(value, str) else value, list)]
    if origin is dict:
        return {str(name): _read(item, args[1]) for name, item in _expect(value, dict).items()}
    if hint is bool and not isinstance(value, bool):
        return BOOLEANS[str(value).lower()]
    if hint is str and not isinstance(value, str):
        if isinstance(value, bool) or not isinstance(value, int):  # `out: no` and `out: 1e5` would change in silence
            raise ValueError(value)
        return str(value)
    if isinstance(value, dict):
        return {name: _read(item, Any) for name, item in value.items()}
    if isinstance(value, list):
        return [_read(item, Any) for item in value]
    return _literal(value) if isinstance(value, str) else value


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ValueError(value)
    return value


def _split(text: str) -> list[str]:
    """`a,b` or `[a,b]`; an item that holds a comma goes in double quotes."""
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    items = next(csv.reader([text], skipinitialspace=True), [])
    return [item.strip() for item in items if item.strip()]


def _literal(text: str) -> str:
    """Text that OmegaConf reads back unchanged: `${` does not interpolate."""
    if text == "???":  # OmegaConf's mark for a missing value, which it cannot escape
        raise ValueError(text)
    return re.sub(r"(\\*)\$\{", lambda match: 2 * match[1] + r"\${", text)


# ---- everything that is given ----------------------------------------------------------------------------------------


def _given(
    pairs: list[tuple[str, str]], below: dict[str, Any], known: dict[str, Setting], wrong: list[str]
) -> Iterator[tuple[str, Any, bool, str]]:
    """(key, value, whether it was typed as text, where it stands), what is given later winning. A recipe that cannot be
    read goes to `wrong`."""
    for key, value in _leaves(below, known):
        yield key, value, False, ""
    for path in [text for key, text in pairs if key == "recipe"][-1:]:
        try:
            recipe = read_recipe(path)
        except UserError as error:
            wrong.append(str(error))
            continue
        for key, value in _leaves(recipe, known):
            yield key, value, False, f" (in {path})"
    for key, text in pairs:
        if key != "recipe":
            yield key, text, True, ""


def _leaves(recipe: dict, known: dict[str, Setting], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(key, value) of a recipe, sections unfolded; an empty section or mapping sets nothing."""
    for name, value in recipe.items():
        key = f"{prefix}{name}"
        plain = key.replace("-", "_")
        is_section = any(k.startswith(f"{plain}.") for k in known)
        is_mapping = plain in known and get_origin(known[plain].hint) is dict
        if is_section and isinstance(value, dict):
            yield from _leaves(value, known, f"{key}.")
        elif value is not None or not (is_section or is_mapping):
            yield key, value
