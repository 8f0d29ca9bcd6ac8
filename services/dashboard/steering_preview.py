"""What a change of the steering would have done, as a table."""

from __future__ import annotations

from typing import Any

from services.client.types import Preview
from services.dashboard.elements import Tag, text
from services.dashboard.figures import figure, percent


def show_preview(found: Preview, names: list[str]) -> None:
    """What the change would have made of the latest kept rollouts."""
    signs = found["sign_changes"]
    with Tag("div", "", "preview"):
        text(
            f"On the {found['rollouts']} kept rollouts of step {found['step']:,}, {signs['count']} "
            f"({percent(signs['share'])}) would have been pushed the other way. Pull is the share of the update. "
            "Nothing is applied.",
            tag="p",
        )
        with Tag("table", "", ""):
            with Tag("thead", "", ""), Tag("tr", "", ""):
                for head in ("", "weight", "then", "pull", "then"):
                    Tag("th", head, scope="col")
            with Tag("tbody", "", ""):
                for name in names:
                    with Tag("tr", "", ""):
                        Tag("th", name, scope="row")
                        for part in ("weights", "effective_share"):
                            for side in ("before", "after"):
                                shares: Any = found[part]
                                Tag("td", percent(shares[side].get(name)))
        if (over := found.get("over", 1)) > 1:
            text(f"So it would be at the end of {over:,} steps, on a straight line.", tag="p")
        held = [name for name, was in (found["clamped"] or {}).items() if was]
        if held:
            text(f"Floors or ceilings hold {', '.join(held)}.", tag="p")
        for pair in found["pairs"]:
            one, other = pair["objectives"]
            text(
                f"{one} and {other}: correlation {figure(pair['correlation'])}, they disagree in "
                f"{percent(pair['conflicting_share'])} of the rollouts.",
                "muted",
                "p",
            )
