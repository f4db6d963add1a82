"""The new-job form, derived from the schema of ``JobSpec``: which fields there are, how they are asked for.

A field that somebody adds to the specification appears here by itself, under "Advanced". A field left empty is left
out of the job, so presets and defaults go on meaning what they mean over HTTP; validation is the service's alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Final, Literal

from markupsafe import Markup
from pydantic import ValidationError

from shared.specs import JobSpec

Kind = Literal["text", "integer", "number", "boolean", "choice", "numbers", "object"]
Goal = Literal["both", "dataset", "student"]
"""What the job is to make: a dataset and a student, only a dataset, or a student of an existing dataset."""

ESSENTIAL: Final = (
    *("name", "shards"),
    *("teacher.checkpoint", "teacher.arch", "teacher.num_classes", "teacher.input.channels"),
    *("teacher.input.height", "teacher.input.width", "teacher.input.mean", "teacher.input.std"),
    "student.arch",
    *("synthesis.preset", "synthesis.num_images", "synthesis.batch_size"),
    *("distillation.steps", "distillation.batch_size", "distillation.learning_rate", "distillation.temperature"),
    *("evaluation.shards", "evaluation.every_steps"),
)
"""Fields that are seen at once, in this order; the others wait under "Advanced"."""

LABELS: Final[Mapping[str, str]] = {
    "arch": "Architecture",
    "kwargs": "Constructor arguments",
    "num_classes": "Classes",
    "channels": "Channels",
    "height": "Height",
    "width": "Width",
    "mean": "Mean",
    "std": "Standard deviation",
    "num_images": "Images",
    "bn": "BatchNorm weight",
    "one_hot": "Target-class weight",
    "adversarial": "Adversarial weight",
    "total_variation": "Total-variation weight",
    "l2": "L2 weight",
    "latent_dim": "Latent length",
    "bn_momentum": "BatchNorm momentum",
    "shards": "Existing dataset",
    "evaluation.shards": "Labelled shards",
    "evaluation.every_steps": "Measure every … steps",
    "external": "Another program trains",
    "snapshot_every_steps": "Snapshot every … steps",
}
_PREFIXES: Final[Mapping[str, str]] = {"input": "Image", "augmentation": "Augmentation:"}


@dataclass(frozen=True)
class FormField:
    """One input of the form.

    Attributes:
        path: where its value goes in the job, such as ``synthesis.num_images``.
        defaults: what counts when it is left empty, as text; by synthesis method where that differs, else under "".
        methods: the synthesis methods that have it; empty where it does not depend on the method.
        is_nullable: whether the word ``none`` may be written for null.
        value: what it is filled with.
    """

    path: str
    label: str
    description: str
    kind: Kind
    defaults: Mapping[str, str] = field(default_factory=dict)
    choices: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    is_required: bool = False
    is_nullable: bool = False
    limits: str = ""
    value: str = ""

    @property
    def id(self) -> str:
        """Of the element; free of dots, which mean something in selectors."""
        return "field-" + self.path.replace(".", "-").replace("_", "-")

    @property
    def help(self) -> Markup:
        """The description, with what stands in backticks as code."""
        return with_code(self.description)

    @property
    def default(self) -> str:
        """The default that is shown first."""
        return next(iter(self.defaults.values()), "")


@dataclass(frozen=True)
class FormSection:
    """Fields about one part of the job."""

    name: str
    title: str
    description: str
    fields: tuple[FormField, ...]

    @property
    def essential(self) -> list[FormField]:
        """Those that are seen at once."""
        found = [each for each in self.fields if each.path in ESSENTIAL]
        return sorted(found, key=lambda each: ESSENTIAL.index(each.path))

    @property
    def advanced(self) -> list[FormField]:
        """The others."""
        return [each for each in self.fields if each.path not in ESSENTIAL]


_SECTIONS: Final = (
    ("job", "Job", ""),
    ("teacher", "Teacher", ""),
    ("student", "Student", ""),
    ("synthesis", "Synthesis", "How images are made from the teacher's weights."),
    ("distillation", "Distillation", ""),
    ("evaluation", "Evaluation", " Leave the shards empty to go without."),
)


def form_sections(job: Mapping[str, Any] | None = None) -> list[FormSection]:
    """The form, filled with what a job says.

    Args:
        job: as a client writes it; only what it holds is filled in.
    """
    values = dict(_leaves(job or {}))
    sections = []
    for section in _empty_sections():
        fields = [replace(each, value=values.get(each.path, each.value)) for each in section.fields]
        sections.append(replace(section, fields=tuple(fields)))
    return sections


def with_code(text: str) -> Markup:
    """Text with what stands in `backticks` as HTML code elements."""
    parts = text.split("`")
    return Markup("").join(Markup("<code>{}</code>").format(part) if n % 2 else part for n, part in enumerate(parts))


def goal_of(job: Mapping[str, Any]) -> Goal:
    """What a job as a client writes it is to make."""
    if job.get("shards") is not None:
        return "student"
    has_no_student = job.get("external") or ("distillation" in job and job["distillation"] is None)
    return "dataset" if has_no_student else "both"


def shortest(written: Mapping[str, Any]) -> dict[str, Any]:
    """The job without what follows from the rest of it: resolved defaults and settings of its preset.

    Leaves a job alone that this version does not accept; the form then shows what is wrong with it.
    """
    short: dict[str, Any] = json.loads(json.dumps(written))
    try:
        meaning = JobSpec.model_validate(short)
    except ValidationError:
        return short
    for path in _paths(short):
        *parents, last = path
        if last == "preset":
            continue  # also the default one is worth a word
        part = short
        for name in parents:
            part = part[name]
        value = part.pop(last)
        if not _means(short, meaning):
            part[last] = value
    # Parts that were emptied go too, but for the order of those that stay.
    for name in [name for name, value in short.items() if value == {}]:
        if _means({key: value for key, value in short.items() if key != name}, meaning):
            del short[name]
    return short


def _means(written: Mapping[str, Any], meaning: JobSpec) -> bool:
    try:
        return JobSpec.model_validate(written) == meaning
    except ValidationError:
        return False


def _paths(value: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Paths of all values, those of a part before the part itself. What was left out is never looked into again.

    What one field of the form asks for is one value, such as all ``kwargs`` of a network however many they are.
    """
    found = []
    for name, each in value.items():
        path = (*prefix, name)
        if isinstance(each, dict) and ".".join(path) not in _field_paths():
            found += _paths(each, path)
        found.append(path)
    return found


