"""Which way imports point: stages → what composes → algorithms → foundations, with no cycle."""

from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.pipeline.imports import ROOT, files, imported

LAYERS = [
    {"stages"},
    {"cli"},
    {"api"},
    {"arguments"},
    {"shrinking"},
    {"methods", "training", "evaluation", "report", "exporting", "sizing"},
    {"calibration", "alignment", "similarity", "grouping", "merging", "compression"},
    {"model"},
    {"tasks"},
    {"families", "checkpoint", "distributed"},
    {"modeling"},
    {
        "__init__",
        "command",
        "errors",
        "fields",
        "interrupt",
        "model_types",
        "params",
        "progress",
        "reading",
        "registry",
        "warm",
        "warm_process",
    },
]
"""From the top: a package imports from its own row and from those below it."""

ALGORITHMS = {"calibration", "alignment", "similarity", "grouping", "merging", "compression"}
FORBIDDEN = {"transformers", "typer", "dvc", "accelerate", "datasets", "matplotlib"}
SOURCES = sorted(path.relative_to(ROOT) for folder in ("mcsmoe", "stages") for path in (ROOT / folder).rglob("*.py"))
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def room(path: Path) -> str:
    """The package of a file, by the name used in `LAYERS`."""
    return path.parts[0] if path.parts[0] == "stages" else path.with_suffix("").parts[1]


def sources(*, of: set[str]) -> list[Path]:
    return [path for path in SOURCES if path != Path("mcsmoe/__init__.py") and room(path) in of]


@pytest.mark.parametrize("path", sources(of=set(RANK)), ids=str)
def test_imports_point_downwards(path):
    wrong = [str(file) for file in files(path) if RANK[room(file)] < RANK[room(path)]]
    assert not wrong, f"{path} imports from above: {wrong}"


def test_every_package_has_its_place():
    assert {room(path) for path in sources(of=set(RANK))} == {
        room(path) for path in SOURCES if path != Path("mcsmoe/__init__.py")
    }


def test_packages_import_each_other_in_one_direction():
    graph: dict[str, set[str]] = defaultdict(set)
    for path in sources(of=set(RANK)):
        graph[room(path)] |= {room(file) for file in files(path)} - {room(path)}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


@pytest.mark.parametrize("path", sources(of=ALGORITHMS), ids=str)
def test_algorithms_see_tensors_only(path):
    found = {name.split(".")[0] for name in imported(path)} & FORBIDDEN
    assert not found, f"{path} imports {sorted(found)}"


@pytest.mark.parametrize("path", [p for p in sources(of={"modeling"}) if p.name != "__init__.py"], ids=str)
def test_model_classes_travel_alone(path):
    """Remote code beside the weights runs without this package: torch, transformers, neighbours only."""
    ours = [file for file in files(path) if room(file) not in ("__init__", "modeling")]
    assert not ours
    outside = {name.split(".")[0] for name in imported(path) if name} - {"mcsmoe"}
    allowed = {"torch", "transformers", "collections", "dataclasses", "functools", "itertools", "math", "typing"}
    assert outside <= allowed


@pytest.mark.parametrize("path", sorted(p for p in SOURCES if p.name == "__init__.py"), ids=str)
def test_a_room_says_what_it_is(path):
    assert (ROOT / path).read_text().startswith('"""')
