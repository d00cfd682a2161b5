"""Configuration at the border: frozen Pydantic models that refuse what they do not know, and their YAML.

All problems of a document are reported at once, each with its dotted path and, where there is one, the nearest word.
"""

import copy
import math
import re
import types
from collections.abc import Container, Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Tag, ValidationError, model_validator

from holdfast.core.errors import ConfigError, did_you_mean

Kind = TypeVar("Kind", bound="Config")
LARGEST = 2**32 - 1
"""No number of a configuration may be larger: it is the largest seed that NumPy takes, and no count comes near it."""


class Config(BaseModel):
    """Base of every configuration model. Attribute docstrings become help and docs."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_numbers(cls, given: Any) -> Any:
        """``true`` and ``"3"`` are no numbers, which Pydantic would make 1 and 3 of; and none is beyond `LARGEST`."""
        if not isinstance(given, dict):
            return given
        fields = cls.model_fields
        return {key: _number(fields[key].annotation, value) if key in fields else value for key, value in given.items()}

    def only(self, kind: type[Kind], without: Container[str] = (), /, **changed: Any) -> Kind:
        """The keys of ``kind`` that were given here, checked anew; what was left out stays left out.

        Args:
            without: Keys to leave out.
            changed: Keys with other values.
        Raises:
            ValidationError: ``kind`` refuses one.
        """
        given = {key: getattr(self, key) for key in kind.model_fields if key in self.model_fields_set}
        return kind(**{key: value for key, value in given.items() if key not in without} | changed)


class _Refused:
    """In place of a value that Pydantic would take for a number: it takes no such object."""

    def __init__(self, problem: str) -> None:
        self.problem = problem


def _number(annotation: Any, value: Any) -> Any:
    """The value, or why a field that holds a number does not take it."""
    if not isinstance(value, bool | str | int | float):
        return value
    kinds = {branch for _, branch in _branches(annotation)}
    numbers = kinds & {int, float}
    if not numbers or kinds & {bool, str}:
        return value
    if isinstance(value, bool | str):
        return _Refused(f"should be a valid {'integer' if numbers == {int} else 'number'} (got {_short(value)})")
    if LARGEST < abs(value) < math.inf:
        bound = f"at most {LARGEST}" if value > 0 else f"at least -{LARGEST}"
        return _Refused(f"should be {bound} (got {_short(value)})")
    return value


class _Loader(yaml.SafeLoader):
    """YAML 1.2 core scalars (``1e-4`` is a number, ``no`` and ``1:30`` are text) and no duplicate keys."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}  # type: ignore[misc]

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._seen: set[yaml.MappingNode] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Put merged keys in. Duplicates are sought first, and once: afterwards a key may stand beside a merged one."""
        if node not in self._seen:
            self._seen.add(node)
            _refuse_duplicates(node)
        super().flatten_mapping(node)


def _refuse_duplicates(node: yaml.MappingNode) -> None:
    seen: dict[str, int] = {}
    for key_node, _ in node.value:
        key, line = str(key_node.value), key_node.start_mark.line + 1
        if key in seen:
            raise ConfigError(f"line {line}: duplicate key {key!r}, first given on line {seen[key]}. Keep one of them.")
        seen[key] = line


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text, 0) if text[:2] in {"0x", "0o"} else int(text)


def _float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    return float(loader.construct_scalar(node).lower().replace(".inf", "inf").replace(".nan", "nan"))


_SCALARS = (
    ("tag:yaml.org,2002:null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("tag:yaml.org,2002:int", r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        list("-+0123456789."),
    ),
    ("tag:yaml.org,2002:merge", r"^<<$", ["<"]),
)
for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _integer)
_Loader.add_constructor("tag:yaml.org,2002:float", _float)


def parse_yaml(text: str, name: str) -> Any:
    """Read one YAML document as YAML 1.2 does.

    >>> parse_yaml("rate: 1e-4\\nanswer: no", "x.yaml")
    {'rate': 0.0001, 'answer': 'no'}

    Args:
        text: The document.
        name: What to call it in an error.
    Raises:
        ConfigError: A duplicate key or a syntax error, with its line; or an alias inside of what it stands for.
    """
    try:
        return _unshared(yaml.load(text, Loader=_Loader))
    except ConfigError as problem:
        raise ConfigError(f"{name}: {problem}") from None
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        place = f"line {mark.line + 1}: " if mark else ""
        raise ConfigError(f"{name}: {place}not valid YAML: {problem.problem or problem.context}.") from problem
    except yaml.YAMLError as problem:
        raise ConfigError(f"{name}: not valid YAML: {str(problem).splitlines()[0]}.") from problem


def _unshared(value: Any, inside: tuple[int, ...] = ()) -> Any:
    """A copy in which no two places share a value, so that an override of one alias leaves the others alone."""
    if id(value) in inside:
        raise ConfigError("a value holds an alias of itself. Do: write the inner value out.")
    inside = (*inside, id(value))
    if isinstance(value, dict):
        return {key: _unshared(inner, inside) for key, inner in value.items()}
    return [_unshared(inner, inside) for inner in value] if isinstance(value, list) else value


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping.

    Raises:
        ConfigError: The file cannot be read, is not UTF-8, is not YAML, repeats a key, or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as problem:
        raise ConfigError(f"{path.name}: byte {problem.start} is not UTF-8. Do: save the file as UTF-8.") from problem
    except OSError as problem:
        raise ConfigError(f"Cannot read {path}: {problem.strerror}.") from problem
    document = parse_yaml(text, path.name)
    if not isinstance(document, dict):
        found = "nothing" if document is None else type(document).__name__
        raise ConfigError(f"{path.name}: got {found} at the top level, expected 'key: value' lines.")
    return document


def apply_overrides(document: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return a copy of ``document`` in which each ``a.b=c`` has replaced one value; ``c`` is read as YAML.

    Mappings that do not exist yet are created; list items are addressed by position.

    >>> apply_overrides({"steps": {"tuned": {"epochs": 1}}}, ["steps.tuned.learning_rate=1e-4"])
    {'steps': {'tuned': {'epochs': 1, 'learning_rate': 0.0001}}}

    Raises:
        ConfigError: No ``=``, an empty key, a position outside a list, or a path that goes through a plain value.
    """
    changed = copy.deepcopy(document)
    for override in overrides:
        path, equals, text = override.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise ConfigError(
                f"Cannot apply --set {override!r}: expected key.key=value, e.g. steps.tuned.learning_rate=1e-4."
            )
        value = parse_yaml(text, f"--set {path}")
        owner: Any = changed
        for key in keys[:-1]:
            owner = _child(owner, key, override)
        if isinstance(owner, list):
            owner[_position(owner, keys[-1], override)] = value
        elif isinstance(owner, dict):
            owner[keys[-1]] = value
        else:
            raise _through_value(override, keys[-1], owner)
    return changed


