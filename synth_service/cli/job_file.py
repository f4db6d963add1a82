"""Reading a job file: YAML or JSON, with ``--set`` on top.

YAML as people expect it: a number may be written ``2e-4``, a date stays text, and a key that occurs twice
is an error instead of a silent loss of the first.
"""

from __future__ import annotations

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
    """YAML 1.1's safe loader with the three differences that the module names."""

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


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# YAML 1.1 wants a point and a sign in an exponent; without them `2e-4` would be text.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def load_job_file(path: str, changes: Iterable[str] = ()) -> dict[str, Any]:
    """The job specification in a file, ``-`` for stdin, with changes such as ``synthesis.num_images=100``.

    Raises:
        InvalidJobFile: it is missing, is not YAML or JSON, or holds no mapping; or a change is malformed.
    """
    name = "stdin" if path == "-" else path
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidJobFile(f"{name}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidJobFile(f"{name}: is not UTF-8 text; give the job file, not a checkpoint") from None
    spec = _parse(text, name)
    if not isinstance(spec, dict):
        raise InvalidJobFile(f"{name}: holds {_kind(spec)} where a mapping with the job's fields should be")
    for change in changes:
        _apply(spec, change)
    return spec


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
        return yaml.load(text, Loader=_Loader)  # noqa: S506 -- a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InvalidJobFile(f"{name}{place}: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidJobFile(f"{name}: {' '.join(str(error).split()) or 'is nested too deeply'}") from None


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
