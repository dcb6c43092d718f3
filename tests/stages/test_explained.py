"""What stages make of the library's errors: where an argument stands in params.yaml, and which stage to run."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mcsmoe.errors import CheckpointError, MemoryLimitError, ParameterError, PlanError, StatisticsError, UserError
from mcsmoe.params import Params
from stages import collect, common, compress, distill, evaluate, merge, permute, stable_rank
from stages.common import PLACES, explained
from tests.stages.workplace import write_params


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_params()
    common.start()


@pytest.mark.usefixtures("started")
@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ParameterError("groups", 9, "lower it"), "merge.groups = 9 in params.yaml: lower it"),
        (ParameterError("exclude.encoder", 2, "no layer"), "merge.exclude.encoder = 2 in params.yaml: no layer"),
        (ParameterError("recipes.one.groups", 9, "lower it"), "recipes.one.groups = 9 in params.yaml: lower it"),
        (ParameterError("rank", 9, "lower it", "my.yaml"), "rank = 9 in my.yaml: lower it"),
        (ParameterError("rank", 9, "or raise `groups`"), "compress.rank = 9 in params.yaml: or raise merge.groups"),
        (
            MemoryLimitError(5, "collect", 10, "lower `samples`, as in `import`"),
            "memory_limit = 5 in params.yaml: collect needs 10 bytes; lower calibration.samples, as in `import`",
        ),
        (CheckpointError("x: merge with `budget` = uniform"), "x: merge with merge.budget = uniform"),
        (StatisticsError("no routing statistics"), "no routing statistics; run collect"),
        (PlanError("x: no plan.json"), "x: no plan.json; run merge"),
        (UserError("no such thing"), "no such thing"),
    ],
)
def test_a_line_for_users_of_the_pipeline(error: UserError, line: str):
    assert explained(error) == line


@pytest.mark.usefixtures("started")
@pytest.mark.parametrize(
    ("stage", "missing", "first"),
    [
        (permute.main, "artifacts/finetune", "finetune"),
        (collect.main, "artifacts/permute", "permute"),
        (lambda: merge.main("m-smoe"), "artifacts/permute", "permute"),
        (lambda: distill.main("m-smoe"), "artifacts/merge/m-smoe", "merge"),
        (lambda: compress.main("m-smoe"), "artifacts/distill/m-smoe", "distill"),
        (lambda: stable_rank.main("m-smoe"), "artifacts/permute", "permute"),
    ],
)
def test_a_missing_input_names_the_stage_that_makes_it(stage: Callable[[], None], missing: str, first: str):
    with pytest.raises(CheckpointError) as error:
        stage()
    assert explained(error.value) == f"there is no {missing}: run {first} first"


def test_every_place_is_in_a_params_file():
    for name, place in PLACES.items():
        section, field = place.split(".")
        annotation = Params.model_fields[section].annotation
        assert field == name
        assert annotation is not None
        assert field in annotation.model_fields


def test_a_command_that_read_no_params_file_does_not_speak_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(common, "_params_file", None)
    with pytest.raises(ParameterError) as error:
        evaluate.main("stock", task="sst2", data="./nowhere")
    assert explained(error.value) == "data = './nowhere': there is no such directory"