def _child(owner: Any, key: str, override: str) -> Any:
    if isinstance(owner, list):
        return owner[_position(owner, key, override)]
    if not isinstance(owner, dict):
        raise _through_value(override, key, owner)
    if owner.get(key) is None:
        owner[key] = {}
    return owner[key]


def _position(owner: list[Any], key: str, override: str) -> int:
    if not key.isdigit() or int(key) >= len(owner):
        raise ConfigError(
            f"Cannot apply --set {override!r}: got {key!r} for a list, expected a position 0 to {len(owner) - 1}."
        )
    return int(key)


def _through_value(override: str, key: str, owner: Any) -> ConfigError:
    return ConfigError(
        f"Cannot apply --set {override!r}: {key!r} would stand inside {owner!r}, which is not a mapping."
    )


def report(file: str, problems: Sequence[str]) -> ConfigError:
    """One error out of all problems of a file, a line each, in the order found."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return ConfigError("\n  ".join([f"{file}: {count}", *problems]))


def explain(error: ValidationError, file: str, model: type[BaseModel]) -> ConfigError:
    """Turn what Pydantic found into one error with a line per problem.

    Args:
        error: As raised by ``model.model_validate``.
        file: Name to print, e.g. ``quickstart.yaml``.
        model: The class that was validated; its fields give the suggestions for unknown keys.
    """
    return report(file, problems_of(error, model))


def problems_of(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[str]:
    """The lines of `explain`, e.g. ``steps.hold.frozen_share: should be less than 1 (got 1.4)``."""
    lines = []
    for item in error.errors(include_url=False):
        keys, owner = _walk(model, item["loc"])
        if item["type"].startswith("union_tag"):
            keys.append(str(item.get("ctx", {}).get("discriminator", "")).strip("'"))
        where = ".".join([prefix, *keys] if prefix else keys) or "(top level)"
        lines.append(f"{where}: {_sentence(dict(item), owner)}")
    return list(dict.fromkeys(lines))


def _sentence(item: dict[str, Any], owner: type[BaseModel] | None) -> str:
    kind, context, got = item["type"], item.get("ctx", {}), item["input"]
    if isinstance(got, _Refused):
        return got.problem
    if kind == "extra_forbidden":
        return "unknown key" + _nearest(str(item["loc"][-1]), owner.model_fields if owner else ())
    if kind == "missing":
        return "missing"
    if kind == "union_tag_not_found":
        return "missing"
    if kind in {"literal_error", "union_tag_invalid", "enum"}:
        word = _tag_given(got, context) if kind == "union_tag_invalid" else got
        known = re.findall(r"'([^']*)'", str(context.get("expected", context.get("expected_tags", ""))))
        return f"unknown {word!r}" + _nearest(str(word), known)
    if kind in {"model_type", "model_attributes_type", "dict_type"}:
        return f"should be a mapping of 'key: value' lines (got {_short(got)})"
    text = str(item["msg"])
    if kind == "value_error":
        return text.removeprefix("Value error, ")
    return f"{_plain(text)} (got {_short(got)})"


def _tag_given(got: Any, context: dict[str, Any]) -> Any:
    """What stands under the key that chooses the member of a union, as it was written."""
    key = str(context["discriminator"]).strip("'")
    return got.get(key, context["tag"]) if isinstance(got, dict) else context["tag"]


def _plain(text: str) -> str:
    """A sentence of Pydantic's about a value, without the names of Python's types and of its own steps."""
    text = re.sub(r"^(?:Input|Value|String|Tuple|List|Set|Dictionary) should", "should", text)
    text = re.sub(r" after validation, not \d+|, unable to .*|, got a .*", "", text)
    return re.sub(r"valid (?:tuple|list|set)", "list", text)


def _nearest(word: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = get_close_matches(word, names, n=1)
    return f", did you mean {near[0]!r}?" if near else f". {did_you_mean(word, names)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _walk(model: Any, location: Sequence[int | str]) -> tuple[list[str], type[BaseModel] | None]:
    """Follow an error's location through the annotations: the keys a user wrote, and the class that owns the last."""
    keys: list[str] = []
    current, owner = model, None
    for part in location:
        current, tag_only = _into_branch(current, part)
        if tag_only:
            continue
        keys.append(str(part))
        owner = current if isinstance(current, type) and issubclass(current, BaseModel) else None
        current = _step_in(current, part)
    return keys, owner


