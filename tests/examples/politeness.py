"""A reward for a package of your own. It offers it in its pyproject.toml:

    [project.entry-points."equipoise.rewards"]
    politeness = "polite_package:Politeness"

and a spec asks for `reward: {name: politeness, options: {words: [thank, please]}}`.
"""

from pydantic import Field

from rewards.base import RewardBatch, RewardOptions


class Politeness:
    """Share of polite words that occur; prompts of code need none."""

    class Options(RewardOptions):
        words: list[str] = Field(["thank", "please"], min_length=1)

    name, range = "politeness", (0.0, 1.0)

    def __init__(self, options: Options) -> None:
        self.words = options.words

    def score(self, batch: RewardBatch) -> list[float | None]:
        found = [sum(word in text.lower() for word in self.words) for text in batch.completions]
        return [None if kind == "code" else n / len(self.words) for n, kind in zip(found, batch.domains, strict=True)]
