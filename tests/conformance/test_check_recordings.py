import shlex
from pathlib import Path

import edfio
import numpy as np
import pytest

from data2vec.conformance.check_recordings import check_recordings
from data2vec.data.check.check import is_recordings
from data2vec.errors import UserError
from data2vec.recipe.loading import load_recipe
from data2vec.train.pretrain import resolve_recipe
from helpers.command import exit_status
from helpers.recordings import waves, write_npz


def test_report_names_flat_and_clipped_channels_gaps_and_unreadable_files(tmp_path: Path) -> None:
    rows = ["file_name,label,subject"]
    for index in range(4):
        array = waves(8, seed=index)
        if index == 1:
            array[:, 0] = 3.0
            array[:, 1] = np.clip(array[:, 1], -0.9, 0.9)
        if index == 2:
            array[100:200] = np.nan
        write_npz(tmp_path / f"{index}.npz", array, units=np.array(["g", "g", ""]))
        rows.append(f"{index}.npz,{'ab'[index % 2]},s{index // 2}")
    (tmp_path / "broken.npz").write_bytes(b"nothing")
    (tmp_path / "metadata.csv").write_text("\n".join([*rows, "broken.npz,a,s9"]))
    found = check_recordings(tmp_path, out=tmp_path / "check.json")
    assert found.flat == ["1.npz: ax"] and found.clipped == ["1.npz: ay"] and found.gaps == ["2.npz: 25.0% missing"]
    assert found.channels == {"ax ay az": 4} and found.units == {"g": 8, "unknown": 4} and found.rates == {"50 Hz": 12}
    assert found.subjects == {"s0": 2, "s1": 2} and found.classes == {"a": 2, "b": 2}
    assert found.seconds is not None and found.seconds.total == 32
    assert len(found.unreadable) == 1 and found.unreadable[0].startswith("broken.npz: ")
    assert "5; 1 unreadable" in str(found) and str(found).endswith(f"data.train={tmp_path}")


def test_annotations_are_counted_and_the_proposal_suits_electrodes_at_their_rate(tmp_path: Path) -> None:
    rng, names = np.random.default_rng(0), ("EEG Fpz-Cz", "C3", "EMG")  # two electrodes in one channel, too
    signals = [edfio.EdfSignal(rng.normal(0, 40, 9000), 100, label=name, physical_dimension="uV") for name in names]
    annotations = [edfio.EdfAnnotation(0, 60, "W"), edfio.EdfAnnotation(60, 30, "N1"), edfio.EdfAnnotation(5, None, "lights")]
    edfio.Edf(signals, annotations=annotations).write(tmp_path / "night.edf")
    found = check_recordings(tmp_path)
    assert found.annotations == {"W": 1, "N1": 1} and found.points == 1
    assert "2: W (1), N1 (1); 1 without a duration, which are no labels" in str(found)
    assert found.settings == {
        "modality.channels": ["EEG Fpz-Cz", "C3"],
        **{"modality.window_seconds": 30, "modality.patch": 100, "modality.layout": "grid", "modality.spectrum": True},
        "objective.decoder.kernel": [3, 3],
    }
    words = shlex.split(str(found).splitlines()[-1])[4:]
    recipe = load_recipe("signal/v2-tiny", [*words, "modality.rate=100"])
    assert recipe.flat() | found.settings == recipe.flat()