def _into_branch(annotation: Any, part: int | str) -> tuple[Any, bool]:
    """Choose the member of a union that ``part`` names; the flag says that ``part`` was only the member's tag."""
    branches = _branches(annotation)
    if len(branches) == 1:
        return branches[0][1], False
    for name, branch in branches:
        if name == part:
            return branch, True
    return next(
        (branch for _, branch in branches if isinstance(branch, type) and issubclass(branch, BaseModel)), None
    ), False


def _branches(annotation: Any) -> list[tuple[str, Any]]:
    """Members of a union as (tag, type), without ``None``; a plain type is its own only member."""
    if get_origin(annotation) is Annotated:
        inner, *extras = get_args(annotation)
        tag = next((extra.tag for extra in extras if isinstance(extra, Tag)), None)
        inside = _branches(inner)
        return [(tag, branch) for _, branch in inside] if tag is not None else inside
    if get_origin(annotation) in {Union, types.UnionType}:
        return [pair for member in get_args(annotation) if member is not type(None) for pair in _branches(member)]
    return [(_tag_of(annotation), annotation)]


def _tag_of(annotation: Any) -> str:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = annotation.model_fields.get("do")
        if field is not None and get_origin(field.annotation) is Literal:
            return str(get_args(field.annotation)[0])
        return annotation.__name__
    return getattr(annotation, "__name__", str(annotation))


def _step_in(annotation: Any, part: int | str) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = annotation.model_fields.get(str(part))
        return field.rebuild_annotation() if field else None
    arguments = [argument for argument in get_args(annotation) if argument is not Ellipsis]
    return arguments[-1] if get_origin(annotation) in {dict, list, tuple} and arguments else None
