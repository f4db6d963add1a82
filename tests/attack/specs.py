"""Hostile jobs: bodies of POST /jobs that are no JSON, deep, huge, or ask for what never ends."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

TEACHER = {
    "arch": "resnet20",
    "checkpoint": "digits/teacher.safetensors",
    "num_classes": 10,
    "input": {"channels": 1, "height": 16, "width": 16, "mean": [0.5], "std": [0.5]},
}


def distilling(shards: str, **teacher: Any) -> dict[str, Any]:
    """A job of one step over a dataset of ours."""
    return {
        "name": "attack",
        "teacher": TEACHER | teacher,
        "student": {"arch": "resnet8"},
        "shards": shards,
        "evaluation": {"shards": shards},
        "distillation": {"steps": 1, "batch_size": 2},
    }


def making(**changes: Any) -> dict[str, Any]:
    """A job that makes two images."""
    return {
        "name": "attack",
        "teacher": TEACHER,
        "distillation": None,
        "synthesis": {"num_images": 2, "batch_size": 2, "steps": 1},
    } | changes


def _with(path: str, value: Any) -> dict[str, Any]:
    job = copy.deepcopy(making())
    *parents, last = path.split(".")
    part: dict[str, Any] = job
    for each in parents:
        part = part.setdefault(each, {})
    part[last] = value
    return job


def _kwargs(**kwargs: Any) -> dict[str, Any]:
    return making(teacher=TEACHER | {"arch": "wide_resnet", "kwargs": kwargs})


def patterns() -> dict[str, str]:
    """Patterns of shards."""
    return {
        "names of a hundred megabytes": "p" * 900 + "/q{0..99999}",
        "more than there may be": "{0..999999999999}.tar",
        "products": "{0..999}{0..999}{0..999}",
        "nested": "{a,{b,c}}.tar",
        "not balanced": "a{0..1.tar",
        "many groups": "{a,b}" * 200,
        "many empty groups": "{}" * 500,
        "a list of a thousand": "{" + "," * 1000 + "}",
        "out of the storage": "../{0..9}.tar",
        "absolute": "/etc/{passwd,shadow}",
        "an address": "http://169.254.169.254/{0..9}",
        "a zero": "a\0b.tar",
        "a name of a kilobyte": "x" * 1000 + ".tar",
        "folders without end": "a/" * 500 + "x.tar",
        "a terminal's commands": "\x1b]52;c;aGk=\x07.tar",
    }


def jobs() -> dict[str, Mapping[str, Any]]:
    """Jobs that are JSON. Some are accepted, and end with an error of the user's making or do no harm."""
    deep: Any = 1
    for _ in range(150):
        deep = [deep]
    return {
        "kwargs of nine hundred kilobytes": _kwargs(a="x" * 900_000),
        "thousands of kwargs": _kwargs(**{f"k{n}": n for n in range(12_000)}),
        "deep kwargs": _kwargs(a=deep),
        "a network of a million layers": _kwargs(depth=6_000_004, width=1),
        "a network of a million channels": _kwargs(depth=10, width=1_000_000),
        "a network of half a network": _kwargs(depth=10, width=0.5),
        "a network that fetches weights": making(
            teacher=TEACHER | {"arch": "torchvision:resnet18", "kwargs": {"weights": "DEFAULT"}}
        ),
        "code": making(teacher=TEACHER | {"arch": "os:system"}),
        "code of a hub": making(teacher=TEACHER | {"arch": "timm:hf_hub:evil/model"}),
        "a batch of sixty-five thousand": _with("synthesis.batch_size", 65_536),
        "images of four million pixels": making(
            teacher=TEACHER | {"input": {"channels": 1, "height": 2048, "width": 2048, "mean": [0.5], "std": [0.5]}}
        ),
        "a hundred thousand classes": making(teacher=TEACHER | {"num_classes": 100_000}),
        "a latent of sixty-five thousand": _with("synthesis.latent_dim", 65_536),
        "a generator of four thousand channels": _with("synthesis.generator_width", 4_096),
        "a hundred million images": _with("synthesis.num_images", 100_000_001),
        "a number of thirty digits": _with("seed", 10**30),
        "a negative number": _with("synthesis.num_images", -1),
        "an unknown field": _with("synthesis.lr", 1),
        "a name of a megabyte": _with("name", "x" * 900_000),
        "a name that commands a terminal": _with("name", "\x1b]52;c;aGk=\x07\u202e"),
        "a name of markup": _with("name", "<script>alert(1)</script>"),
        "a name with a zero": _with("name", "a\0b"),
        "metadata without end": _with("metadata", {f"k{n}": "v" for n in range(5_000)}),
        "metadata that commands a terminal": _with("metadata", {"\x1b[2J": "\x9b2J"}),
        "a checkpoint outside": making(teacher=TEACHER | {"checkpoint": "../../etc/passwd"}),
        "a checkpoint of a kilobyte": making(teacher=TEACHER | {"checkpoint": "x" * 1000}),
        "a folder as checkpoint": making(teacher=TEACHER | {"checkpoint": "digits"}),
        "a device as checkpoint": making(teacher=TEACHER | {"checkpoint": "/dev/zero"}),
    }  # fmt: skip


def bodies() -> dict[str, bytes]:
    """Bodies that are no job at all."""
    return {
        "nothing": b"",
        "no JSON": b"{" * 100,
        "a hundred thousand brackets": b"[" * 100_000,
        "nested objects": b'{"a":' * 50_000,
        "NaN": b'{"seed": NaN}',
        "an infinite number": b'{"seed": 1e999}',
        "a number of a million digits": b'{"seed": ' + b"9" * 900_000 + b"}",
        "a lone surrogate": b'{"name": "\\ud800"}',
        "bytes that are no text": b'{"name": "\xff\xfe"}',
        "a key a hundred thousand times": b"{" + b'"name":"a",' * 70_000 + b'"name":"b"}',
        "many keys": json.dumps({f"k{n}": n for n in range(60_000)}).encode(),
        "more than a megabyte": b'{"name": "' + b"x" * 2_000_000 + b'"}',
        "an array": b"[]",
        "a text": b'"job"',
    }
