"""docs/deployment.md speaks of settings, files, metrics and commands that exist."""

import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from shared.settings import Settings
from synth_service.cli import app

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "deployment.md").read_text()
OF_COMPOSE = {"DFKD_PUBLISH", "DFKD_METRICS_KEY"}
"""Variables that the Compose files read and no process does."""


def test_every_setting_exists() -> None:
    known = {f"DFKD_{name.upper()}" for name in Settings.model_fields} | OF_COMPOSE
    assert set(re.findall(r"DFKD_[A-Z_]+", TEXT)) <= known
    compose = "".join(path.read_text() for path in (ROOT / "docker").glob("compose.*.yml"))
    compose += (ROOT / "docker-compose.yml").read_text()
    for name in OF_COMPOSE:
        assert name in compose


def test_every_file_exists() -> None:
    for path in re.findall(r"(?:docker|tests|examples|docs|shared|components|base)/[\w./-]+\w", TEXT):
        if "overlays/mine" not in path:
            assert (ROOT / path).exists() or (ROOT / "docker/kubernetes" / path).exists(), path
    for path in re.findall(r"\]\(([\w./-]+)\)", TEXT):
        assert (ROOT / "docs" / path).exists(), path


def test_every_link_within_leads_to_a_heading() -> None:
    headings = re.findall(r"^#+ (.*)$", TEXT, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([\w-]+)\)", TEXT)) <= anchors


@pytest.mark.parametrize("command", sorted(set(re.findall(r"`?dfkd (up|key|delete|submit)\b", TEXT))))
def test_every_command_exists(command: str) -> None:
    assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0


def test_its_alert_is_one() -> None:
    rules = (ROOT / "docker/monitoring/rules.yml").read_text()
    alerts = {rule["alert"] for group in yaml.safe_load(rules)["groups"] for rule in group["rules"]}
    mentioned = set(re.findall(r"\bDfkd\w+", TEXT))
    assert mentioned
    assert mentioned <= alerts
