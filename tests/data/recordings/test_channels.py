import math

import numpy as np
import pytest

from data2vec.data.recordings.channels import canonical, match_channels, split_unit, unit_factor
from data2vec.data.recordings.electrodes import POSITIONS
from data2vec.data.recordings.recording import ArrayRecording
from data2vec.errors import UserError


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("EEG FP1-REF", "fp1"), ("Fp1.", "fp1"), ("fp1-LE", "fp1"), ("T3", "t7"), ("EEG T6-REF", "p8"), ("FP1-F7", "fp1-f7"),
        ("ax", "acc_x"), ("accelerometer_x", "acc_x"), ("wz", "gyr_z"), ("Lead II", "ii"), ("MLII", "ii"), ("EEG", "eeg"),
        ("Resp oro-nasal", "resp oro-nasal"),
    ],
)  # fmt: skip
def test_name_is_that_of_the_electrode_or_axis(written: str, name: str) -> None:
    assert canonical(written) == name


def test_own_aliases_come_first() -> None:
    assert canonical("sensor-7", {"Sensor-7": "ax"}) == canonical("ax") == "acc_x"
    assert canonical("T3", {"T3": "special"}) == "special"


def test_channels_are_matched_in_the_wanted_order_and_missing_ones_are_none() -> None:
    assert match_channels(["EEG T4-REF", "Resp", "EEG T3-REF"], ["T7", "T8", "Cz"]) == [2, 0, None]


def test_two_channels_of_one_name_are_refused_only_if_they_are_wanted() -> None:
    assert match_channels(["T3", "T7", "Cz"], ["Cz"]) == [2]
    with pytest.raises(UserError, match="'T3' and 'T7' are both 't7'"):
        match_channels(["T3", "T7", "Cz"], ["T7"])


@pytest.mark.parametrize(
    ("unit", "wanted", "factor"),
    [
        ("uV", "mV", 1e-3),
        ("V", "µV", 1e6),
        ("g", "m/s^2", 9.80665),
        ("deg/s", "rad/s", math.pi / 180),
        ("", "uV", 1),
        ("bpm", "", 1),
    ],
)
def test_units_are_converted(unit: str, wanted: str, factor: float) -> None:
    assert unit_factor(unit, wanted) == pytest.approx(factor)


def test_known_unit_in_brackets_is_no_part_of_the_name() -> None:
    assert [split_unit(name) for name in ("ax [g]", "Fp1 (µV)", "gz[deg/s]")] == [("ax", "g"), ("Fp1", "µV"), ("gz", "deg/s")]
    assert split_unit("knee (left)") == ("knee (left)", "") and split_unit("[g]") == ("[g]", "")
    assert match_channels(["gx", "ax [m/s2]"], ["acc_x [g]"]) == [1]
    assert ArrayRecording(np.zeros((4, 2)), ["ax [g]", "b"], ["", "mV"], 50).units == ("g", "mV")


def test_units_of_other_quantities_have_no_factor() -> None:
    assert unit_factor("uV", "g") is None and unit_factor("bpm", "uV") is None


def test_electrodes_are_on_the_sphere_left_to_the_left_and_front_to_the_front() -> None:
    assert all(math.isclose(math.hypot(*place), 1) for place in POSITIONS.values())
    assert POSITIONS["c3"][0] < 0 < POSITIONS["c4"][0] and POSITIONS["oz"][1] < 0 < POSITIONS["fpz"][1]
    assert POSITIONS["f3"][0] == pytest.approx(-POSITIONS["f4"][0]) and POSITIONS["cz"] == (0, 0, 1)
