"""YAML files as frozen dataclasses, strictly: no unknown keys, no coercion of types.

Each problem is a `ConfigError` of one line that names the file, the line if known, the key, and the
nearest known key or value.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic_core import CoreSchema, core_schema

from qhdm.errors import ConfigError, QhdmError, closest, did_you_mean, shortened
from qhdm.files import write_text

#: Limits of a file, far above what any needs. Aliases count as the values they refer to.
MAX_BYTES = 64 * 1024
MAX_NODES = 10_000
MAX_DEPTH = 50

T = TypeVar("T")
Key = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads `1e-3` as a number, as YAML 1.2 does, and refuses duplicate keys."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


@dataclasses.dataclass(frozen=True)
class Document:
    """Plain data and its places.

    Attributes:
        source: the file; contradictions between keys are reported here.
        data: dicts, lists and scalars.
        lines: the line of each key, counted from 1.
        origin: the file that `lines` refers to, if it is not `source`.
        given: the places of keys that were set over those of the file.
    """

    source: str
    data: Any
    lines: Mapping[Key, int] = dataclasses.field(default_factory=dict)
    origin: str | None = None
    given: Mapping[Key, str] = dataclasses.field(default_factory=dict)

    def place(self, key: Key) -> str:
        """`file:line: a.b.c` or `--set a.b.c`, as far as it is known."""
        for length in range(len(key), 0, -1):
            if key[:length] in self.given:
                rest = dotted(key[length:])
                dot = "." if rest and not rest.startswith("[") else ""
                return f"{self.given[key[:length]]}{dot}{rest}"
        line = self.lines.get(key)
        file = self.origin or self.source
        where = f"{file}:{line}" if line else file
        return f"{where}: {dotted(key)}" if key else where


@dataclasses.dataclass(frozen=True)
class Setting:
    """A value to set in a document.

    Attributes:
        key, value: what to set.
        place: where it was given, including the key, for messages.
    """

    key: tuple[str, ...]
    value: Any
    place: str


class Either:
    """Marks a section with two variants: `model: Annotated[Recommended | Published, Either]`.

    A mapping is the second variant if it has a key, or a value of a shared key of literals, that
    the first does not know; otherwise the first.
    """

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        variants = get_args(source)
        names = [variant.__name__ for variant in variants]
        schemas = map(handler.generate_schema, variants)
        return core_schema.tagged_union_schema(
            dict(zip(names, schemas, strict=True)),
            discriminator=lambda value: names[cls.is_second(value, variants)],
        )

    @staticmethod
    def is_second(value: Any, variants: Sequence[type]) -> bool:
        """Whether a section, as a mapping or an instance, is the second of two variants."""
        if isinstance(value, Mapping):
            return _mark_of_second(value, variants) is not None
        return isinstance(value, variants[1])


def _mark_of_second(section: Mapping[str, Any], variants: Sequence[type]) -> str | None:
    """The key of a section that makes it the second of two variants, None if it is the first."""
    first, second = map(get_type_hints, variants)
    for key, value in section.items():
        theirs = set(_literals(second.get(key))) - set(_literals(first.get(key)))
        if (key in second and key not in first) or (isinstance(value, str) and value in theirs):
            return key
    return None


def _literals(hint: Any) -> tuple[Any, ...]:
    """The values of a hint `Literal[...]`."""
    return get_args(hint) if get_origin(hint) is Literal else ()


def _variants(hint: Any) -> tuple[Any, ...]:
    """The dataclasses of the hint of a section: one, or two if it has variants."""
    variants = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return variants if all(map(dataclasses.is_dataclass, variants)) else ()


def _variants_at(cls: type, section: Key) -> tuple[Any, ...]:
    """The same for the section of that name, `()` being `cls` itself."""
    variants: tuple[Any, ...] = (cls,)
    for part in section:
        hints = [get_type_hints(variant).get(str(part)) for variant in variants]
        variants = tuple(inner for hint in hints for inner in _variants(hint))
    return variants


def dotted(key: Key) -> str:
    """`("a", "b", 1)` as `a.b[1]`."""
    text = ""
    for part in key:
        # Keys may hold line breaks, messages must not.
        name = part if isinstance(part, int) or part.isprintable() else repr(part)
        text += f"[{name}]" if isinstance(part, int) else f".{name}"
    return shortened(text.removeprefix("."))


def read_document(path: Path) -> Document:
    """Parse one YAML file.

    Raises:
        ConfigError: the file is missing, unreadable, not UTF-8, or not YAML.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a UTF-8 text file ({error.reason})") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:  # a NUL in the name
        raise ConfigError(f"{str(path)!r}: not the name of a file") from None
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_BYTES:,} bytes, which no such file needs")
    data, lines = _parse(text, str(path))
    return Document(str(path), {} if data is None else data, lines)


