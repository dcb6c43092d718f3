"""What a log shows of long work."""

import re

from mcsmoe import progress as module
from mcsmoe.progress import progress


def test_a_log_gets_plain_lines_with_the_time_left(capsys, monkeypatch):
    monkeypatch.setattr(module, "LOG_SECONDS", 0)
    with progress(None, "distill m-smoe", 4) as bar:
        for _ in range(4):
            bar.update()
            bar.set_postfix(loss="0.5", refresh=False)
    assert list(progress(range(2), "score", show=False)) == [0, 1]
    err = capsys.readouterr().err
    assert "\r" not in err
    lines = err.splitlines()
    assert lines[0] == "distill m-smoe: 0/4 (0 %), 00:00 gone, ? left"
    assert lines[-1] == "distill m-smoe: 4/4 (100 %), 00:00 gone, 00:00 left, loss=0.5"
    assert all(re.match(r"distill m-smoe: \d/4 \(\d+ %\), 00:00 gone, (\?|00:00) left", line) for line in lines)
