"""Alerts and the Grafana dashboard ask for figures that exist, and every alert stands in the runbook."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest
from prometheus_client import CollectorRegistry

from services.api.metrics import RequestMeter, _RunningJobs
from tests.deploy_support import DEPLOY, Object, Rendered

# Of figures that we don't export: Prometheus's own, the kubelet's, and kube-state-metrics'.
THEIRS = {
    "up", "kubelet_volume_stats_available_bytes", "kubelet_volume_stats_capacity_bytes", "container_memory_rss",
    "kube_deployment_status_replicas_available", "kube_pod_container_status_waiting_reason",
}  # fmt: skip
WORDS = {
    "absent", "and", "by", "changes", "delta", "histogram_quantile", "increase", "le", "max", "min", "offset", "rate",
    "sum", "time", "unless",
}  # fmt: skip
REQUESTS = {"equipoise_requests_total", "equipoise_request_seconds_bucket"}
# One pod's figure, before which it may be compared with an earlier one of the same pod.
OF_ONE_POD = re.compile(r"(max|min)( by \([a-z, ]+\))? ?\(((delta|changes|increase)\()?$")


def exported() -> set[str]:
    registry = CollectorRegistry()
    RequestMeter(lambda *_: None, registry=registry)
    names = {f"{found.name}_total" for found in registry.collect() if found.type == "counter"}
    names |= {f"{found.name}_bucket" for found in registry.collect() if found.type == "histogram"}
    families = _RunningJobs().families
    names |= {f"{family.name}_total" if family.type == "counter" else family.name for family in families}
    source = (DEPLOY.parent / "services" / "api" / "metrics.py").read_text()
    names |= {f"{name}_total" for name in re.findall(r'CounterMetricFamily\(\s*"(\w+)"', source)}
    return names | set(re.findall(r'GaugeMetricFamily\(\s*"(\w+)"', source))


def figures(expression: str) -> set[str]:
    """The names of figures in an expression: not functions, labels, durations or quoted values."""
    bare = re.sub(r'"[^"]*"|\[[^]]*\]|\{[^}]*\}|\(([a-z_, ]+)\)(?=\s*\()|\b\d+[smhd]\b', " ", expression)
    return set(re.findall(r"[a-z_]\w*", bare)) - WORDS


def added_up(expression: str) -> set[str]:
    """Figures of the whole installation, each pod's of which would count: as often as there are pods."""
    found = re.finditer(r"equipoise_\w+", expression)
    return {at[0] for at in found if at[0] not in REQUESTS and not OF_ONE_POD.search(expression[: at.start()])}


@pytest.fixture
def gpu(rendered: Callable[[str], list[Object]]) -> Rendered:
    return Rendered(rendered("gpu"))


def test_alerts_ask_for_figures_that_exist(gpu: Rendered) -> None:
    (rules,) = gpu.of("PrometheusRule")
    for item in rules["spec"]["groups"][0]["rules"]:
        asked = figures(item["expr"])
        assert asked
        assert asked <= exported() | THEIRS, item["alert"]
        assert not added_up(item["expr"]), item["alert"]


@pytest.mark.parametrize(
    ("expression", "wrong"),
    [
        ("sum(equipoise_leases)", {"equipoise_leases"}),
        ("sum(max by (owner) (equipoise_leases)) > sum(equipoise_jobs)", {"equipoise_jobs"}),
        ('sum(delta(equipoise_jobs{status="failed"}[1h])) > 3', {"equipoise_jobs"}),
        ('sum(max by (owner) (delta(equipoise_jobs{status="failed"}[1h]))) > 3', set()),
        ("sum(rate(equipoise_requests_total[5m]))", set()),
    ],
)
def test_a_figure_that_counts_as_often_as_there_are_pods_is_seen(expression: str, wrong: set[str]) -> None:
    assert added_up(expression) == wrong


