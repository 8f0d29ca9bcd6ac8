"""What an evaluation found, as JSON and as one HTML page that needs no network."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

Table = Mapping[str, Mapping[str, float | None]]

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Evaluation of a reward model</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline';
 style-src 'unsafe-inline'; img-src data: blob:">
<style>body{{font:15px system-ui,sans-serif;max-width:1000px;margin:2em auto;padding:0 1em}}
table{{border-collapse:collapse;margin:1em 0}}td,th{{padding:.3em .8em;border-bottom:1px solid #ccc;text-align:right}}
th:first-child,td:first-child{{text-align:left}}.plot{{height:380px}}</style></head>
<body><h1>Evaluation of a reward model</h1>
{tables}
{plots}
<script>{plotly}</script>
<script>document.querySelectorAll(".plot").forEach(plot => {{
  const figure = JSON.parse(plot.dataset.figure);
  Plotly.newPlot(plot, figure.data, figure.layout, {{displaylogo: false, responsive: true}});
}});</script></body></html>
"""


@dataclass(frozen=True, kw_only=True)
class EvalReport:
    """Figures of a reward model on held-out rows; None where the rows cannot tell."""

    rows: int
    """Rows of every kind."""
    pairwise_accuracy: float | None
    """Share of (chosen, rejected) in which the chosen one scores higher, a tie counting half."""
    best_of_4_accuracy: float | None
    """Share of rows with three rejected completions in which all three are below the chosen one (arXiv 2506.01937)."""
    ece: float | None
    """Expected calibration error of sigmoid(score of chosen - score of rejected)."""
    heads: dict[str, dict[str, float | None]]
    """By head: r2, mae, spearman, rows."""
    correlations: dict[str, dict[str, float | None]]
    """Between the heads' predictions: Pearson, by head and head."""
    domains: dict[str, dict[str, float | None]]
    """By domain of the rows: rows, pairwise_accuracy, best_of_4_accuracy, ece, and r2 of each head as `r2 NAME`."""
    reliability: list[dict[str, float]]
    """Bins of predicted preference: predicted, observed, rows. What the ECE is computed from."""
    points: dict[str, list[tuple[float, float]]]
    """By head, (rated, predicted) of some hundred rows, for the plot."""

    def to_dict(self) -> dict[str, Any]:
        """As eval.json has it."""
        return asdict(self)

    def write(self, directory: Path) -> tuple[Path, Path]:
        """Writes eval.json and eval.html there, and returns their paths."""
        directory.mkdir(parents=True, exist_ok=True)
        document, page = directory / "eval.json", directory / "eval.html"
        document.write_text(json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        page.write_text(self.to_html(), encoding="utf-8")
        return document, page

    def to_html(self) -> str:
        """Names of heads and domains come from foreign files: they are escaped, and the page can load nothing."""
        from plotly.offline import get_plotlyjs

        figures = ("rows", "pairwise_accuracy", "best_of_4_accuracy", "ece")
        tables = [
            _table("All rows", {"all": {name: getattr(self, name) for name in figures}}),
            _table("Heads", self.heads),
            _table("Domains", self.domains),
        ]
        plots = [_plot(figure) for figure in self._figures()]
        return _PAGE.format(tables="\n".join(tables), plots="\n".join(plots), plotly=get_plotlyjs())

    def _figures(self) -> list[dict[str, Any]]:
        figures: list[dict[str, Any]] = []
        if self.reliability:
            diagonal = {"x": [0.5, 1], "y": [0.5, 1], "mode": "lines", "name": "calibrated", "line": {"dash": "dot"}}
            x, y = ([part[key] for part in self.reliability] for key in ("predicted", "observed"))
            seen = {"x": x, "y": y, "text": [f"{part['rows']:g} pairs" for part in self.reliability]}
            figures.append(
                _figure("Calibration", [diagonal, seen | {"name": "observed"}], "predicted preference", "share right")
            )
        for name, points in self.points.items():
            cloud = {"x": [p[0] for p in points], "y": [p[1] for p in points], "mode": "markers", "opacity": 0.5}
            figures.append(_figure(f"Head {name}", [cloud], "rated", "predicted"))
        if len(self.correlations) > 1:
            names = [html.escape(name) for name in self.correlations]
            z = [list(row.values()) for row in self.correlations.values()]
            heat = {"type": "heatmap", "x": names, "y": names, "z": z, "zmin": -1, "zmax": 1, "colorscale": "RdBu"}
            figures.append(_figure("Correlation of the heads' predictions", [heat], "", ""))
        return figures


def _figure(title: str, data: Sequence[Mapping[str, Any]], x: str, y: str) -> dict[str, Any]:
    axes = {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}
    return {"data": data, "layout": {"title": {"text": html.escape(title)}} | axes}


def _plot(figure: Mapping[str, Any]) -> str:
    return f'<div class="plot" data-figure="{html.escape(json.dumps(figure, allow_nan=False))}"></div>'


def _table(title: str, rows: Table) -> str:
    if not rows:
        return ""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    head = "".join(f"<th>{html.escape(column)}</th>" for column in ("", *columns))
    body = "".join(
        f"<tr><td>{html.escape(name)}</td>{''.join(f'<td>{_number(row.get(column))}</td>' for column in columns)}</tr>"
        for name, row in rows.items()
    )
    return f"<h2>{html.escape(title)}</h2><table><tr>{head}</tr>{body}</table>"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
