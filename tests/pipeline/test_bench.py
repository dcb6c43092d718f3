"""Benchmarks: README shows the claims of the committed results, a crash is a row, and figures are what they say."""

import json
import subprocess

import pytest
import torch
import typer
from typer.testing import CliRunner

from benchmarks import bench, gpu
from benchmarks.scaling import grown, slope
from benchmarks.scaling_large import Machine, rows
from benchmarks.side_by_side import Claim, save
from mcsmoe.errors import ParameterError
from mcsmoe.shrinking.pace import Pace
from tests.pipeline.imports import ROOT

END = "<!-- end of claims -->"


@pytest.mark.parametrize(("file", "option"), [("README.md", "--tightest"), ("docs/speed.md", "--table")])
def test_documents_show_the_claims_of_the_results(file, option):
    start = f"<!-- claims: python -m benchmarks.bench {option} -->\n"
    before, _, after = (ROOT / file).read_text().partition(start)
    assert before
    short = option == "--tightest"
    assert after.partition(END)[0].strip() == bench.claims_table(ROOT / "benchmarks/results", short=short).strip()


def test_rows_are_the_claims_that_a_benchmark_saved(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.side_by_side.RESULTS", tmp_path)
    claims = [Claim("seconds of ours / of theirs", 1.0444, 1.05), Claim("share", 0.5, 0.75, most=False)]
    save("step", "Step", "command", "text", {}, claims, quick=False)
    (tmp_path / "collect.json").write_text(json.dumps({"rows": []}))  # results of an older form
    assert bench.claims_table(tmp_path).splitlines()[2:] == [
        "| `step` | seconds of ours / of theirs | 1.04 | ≤ 1.05 | yes |",
        "| `step` | share | 0.5 | ≥ 0.75 | **no** |",
    ]
    assert bench.claims_table(tmp_path, short=True).splitlines()[2:] == ["| `step` | share | 0.5 | ≥ 0.75 | 1 of 2 |"]
    assert bench.claims_table(tmp_path / "empty") == ""


def test_a_benchmark_that_crashes_is_a_row_and_the_exit_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(_app(), ["no_such_benchmark"])
    assert found.exit_code == 1
    assert "| `no_such_benchmark` | exit code 1: " in found.stdout
    assert "No module named" in found.stdout


def test_a_claim_that_does_not_hold_is_no_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def missed(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        save("slow", "Slow", " ".join(command), "text", {}, [Claim("seconds", 3.0, 2.0)], quick=True)
        return subprocess.CompletedProcess(command, 0, "")

    monkeypatch.setattr(subprocess, "run", missed)
    found = CliRunner().invoke(_app(), ["slow"])
    assert found.exit_code == 0
    assert "| `slow` | seconds | 3 | ≤ 2 | **no** |" in found.stdout


@pytest.mark.parametrize("name", bench.NAMES)
def test_every_benchmark_of_the_quick_set_is_there(name):
    source = (ROOT / "benchmarks" / f"{name}.py").read_text()
    assert "quick: " in source


def test_exponents_leave_out_what_every_run_costs():
    linear, square = ({n: 5 + 0.01 * n**p for n in (2, 8, 32)} for p in (1, 2))
    assert grown(linear) == pytest.approx(1)
    assert grown(square) == pytest.approx(2)
    assert slope({2: 50.0, 8: 70.0, 32: 50.0}) == 0
    assert slope({2: 3.0, 8: 12.0, 32: 48.0}) == pytest.approx(1)


def test_published_models_have_their_sizes():
    machine = Machine(Pace(read=1e9, model=1e12, single=1e11), write=5e8, cores=2)
    found = {row["model"]: row for row in rows(machine)}
    assert [round(row["bytes"] / 2e9) for row in found.values()] == [47, 235, 671]  # billions of parameters
    for row in found.values():
        assert row["disk"] > row["bytes"] + row["result_bytes"]
        assert row["permute_seconds"] > row["merge_seconds"] > 2 * row["bytes"] / 1e9


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so():
    with pytest.raises(ParameterError, match="device = 'cuda': there is no GPU"):
        gpu.main()


def _app() -> typer.Typer:
    app = typer.Typer()
    app.command()(bench.main)
    return app
