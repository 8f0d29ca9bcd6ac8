"""The commands for a kept checkpoint's policy."""

from __future__ import annotations

from typing import Any

import pytest
from nicegui import Client

from services.dashboard.elements import Command
from services.dashboard.use import commands, show_use
from tests.dashboard_support import on_page, texts

PLACE = "./job-1-step-40"
LORA = {"rank": 20, "merge": None}


def _spec(model: str = "org/base", lora: Any = None, **parts: Any) -> dict[str, Any]:
    return {"policy": {"model": model, "revision": "abc", "lora": lora}, "init_checkpoint": None, **parts}


def test_a_whole_policy_is_fetched_served_and_published() -> None:
    assert [command for _, command in commands("job-1", 40, _spec())] == [
        f"equipoise download job-1 40 {PLACE}",
        f"vllm serve {PLACE}",
        f"hf upload ORG/NAME {PLACE}",
    ]


@pytest.mark.parametrize(
    ("model", "begun"),
    [("org/base", "org/base --revision abc"), ("/models/base", "BASE"), ("quickstart", "BASE")],
)
def test_an_adapter_is_served_with_its_base_or_merged(model: str, begun: str) -> None:
    drawn = f"--generation-config {PLACE} --enable-lora --max-lora-rank 32 --lora-modules job-1-step-40={PLACE}"
    assert [command for _, command in commands("job-1", 40, _spec(model, LORA))] == [
        f"equipoise download job-1 40 {PLACE}",
        f"vllm serve {begun} {drawn}",
        f"equipoise merge {PLACE} {PLACE}-whole",
        f"vllm serve {PLACE}-whole",
        f"hf upload ORG/NAME {PLACE}",
    ]


@pytest.mark.parametrize(
    "spec",
    [
        _spec(lora={**LORA, "merge": True}),
        _spec(lora=LORA, init_checkpoint="/jobs/1"),
        _spec(lora={"rank": 20}),  # of before there was a choice
        {"objectives": []},
    ],
)
def test_checkpoints_that_have_the_merged_policy_are_served_as_they_are(spec: dict[str, Any]) -> None:
    assert f"vllm serve {PLACE}" in dict(commands("job-1", 40, spec)).values()


def test_a_rank_that_vllm_has_no_room_for_is_merged() -> None:
    found = [command for _, command in commands("job-1", 40, _spec(lora={**LORA, "rank": 513}))]
    assert not any("--enable-lora" in command for command in found)
    assert f"vllm serve {PLACE}-whole" in found


def test_the_card_says_what_stands_for_a_base_that_is_on_no_hub() -> None:
    async def look(_: Any, client: Client) -> None:
        show_use("job-1", 40, _spec("/models/base", LORA))
        (card,) = (found for found in client.elements.values() if found.props.get("aria-label") == "Use it")
        assert "BASE is the model that the job began with: /models/base." in texts(card)
        links = [found.props["href"] for found in card.descendants() if "href" in found.props]
        assert links == ["/jobs/job-1/checkpoints/40/download"]
        assert len([found for found in card.descendants() if isinstance(found, Command)]) == 5

    on_page(look)
