"""The OpenAPI document as one page for people: no scripts, and nothing that is loaded from anywhere."""

from __future__ import annotations

import json
from html import escape
from typing import Any

# The page's own style is all that a browser may use.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:56rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "code{font-size:.95em}h3{margin:1.5rem 0 .25rem}p{margin:.25rem 0;white-space:pre-line}"
    "dl{margin:.25rem 0;display:grid;grid-template-columns:max-content 1fr;gap:0 1rem}dd{margin:0}"
    "@media(prefers-color-scheme:dark){body{background:#161616;color:#ddd}}"
)


def docs_page(document: dict[str, Any]) -> str:
    """Every operation with what it takes and what it answers, by tag, in the order of the document."""
    sections: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            tag = operation.get("tags", ["other"])[0]
            sections.setdefault(tag, []).append(_operation(method.upper(), path, operation))
    parts = [f"<h2>{escape(tag)}</h2>{''.join(operations)}" for tag, operations in sections.items()]
    title = escape(f"{document['info']['title']} API, version {document['info']['version']}")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head>"
        f"<body><h1>{title}</h1><p>Every request needs the header <code>Authorization: Bearer KEY</code>, but for "
        f"/livez. The schemas of bodies are in <code>/openapi.json</code>.</p>"
        f"{''.join(parts)}</body></html>"
    )


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    about = operation.get("description") or operation.get("summary", "")
    takes = [
        (
            f"{found['name']} ({found['in']}{', required' if found.get('required') else ''})",
            found.get("description", ""),
        )
        for found in operation.get("parameters", [])
    ]
    examples: dict[str, Any] = {}
    if body := operation.get("requestBody"):
        takes.append((f"body{', required' if body.get('required') else ''}", ", ".join(body["content"])))
        examples = next(iter(body["content"].values())).get("examples", {})
    answers = [(status, found["description"]) for status, found in operation["responses"].items()]
    return (
        f"<h3><code>{escape(f'{method} {path}')}</code></h3><p>{escape(about)}</p>"
        f"{_list(takes)}{''.join(_example(name, found['value']) for name, found in examples.items())}"
        f"<details><summary>answers</summary>{_list(answers)}</details>"
    )


def _example(name: str, value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, indent=2)
    return f"<details><summary>example: {escape(name)}</summary><pre>{escape(text)}</pre></details>"


def _list(pairs: list[tuple[str, str]]) -> str:
    rows = "".join(f"<dt><code>{escape(name)}</code></dt><dd>{escape(about)}</dd>" for name, about in pairs)
    return f"<dl>{rows}</dl>" if rows else ""
