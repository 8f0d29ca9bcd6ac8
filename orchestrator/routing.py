"""Which objectives apply to which prompts: a prompt's domain picks them (CGPO, arXiv 2409.20370).

Where an objective does not apply, its reward is not asked and its score is None, which its statistics leave out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from orchestrator.rollouts.prompts import Contents
from orchestrator.spec import JobSpec
from orchestrator.spec_errors import nearest
from orchestrator.specs.data import REFERENCE, SETS, FilesData, detail_name
from rewards.base import Scores


class Routes:
    """The domains of each objective; None is every prompt, also one without a domain."""

    def __init__(self, domains: Mapping[str, Sequence[str] | None]) -> None:
        self.domains = {name: None if wanted is None else frozenset(wanted) for name, wanted in domains.items()}

    @classmethod
    def of(cls, spec: JobSpec) -> Routes:
        return cls({objective.name: objective.domains for objective in spec.objectives})

    def applies(self, name: str, domain: str | None) -> bool:
        wanted = self.domains[name]
        return wanted is None or domain in wanted

    def mask(self, scores: Mapping[str, Scores], domains: Sequence[str | None]) -> dict[str, list[float | None]]:
        """The scores of rows with these domains, None where an objective does not apply.

        Rewards of one objective leave those rows out by themselves (rewards/routed.py); one that several objectives
        share is asked wherever one of them applies.
        """
        return {
            name: [score if self.applies(name, domain) else None for score, domain in zip(column, domains, strict=True)]
            for name, column in scores.items()
        }


def problems(spec: JobSpec, found: Mapping[str, Contents]) -> Iterator[tuple[str, str]]:
    """(dotted path, message) of what the rows of the splits, by name, leave without a use.

    An objective that a split has no rows of would have no figure there, which only a further set may do without; a row
    that no objective applies to would be sampled for nothing.
    """
    everywhere = {domain for contents in found.values() for domain in contents.domains if domain is not None}
    known = f"; domains are {', '.join(sorted(everywhere)[:20])}" if everywhere else "; no row has a domain"
    named: set[str] = set()
    for i, objective in enumerate(spec.objectives):
        wanted = objective.domains or ()
        for j, domain in enumerate(wanted):
            if domain not in everywhere:
                hint = nearest(domain, sorted(everywhere)) or known
                yield f"objectives.{i}.domains.{j}", f"no row of the data has domain '{domain}'{hint}"
                named.add(objective.name)
    for split, contents in found.items():
        for i, objective in enumerate(() if split.startswith(SETS) else spec.objectives):
            if objective.domains is None or objective.name in named or contents.domains & {*objective.domains}:
                continue
            wants = " or ".join(f"'{domain}'" for domain in objective.domains)
            message = f"no row of the {split} split has domain {wants}, so '{objective.name}' has no figure there"
            yield f"objectives.{i}.domains", message
        routes = Routes.of(spec)
        for kind in sorted(contents.domains, key=str):
            if not any(routes.applies(name, kind) for name in routes.domains):
                what = "rows without a domain" if kind is None else f"rows of domain '{kind}'"
                yield f"data.{split}", f"{what} are there, but no objective applies to them; leave them out"
    yield from _unseen(spec, found)


def _unseen(spec: JobSpec, found: Mapping[str, Contents]) -> Iterator[tuple[str, str]]:
    """Columns that no row has; those of an upload were looked for when it came."""
    data = spec.data
    if not isinstance(data, FilesData):
        return
    own = [contents for split, contents in found.items() if not data.names(split)[0].startswith(REFERENCE)]
    if not own:
        return
    if data.columns.domain is not None and not any(contents.domains - {None} for contents in own):
        yield "data.columns.domain", "no row of the data has this column"
    for i, column in enumerate(data.columns.details):
        if not any(detail_name(column) in contents.details for contents in own):
            yield f"data.columns.details.{i}", "no row of the data has this column"
