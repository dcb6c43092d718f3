"""`dvc.yaml` names each section of the params that a stage reads, itself or through a helper: all of them are run."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest
import yaml

from mcsmoe import params
from mcsmoe.params import ModelSection, Params
from stages import (
    check,
    collect,
    compress,
    dense,
    distill,
    evaluate,
    finetune,
    merge,
    permute,
    report,
    stable_rank,
)
from tests.pipeline.imports import ROOT
from tests.pipeline.test_dvc_yaml import EXECUTION_ONLY
from tests.stages.workplace import enter, write_params

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
METHODS = {"merge": ["m-smoe"], "distill": ["m-smoe"], "compress": ["m-smoe"], "dense": ["dense"]}
SHORT = {"epochs": 0.05, "warmup_steps": 0}

RUNS: dict[str, Callable[[], None]] = {
    "check": check.main,
    "finetune": lambda: finetune.main(Path("artifacts/finetune")),
    "permute": permute.main,
    "collect": collect.main,
    "merge": lambda: merge.main("m-smoe"),
    "dense": lambda: dense.main("dense"),
    "distill": lambda: distill.main("m-smoe"),
    "distill-dense": lambda: distill.main("dense"),
    "compress": lambda: compress.main("m-smoe"),
    "evaluate-full": lambda: measure("finetune", "full"),
    "evaluate-merge": lambda: measure("merge/m-smoe", "merge-m-smoe"),
    "evaluate-distill": lambda: measure("distill/m-smoe", "distill-m-smoe"),
    "evaluate-compress": lambda: measure("compress/m-smoe", "compress-m-smoe"),
    "evaluate-dense": lambda: measure("merge/dense", "merge-dense"),
    "evaluate-distill-dense": lambda: measure("distill/dense", "distill-dense"),
    "stable-rank": lambda: stable_rank.main("m-smoe"),
    "report": report.main,
}
"""In the order in which dvc runs them."""


def measure(checkpoint: str, name: str) -> None:
    evaluate.main(f"artifacts/{checkpoint}", Path(f"artifacts/figures/scores/{name}.json"))


class Brought:
    """The section `model`, of which all but `trust_remote_code` counts: without that, a stage may not run at all."""

    def __init__(self, section: ModelSection) -> None:
        self._section = section

    def __getattr__(self, name: str) -> Any:
        if name != "trust_remote_code":
            READ.add("model")
        return getattr(self._section, name)


class Watched(Params):
    """Notes which sections are read."""

    def __getattribute__(self, name: str) -> Any:
        if name == "model":
            return Brought(super().__getattribute__(name))
        if name in Params.model_fields:
            READ.add(name)
        return super().__getattribute__(name)

    @classmethod
    def load(cls, path: Path | str = "params.yaml") -> Self:
        """As in `Params`; what validators look at does not count."""
        params = super().load(path)
        READ.clear()
        return params


READ: set[str] = set()


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, set[str]]]:
    """The sections that each stage reads."""
    with pytest.MonkeyPatch.context() as patch:
        enter(tmp_path_factory.mktemp("place"), patch)
        write_params(
            methods=METHODS,
            task={"train_limit": 200, "selection": 10},
            evaluate={"limit": 10},
            finetune=SHORT | {"evaluations": 1},
            distill=SHORT,
            compress=SHORT | {"rank": 2, "interval": 1},
        )
        patch.setattr(params, "Params", Watched)
        found = {}
        for stage, run in RUNS.items():
            run()
            found[stage] = READ - EXECUTION_ONLY
        yield found


def test_all_stages_are_run():
    assert RUNS.keys() == STAGES.keys()


@pytest.mark.parametrize("stage", STAGES)
def test_what_a_stage_reads_is_listed(stage: str, read: dict[str, set[str]]):
    # Every stage imports the plugins: what they register is in recipes, and in artifacts/checked.json.
    assert read[stage] - {"plugins", "seed"} <= set(STAGES[stage].get("params", []))
    if "seed" not in STAGES[stage].get("params", []):
        assert stage.startswith(("evaluate", "stable-rank"))  # they draw nothing by it


@pytest.mark.parametrize("stage", sorted(STAGES.keys() - {"check", "report"}))  # these list all
def test_what_is_listed_is_read(stage: str, read: dict[str, set[str]]):
    assert set(STAGES[stage].get("params", [])) <= read[stage]
