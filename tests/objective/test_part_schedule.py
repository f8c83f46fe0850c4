"""Which part makes each step of a joint run."""

import pytest

from data2vec.objective.part_schedule import WINDOW, PartSchedule

SHARES = {"speech": 0.5, "vision": 0.3, "text": 0.2}


def parts(steps: int, seed: int = 1) -> list[str]:
    schedule = PartSchedule(SHARES, steps, seed)
    return [schedule.part(step) for step in range(1, steps + 1)]


@pytest.mark.parametrize("steps", [1, WINDOW, 1000])
def test_each_part_makes_its_share_of_the_steps_at_any_time(steps: int) -> None:
    order = parts(steps)
    for end in {steps, *range(WINDOW, steps, WINDOW)}:
        for name, share in SHARES.items():
            within = WINDOW if end % WINDOW else 2  # the last window may be cut short
            assert abs(order[:end].count(name) - share * end) <= within


def test_order_depends_on_the_seed_and_has_no_beat() -> None:
    first, other = parts(960), parts(960, seed=2)
    assert first != other
    assert len({tuple(first[i : i + WINDOW]) for i in range(0, 960, WINDOW)}) > 50


def test_a_longer_run_begins_with_the_steps_of_a_shorter_one() -> None:
    assert parts(1001)[:100] == parts(100)


def test_steps_of_a_part_are_numbered_and_counted() -> None:
    schedule = PartSchedule(SHARES, 160, 1)
    own = [step for step in range(1, 161) if schedule.part(step) == "text"]
    assert [schedule.number(step) for step in own] == list(range(1, len(own) + 1))
    assert schedule.count("text") == len(own) == 32
    assert schedule.count("text", own[4]) == 5
    assert schedule.count("text", 0) == 0
