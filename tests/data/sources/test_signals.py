"""Tables as people have them: any Arrow type of text and bytes, paths, decoded audio, saved and in-memory datasets."""

import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from datasets import Audio, ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
from pyarrow import parquet

from data2vec.data.audio import decode_audio
from data2vec.data.sources.columns import class_names, label_value
from data2vec.data.sources.library import data_path
from data2vec.data.sources.open_dataset import open_dataset
from data2vec.data.text import read_text
from data2vec.errors import CorruptExample, UserError

STREAMING = pytest.mark.parametrize("streaming", [False, True])


def tone(samples: int = 1600, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


@cache  # as a wav file of floats holds the time of its making
def wav(seed: int = 0) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, tone(seed=seed), 16000, format="WAV", subtype="FLOAT")
    return file.getvalue()


def waves(path: Path | str, streaming: bool = False, **options: Any) -> list[np.ndarray]:
    return [decode_audio(row["audio"]) for row in open_dataset(str(path), "audio", streaming=streaming, **options)]


def first_of(path: Path, kind: Any, streaming: bool) -> Any:
    return next(iter(open_dataset(str(path), kind, streaming=streaming)))


@STREAMING
@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary"])
def test_text_of_any_arrow_type(tmp_path: Path, kind: str, streaming: bool) -> None:
    values = pa.array(["one", "two"])
    values = values.dictionary_encode() if kind == "dictionary" else values.cast(getattr(pa, kind)())
    parquet.write_table(pa.table({"text": values, "label": values}), tmp_path / "a.parquet")
    rows = list(open_dataset(str(tmp_path), "text", streaming=streaming))
    assert [(row["text"], row["label"]) for row in rows] == [("one", "one"), ("two", "two")]


@STREAMING
@pytest.mark.parametrize("form", ["binary", "struct"])
def test_text_as_content(tmp_path: Path, form: str, streaming: bool) -> None:
    values: list[Any] = ["née".encode(), b"two"]
    Dataset.from_dict(
        {"id": ["a", "b"], "text": values if form == "binary" else [{"bytes": each, "path": "x"} for each in values]}
    ).to_parquet(tmp_path / "a.parquet")
    rows = list(open_dataset(str(tmp_path), "text", streaming=streaming, column="text"))
    assert ["".join(read_text(row)) for row in rows] == ["née", "two"]


@STREAMING
@pytest.mark.parametrize("kind", ["binary", "large_binary", "binary_view"])
def test_content_of_any_arrow_type(tmp_path: Path, kind: str, streaming: bool) -> None:
    values = pa.array([wav(0), None, wav(2)], getattr(pa, kind)())
    parquet.write_table(pa.table({"audio": values}), tmp_path / "a.parquet")
    rows = [row["audio"] for row in open_dataset(str(tmp_path), "audio", streaming=streaming)]
    assert [row["bytes"] for row in rows] == [wav(0), None, wav(2)]
    with pytest.raises(CorruptExample, match=r"a\.parquet, row 2: it is empty: there is neither content nor a path$"):
        decode_audio(rows[1])


@STREAMING
@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary", "struct"])
def test_paths_are_relative_to_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, streaming: bool) -> None:
    (tmp_path / "set" / "clips").mkdir(parents=True)
    (tmp_path / "set" / "clips" / "x.wav").write_bytes(wav())
    monkeypatch.chdir(tmp_path)
    names = pa.array(["clips/x.wav", str(tmp_path / "set" / "clips" / "x.wav")])
    if kind == "struct":
        names = pa.StructArray.from_arrays([pa.nulls(2, pa.binary()), names], ["bytes", "path"])
    else:
        names = names.dictionary_encode() if kind == "dictionary" else names.cast(getattr(pa, kind)())
    parquet.write_table(pa.table({"audio": names, "n": [1, 2]}), tmp_path / "set" / "t.parquet")
    for path in ("set/t.parquet", "set", str(tmp_path / "set")):
        found = waves(path, streaming)
        assert len(found) == 2 and all(np.array_equal(each, tone()) for each in found)


@STREAMING
@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("column", ["audio", "file", "path", "audio_filepath", "recording"])
def test_table_of_paths_in_any_format(tmp_path: Path, ending: str, column: str, streaming: bool) -> None:
    (tmp_path / "x.wav").write_bytes(wav())
    row = {"id": "0012", column: "x.wav", "text": "HELLO"}
    path = tmp_path / f"manifest.{ending}"
    if ending == "parquet":
        Dataset.from_list([row]).to_parquet(path)
    elif ending == "jsonl":
        path.write_text(json.dumps(row | {"duration": 0.1, "offset": 0}) + "\n")
    else:
        mark = "\t" if ending == "tsv" else ","
        path.write_text(f"{mark.join(row)}\n{mark.join(row.values())}\n")
    if ending == "parquet" and column == "recording":
        assert np.array_equal(waves(path, streaming, column=column)[0], tone())
        return
    found = first_of(path, "audio", streaming)
    assert np.array_equal(decode_audio(found["audio"]), tone())
    assert (found["id"], found["text"]) == ("0012", "HELLO")


