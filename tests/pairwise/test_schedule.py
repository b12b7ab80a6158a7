import numpy as np
import pytest

from kreg.pairwise import AllLevels, CoarseToFine, Schedule, Stage


def test_coarse_to_fine_visits_every_level_once():
    schedule = CoarseToFine(
        steps=(5, 3, 7), samples=(10, 20, 40), pretraining=9, rates=(1e-2, 1e-3)
    )
    assert schedule.stages(3) == [
        Stage((3,), 5, 10, 9, (1e-2, 1e-2)),
        Stage((2,), 3, 20, 0, (1e-2, 1e-2)),
        Stage((1,), 3, 20, 0, (1e-2, 1e-2)),
        Stage((0,), 7, 40, 0, (1e-2, 1e-3)),
    ]


def test_one_level_is_the_finest():
    assert CoarseToFine(steps=(5, 3, 7), pretraining=2).stages(0) == [
        Stage((0,), 7, 65536, 2, (1e-2, 1e-2))
    ]


def test_all_levels_are_one_stage():
    (stage,) = AllLevels(steps=4, samples=100, pretraining=6).stages(2)
    assert stage == Stage((0, 1, 2), 4, 300, 6, (1e-2, 6e-4))


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_rates_fall_by_equal_factors(steps):
    stage = Stage((0,), steps, 1, rates=(1e-2, 1e-4))
    rates = [stage.rate(step) for step in range(steps)]
    np.testing.assert_allclose(rates, np.geomspace(1e-2, 1e-4, steps))


def test_a_schedule_must_say_its_stages():
    with pytest.raises(NotImplementedError, match="Schedule must define stages"):
        Schedule().stages(1)