def _leaves(job: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    known = {each.path: each for section in _empty_sections() for each in section.fields}

    def visit(value: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
        for name, each in value.items():
            path = prefix + name
            if path in known:
                if each is None and not known[path].is_nullable:
                    continue
                yield path, _as_text(each)
            elif isinstance(each, Mapping):
                yield from visit(each, f"{path}.")

    return visit(job, "")


def _as_text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        return ", ".join(_as_text(each) for each in value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return json.dumps(value, ensure_ascii=False)


@cache
def _field_paths() -> frozenset[str]:
    return frozenset(each.path for section in _empty_sections() for each in section.fields)


@cache
def _empty_sections() -> tuple[FormSection, ...]:
    schema = JobSpec.model_json_schema()
    definitions = schema["$defs"]
    fields: dict[str, list[FormField]] = {name: [] for name, *_ in _SECTIONS}
    descriptions: dict[str, str] = {}
    for name, written in schema["properties"].items():
        part = _resolve(written, definitions)
        if "oneOf" in part:
            fields[name] = _of_union(name, part, definitions)
        elif "properties" in part:
            descriptions[name] = part.get("description", "")
            fields[name] = list(_of_object(name, part, definitions))
        else:
            # A dataset to distil from stands where the synthesis would.
            fields["synthesis" if name == "shards" else "job"].append(_leaf(name, part, set(), definitions))
    return tuple(
        FormSection(name, title, descriptions.get(name, "") + text, tuple(fields[name]))
        for name, title, text in _SECTIONS
    )


def _of_object(prefix: str, part: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[FormField]:
    # An evaluation is only there when its fields are: none of them has to be filled in.
    required = set() if prefix == "evaluation" else set(part.get("required", ()))
    for name, written in part["properties"].items():
        each = _resolve(written, definitions)
        if "properties" in each:
            yield from _of_object(f"{prefix}.{name}", each, definitions)
        else:
            yield _leaf(f"{prefix}.{name}", each, required, definitions)


def _of_union(prefix: str, part: Mapping[str, Any], definitions: Mapping[str, Any]) -> list[FormField]:
    """Fields of all members of a tagged union; one that several have is asked for once."""
    tag = part["discriminator"]["propertyName"]
    # In the order of the classes: how the first of them describes a field is how the form does.
    described_in = [_resolve(each, definitions) for each in part["oneOf"]]
    members = {each["properties"][tag]["const"]: each for each in described_in}
    found: dict[str, FormField] = {}
    for method, member in members.items():
        for each in _of_object(prefix, member, definitions):
            if each.path == f"{prefix}.{tag}":
                continue
            known = found.get(each.path, replace(each, defaults={}, methods=()))
            found[each.path] = replace(
                known,
                defaults={**known.defaults, **({method: each.default} if each.default else {})},
                methods=(*known.methods, method),
            )
    everywhere = tuple(members)
    fields = [replace(each, methods=()) if each.methods == everywhere else each for each in found.values()]
    described = "; ".join(f"`{method}`: {member['description']}" for method, member in members.items())
    chosen = FormField(f"{prefix}.{tag}", tag.capitalize(), described, "choice", choices=tuple(members))
    # Those that all methods have come first, each where its method's class names it.
    fields.sort(key=lambda each: bool(each.methods))
    position = next((n for n, each in enumerate(fields) if each.path == f"{prefix}.preset"), -1)
    return [*fields[: position + 1], chosen, *fields[position + 1 :]]


def _resolve(written: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    """The schema without references, and without the null of what may be null (noted as ``nullable``)."""
    part = dict(written)
    if "$ref" in part:
        part = {**definitions[part.pop("$ref").rpartition("/")[2]], **part}
    if "anyOf" in part:
        options = [each for each in part.pop("anyOf") if each.get("type") != "null"]
        part = {**_resolve(options[0], definitions), **part, "nullable": True}
    return part


def _leaf(path: str, part: Mapping[str, Any], required: set[str], definitions: Mapping[str, Any]) -> FormField:
    name = path.rpartition(".")[2]
    default = part.get("default")
    is_nullable = bool(part.get("nullable")) and default is not None
    description = part.get("description", "") + (" `none` turns it off." if is_nullable else "")
    return FormField(
        path=path,
        label=_label(path),
        description=description,
        kind=_kind(part, definitions),
        defaults={"": _as_text(default)} if default not in (None, "", {}) else {},
        choices=tuple(part.get("enum", ())),
        is_required=name in required,
        is_nullable=is_nullable,
        limits=_limits(part),
    )


def _kind(part: Mapping[str, Any], definitions: Mapping[str, Any]) -> Kind:
    if "enum" in part:
        return "choice"
    kind = part.get("type")
    if kind == "array" and _resolve(part.get("items", {}), definitions).get("type") in ("number", "integer"):
        return "numbers"
    return kind if kind in ("integer", "number", "boolean") else "text" if kind == "string" else "object"


def _label(path: str) -> str:
    *parents, name = path.split(".")
    words = LABELS.get(path) or LABELS.get(name) or name.replace("_", " ").capitalize()
    prefix = _PREFIXES.get(parents[-1]) if parents else None
    return f"{prefix} {words[0].lower()}{words[1:]}" if prefix else words


def _limits(part: Mapping[str, Any]) -> str:
    """``1 to 1,000``, ``above 0``; empty where everything of the type is fine."""
    low, above = part.get("minimum"), part.get("exclusiveMinimum")
    high, below = part.get("maximum"), part.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f"{_readable(low)} to {_readable(high)}"
    bounds = (("at least", low), ("above", above), ("at most", high), ("below", below))
    return ", ".join(f"{words} {_readable(bound)}" for words, bound in bounds if bound is not None)


def _readable(bound: float) -> str:
    return f"{bound:,.0f}" if bound == int(bound) else f"{bound:g}"
