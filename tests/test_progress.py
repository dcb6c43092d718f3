"""What a log shows of long work."""

import re
import time

from mcsmoe import progress as module
from mcsmoe.progress import Whole, progress


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


def test_phases_share_one_bar(capsys, monkeypatch):
    monkeypatch.setattr(module, "LOG_SECONDS", 0)
    monkeypatch.setattr(module, "TERMINAL_SECONDS", 0)
    with Whole([10, 60, 30]) as whole:
        whole.skip()
        with whole.phase("merge"):
            for _ in progress(range(2), "layers"):
                assert list(progress(range(3), "experts", late=True)) == [0, 1, 2]
        with whole.phase("verify"):
            pass
    lines = [re.sub(r", \d\d:\d\d gone.*", "", line) for line in capsys.readouterr().err.splitlines()]
    # Nested work moves nothing; half of the layers are 30 of 60.
    assert list(dict.fromkeys(line for line in lines if line)) == [
        "0 % ",
        "10 % ",
        "10 % merge",
        "40 % merge",
        "70 % merge",
        "70 % verify",
        "100 % verify",
    ]
    # Afterwards work has its own bar again.
    list(progress(range(1), "alone"))
    assert "alone: 1/1" in capsys.readouterr().err


def test_an_earlier_run_does_not_count_for_the_pace(capsys, monkeypatch):
    monkeypatch.setattr(module, "LOG_SECONDS", 0)
    with Whole([1000, 2]) as whole:
        whole.skip()
        with whole.phase("rest"):
            with progress(None, "items", 2) as bar:
                time.sleep(0.2)
                bar.update()
                bar.refresh()
            left = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"rest, 00:00 gone, 00:0\d left", left), left