def _parse(text: str, source: str) -> tuple[Any, dict[Key, int]]:
    """The plain data of a YAML text, and the line of each key.

    Raises:
        ConfigError: it is not YAML, exceeds the limits, or holds what JSON cannot.
    """
    lines: dict[Key, int] = {}
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, lines
        _collect_lines(node, (), lines, source, [MAX_NODES])
        data = loader.construct_document(node)
        json.dumps(data, default=str, ensure_ascii=False).encode()
        return data, lines
    except ConfigError:
        raise
    except RecursionError:
        raise ConfigError(f"{source}: nested deeper than {MAX_DEPTH} levels") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}:{mark.line + 1}" if mark else source
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{where}: not valid YAML: {problem}") from None
    except Exception as error:  # constructors raise many types, as for the date 2026-99-99
        raise ConfigError(f"{source}: holds a value that cannot be read ({error})") from None


def _collect_lines(
    node: yaml.Node, key: Key, lines: dict[Key, int], source: str, budget: list[int]
) -> None:
    """Fill `lines`; `budget` holds one number, the nodes that may follow."""

    def refuse(at: yaml.Node, problem: str) -> NoReturn:
        raise ConfigError(f"{source}:{_line(at)}: {problem}")

    budget[0] -= 1
    if budget[0] < 0:
        refuse(node, f"more than {MAX_NODES:,} values, aliases counted as what they refer to")
    if len(key) > MAX_DEPTH:
        refuse(node, f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                refuse(key_node, "a key must be a name, not a list or mapping")
            inner = (*key, str(key_node.value))
            if inner in lines:
                refuse(key_node, f"{dotted(inner)}: given twice")
            lines[inner] = _line(key_node)
            _collect_lines(value_node, inner, lines, source, budget)
    elif isinstance(node, yaml.SequenceNode):
        for index, value_node in enumerate(node.value):
            lines[(*key, index)] = _line(value_node)
            _collect_lines(value_node, (*key, index), lines, source, budget)


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def with_overrides(document: Document, overrides: Iterable[str]) -> Document:
    """`document` with `a.b.c=value` settings applied in order; values are read as YAML.

    Raises:
        ConfigError: a setting is not of that form, or names a key below a plain value.
    """
    settings = []
    for setting in overrides:
        name, separator, text = setting.partition("=")
        parts = tuple(name.strip().split("."))
        if not separator or not all(parts):
            raise ConfigError(f"--set {setting}: expected key=value, for example train.steps=1000")
        if len(text) > MAX_BYTES or len(parts) > MAX_DEPTH:
            raise ConfigError(f"--set {shortened(setting)}: longer than any setting")
        value, _ = _parse(text, f"--set {shortened(setting)}")
        settings.append(Setting(parts, value, f"--set {dotted(parts)}"))
    return with_settings(document, settings)


def with_settings(document: Document, settings: Iterable[Setting]) -> Document:
    """`document` with `settings` applied in order.

    Raises:
        ConfigError: one names a key below a plain value.
    """
    data = json.loads(json.dumps(document.data, default=str)) or {}
    if not isinstance(data, dict):
        raise ConfigError(f"{document.source}: must be a mapping of keys, got {_shorten(data)}")
    given = dict(document.given)
    for setting in settings:
        parts = setting.key
        target = data
        for depth, part in enumerate(parts[:-1]):
            if target.get(part) is None:
                target[part] = {}
            target = target[part]
            if not isinstance(target, dict):
                raise ConfigError(f"{setting.place}: {'.'.join(parts[: depth + 1])} has no keys")
        target[parts[-1]] = setting.value
        given[parts] = setting.place
    return dataclasses.replace(document, data=data, given=given)


def validate(cls: type[T], document: Document) -> T:
    """Build the dataclass `cls` from `document`, strictly (no coercion of types).

    A class method `completed` of `cls`, if there is one, may add keys to the data.

    Raises:
        ConfigError: with the first problem, and how many more there are.
    """
    data = getattr(cls, "completed", lambda data: data)(document.data)
    document = dataclasses.replace(document, data=data)
    text = json.dumps(data, default=str)
    try:
        # JSON mode is strict about scalars, yet takes lists as tuples and mappings as dataclasses.
        return TypeAdapter(cls).validate_json(text, strict=True)
    except ValidationError as error:
        raise _refusal(cls, document, error) from None


def one_line_errors(cls: type[T]) -> type[T]:
    """Decorate a pydantic dataclass, so that a wrong value raises `ConfigError` in one line."""
    construct: Callable[..., None] = cls.__init__

    @functools.wraps(construct)
    def construct_or_refuse(self: T, *arguments: Any, **values: Any) -> None:
        try:
            construct(self, *arguments, **values)
        except ValidationError as error:
            raise _refusal(cls, Document(cls.__name__, values), error) from None

    cls.__init__ = construct_or_refuse  # type: ignore[method-assign, assignment]
    return cls


def _refusal(cls: type, document: Document, error: ValidationError) -> ConfigError:
    """The first problem, and how many more there are."""
    problems: dict[Key, list[dict[str, Any]]] = {}
    for problem in error.errors(include_url=False):
        problems.setdefault(_key_of(problem, document.data), []).append(dict(problem))
    key, first = next(iter(problems.items()))
    message = _describe(cls, document, key, first)
    if len(problems) > 1:
        message += f" (and {len(problems) - 1} more)"
    return ConfigError(message)


def _key_of(problem: Mapping[str, Any], data: Any) -> Key:
    """The key of a problem: its location without the names of a union's types."""
    key: Key = ()
    for part in problem["loc"]:
        known = range(len(data)) if isinstance(data, list) else data
        if isinstance(data, dict | list) and part in known:
            key, data = (*key, part), data[part]
    return (*key, problem["loc"][-1]) if problem["type"] == "missing" else key


def _describe(cls: type, document: Document, key: Key, problems: list[dict[str, Any]]) -> str:
    """Message for the problems of one key: a union has one for each of its types."""
    problem = problems[0]
    kind, value = problem["type"], problem["input"]
    variants = _variants_at(cls, key[:-1])
    hints = [get_type_hints(variant).get(str(key[-1])) for variant in variants if key]
    named = [name for p in problems for name in _names(p)]
    known = list(dict.fromkeys([*named, *(str(name) for h in hints for name in _literals(h))]))
    misplaced = kind == "literal_error" and str(value) in set(known) - set(named)
    if misplaced or (kind == "unexpected_keyword_argument" and any(hints)):
        return _mixed(document, key, variants)
    if kind == "unexpected_keyword_argument":
        guess = _nearest_key(cls, key)
        hint = f"; did you mean {guess}?" if guess else ""
        return f"{document.place(key)}: unknown key{hint}"
    if kind == "value_error":
        # Cross-checks name their keys themselves, within the document or section.
        where = document.place(key) if key else document.source
        return f"{where}: {problem['msg'].removeprefix('Value error, ')}"
    hint = did_you_mean(str(value), known)
    if kind == "literal_error":
        return f"{document.place(key)}: {_shorten(value)} is not one of {', '.join(known)}{hint}"
    if kind == "missing":
        return f"{document.place(key)}: is required"
    text = str(problem["msg"]).replace("Input should be", "must be")
    text = text.replace("an object", "a mapping of keys").replace("valid array", "list")
    for kind_of_list in ("Tuple", "Dictionary"):
        text = text.replace(f"{kind_of_list} should", "must")
    text = text.replace("after validation", "in all")
    text = ", or ".join([f"{text[0].lower()}{text[1:]}", *known])
    return f"{document.place(key)}: {text}, got {_shorten(value)}{hint}"


def _mixed(document: Document, key: Key, variants: Sequence[type]) -> str:
    """Message for a key of one variant of a section beside one of the other."""
    section = functools.reduce(lambda data, part: data[part], key[:-1], document.data)
    mark = (*key[:-1], str(_mark_of_second(section, variants)))
    one, other = (mark, key) if mark in document.given else (key, mark)
    return (
        f"{document.place(one)}: cannot be combined with {dotted(other)}, of the other kind of "
        f"`{dotted(key[:-1])}`; remove one of them"
    )


def _names(problem: Mapping[str, Any]) -> list[str]:
    """The values to choose from, if there is such a list."""
    if problem["type"] != "literal_error":
        return []
    return re.findall(r"'([^']*)'", problem["ctx"]["expected"])


def write_record(record: Any, path: Path) -> None:
    """Write a dataclass with a field `format` as JSON, that field first, atomically."""
    plain = TypeAdapter(type(record)).dump_python(record, mode="json", by_alias=True)
    ordered = {"format": plain.pop("format"), **plain}
    write_text(path, json.dumps(ordered, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_record(
    cls: type[T], path: Path, refusal: type[QhdmError], *, missing: str, again: str
) -> T:
    """Read a JSON file that `write_record` wrote.

    Args:
        cls: the dataclass.
        path: the file.
        refusal: what to raise.
        missing: the remedy if there is no file.
        again: the remedy if it is damaged.
    """
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise refusal(f"{path}: no such file; {missing}") from None
    except OSError as error:
        raise refusal(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise refusal(f"{path}: not JSON, or damaged; {again}") from None
    if not isinstance(plain, dict) or "format" not in plain:
        raise refusal(f"{path}: not a file of qhdm ({cls.__name__}); {again}")
    try:
        return validate(cls, Document(str(path), plain, {}))
    except ConfigError as error:
        raise refusal(f"{error}; {again}") from None


def _shorten(value: Any, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _nearest_key(cls: type, key: Key) -> str | None:
    """The known key that looks most like `key`: in its own section first, then anywhere."""
    known = list(_keys(cls, ()))
    section, name = key[:-1], str(key[-1])
    siblings = {str(k[-1]): k for k in known if k[:-1] == section}
    anywhere = {str(k[-1]): k for k in reversed(known)}
    for keys in (siblings, anywhere):
        if near := closest(name, keys):
            return dotted(keys[near])
    return None


def _keys(cls: type, prefix: Key) -> Iterable[Key]:
    for name, hint in get_type_hints(cls).items():
        yield (*prefix, name)
        for section in _variants(hint):
            yield from _keys(section, (*prefix, name))
