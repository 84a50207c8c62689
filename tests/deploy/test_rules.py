"""Prometheus' config and rules, by Prometheus' own tools; and a runbook for each alert."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from pipeline.metrics import Metrics
from tests.kafka import PATIENCE_S

ROOT = Path(__file__).parents[2]
HERE = ROOT / "deploy" / "prometheus"


def rules(kind: str) -> dict[str, dict[str, Any]]:
    """All rules of a kind, `record` or `alert`, by their names."""
    groups = yaml.safe_load((HERE / "rules.yml").read_text("utf-8"))["groups"]
    return {rule[kind]: rule for group in groups for rule in group["rules"] if kind in rule}


def cases() -> list[dict[str, Any]]:
    """All cases of the rules' tests."""
    return [case for path in sorted(HERE.glob("tests*.yml")) for case in yaml.safe_load(path.read_text())["tests"]]


def promtool(*arguments: str) -> None:
    done = subprocess.run(
        ["promtool", *arguments], cwd=HERE, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4_000:]


@pytest.mark.parametrize("command", [("check", "rules", "rules.yml"), ("check", "config", "prometheus.yml")])
def test_prometheus_takes_the_files(command: tuple[str, ...], prometheus: None) -> None:
    """Rules and config are what Prometheus reads."""
    promtool(*command)


def test_alerts_fire_and_keep_quiet(prometheus: None) -> None:
    """Each alert fires in its case, and none in the healthy one."""
    promtool("test", "rules", *sorted(path.name for path in HERE.glob("tests*.yml")))


def test_every_alert_has_its_cases() -> None:
    """Each alert is tested in a case where it fires, and in the healthy one, where none does."""
    asked = [test for case in cases() for test in case.get("alert_rule_test", [])]
    assert {test["alertname"] for test in asked if test["exp_alerts"]} == set(rules("alert"))
    well = next(case for case in cases() if case["name"] == "three healthy hours")
    healthy = [test for test in well["alert_rule_test"] if not test["exp_alerts"]]
    assert sorted(test["alertname"] for test in healthy) == sorted(rules("alert"))


def test_every_alert_has_a_runbook() -> None:
    """Each alert says how urgent it is and links a runbook that names it and has all four parts; none is left over."""
    linked = set()
    for name, alert in rules("alert").items():
        assert alert["labels"]["severity"] in {"page", "ticket"}
        assert alert["annotations"]["summary"]
        book = ROOT / alert["annotations"]["runbook_url"]
        text = book.read_text("utf-8")
        assert f"`{name}`" in text.split("##")[0], f"{book.name} does not name {name}"
        parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
        assert parts[1::2] == ["Symptom", "Check", "Act", "Undo"], book.name
        assert all(len(part.strip()) > 20 for part in parts[2::2]), book.name
        linked.add(book)
        named = set(re.findall(r"`(Offbeat\w+)`", text.split("##")[0]))
        assert named <= set(rules("alert")), book.name
    assert linked == set((ROOT / "docs" / "runbooks").glob("*.md"))


def test_rules_speak_of_what_there_is() -> None:
    """Each metric in rules, runbooks and objectives is one of ours, and each recorded name is recorded."""
    families = [family for family in Metrics(CollectorRegistry()).registry.collect()]
    ours = {f.name + ("_total" if f.type == "counter" else "") for f in families}
    texts = [HERE / "rules.yml", ROOT / "docs" / "slo.md", *(ROOT / "docs" / "runbooks").glob("*.md")]
    for path in texts:
        text = path.read_text("utf-8")
        found = {re.sub("_(bucket|sum|count)$", "", name) for name in re.findall(r"\boffbeat_\w+", text)}
        assert found <= ours, path.name
        assert set(re.findall(r"\boffbeat:[a-z_]+:\w+", text)) <= set(rules("record")), path.name


def test_objectives_are_those_of_the_rules() -> None:
    """The budgets in the alerts are what docs/slo.md leaves of 100 %."""
    text = (ROOT / "docs" / "slo.md").read_text("utf-8").split("## Freshness")[0]
    table = re.findall(r"^\| (\w+) \|.*\| ([\d.]+) % \|$", text, re.MULTILINE)
    assert {name for name, _ in table} == {"freshness", "scoring", "judging", "delivery"}
    for name, objective in table:
        for alert in (f"Offbeat{name.title()}BudgetBurns{speed}" for speed in ("Fast", "Slowly")):
            budgets = set(re.findall(r"> [\d.]+ \* ([\d.]+)", rules("alert")[alert]["expr"]))
            assert {round(100 - 100 * float(budget), 6) for budget in budgets} == {float(objective)}, alert
