"""Reading a job file: JSON or YAML, with ``--set`` on top.

JSON is tried first, so that whatever is JSON is read as that. YAML by the rules of its version 1.2: ``010`` is ten,
``1:30`` and a date stay text, ``2e-4`` is a number. A key that occurs twice is an error instead of a silent loss of the
first.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from shared.specs import JobSpec
from shared.specs.field_errors import described
from synth_service.client import FieldError


class InvalidJobFile(Exception):
    """The file cannot be read as a job; the message names file, line and fault."""


class RefusedJob(Exception):
    """The file can be read, and the job in it is not valid.

    Attributes:
        errors: what is wrong with which field.
    """

    def __init__(self, errors: list[FieldError]) -> None:
        self.errors = errors
        super().__init__("; ".join(f"{each.field}: {each.message}" for each in errors))


class _Loader(yaml.SafeLoader):
    """PyYAML knows the types of YAML 1.1; these are those of the core schema of YAML 1.2, section 10.3.2."""

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """A whole number; leading zeros mean nothing."""
        text = self.construct_scalar(node)
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        return int(text[2:] if base != 10 else text, base)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Refuses a key that was there already."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True) if isinstance(key_node, yaml.ScalarNode) else None
            if key is not None and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is here twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {}
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
for _type, _pattern, _first in (
    ("null", r"|~|null|Null|NULL", ["", "~", "n", "N"]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),  # of 1.1, and in use
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_type}", re.compile(f"^(?:{_pattern})$"), _first)


def load_job_file(path: str, changes: Iterable[str] = ()) -> dict[str, Any]:
    """The job specification in a file, ``-`` for stdin, with changes such as ``synthesis.num_images=100``.

    Raises:
        InvalidJobFile: it is missing, is not YAML or JSON, or holds no mapping; or a change is malformed.
    """
    name = "stdin" if path == "-" else path
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        text = data.decode("utf-8-sig")  # whatever the terminal's encoding is, a job file has this one
    except OSError as error:
        raise InvalidJobFile(f"{name}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidJobFile(f"{name}: is not UTF-8 text; give the job file, not a checkpoint") from None
    spec = _parse(text, name)
    if not isinstance(spec, dict):
        raise InvalidJobFile(f"{name}: holds {_kind(spec)} where a mapping with the job's fields should be")
    apply_changes(spec, changes)
    return spec


def apply_changes(spec: dict[str, Any], changes: Iterable[str]) -> None:
    """Makes changes such as ``synthesis.num_images=100``. Raises InvalidJobFile for one that is malformed."""
    for change in changes:
        _apply(spec, change)


def check_job(spec: dict[str, Any]) -> JobSpec:
    """The job, resolved. What its files hold, and whether they are there, only the service knows.

    Raises:
        RefusedJob: fields of it are wrong.
    """
    try:
        return JobSpec.model_validate(spec)
    except ValidationError as error:
        faults = map(described, error.errors())
        raise RefusedJob([FieldError(field=field, message=message) for field, message in faults]) from None


def _parse(text: str, name: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_number)
    except (json.JSONDecodeError, RecursionError) as error:
        not_json = error
    except ValueError as error:
        raise InvalidJobFile(f"{name}: {error}") from None
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 -- a SafeLoader
    except yaml.MarkedYAMLError as error:
        if text.lstrip().startswith("{") and isinstance(not_json, json.JSONDecodeError):
            place = f", line {not_json.lineno}, column {not_json.colno}"
            raise InvalidJobFile(f"{name}{place}: {not_json.msg}") from None
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InvalidJobFile(f"{name}{place}: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidJobFile(f"{name}: {' '.join(str(error).split()) or 'is nested too deeply'}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} is here twice")
        found[key] = value
    return found


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def _apply(spec: dict[str, Any], change: str) -> None:
    """Sets one field, making the mappings on the way to it."""
    path, equals, text = change.partition("=")
    *parents, field = path.split(".")
    if not equals or not all([*parents, field]):
        raise InvalidJobFile(f"--set {change}: write it as field=value or part.field=value")
    place = spec
    for depth, parent in enumerate(parents, start=1):
        inner = place.get(parent)
        if inner is None:
            inner = place[parent] = {}
        if not isinstance(inner, dict):
            raise InvalidJobFile(f"--set {change}: {'.'.join(parents[:depth])} holds {_kind(inner)}, not fields")
        place = inner
    place[field] = _parse(text, f"--set {path}")


def _kind(value: object) -> str:
    kinds = {list: "a list", str: "text", bool: "a yes or no", int: "a number", float: "a number"}
    return "nothing" if value is None else kinds.get(type(value), type(value).__name__)
