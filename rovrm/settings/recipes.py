"""YAML as recipes and config.yaml are written: read without its traps, and written so that the same comes back."""

import re
from typing import Any

import yaml
from yaml.composer import ComposerError

from rovrm.common.errors import UserError, described


class Loader(yaml.SafeLoader):
    """Safe YAML without the traps: 1e-5 is a number, 1:30 and 2026-01-31 are text, a key given twice is an error.

    An alias inside an anchored value is one too: nested, a few lines of them stand for millions of values.
    """

    _anchors = 0  # that the node being read stands inside of

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) and self._anchors:
            problem = "an alias inside an anchored value; write the value out"
            raise ComposerError(None, None, problem, event.start_mark)
        anchored = not isinstance(event, yaml.AliasEvent) and getattr(event, "anchor", None) is not None
        self._anchors += anchored
        node = super().compose_node(parent, index)
        self._anchors -= anchored
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is a text, no collection", key.start_mark)
            if key.value in seen and key.value != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value} is given twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


class Dumper(yaml.SafeDumper):
    """Quotes whatever either YAML 1.1 or Loader would read as something other than the same text."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


Dumper.add_representer(str, Dumper.represent_text)


_KEPT = {"tag:yaml.org,2002:bool", "tag:yaml.org,2002:null", "tag:yaml.org,2002:merge"}
Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag in _KEPT]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]*)$")
_FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?"
    r"|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$"
)
for _class in (Loader, Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def read_recipe(path: str) -> dict[str, Any]:
    """The mapping in a YAML file; UserError names the file, and the line where YAML ends."""
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
        raise UserError(f"recipe {path}, line 1: takes lines of key: value, got {show(recipe)}")
    return recipe or {}


def show(value: Any) -> str:
    """A value in a message: in quotes, and not longer than a line takes."""
    try:
        text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or a number of thousands of digits
        text = f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= 100 else f"{text[:97]}..."
