from types import SimpleNamespace
from typing import Any

from data2vec.train.planning.loading_rate import TIMED_STEPS, LoadingRate


def loader(workers: int) -> Any:
    return SimpleNamespace(workers=workers, seconds_per_step=None)


def test_loading_rate_is_reported_once_without_the_first_step_of_each_worker() -> None:
    images = loader(2)
    rate = LoadingRate({"": images})
    for number in range(1 + 2 + TIMED_STEPS):
        assert rate.describe() == []
        images.seconds_per_step = 100.0 if number < 3 else 0.4
        rate.add("", 50.0 if number < 3 else 0.25)
    assert rate.describe() == ["loading takes 200 ms a step by 2 workers; a step takes 250 ms"]
    for _ in range(2 * TIMED_STEPS):
        rate.add("", 0.25)
        assert rate.describe() == []


def test_loading_rate_of_several_parts_waits_for_enough_steps_of_each() -> None:
    loaders = {"speech": loader(1), "text": loader(0)}
    rate = LoadingRate(loaders)

    def step(part: str, loading: float, seconds: float) -> None:
        loaders[part].seconds_per_step = loading
        rate.add(part, seconds)

    for number in range(2 + TIMED_STEPS):
        step("speech", 9.0 if number < 2 else 0.15, 0.2)
    assert rate.describe() == []
    for number in range(1 + TIMED_STEPS):
        step("text", 9.0 if number < 1 else 0.03, 0.1)
    assert rate.describe() == [
        "speech: loading takes 150 ms a step by 1 worker; a step takes 200 ms",
        "text: loading takes 30 ms a step by the training process; a step takes 100 ms",
    ]