@STREAMING
def test_manifest_of_json_lines_may_end_in_json(tmp_path: Path, streaming: bool) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.wav").write_bytes(wav())
    row = {"audio_filepath": "a.wav", "duration": 0.1, "text": "hello"}
    (tmp_path / "train_manifest.json").write_text(json.dumps(row) + "\n")
    (tmp_path / "dev_manifest.json").write_text(json.dumps(row | {"audio_filepath": str(tmp_path / "b.wav")}) + "\n")
    (tmp_path / "info.json").write_text(json.dumps({"version": 1, "files": ["a.wav"]}, indent=1))
    for path, split, name in (("train_manifest.json", "train", "a"), (".", "train", "a"), (".", "valid", "b")):
        (found,) = open_dataset(str(tmp_path / path), "audio", split, streaming=streaming)
        assert found["text"] == "hello" and found["audio"]["path"] == str(tmp_path / f"{name}.wav")
    with pytest.raises(UserError, match=r"info\.json: no column holds audio"):
        open_dataset(str(tmp_path / "info.json"), "audio", streaming=streaming)


def test_rows_of_a_manifest_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.wav").write_bytes(wav())
    cases = {
        '{"audio_filepath": "x.wav", "offset": 3.5}': "column offset is not 0 in all rows",
        '{"audio_filepath": "x.wav"}\n{"text": "A"}\n[1]': "2 of 3 rows cannot be read, .*jsonl:2: it names no file",
    }
    for number, (lines, message) in enumerate(cases.items()):
        (tmp_path / f"{number}.jsonl").write_text(lines + "\n")
        with pytest.raises(UserError, match=message):
            open_dataset(str(tmp_path / f"{number}.jsonl"), "audio")