@pytest.mark.parametrize(
    ("rate", "settings"),
    [
        (50, {}),
        (25, {"modality.patch": 4}),  # a window is no multiple of 8 samples
        (100, {"modality.patch": 16}),
        (51.2, {"modality.rate": 51, "modality.patch": 6}),
        (500, {"modality.patch": 25}),
    ],
)
def test_proposal_has_a_patch_that_suits_the_rate(rate: float, settings: dict[str, float], tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", waves(8, rate=rate))
    given = {"data.rate": rate, "data.time_axis": "first"}
    found = check_recordings(tmp_path, given)
    assert found.settings == settings | given
    assert str(found).endswith(f"data.rate={float(rate)} data.time_axis=first")
    resolve_recipe("signal/v2-tiny", tmp_path, found.settings, None)


def test_what_is_given_is_part_of_the_proposal(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", waves(8, rate=100), ["C3", "C4", "O1"], rate=100)
    for given in ({"modality.rate": 50.0}, {"modality.patch": 20}, {"modality.layout": "joint"}, {"modality.channels": ["C3"]}):
        found = check_recordings(tmp_path, given).settings
        assert load_recipe("signal/v2-tiny", found | given) == load_recipe("signal/v2-tiny", found)
        resolve_recipe("signal/v2-tiny", tmp_path, found, None)


def test_data_train_is_refused_as_a_second_name_of_the_data(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", waves(8))
    with pytest.raises(UserError, match=r"data\.train: .*omit it"):
        check_recordings(tmp_path, {"data.train": str(tmp_path / "other")})


@pytest.mark.parametrize("rate", [25, 25.0, 30, 51.2])
def test_a_given_rate_whose_window_is_no_multiple_of_the_patch_gets_a_patch_that_runs(rate: float, tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", waves(8))
    write_npz(tmp_path / "b.npz", waves(8, rate=40), rate=40)
    found = check_recordings(tmp_path, {"modality.rate": rate})
    assert str(found).splitlines()[-1].startswith("Ready: ") and found.settings["modality.rate"] == round(rate)
    resolve_recipe("signal/v2-tiny", tmp_path, found.settings, None)


def test_a_rate_that_is_none_or_that_the_given_patch_does_not_divide_is_refused(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", waves(8))
    for given in ({"modality.rate": "fast"}, {"modality.rate": -1.0}, {"modality.rate": 25.0, "modality.patch": 8}):
        with pytest.raises(UserError, match=r"modality.*(rate|not a multiple of patch: 8)"):
            check_recordings(tmp_path, given)


def test_recordings_shorter_than_the_window_needs_are_not_ready(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", waves(8))
    write_npz(tmp_path / "b.npz", waves(5))
    assert "all recordings are shorter than the least, 50 s of a window of 100 s: lower modality.window_seconds" in str(
        check_recordings(tmp_path, {"modality.window_seconds": 100})
    )
    assert "Ready: " in str(check_recordings(tmp_path, {"modality.window_seconds": 16}))  # half of it is there
    assert "Ready: " in str(check_recordings(tmp_path, {"modality.window_seconds": 80, "data.min_present": 0.1}))
    write_npz(tmp_path / "a.npz", waves(1))
    write_npz(tmp_path / "b.npz", waves(1))
    assert "shorter than the least, 2 s of a window of 4 s" in str(check_recordings(tmp_path))


def test_labels_of_no_column_are_refused_but_annotations_are_counted_without_one(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", waves(8))
    (tmp_path / "metadata.csv").write_text("file_name,activity\na.npz,run\n")
    with pytest.raises(UserError, match="--labels: the data has no column 'activty' beside the recording, only activity"):
        check_recordings(tmp_path, label="activty")
    assert check_recordings(tmp_path, label="activity").classes == {"run": 1}
    assert check_recordings(tmp_path, label="event").classes == {}


def test_recordings_that_differ_are_said_to_differ(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", waves(8))
    write_npz(tmp_path / "b.npz", waves(8, rate=25), rate=25)
    assert "Channels differ in their rates" in str(check_recordings(tmp_path))
    write_npz(tmp_path / "b.npz", waves(8)[:, :2], ["ax", "pulse"])
    assert "Recordings differ in channels" in str(check_recordings(tmp_path))
    given = {"modality.channels": ["ax"], "modality.rate": 50.0, "data.train_rows.where": {"path": "*/b.npz"}}
    assert "Recordings differ in channels" not in str(check_recordings(tmp_path, {"modality.channels": ["ax"]}))
    write_npz(tmp_path / "b.npz", waves(8, rate=25), rate=25)
    known = {key: given[key] for key in ("modality.channels", "modality.rate")}
    assert str(check_recordings(tmp_path, known)).endswith("'modality.channels=[\"ax\"]' modality.rate=50.0")
    assert check_recordings(tmp_path, given).recordings == 1
    write_npz(tmp_path / "b.npz", waves(8)[:, :2], ["ax", "acc_x"])
    (tmp_path / "a.npz").unlink()
    assert "Several channels are acc_x: name those to use" in str(check_recordings(tmp_path))
    with pytest.raises(UserError, match="npz has two channels acc_x; name those to use by"):
        resolve_recipe("signal/v2-tiny", tmp_path, {}, None)


def test_recordings_are_told_from_other_data(tmp_path: Path) -> None:
    def written(name: str, content: str) -> bool:
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(content)
        return is_recordings(folder)

    assert written("a.csv", "time,ax\n2024-01-31 12:00:00,1\n") and written("b.tsv", "ax\tay\n1.5\t\n") and written("a.edf", "")
    assert not written("c.csv", "text,label\ngood,1\n") and not written("d.csv", "text\ngood\n")
    assert not written("e.csv", "file_name,label\na.wav,b\n") and not written("a.txt", "words") and not written("a.tar", "")
    assert not is_recordings(tmp_path)  # a text beside
    (tmp_path / "a-csv" / "metadata.csv").write_text("file_name,label\na.csv,run\n")
    assert is_recordings(tmp_path / "a-csv") and not written("metadata.csv", "file_name,label\na.wav,b\n")


def test_arrays_of_four_axes_are_videos_and_the_command_says_how_to_check_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "clip.npy", np.zeros((8, 6, 4, 3), np.uint8))
    assert not is_recordings(tmp_path)
    assert exit_status("check", str(tmp_path)) == 2
    assert "found 1 .npy; for videos add --modality video" in capsys.readouterr().err


def test_command_takes_settings_of_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "a.npy", waves(8))
    command = ("check", str(tmp_path))
    assert exit_status(*command, "data.rate=50", "data.time_axis=first") == 0
    assert "ch1 ch2 ch3 (1)" in capsys.readouterr().out
    assert exit_status(*command) == 0 and "time axis is unknown" in capsys.readouterr().out
    assert exit_status(*command, "--workers", "2") == 2 and "--workers: has no effect" in capsys.readouterr().err
