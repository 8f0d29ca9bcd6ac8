"""Whether there is a dashboard, and under which names."""

from __future__ import annotations

import pytest

from services.settings import Dashboard

OWN = ("localhost", "127.0.0.1", "[::1]")


@pytest.mark.parametrize(
    ("environment", "is_local", "hosts"),
    [
        ({}, True, OWN),
        ({}, False, None),
        ({"EQUIPOISE_DASHBOARD_HOSTS": " a.example, B.example ,"}, True, ("a.example", "b.example")),
        ({"EQUIPOISE_DASHBOARD_HOSTS": "a.example"}, False, ("a.example",)),
    ],
)
def test_the_names_that_it_answers_to(environment: dict[str, str], is_local: bool, hosts: object) -> None:
    found = Dashboard.from_environment(is_local=is_local, environment=environment)
    assert found is not None
    assert found.hosts == hosts


def test_none_and_nonsense() -> None:
    assert Dashboard.from_environment(is_local=True, environment={"EQUIPOISE_DASHBOARD": "0"}) is None
    with pytest.raises(ValueError, match="EQUIPOISE_DASHBOARD: expected 1 or 0"):
        Dashboard.from_environment(is_local=True, environment={"EQUIPOISE_DASHBOARD": "off"})
