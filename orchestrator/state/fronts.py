"""A front's document without what is not in the job's lineage."""

from typing import Any

Json = dict[str, Any]


def until(document: Json, step: int) -> Json:
    """Without points after the committed step: not committed yet, or undone by a crash and not evaluated again yet."""
    known = document.get("points", [])
    points = [point for point in known if point["step"] <= step]
    if len(points) == len(known):
        return document
    from policies.pareto import Archive, Point

    ranges = {name: (low, high) for name, (low, high) in document["ranges"].items()}
    archive = Archive(ranges, directions=document.get("directions"))
    fields = ("step", "objectives", "mean_tokens", "collapsed")
    archive.points = [
        Point(**{field: point[field] for field in fields}, counted=point.get("counted")) for point in points
    ]
    front = {point.step for point in archive.front}
    volumes = [pair for pair in document["hypervolume_by_step"] if pair[0] <= step]
    return {
        **document,
        "hypervolume": volumes[-1][1] if volumes else 0.0,
        "hypervolume_over_base": archive.hypervolume_over_base,
        "hypervolume_by_step": volumes,
        "points": [{**point, "on_front": point["step"] in front} for point in points],
    }
