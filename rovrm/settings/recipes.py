"""Recipes and config.yaml: settings as YAML files.

OmegaConf.load and OmegaConf.save do not serve here. Both put every text through OmegaConf's interpolation, for which a
lone `${` is an error. The one turns `no` into false before anybody asks whether its field holds text; the other cannot
write a file name that is not UTF-8. The loader inside them is private, and deep nesting crashes it, because it is C.
So this is PyYAML's own reader and writer, with the few rules that settings need.
"""

import re
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from rovrm.common.errors import UserError, described, quoted
from rovrm.common.files import replacing


class Plain(str):
    """The text of a scalar without quotes that YAML reads as a number, as true or as false: `1e-5`, `no`.

    A field of a known type takes the text, as from the command line: `no` stays text where the field holds text. Where
    anything may stand, `value` counts, which is what YAML reads.
    """

    value: Any

    def __repr__(self) -> str:  # in messages: as it was written, without quotes
        return str(self)


class Loader(yaml.SafeLoader):
    """Reads YAML in which no key is given twice and no alias stands inside an anchored value.

    Without the second rule seven lines of nested aliases stand for millions of values.
    """

    anchored = 0  # how many values with an anchor the node that is read stands inside of

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        is_alias = isinstance(event, yaml.AliasEvent)
        if is_alias and self.anchored:
            problem = "an alias inside an anchored value; write the value out"
            raise ComposerError(None, None, problem, event.start_mark)
        has_anchor = not is_alias and getattr(event, "anchor", None) is not None
        self.anchored += has_anchor
        node = super().compose_node(parent, index)
        self.anchored -= has_anchor
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        names = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConstructorError(None, None, "a key is a text, no collection", key.start_mark)
            if key.value in names and key.value != "<<":  # which merges, and may do so several times
                raise ConstructorError(None, None, f"key {key.value} is given twice", key.start_mark)
            names.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_plain(self, node: yaml.ScalarNode) -> Plain:
        scalar = Plain(node.value)
        scalar.value = yaml.SafeLoader.yaml_constructors[node.tag](self, node)
        return scalar


class Dumper(yaml.SafeDumper):
    """Writes YAML with quotes around every text that Loader or YAML 1.1 would read as something else."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        # PyYAML writes the next-line character, U+0085, so that it comes back as a blank, unless told to quote.
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


Dumper.add_representer(str, Dumper.represent_text)

# YAML 1.1, which PyYAML follows, reads 1e-5 as text, and 1:30, 010 and 2026-01-31 as 90, as 8 and as a date. For Loader
# the first is a number and the others are text.
OF_YAML = {"tag:yaml.org,2002:bool", "tag:yaml.org,2002:null", "tag:yaml.org,2002:merge"}
INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]*)$")
FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?"
    r"|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$"
)
Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag in OF_YAML]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _class in (Loader, Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:int", INT, list("-+0123456789"))
    _class.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789"))
for _tag in ("bool", "int", "float"):
    Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", Loader.construct_plain)


def read_recipe(path: str) -> dict[str, Any]:
    """The mapping in a YAML file, with its numbers and booleans as Plain. Raises UserError that names the file, and the
    line where it stops being YAML."""
    try:
        with open(path, encoding="utf-8") as file:
            recipe = yaml.load(file, Loader=Loader)
    except OSError as error:
        raise UserError(f"recipe {path} cannot be read: {error.strerror or error}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        remedy = " (inside [ ] put quotes around a value that holds ?)" if "'?'" in f"{error.problem}" else ""
        raise UserError(f"recipe {path}{line}: {error.problem}{remedy}") from None
    except yaml.YAMLError as error:
        raise UserError(f"recipe {path} is not YAML: {str(error).splitlines()[0]}") from None
    except Exception as error:  # tags such as !!timestamp raise whatever reading their text does
        raise UserError(f"recipe {path} is not YAML: {described(error)}") from None
    if recipe is not None and not isinstance(recipe, dict):
        raise UserError(f"recipe {path}, line 1: takes lines of key: value, got {quoted(recipe)}")
    return recipe or {}


def read_scalar(text: str) -> Any:
    """What `text` stands for in a recipe where it is a scalar without quotes: a Plain, a str or None."""
    loader = Loader("")
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))
    return loader.construct_object(yaml.ScalarNode(tag, text))


def write_recipe(path: Path, settings: dict[str, Any]) -> None:
    """Writes settings so that `recipe=` reads the same back."""
    text = yaml.dump(settings, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
