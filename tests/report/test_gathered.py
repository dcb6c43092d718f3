"""The inputs of the report are checked when they are read."""

import json
from pathlib import Path

import pytest

from mcsmoe.errors import MeasurementError
from mcsmoe.params import Methods
from mcsmoe.report.gathered import Gathered
from mcsmoe.report.table import results_table
from tests.mutations import COUNT, mutated, right_or_one_line
from tests.report.page import MERGED, METRIC, RESULTS

METHODS = Methods(merge=["m-smoe"], distill=["m-smoe"], compress=[], dense=[])
SCORES = RESULTS[0].scores
FILES = {
    "scores/full": SCORES,
    "scores/merge-m-smoe": SCORES,
    "scores/distill-m-smoe": SCORES | {"experts": 0},  # as of a dense model
    "curves/finetune": [{"step": 1, "loss": 0.5, "selection": None}],
    "curves/distill-m-smoe": [{"step": 1, "loss": 0.5}],
    "stable-rank/m-smoe": [{"moment": "before", "layer": "encoder.1", "stable_rank": 3.0}],
    "permute": {"largest_logit_change": 0.0, "layers": []},
}


@pytest.fixture
def figures(tmp_path):
    for name, values in FILES.items():
        path = tmp_path / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(values))
    (tmp_path / "plans/m-smoe").mkdir(parents=True)
    MERGED.save(tmp_path / "plans/m-smoe")
    return tmp_path


def read(figures: Path) -> Gathered:
    return Gathered.read(figures, METHODS, METRIC.name)


def test_what_is_read_is_what_was_written(figures):
    found = read(figures)
    assert [json.dumps(each.scores) for each in found.results] == [
        json.dumps(FILES[f"scores/{name}"]) for name in ("full", "merge-m-smoe", "distill-m-smoe")
    ]
    assert found.curves["distill"]["m-smoe"] == FILES["curves/distill-m-smoe"]
    assert found.ranks["m-smoe"] == FILES["stable-rank/m-smoe"]
    assert found.permute == FILES["permute"]


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("scores/full", None, r"^no .*scores/full\.json: run evaluate$"),
        ("curves/distill-m-smoe", None, r"^no .*: run distill$"),
        ("scores/full", SCORES | {"exact_match": None}, "damaged .*: run evaluate again$"),
        ("scores/full", SCORES | {"bytes": True}, "damaged"),
        ("scores/full", SCORES | {"bytes": float("nan")}, "damaged .NaN is no number"),
        ("scores/merge-m-smoe", {"exact_match": 1.0}, "has no bytes: run evaluate again$"),
        ("scores/full", SCORES | {"f1": 1.0}, r"scores/merge-m-smoe\.json has no f1"),
        ("scores/full", SCORES | {"bytes": 0}, r"scores/full\.json has no bytes"),
        ("scores/full", {"rouge": 1.0}, "has no bytes"),
        ("curves/finetune", [{"loss": 1.0}], r"curves/finetune\.json has a row without a step: run finetune again"),
        ("curves/finetune", [{"step": 1, "loss": "low"}], "damaged .0.loss"),
        (
            "stable-rank/m-smoe",
            [{"moment": "after", "layer": "a", "stable_rank": 1.0}],
            "damaged .0.moment: .* 'before'",
        ),
        ("permute", [], "damaged"),
    ],
)
def test_a_figure_that_is_none(figures, name, values, message):
    path = figures / f"{name}.json"
    path.unlink()
    if values is not None:
        path.write_text(json.dumps(values))
    with pytest.raises(MeasurementError, match=message):
        read(figures)


@pytest.mark.parametrize("name", FILES)
def test_damaged_figures_are_one_line(figures, name):
    path = figures / f"{name}.json"
    whole = path.read_bytes()
    for seed in range(COUNT):
        path.write_bytes(mutated(whole, seed))
        with right_or_one_line():
            results_table(read(figures).results, METRIC)
