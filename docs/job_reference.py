"""Writes docs/job-file.md, the job file field by field, from the specification itself.

Run ``python docs/job_reference.py`` after a change of ``shared/specs/job.py``; a test compares.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from shared import specs
from shared.specs.presets import PRESETS

TARGET = Path(__file__).with_name("job-file.md")

HEAD = """# The job file

<!-- Written by docs/job_reference.py from shared/specs/job.py; do not edit. -->

A job file is YAML or JSON. `dfkd submit job.yaml` sends it; over HTTP the same fields are the JSON body of
`POST /jobs`. Unknown fields are errors. Whatever is left out has the default below, and the stored job shows
every field with its value. Paths are relative to the storage root.
"""

PARTS: tuple[tuple[str, str, type[BaseModel]], ...] = (
    ("The job", "", specs.JobSpec),
    ("`teacher`", "", specs.TeacherSpec),
    ("`teacher.input`", "", specs.InputSpec),
    ("`student`", "", specs.StudentSpec),
    ("`synthesis` with `method: fast-meta`", "", specs.FastMetaSynthesis),
    (
        "`synthesis` with `method: fast`",
        "The same without `meta_gradient`, `outer_…` and `reset_every`. ",
        specs.FastSynthesis,
    ),
    ("`synthesis` with `method: deepinversion`", "", specs.DeepInversionSynthesis),
    ("`synthesis` with `method: recover`", "", specs.RecoverSynthesis),
    ("`augmentation` (of `synthesis` and of `distillation`)", "", specs.AugmentationSpec),
    ("`distillation`", "", specs.DistillationSpec),
    ("`evaluation`", "", specs.EvaluationSpec),
)


def render() -> str:
    """The whole page."""
    sections = [HEAD]
    for title, note, model in PARTS:
        text = " ".join((model.__doc__ or "").split())
        sections.append(f"## {title}\n\n{note}{text}\n")
        if model is not specs.FastSynthesis:
            sections.append("\n".join(table(model)) + "\n")
    about = "What `synthesis.preset` fills in, in addition to the paper's weights for the teacher."
    sections.append(f"## Presets\n\n{about}\n")
    sections += [f"- `{name}`: `{json.dumps(dict(fields))}`" for name, fields in PRESETS.items()]
    return "\n".join(sections) + "\n"


def table(model: type[BaseModel]) -> Iterator[str]:
    """A Markdown table of a model's fields."""
    yield "| field | values | default | meaning |"
    yield "| --- | --- | --- | --- |"
    for name, field in model.model_fields.items():
        if name == "method":
            continue
        meaning = (field.description or "See its own section.").replace("|", "\\|")
        yield f"| `{name}` | {values(field)} | {default(field)} | {meaning} |"


def values(field: FieldInfo) -> str:
    """Type and bounds in words."""
    options = [option for option in get_args(field.annotation) if isinstance(option, str)]
    nested = [option for part in get_args(field.annotation) for option in get_args(part) if isinstance(option, str)]
    if options or nested:
        return ", ".join(f"`{option}`" for option in (options or nested))
    bounds = []
    for rule in field.metadata:
        match rule:
            case Ge(ge=bound):
                bounds.append(f"≥ {bound:,}")
            case Gt(gt=bound):
                bounds.append(f"> {bound:,}")
            case Le(le=bound):
                bounds.append(f"≤ {bound:,}")
            case Lt(lt=bound):
                bounds.append(f"< {bound:,}")
            case MaxLen(max_length=length):
                bounds.append(f"at most {length} long")
            case MinLen(min_length=length):
                bounds.append(f"at least {length} long")
    return " ".join([kind(field.annotation), *bounds])


def kind(annotation: Any) -> str:
    """A type in words."""
    parts = [part for part in get_args(annotation) if part is not type(None)]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "object"
    names = {int: "integer", float: "number", str: "text", bool: "true, false"}
    if annotation in names:
        return names[annotation]
    if getattr(annotation, "__origin__", None) is dict:
        return "object"
    if getattr(annotation, "__origin__", None) is tuple:
        return "list of numbers"
    kinds = {kind(part) for part in parts if not isinstance(part, str)}
    return kinds.pop() if len(kinds) == 1 else "object" if "object" in kinds else "text"


def default(field: FieldInfo) -> str:
    """The default as JSON, or that there is none."""
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined or isinstance(value, BaseModel):
        return "see there"
    return f"`{json.dumps(value)}`"


if __name__ == "__main__":
    TARGET.write_text(render())