@STREAMING
def test_urls_and_paths_without_a_folder_are_refused(tmp_path: Path, streaming: bool) -> None:
    Dataset.from_dict({"image": ["https://host/a.png"]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(
        UserError, match=r"names its files by paths such as https://host/a\.png, a URL, not a file; download it"
    ):
        first_of(tmp_path / "a.parquet", "image", streaming)
    for folder in ("1", "2"):
        (tmp_path / "many" / folder).mkdir(parents=True)
        Dataset.from_dict({"image": ["a.png"]}).to_parquet(tmp_path / "many" / folder / "a.parquet")
    with pytest.raises(UserError, match=r"a\.png, a path that is relative to no folder here"):
        first_of(tmp_path / "many", "image", streaming)


def decoded(path: Path, dtype: str, *arrays: Any, rate: int | None = 16000) -> Path:
    """A parquet file of decoded audio, as the `datasets` library saves it."""
    nested = List(Value(dtype)) if np.ndim(arrays[0]) == 1 else List(List(Value(dtype)))
    audio = {"array": nested, "path": Value("string"), "sampling_rate": Value("int64")}
    rows = [{"audio": {"array": array, "path": f"{i}", "sampling_rate": rate}, "n": i} for i, array in enumerate(arrays)]
    Dataset.from_list(rows, features=Features({"audio": audio, "n": Value("int64")})).to_parquet(path)
    return path


@STREAMING
@pytest.mark.parametrize("dtype", ["float32", "float64", "int16"])
def test_decoded_audio_is_read_without_loss(tmp_path: Path, dtype: str, streaming: bool) -> None:
    samples = (tone() * 32767).astype(dtype) if dtype == "int16" else tone().astype(dtype)
    path = decoded(tmp_path / "a.parquet", dtype, samples, samples[:800])
    rows = list(open_dataset(str(path), "audio", streaming=streaming))
    expected = samples / np.float32(32768) if dtype == "int16" else tone()
    assert [row["n"] for row in rows] == [0, 1] and np.array_equal(decode_audio(rows[0]["audio"]), expected)
    assert np.array_equal(decode_audio(rows[1]["audio"]), expected[:800])


@STREAMING
def test_decoded_audio_in_a_column_of_any_name(tmp_path: Path, streaming: bool) -> None:
    decoded(tmp_path / "a.parquet", "float32", tone())
    rows = Dataset.from_parquet(str(tmp_path / "a.parquet")).rename_column("audio", "clip")
    rows.to_parquet(tmp_path / "a.parquet")
    assert np.array_equal(waves(tmp_path / "a.parquet", streaming)[0], tone())
    rows.save_to_disk(tmp_path / "saved")
    assert np.array_equal(waves(tmp_path / "saved", streaming)[0], tone())


@STREAMING
@pytest.mark.parametrize(
    ("dtype", "array", "rate", "message"),
    [
        ("int32", np.array([2**30, 5]), 16000, "whose full scale is unknown"),
        ("float32", np.zeros((2, 100)), 16000, "average the channels, or pick one"),
        ("float32", np.zeros(100), None, "a sampling rate of None"),
        ("float32", np.zeros(0), 16000, "it lasts 0 s"),
    ],
)
def test_decoded_audio_that_cannot_be_read_is_named(
    tmp_path: Path, dtype: str, array: np.ndarray, rate: int | None, message: str, streaming: bool
) -> None:
    path = decoded(tmp_path / "a.parquet", dtype, array, rate=rate)
    (row,) = open_dataset(str(path), "audio", streaming=streaming)
    with pytest.raises(CorruptExample, match=f"0: .*{message}"):
        decode_audio(row["audio"])


@STREAMING
def test_typed_columns_with_missing_values_are_kept(tmp_path: Path, streaming: bool) -> None:
    values = [{"bytes": wav(), "path": None}, None]
    Dataset.from_dict({"audio": values}).cast_column("audio", Audio(decode=False)).to_parquet(tmp_path / "a.parquet")
    rows = [row["audio"] for row in open_dataset(str(tmp_path / "a.parquet"), "audio", streaming=streaming)]
    assert np.array_equal(decode_audio(rows[0]), tone()) and rows[1]["bytes"] is None
    assert rows[1]["path"] == f"{tmp_path / 'a.parquet'}, row 2" and "it is empty" in rows[1]["unreadable_because"]


def test_saved_audio_and_images_are_read(tmp_path: Path, picture: Any, encoded: Any) -> None:
    (tmp_path / "x.wav").write_bytes(wav())
    sounds = Dataset.from_dict({"speech": [str(tmp_path / "x.wav")], "label": [1]}).cast_column("speech", Audio(decode=False))
    sounds.save_to_disk(tmp_path / "sounds")
    images = Dataset.from_dict({"picture": [{"bytes": encoded(picture(), "PNG"), "path": None}]})
    images.cast_column("picture", Image()).save_to_disk(tmp_path / "images")
    for streaming in (False, True):
        assert np.array_equal(waves(tmp_path / "sounds", streaming)[0], tone())
        assert first_of(tmp_path / "images", "image", streaming)["image"]["bytes"] == encoded(picture(), "PNG")
    before = sorted(path.name for path in (tmp_path / "sounds").iterdir())
    assert before == ["data-00000-of-00001.arrow", "dataset_info.json", "state.json"], "nothing is written there"


@pytest.mark.parametrize("form", ["numpy", "torch", "pandas"])
def test_format_of_a_dataset_in_memory_changes_no_label(form: str) -> None:
    rows = Dataset.from_dict({"text": ["a", "b"], "label": [1, -1]}).cast_column("label", ClassLabel(names=["neg", "pos"]))
    opened = open_dataset(data_path(rows.with_format(form)), "text")
    assert [label_value(value, class_names(opened.features["label"])) for value in opened["label"]] == ["pos", None]


def test_dataset_in_memory_is_saved_to_the_cache_once(tmp_path: Path) -> None:
    one = Dataset.from_dict({"text": ["a", "b"], "label": ["x", "y"]})
    path = data_path(one)
    assert open_dataset(path, "text")["text"][:] == ["a", "b"] and data_path(one) == path
    assert data_path(one.select([1])) != path
    both = DatasetDict({"train": one, "test": one.select([1])})
    assert open_dataset(data_path(both), "text", "test")["text"][:] == ["b"]
    assert data_path("photos/") == "photos/" and data_path(tmp_path) == str(tmp_path)
    for wrong in (one.to_iterable_dataset(), ["a"], None):
        with pytest.raises(UserError, match="is no dataset; give a folder"):
            data_path(wrong)


@pytest.mark.parametrize("ending", ["aiff", "aif", "au", "caf", "w64", "oga", "rf64"])
def test_audio_files_of_more_formats_are_found_and_decoded(tmp_path: Path, ending: str) -> None:
    form = {"aif": "AIFF", "oga": "OGG"}.get(ending, ending.upper())
    soundfile.write(tmp_path / f"x.{ending}", tone(), 16000, format=form)
    assert len(waves(tmp_path)[0]) == 1600


def test_sphere_file_is_found_and_decoded(tmp_path: Path) -> None:
    samples = (tone() * 32767).astype("<i2")
    header = "NIST_1A\n   1024\n" + "".join(
        f"{line}\n"
        for line in (
            *("channel_count -i 1", f"sample_count -i {len(samples)}", "sample_rate -i 16000", "sample_n_bytes -i 2"),
            *("sample_byte_format -s2 01", "sample_sig_bits -i 16", "sample_coding -s3 pcm", "end_head"),
        )
    )
    (tmp_path / "x.sph").write_bytes(header.encode().ljust(1024) + samples.tobytes())
    assert np.array_equal(waves(tmp_path)[0], samples / np.float32(32768))
