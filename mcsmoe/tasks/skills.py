"""The built-in task: eight list-processing skills of unequal frequency, generated from fixed seeds."""

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from mcsmoe.errors import ParameterError
from mcsmoe.params import TaskSection
from mcsmoe.tasks.score import Score, share
from mcsmoe.tasks.task import TASKS, Encoded, Example, Prediction, Split
from mcsmoe.tasks.text import TextTask, exact_match

SYMBOLS = 40
LENGTHS = (3, 8)
SIZES: dict[Split, int] = {"train": 40_000, "test": 1_000}
SEEDS: dict[Split, int] = {"train": 1, "test": 2}

# A fixed substitution table, which only feed-forward weights can hold.
CODE = random.Random(0).sample(range(SYMBOLS), SYMBOLS)


def deduplicate(items: list[int]) -> list[int]:
    """Return each distinct item once, in the order of first appearance."""
    return list(dict.fromkeys(items))


def swap_neighbours(items: list[int]) -> list[int]:
    """Swap each pair of neighbours; an odd last item stays: [1, 2, 3] → [2, 1, 3]."""
    swapped = list(items)
    for i in range(0, len(items) - 1, 2):
        swapped[i], swapped[i + 1] = items[i + 1], items[i]
    return swapped


SKILLS: dict[str, tuple[int, Callable[[list[int]], list[int]]]] = {
    "encode": (24, lambda items: [CODE[i] for i in items]),
    "copy": (18, lambda items: items),
    "reverse": (15, lambda items: items[::-1]),
    "shift": (13, lambda items: [(i + 1) % SYMBOLS for i in items]),
    "swap": (10, swap_neighbours),
    "sort": (8, sorted),
    "maximum": (7, lambda items: [max(items)]),
    "deduplicate": (5, deduplicate),
}
"""By name of the skill: its relative frequency, and its function of a list of symbols."""


def _draw(rng: random.Random) -> Example:
    name = rng.choices(list(SKILLS), weights=[weight for weight, _ in SKILLS.values()])[0]
    # Few distinct symbols, so that lists to deduplicate do hold duplicates.
    pool = rng.sample(range(SYMBOLS), 5) if name == "deduplicate" else range(SYMBOLS)
    items = rng.choices(pool, k=rng.randint(*LENGTHS))
    answer = SKILLS[name][1](items)
    return Example(" ".join([name, *map(str, items)]), " ".join(map(str, answer)))


class Skills(TextTask):
    """Exact match of generated lists, and of each skill; no list of the test split occurs in train."""

    metric = "exact_match"
    lengths = (12, 12)

    def examples(self, settings: TaskSection, split: Split) -> list[Example]:
        """Generate `SIZES[split]` examples (`train_limit` for train), the same for every training seed.

        Raises `ParameterError` if `data` or `hub` is set.
        """
        if settings.data or settings.hub:
            raise ParameterError("data", settings.data or settings.hub, "task 'skills' is built in; set it to null")
        size = (settings.train_limit if split == "train" else None) or SIZES[split]
        seen = {e.source for e in self.examples(settings, "train")} if split == "test" else set()
        rng = random.Random(SEEDS[split])
        drawn: list[Example] = []
        while len(drawn) < size:
            example = _draw(rng)
            if example.source not in seen:
                drawn.append(example)
        return drawn

    def encode(self, tokenizer: Any, examples: Sequence[Example], settings: TaskSection, seed: int) -> list[Encoded]:
        """See `Task.encode`; each source ends with the end token, to separate it from the target in a causal model."""
        end, longest = tokenizer.eos_token_id, settings.max_source_length
        rows = super().encode(tokenizer, examples, settings, seed)
        return [
            row if row.source[-1] == end else Encoded([*row.source[: longest - 1], end], row.target) for row in rows
        ]

    def score(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> dict[str, Score | float]:
        """Return exact match over all examples, with an interval, and for each skill (`exact_match_sort`)."""
        right = exact_match(predictions, examples)
        by_skill = defaultdict(list)
        for example, hit in zip(examples, right, strict=True):
            by_skill[example.source.split()[0]].append(hit)
        each = {f"exact_match_{name}": sum(by_skill[name]) / len(by_skill[name]) for name in sorted(by_skill)}
        return {"exact_match": share(right), **each}


TASKS.register("skills")(Skills())
