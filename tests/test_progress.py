"""What a log shows of long work."""

import re
import time

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


def test_parts_of_other_work_show_only_when_they_take_long(capsys, monkeypatch):
    monkeypatch.setattr(module, "LOG_SECONDS", 0.1)
    for pause in (0, 0.06):
        for _ in progress(range(4), "match experts", late=True):
            time.sleep(pause)
        lines = capsys.readouterr().err.splitlines()
        assert bool(lines) == bool(pause)
        assert all(line.startswith("match experts: ") for line in lines)


def test_one_process_speaks_for_all(capsys, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert list(progress(range(2), "collect")) == [0, 1]
    assert capsys.readouterr().err == ""
