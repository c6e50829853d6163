"""The alert rules for Kubernetes, played through by Prometheus' own promtool."""

from __future__ import annotations

import shutil
import subprocess

import pytest
import yaml

from tests.conftest import ROOT

RULES = yaml.safe_load((ROOT / "deploy/kuberay/monitoring/rules.yaml").read_text())["spec"]


def series(name: str, status: str, values: str) -> dict[str, str]:
    labels = f'namespace="nightloupe", name="{name}", deployment_status="{status}"'
    return {"series": f"kuberay_job_deployment_status{{{labels}}}", "values": values}


#: One sample every 30 minutes: 48 a day. A night that ended stays for a week.
GOOD = series("nightloupe-night-1", "Complete", "_x10 1x300")
GOOD_2 = series("nightloupe-night-2", "Complete", "_x58 1x252")
BAD = series("nightloupe-night-3", "Failed", "_x106 1x204")


def played(name: str, hours: int, alerts: dict[str, int], *given: dict) -> dict:
    """How many of each alert fire after some hours."""
    checks = [
        {"eval_time": f"{hours}h", "alertname": alert, "exp_alerts": expected(alert, count)}
        for alert, count in alerts.items()
    ]
    return {"name": name, "interval": "30m", "input_series": list(given), "alert_rule_test": checks}


def expected(alert: str, count: int) -> list[dict]:
    (rule,) = [rule for rule in RULES["groups"][0]["rules"] if rule["alert"] == alert]
    labels = dict(rule["labels"])
    texts = dict(rule["annotations"])
    if alert == "NightloupeNightFailed":
        labels |= {"namespace": "nightloupe", "name": "nightloupe-night-3"}
        labels |= {"deployment_status": "Failed"}
        texts = {k: v.replace("{{ $labels.name }}", "nightloupe-night-3") for k, v in texts.items()}
    return [{"exp_labels": labels, "exp_annotations": texts}] * count


FAILED, NONE = "NightloupeNightFailed", "NightloupeNoNight"
TESTS = [
    played("a night a day", 40, {FAILED: 0, NONE: 0}, GOOD, GOOD_2),
    played("the last success is 20 hours old", 26, {FAILED: 0, NONE: 0}, GOOD),
    played("the last success is 27 hours old, its job is still there", 33, {NONE: 1}, GOOD),
    played("nobody watches the operator", 2, {NONE: 1}),
    played("a failed night is told", 54, {FAILED: 1, NONE: 0}, GOOD, GOOD_2, BAD),
    played("for a day, though it is kept for a week", 80, {FAILED: 0}, GOOD, GOOD_2, BAD),
]


def test_the_rules_fire_when_they_should_and_only_then(tmp_path):
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(RULES))
    plan = {"rule_files": ["rules.yaml"], "evaluation_interval": "30m", "tests": TESTS}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(plan))
    for words in (["check", "rules", "rules.yaml"], ["test", "rules", "tests.yaml"]):
        done = subprocess.run(
            ["promtool", *words], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
