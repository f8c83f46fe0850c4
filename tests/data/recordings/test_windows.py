from pathlib import Path

import numpy as np
import pytest

from data2vec.data.recordings import windows
from data2vec.errors import CorruptExample, UserError
from helpers.recordings import signals, waves, write_npz


def read(
    path: Path, data: dict[str, object] | None = None, first: int = 0, samples: int = 100, **settings: object
) -> np.ndarray:
    return signals(data, **settings).window_reader().read({"path": str(path)}, first, samples)


def test_channels_are_found_by_name_in_any_order_and_under_any_alias(tmp_path: Path) -> None:
    array = waves(4)
    plain = read(write_npz(tmp_path / "a.npz", array))
    assert plain == pytest.approx(array[:100], rel=1e-4)
    mixed = write_npz(tmp_path / "b.npz", array[:, [2, 0, 1, 1]], ["acc_z", "accelerometer_x", "Acc-Y", "pulse"])
    assert np.array_equal(read(mixed), plain)
    named = write_npz(tmp_path / "c.npz", array, ["left", "up", "front"])
    assert np.array_equal(read(named, aliases={"left": "ax", "up": "ay", "front": "az"}), plain)


def test_missing_channel_is_an_error_with_both_lists_or_padding_by_choice(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", waves(4)[:, :2], ["ax", "pulse"])
    with pytest.raises(
        UserError, match=r"a.npz: lacks ay, az .* it has ax, pulse; the model takes ax, ay, az.*missing_channels=pad"
    ):
        read(path)
    found = read(path, {"missing_channels": "pad"})
    assert not np.isnan(found[:, 0]).any() and np.isnan(found[:, 1:]).all()
    with pytest.raises(UserError, match="lacks ax, ay, az"):  # nothing would be left
        read(write_npz(tmp_path / "b.npz", waves(4), ["a", "b", "c"]), {"missing_channels": "pad"})


@pytest.mark.parametrize(
    ("given", "wanted", "said"),
    [
        ("", "g", "a.npz: units are not known on both sides, so readings are taken as they are: ax (unknown, of the model g)"),
        ("g", "", "ax (g, of the model unknown)"),
        ("", "", None),
        ("g", "m/s²", None),
    ],
)
def test_unit_that_is_known_on_one_side_only_is_named_once(
    given: str, wanted: str, said: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_npz(tmp_path / "a.npz", waves(4), units=np.array([given] * 3))
    reader = signals(units=(wanted,) * 3).window_reader()
    for _ in range(2):
        reader.read({"path": str(path)}, 0, 100)
        reader.read({"array": waves(4)}, 0, 100)
    warned = [record.getMessage() for record in caplog.records if "units are not known" in record.getMessage()]
    assert len(warned) == (said is not None) and (said is None or said in warned[0])


def test_other_unit_is_converted_and_another_quantity_refused(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", waves(4), units=np.array(["g", "g", "g"]))
    assert read(path, units=("m/s²",) * 3, scale={"by": "none", "clip": 99.0}) == pytest.approx(
        9.80665 * waves(4)[:100], rel=1e-4
    )
    with pytest.raises(UserError, match=r"channel ax is in 'g', but the model takes 'uV': units are g, g, g .* uV, uV, uV"):
        read(path, units=("uV",) * 3)


def test_other_rate_is_resampled_and_a_much_lower_one_refused(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", waves(4, rate=200), rate=200)
    found = read(path, samples=200)
    assert found[20:-20] == pytest.approx(waves(4, rate=200)[::4][20:-20], abs=0.35)
    with pytest.raises(UserError, match="channel ax has 20 Hz, but the model 50"):
        read(write_npz(tmp_path / "b.npz", waves(4, rate=20), rate=20))


def test_long_recording_is_read_in_spans_that_equal_those_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_npz(tmp_path / "a.npz", waves(120, rate=100), rate=100)
    filters = {"filter": {"low": 1.0, "high": 20.0}}
    whole = [read(path, first=first, samples=200, **filters) for first in (0, 1234, 5900)]
    monkeypatch.setattr(windows, "WHOLE_SAMPLES", 10)
    parts = [read(path, first=first, samples=200, **filters) for first in (0, 1234, 5900)]
    for part, expected in zip(parts, whole, strict=True):
        assert np.array_equal(np.isnan(part), np.isnan(expected))
        assert np.nanmax(np.abs(part - expected)) < 2e-3
    assert np.isnan(parts[2][100:]).all()  # behind the end


def test_recordings_that_are_kept_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "KEPT_SAMPLES", 3000)
    reader = signals().window_reader()
    for index in range(8):
        path = write_npz(tmp_path / f"{index}.npz", waves(8))
        reader.read({"path": str(path)}, 0, 10)
        assert sum(source.size for source in reader._kept.values()) <= 3000 and reader._kept


def test_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"nothing")
    with pytest.raises(CorruptExample, match=r"a.npz: "):
        read(tmp_path / "a.npz")
    with pytest.raises(CorruptExample, match=r"b.npz: No such file"):
        read(tmp_path / "b.npz")
