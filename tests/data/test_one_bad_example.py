"""One bad example, name or line never ends a run or refuses a dataset: it is counted and named."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from data2vec.data.audio import decode_audio, normalize_waveform
from data2vec.data.check.inspect import inspect_example
from data2vec.data.corrupt import load_example
from data2vec.data.dataset import ExampleDataset
from data2vec.data.sources.open_dataset import open_dataset
from data2vec.data.text import read_text
from data2vec.errors import CorruptExample, UserError


class Failing(ExampleDataset):
    """Examples that fail with an error each."""

    errors: tuple[BaseException, ...] = (
        *(MemoryError(), RecursionError("deep"), OverflowError("big"), TypeError("null"), KeyError("x"), OSError(30, "EROFS")),
        *(UnicodeEncodeError("utf-8", "\udce9", 0, 1, "no"), AssertionError(), IndexError("\x1b[2J\n"), ZeroDivisionError()),
    )
    costs = np.ones(len(errors))

    def load(self, index: int, limit: float | None, rng: np.random.Generator | None) -> Any:
        raise self.errors[index]


@pytest.mark.parametrize("index", range(len(Failing.errors)))
def test_whatever_loading_raises_is_a_corrupt_example_that_names_it(index: int) -> None:
    with pytest.raises(CorruptExample, match=f"^example {index + 1}: {type(Failing.errors[index]).__name__}") as raised:
        load_example(Failing(), index, None, None)
    assert str(raised.value).isprintable()


def test_user_error_of_all_examples_is_not_taken_for_a_corrupt_one() -> None:
    class Wrong(Failing):
        errors = (UserError("no column x"),)

    with pytest.raises(UserError, match="no column x"):
        load_example(Wrong(), 0, None, None)


LINES = {
    "no JSON": b"{",
    "a list": b"[1]",
    "null": b"null",
    "no text": b'{"text": null}',
    "a number": b'{"text": 3}',
    "not UTF-8": b'{"text": "\xe9"}',
    "surrogate": b'{"text": "\\ud800"}',
    "deep": b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "digits": b'{"text": ' + b"9" * 10_000 + b"}",
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("line", LINES.values(), ids=LINES.keys())
def test_broken_line_of_jsonl_is_one_bad_example_named_with_its_line(tmp_path: Path, line: bytes, streaming: bool) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_bytes(b"\n".join([b'{"text": "one"}', line, b'{"text": "three"}', b""]))
    rows = list(open_dataset(str(path), "text", streaming=streaming))
    assert [rows[0]["text"], rows[2]["text"], len(rows)] == ["one", "three", 3]
    with pytest.raises(CorruptExample, match=r"texts\.jsonl:2: "):
        list(read_text(rows[1]))


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("peak", [1e15, 1e19, 1e30, 3.4e38])
def test_finite_samples_of_any_size_are_normalized_or_a_bad_example(
    tmp_path: Path, peak: float, channels: int, rate: int
) -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, (rate // 4, channels)).astype(np.float32) * np.float32(peak)
    path = tmp_path / "a.wav"
    soundfile.write(path, samples, rate, subtype="FLOAT")
    found = inspect_example("audio", {"audio": {"bytes": None, "path": str(path)}}, str(path))
    if "problem" in found:
        assert peak > 1e38 and "beyond the range of float32" in found["problem"]
        return
    waveform = normalize_waveform(decode_audio({"bytes": None, "path": str(path)}))
    assert np.isfinite(waveform).all() and abs(waveform.std() - 1) < 0.01
    assert found["peak"] == pytest.approx(peak, rel=0.7)


@pytest.mark.parametrize("value", [1e39, 1e300, -1e300])
def test_array_beyond_float32_is_a_bad_example(value: float) -> None:
    with pytest.raises(CorruptExample, match="beyond the range of float32"):
        decode_audio({"array": np.array([0.0, value] * 8000), "sampling_rate": 16000, "path": "a"})


@pytest.mark.parametrize("streaming", [False, True])
def test_name_of_a_file_that_is_not_utf_8_is_one_bad_example(tmp_path: Path, streaming: bool) -> None:
    for name in (b"a/1.png", b"a/caf\xe9.png", b"b\xe9/2.png"):
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    rows = list(open_dataset(str(tmp_path), "image", streaming=streaming))
    names = {row["image"]["path"].removeprefix(f"{tmp_path}/"): row["image"]["unreadable_because"] for row in rows}
    reason = "its name is not UTF-8; rename it"
    assert names == {"a/1.png": None, r"a/caf\udce9.png": reason, r"b\udce9/2.png": reason}
    assert sorted({row["label"] for row in rows}) == ["a", r"b\udce9"]
    json.dumps(rows)
