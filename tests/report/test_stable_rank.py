import numpy as np

from mcsmoe.report.stable_rank import stable_rank_figure


def test_a_line_for_each_moment():
    layers = {"encoder.1": 3.0, "decoder.1": 2.0}
    figure = stable_rank_figure("m-smoe", {"before": layers, "merged": layers, "distilled": layers})
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.lines] == ["before", "merged", "distilled"]
    assert all(np.asarray(line.get_ydata()).tolist() == [3.0, 2.0] for line in axes.lines)
