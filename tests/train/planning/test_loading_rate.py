from types import SimpleNamespace
from typing import Any

from data2vec.train.planning.loading_rate import TIMED_STEPS, LoadingRate


def loader(workers: int) -> Any:
    return SimpleNamespace(workers=workers, seconds_per_step=None)


def test_loading_rate_is_reported_once_without_the_first_step() -> None:
    images = loader(2)
    rate = LoadingRate({"": images})
    for number in range(1 + TIMED_STEPS):
        assert rate.describe() == []
        images.seconds_per_step = 100.0 if number == 0 else 0.4
        rate.add("", 50.0 if number == 0 else 0.1)
    assert rate.describe() == ["loading takes 200 ms a step by 2 workers, more than the 100 ms of the step itself"]
    assert rate.describe() == []


def test_loading_rate_of_a_part_is_a_mean_over_the_steps_of_all_parts() -> None:
    loaders = {"speech": loader(1), "text": loader(0)}
    rate = LoadingRate(loaders)
    for part, seconds in [("text", 9.0), *[("speech", 0.3), ("text", 0.06)] * 3]:
        loaders[part].seconds_per_step = seconds
        rate.add(part, 0.2)
    assert rate.describe() == [
        "speech: loading takes 150 ms a step by 1 worker, less than the 200 ms of the step itself",
        "text: loading takes 30 ms a step by the training process, less than the 200 ms of the step itself",
    ]
