"""Rules and dashboard ask only for what the service exports: compared with a scrape of a real API process."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from shared.broker import Broker
from shared.jobs import Role
from shared.storage import Storage
from tests.conftest import free_port
from tests.specs import small_job
from tests.synth_service.api.conftest import announce, claim
from tests.synth_service.api_process import serving

MONITORING = Path(__file__).parents[2] / "docker" / "monitoring"
DASHBOARD = json.loads((MONITORING / "grafana/dashboards/dfkd.json").read_text())
RULES = [rule for group in yaml.safe_load((MONITORING / "rules.yml").read_text())["groups"] for rule in group["rules"]]
PROMTOOL = shutil.which("promtool")

OF_PROMETHEUS = {"up", "ALERTS"}
"""What Prometheus itself adds."""
OF_THE_TARGET = {"job", "instance", "le", "alertstate"}
WORDS = {"and", "or", "unless", "bool", "inf", "nan", "offset"}


def expressions() -> list[tuple[str, str]]:
    """Every query with where it stands."""
    alerts = [(rule["alert"], rule["expr"]) for rule in RULES]
    panels = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    return alerts + panels


def selectors(expression: str) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """The metrics of a query, each with its matchers (label, operator, value)."""
    expression = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", expression)
    expression = re.sub(r"\[[^]]*\]", " ", expression)
    found = []
    for match in re.finditer(r"([a-zA-Z_:][\w:]*)\s*(\{[^}]*\})?(\s*\()?", re.sub(r"\b\d[\d.e]*\b", " ", expression)):
        name, matchers, call = match.groups()
        if not call and name not in WORDS:
            found.append((name, re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', matchers or "")))
    return found


def grouping_labels(expression: str) -> set[str]:
    groups = re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expression)
    return {label.strip() for group in groups for label in group.split(",") if label.strip()}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, redis_server: str) -> dict[str, list[dict[str, str]]]:
    """Names of all series that an API exports that has seen a job, a worker and a few requests; their labels."""
    storage = Storage(str(tmp_path_factory.mktemp("storage")))
    broker = Broker(redis_server, lease_seconds=5.0, retries=1)
    broker.redis.flushall()
    job = broker.jobs.create(small_job())
    announce(broker, storage, claim(broker, Role.SYNTHESIS), 0)
    broker.workers.register("w", {"role": "synthesis", "job": job.id}, ttl_seconds=60)
    with serving(redis_server, storage.root, free_port()) as url:
        for path in (f"/jobs/{job.id}", "/jobs", "/nowhere"):
            httpx.get(url + path, trust_env=False)
        text = httpx.get(f"{url}/metrics", trust_env=False).text
    broker.close()
    series: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            series.setdefault(sample.name, []).append(sample.labels)
    return series


@pytest.mark.parametrize(("where", "expression"), expressions(), ids=lambda value: str(value)[:30])
def test_a_query_asks_for_what_is_exported(
    exported: dict[str, list[dict[str, str]]], where: str, expression: str
) -> None:
    asked = selectors(expression)
    assert asked
    labels_of_all: set[str] = set()
    for name, matchers in asked:
        if name in OF_PROMETHEUS:
            continue
        assert name in exported, f"{where} asks for {name}"
        labels = {label for each in exported[name] for label in each} | OF_THE_TARGET
        labels_of_all |= labels
        for label, operator, value in matchers:
            assert label in labels, f"{where}: {name} has no label {label}"
            if label in OF_THE_TARGET or (label, value) == ("status", "5xx"):
                continue  # nothing has failed yet
            values = {each.get(label, "") for each in exported[name]}
            wanted = re.split(r"\|", value) if operator == "=~" else [value]
            assert values >= set(wanted), f"{where}: {name} has never {label}={value}"
    assert grouping_labels(expression) <= labels_of_all | OF_THE_TARGET, where


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule["annotations"]) == {"summary", "runbook"}
    assert len(rule["annotations"]["runbook"]) > 100


def test_every_panel_asks_the_source_that_is_provided() -> None:
    source = yaml.safe_load((MONITORING / "grafana/provisioning/datasources/prometheus.yml").read_text())
    (uid,) = {each["uid"] for each in source["datasources"]}
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            assert target["datasource"]["uid"] == uid
    identifiers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(identifiers)) == len(identifiers)


def test_panels_do_not_overlap_and_fill_the_width() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not own & cells, panel["title"]
        cells |= own
    assert len(cells) == 24 * (1 + max(y for _, y in cells))


@pytest.mark.skipif(PROMTOOL is None, reason="needs promtool, of Debian's package prometheus")
def test_promtool_accepts_the_rules_and_every_query_of_the_dashboard(tmp_path: Path) -> None:
    assert PROMTOOL
    subprocess.run([PROMTOOL, "check", "rules", MONITORING / "rules.yml"], check=True)
    subprocess.run([PROMTOOL, "test", "rules", MONITORING / "rules_test.yml"], check=True)
    queries = [expression.replace("$__rate_interval", "5m") for _, expression in expressions()]
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries)]
    recorded = tmp_path / "dashboard.yml"
    recorded.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    subprocess.run([PROMTOOL, "check", "rules", recorded], check=True)
