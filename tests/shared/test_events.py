"""Everybody who names an event means one that can happen."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import shared.broker
from shared.broker.scripts import Script, job_script
from shared.events import EventType
from synth_service.api.dashboard import job_history, timeline
from synth_service.api.routes.metrics_page import ATTEMPT_OUTCOMES

REPOSITORY = Path(__file__).parents[2]
STATIC = REPOSITORY / "synth_service" / "api" / "dashboard" / "static"
FAMILIES = ("job_", "attempt_", "task_", "shard_", "student_", "synthesis_", "checkpoint_")
"""With what names of events begin."""


def scripts() -> Iterator[Script[..., object]]:
    for module in pkgutil.iter_modules(shared.broker.__path__, "shared.broker."):
        yield from (each for each in vars(importlib.import_module(module.name)).values() if isinstance(each, Script))


def test_every_event_can_happen() -> None:
    in_lua = {name for script in scripts() for name in re.findall(r"\bevent\('(\w+)'", script.source)}
    in_python = {
        EventType[node.attr]
        for package in ("shared", "distiller", "synth_service")
        for path in (REPOSITORY / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "EventType"
    }
    ends = {EventType.JOB_SUCCEEDED, EventType.JOB_FAILED, EventType.JOB_CANCELLED}

    assert (in_lua - {"job_"}) | in_python | ends == set(EventType)


def test_a_script_that_tells_of_an_unknown_event_cannot_be_declared() -> None:
    with pytest.raises(TypeError, match="job_exploded"):

        @job_script("event('job_exploded', '')")
        def _explode() -> str: ...


def test_the_dashboard_knows_only_events_that_can_happen() -> None:
    named = {
        name
        for path in STATIC.glob("*.js")
        for name in re.findall(r'"([a-z]+(?:_[a-z]+)+)"', path.read_text())
        if name.startswith(FAMILIES)
    }

    assert named
    assert named <= set(EventType)
    assert set(job_history.FREQUENT_EVENTS) <= set(EventType)
    assert set(timeline.JOB_EVENTS) <= set(EventType)


def test_alerts_are_about_events_that_can_happen() -> None:
    rules = (REPOSITORY / "docker" / "monitoring" / "rules.yml").read_text()
    attempts = set("|".join(re.findall(r'dfkd_attempts_total\{event=~?"([\w|]+)"', rules)).split("|"))
    ends = set(re.findall(r'dfkd_jobs_finished_total\{state="(\w+)"', rules))

    assert attempts
    assert {f"attempt_{outcome}" for outcome in {*attempts, *ATTEMPT_OUTCOMES}} <= set(EventType)
    assert ends
    assert {f"job_{state}" for state in ends} <= set(EventType)
