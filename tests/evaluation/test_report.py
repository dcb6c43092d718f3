import numpy as np
import pytest

from mcsmoe.report.figure import save
from mcsmoe.report.groups import expert_use, similarity_groups
from mcsmoe.report.table import Metric, Result, results_table, signed
from mcsmoe.report.tradeoff import quality_size

LAYERS = ["encoder.1", "encoder.3", "decoder.1", "decoder.3", "decoder.5"]


def result(step: str, method: str, score: float, size: int, name: str = "exact_match") -> Result:
    costs = {"parameters": size // 4, "bytes": size, "experts": 8, "flops_per_token": 2_000_000}
    return Result(step, method, {name: score, f"{name}_copy": 0.5, **costs})


def results(control: float = 0.5) -> list[Result]:
    return [
        result("full", "–", 0.9, 8_000_000),
        result("merge", "m-smoe", 0.8, 4_000_000),
        result("merge", "one", control, 2_000_000),
        result("distill", "m-smoe", 0.88, 4_000_000),
        result("compress", "m-smoe", 0.85, 1_600_000),
    ]


def cells(table: str, row: int) -> dict[str, str]:
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return dict(zip(lines[0], lines[2 + row], strict=True))


def test_the_table_compares_each_row_with_the_full_model():
    row = cells(results_table(results(), Metric("exact_match", True)).markdown(), 4)
    assert row["step"] == "compress"
    assert row["exact match"] == "0.8500"
    assert row["Δ to full"] == "−0.0500"
    assert row["gap kept"] == "87.5 %"
    assert row["parameters"] == "400,000"
    assert (row["size"], row["of full"]) == ("1.60 MB", "20.0 %")
    assert row["FLOPs/token"] == "2.000 M"


def test_a_breakdown_of_the_metric_stays_out_of_the_table():
    assert "copy" not in results_table(results(), Metric("exact_match", True)).markdown()


def test_gap_kept_where_lower_is_better():
    metric = Metric("cross_entropy", False)
    rows = [
        result("full", "–", 4.8, 8, "cross_entropy"),
        result("merge", "one", 5.6, 2, "cross_entropy"),
        result("merge", "m-smoe", 5.0, 4, "cross_entropy"),
    ]
    row = cells(results_table(rows, metric).markdown(), 2)
    assert (row["gap kept"], row["Δ to full"]) == ("75.0 %", "+0.2000")


def with_intervals(rows: list[Result], half: float, name: str = "exact_match") -> list[Result]:
    """The same results, with intervals of `half` to either side."""
    return [
        Result(
            r.step, r.method, r.scores | {f"{name}_low": r.scores[name] - half, f"{name}_high": r.scores[name] + half}
        )
        for r in rows
    ]


def test_scores_stand_with_their_intervals():
    table = results_table(with_intervals(results(), 0.0124), Metric("exact_match", True)).markdown()
    row = cells(table, 4)
    assert (row["exact match"], row["Δ to full"]) == ("0.8500 (0.838–0.862)", "−0.0500")
    assert "Where two intervals overlap" in table
    assert "loses quality: 0.5000 (0.488–0.512) against 0.9000 (0.888–0.912)." in table


@pytest.mark.parametrize(("half", "telling"), [(0.19, True), (0.21, False)])
def test_a_control_inside_the_intervals_tells_nothing(half, telling):
    table = results_table(with_intervals(results(), half), Metric("exact_match", True)).markdown()
    assert ("gap kept" in table) is telling
    assert ("says nothing about merging" in table) is not telling


@pytest.mark.parametrize("name", ["exact_match", "cross_entropy"])
def test_better_is_beyond_both_intervals(name):
    metric = Metric(name, name == "exact_match")
    low, near, high = with_intervals([result("merge", "a", s, 8, name) for s in (0.5, 0.55, 0.7)], 0.05, name)
    good, bad = (high, low) if metric.higher_is_better else (low, high)
    assert metric.better(good, bad)
    assert not metric.better(bad, good)
    assert not metric.better(low, near)
    assert not metric.better(near, low)


def test_a_control_that_loses_nothing_is_called_out():
    table = results_table(results(control=0.9), Metric("exact_match", True)).markdown()
    assert "says nothing about merging" in table
    assert "gap kept" not in table


def test_no_control_no_note():
    rows = [r for r in results() if r.method != "one"]
    assert results_table(rows, Metric("exact_match", True)).markdown().endswith("|\n")


@pytest.mark.parametrize(("value", "text"), [(0.0, "+0.0000"), (-0.00001, "+0.0000"), (-0.5, "−0.5000")])
def test_signed(value, text):
    assert signed(value) == text


def figures() -> dict:
    rng = np.random.default_rng(0)
    similarity = {name: np.asarray(1 + np.corrcoef(rng.normal(size=(8, 5)))) / 2 for name in LAYERS}
    groups = {name: [[2, 0, 5], [1, 3], [4, 6, 7]] for name in LAYERS[:-1]}
    return {
        "quality-size": quality_size(results(), Metric("exact_match", True)),
        "expert-use": expert_use({name: rng.dirichlet(np.ones(8)).tolist() for name in LAYERS}),
        "groups": similarity_groups(similarity, groups, "m-smoe"),
    }


def test_pictures_are_the_same_bytes_each_time(tmp_path):
    for folder in ("first", "second"):
        for name, figure in figures().items():
            save(figure, tmp_path / folder / f"{name}.svg")
    for name in figures():
        first, second = ((tmp_path / folder / f"{name}.svg").read_bytes() for folder in ("first", "second"))
        assert first == second
        assert b"<dc:date>" not in first


def test_one_layer_and_many_experts_can_be_drawn(tmp_path):
    save(expert_use({"encoder.1": [1 / 64] * 64}), tmp_path / "use.svg")
    save(similarity_groups({"encoder.1": np.eye(64)}, {}, "none"), tmp_path / "groups.svg")
    save(similarity_groups({"encoder.1": np.eye(4)}, {"encoder.1": [[2, 0], [3]]}, "dropped"), tmp_path / "dropped.svg")
    same = [result("full", "–", 0.9, 8)]
    save(quality_size(same, Metric("exact_match", True)), tmp_path / "size.svg")


def test_better_is_up_also_where_lower_is_better():
    rows = [result("full", "–", 4.8, 8, "cross_entropy"), result("merge", "one", 5.6, 2, "cross_entropy")]
    low, high = quality_size(rows, Metric("cross_entropy", False)).axes[0].get_ylim()
    assert low > high
