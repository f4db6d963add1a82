"""What is wrong with a job, in the words of its writer: the path of each field as it is written, and a message that
tells the remedy. API, CLI and form all show these.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Final

from pydantic_core import ErrorDetails

from shared.specs.job import JobSpec
from shared.specs.methods import SYNTHESIS_METHODS

_REQUEST_PARTS: Final = ("body", "query", "path", "header")

_MESSAGES: Final[Mapping[str, str]] = {
    "missing": "is required",
    "greater_than_equal": "must be at least {ge}; it is {input}",
    "greater_than": "must be greater than {gt}; it is {input}",
    "less_than_equal": "must be at most {le}; it is {input}",
    "less_than": "must be less than {lt}; it is {input}",
    "literal_error": "must be {expected}; it is {input}",
    "int_type": "must be a whole number; it is {input}",
    "int_parsing": "must be a whole number; it is {input}",
    "int_from_float": "must be a whole number; it is {input}",
    "float_type": "must be a number; it is {input}",
    "float_parsing": "must be a number; it is {input}",
    "bool_type": "must be true or false; it is {input}",
    "bool_parsing": "must be true or false; it is {input}",
    "string_type": "must be text; it is {input}",
    "dict_type": "must be a mapping of fields; it is {input}",
    "model_type": "must be a mapping of fields; it is {input}",
    "model_attributes_type": "must be a mapping of fields; it is {input}",
    "list_type": "must be a list; it is {input}",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "union_tag_invalid": "the method must be one of {expected_tags}; it is '{tag}'",
}


def field_path(location: Sequence[int | str], refined: str | None = None) -> str:
    """The path of a field as a client writes it, from where pydantic says that an error is.

    Args:
        location: ``loc`` of the error, with or without the ``body``, ``query``, … in front.
        refined: the field that a rule over several fields blames, seen from about there.
    """
    parts = [str(part) for part in location]
    if parts and parts[0] in _REQUEST_PARTS:
        del parts[0]
    if len(parts) > 1 and parts[0] == "synthesis" and parts[1] in SYNTHESIS_METHODS:
        del parts[1]  # the tag of the union, which no client writes there
    blamed = refined.split(".") if refined else []
    if parts and blamed and parts[-1] == blamed[0]:
        del parts[-1]
    return ".".join([*parts, *blamed])


def described(error: ErrorDetails) -> tuple[str, str]:
    """The path of the field and what to change, for one error of pydantic's, of ``JobSpec`` or around it."""
    context: Mapping[str, Any] = error.get("ctx") or {}
    path = field_path(error["loc"], context.get("field"))
    kind = error["type"]
    if kind == "extra_forbidden":
        return path, _unknown_field(path)
    if kind == "union_tag_not_found":
        return path, "needs the field `method`"
    template = _MESSAGES.get(kind)
    if template is None:
        return path, error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return path, template.format_map({**context, "input": _shown(error.get("input"))})


def _shown(value: object) -> str:
    """A value as YAML and JSON write it, shortened."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _unknown_field(path: str) -> str:
    *parents, name = path.split(".")
    where = ".".join(parents)
    siblings = sorted({each.rpartition(".")[2] for each in _job_fields() if each.rpartition(".")[0] == where})
    near = difflib.get_close_matches(name, siblings, n=1)
    if near:
        return f"unknown field {name}; did you mean {near[0]}?"
    elsewhere = [each for each in _job_fields() if each.rpartition(".")[2] == name]
    if elsewhere:
        return f"unknown field {name}; did you mean {elsewhere[0]}?"
    known = f"; the fields here are {', '.join(siblings)}" if siblings else ""
    return f"unknown field {name}{known}"


@cache
def _job_fields() -> tuple[str, ...]:
    """The paths of all fields of a job, from the outermost in."""
    schema = JobSpec.model_json_schema()
    found = dict.fromkeys(_walk(schema, schema.get("$defs", {}), ""))
    return tuple(sorted(found, key=lambda path: path.count(".")))


def _walk(schema: Mapping[str, Any], definitions: Mapping[str, Any], prefix: str) -> Iterator[str]:
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    for alternative in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        yield from _walk(alternative, definitions, prefix)
    for name, part in schema.get("properties", {}).items():
        yield prefix + name
        yield from _walk(part, definitions, f"{prefix}{name}.")
