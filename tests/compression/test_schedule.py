import json

import pytest

from mcsmoe.compression.pruner import CubicSchedule
from mcsmoe.errors import ParameterError
from tests.compression.settings import compress
from tests.shared import GOLDEN, needs_golden


@needs_golden
@pytest.mark.parametrize("case", range(9))
def test_golden(case):
    golden = json.loads((GOLDEN / "losparse" / "schedules.json").read_text())[case]
    config, steps = golden["config"], golden["total_step"]
    start = config["initial_warmup"] * config["warmup_steps"]
    end = max(start, steps - config["final_warmup"] * config["warmup_steps"])
    final, initial = config["final_threshold"], config["initial_threshold"]
    schedule = CubicSchedule(start, end, final, config["deltaT"])
    for step, (threshold, prunes) in enumerate(zip(golden["threshold"], golden["mask_ind"])):
        # Ours always starts from all rows; the shape of the curve is the same.
        share = final + (initial - final) * (schedule.remaining(step) - final) / (1 - final)
        assert share == pytest.approx(threshold, abs=1e-9), step
        # At `end` we prune whatever the interval, the reference a step later.
        assert schedule.prunes(step) == (prunes or step == end > start), step


def test_shares_of_the_training():
    schedule = CubicSchedule.of(compress(initial_warmup=0.2, final_warmup=0.3, final_ratio=0.1, interval=4), 50)
    assert schedule == CubicSchedule(10, 35, 0.1, 4)
    assert [schedule.remaining(step) for step in (0, 10, 35, 50)] == [1, 1, 0.1, 0.1]
    assert [step for step in range(51) if schedule.prunes(step)][:3] == [12, 16, 20]
    shares = [schedule.remaining(step) for step in range(51)]
    assert shares == sorted(shares, reverse=True)


def test_one_jump():
    schedule = CubicSchedule.of(compress(initial_warmup=0.5, final_warmup=0.5), 10)
    assert [schedule.remaining(step) for step in (5, 6)] == [1, 0.1]


def test_holds_longer_than_the_training():
    with pytest.raises(ParameterError, match=r"^final_warmup = 0\.6: .*`initial_warmup` = 0\.5"):
        CubicSchedule.of(compress(initial_warmup=0.5, final_warmup=0.6), 10)