def test_probes_and_expected_answers_are_no_requests_of_people(gpu: Rendered) -> None:
    """They would thin out what goes wrong; and a preview's 501 is none that an operator need look at."""
    (rules,) = gpu.of("PrometheusRule")
    expressions = {item["alert"]: item["expr"] for item in rules["spec"]["groups"][0]["rules"]}
    for name in ("EquipoiseErrors", "EquipoiseSlow"):
        asked = re.findall(r"equipoise_request\w+\{?[^}\[]*", expressions[name])
        assert asked
        assert all('route!~"/livez|/readyz|/metrics"' in one for one in asked), expressions[name]
    (statuses,) = re.findall(r'status=~"([^"]*)"', expressions["EquipoiseErrors"])
    wanted = {str(status): status != 501 for status in (500, 501, 503, 507)} | {"200": False, "404": False}
    assert {status: bool(re.fullmatch(statuses, status)) for status in wanted} == wanted


def test_a_new_job_is_not_stalled(gpu: Rendered) -> None:
    """changes() of a figure that has just appeared are 0; one of an hour ago must be there to compare with."""
    (rules,) = gpu.of("PrometheusRule")
    (expression,) = [
        item["expr"] for item in rules["spec"]["groups"][0]["rules"] if item["alert"] == "EquipoiseJobStalled"
    ]
    now, _, before = expression.partition(" == ")
    assert before == now.replace("equipoise_job_step", "equipoise_job_step offset 1h")


def expression(gpu: Rendered, alert: str) -> str:
    (rules,) = gpu.of("PrometheusRule")
    (found,) = [item["expr"] for item in rules["spec"]["groups"][0]["rules"] if item["alert"] == alert]
    return str(found)


def test_redis_memory_is_told_of_before_it_is_full(gpu: Rendered) -> None:
    config = gpu.named("ConfigMap", "redis-config")["data"]["redis.conf"]
    room = int(re.findall(r"(?m)^maxmemory (\d+)mb$", config)[0]) * 2**20
    bound = int(expression(gpu, "EquipoiseRedisFills").rpartition(" ")[2])
    assert 0.8 * room < bound < 0.9 * room


def test_each_part_without_a_figure_of_its_own_is_watched(gpu: Rendered) -> None:
    (names,) = re.findall(r'deployment=~"([^"]*)"', expression(gpu, "EquipoisePartDown"))
    assert set(names.split("|")) == gpu.names("Deployment") - {"serve"}  # which Prometheus scrapes


def test_failures_are_counted_by_a_figure_that_only_rises(gpu: Rendered) -> None:
    assert figures(expression(gpu, "EquipoiseJobsFail")) == {"equipoise_jobs_failed_total"}


def test_the_dashboard_asks_for_figures_that_exist(gpu: Rendered) -> None:
    config = gpu.named("ConfigMap", "dashboard")
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    dashboard = json.loads(config["data"]["equipoise.json"])
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(expressions) >= 10
    for expression in expressions:
        assert figures(expression) <= exported(), expression
        assert not added_up(expression), expression
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_a_figure_that_is_none_is_seen() -> None:
    assert figures('sum by (le) (rate(equipoise_nothing_total{a="b"}[5m])) > 0.5') == {"equipoise_nothing_total"}
    assert not figures("max(equipoise_nothing)") <= exported()


def test_every_alert_is_explained(gpu: Rendered) -> None:
    (rules,) = gpu.of("PrometheusRule")
    runbook = (DEPLOY / "README.md").read_text()
    for item in rules["spec"]["groups"][0]["rules"]:
        assert f"| `{item['alert']}` |" in runbook


def test_the_scraper_shows_the_key_that_is_good_for_figures_alone(gpu: Rendered) -> None:
    (monitor,) = gpu.of("ServiceMonitor")
    (endpoint,) = monitor["spec"]["endpoints"]
    credentials = endpoint["authorization"]["credentials"]
    assert gpu.keys("Secret", credentials["name"]) == {credentials["key"]}
    assert gpu.named("Secret", "serve")["data"]["metrics-key"] == gpu.named("Secret", "metrics")["data"]["metrics-key"]
    service = gpu.named("Service", "serve")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert endpoint["honorLabels"]  # of our own `job`, which Prometheus else renames
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
