"""A front's document without what is not committed."""

import json

from orchestrator.figures import front_document
from orchestrator.state.fronts import until
from orchestrator.state.records import dumps
from policies.pareto import Archive, Point

TURNED = {"tokens": {"better": "smaller", "target": None}}


def test_what_is_left_of_a_front_is_ranked_as_the_jobs_archive_ranks_it() -> None:
    archive = Archive({"accuracy": (0.0, 1.0), "tokens": (0.0, 1000.0)}, directions=TURNED)
    for step, (accuracy, brief, tokens) in enumerate([(0.5, 900.0, 900.0), (0.5, 100.0, 500.0), (0.9, 50.0, 400.0)]):
        counted = {"accuracy": accuracy, "tokens": tokens}
        archive.add(
            Point(step=step, objectives={"accuracy": accuracy, "tokens": brief}, counted=counted, mean_tokens=9.0)
        )
        if step == 1:
            then = json.loads(dumps(front_document(archive, ())))
    document = json.loads(dumps(front_document(archive, ())))
    assert [point["step"] for point in document["points"] if point["on_front"]] == [2]
    assert until(document, 1) == then
