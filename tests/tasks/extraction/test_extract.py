import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file

import data2vec
from data2vec.data.tokenizer import save_tokenizer, train_tokenizer
from data2vec.errors import UserError
from data2vec.model import Model, save_model_folder
from data2vec.nn.encoder import build_encoder
from data2vec.recipe.loading import load_recipe
from data2vec.tasks import shares
from data2vec.tasks.digests import content_digest
from data2vec.tasks.extraction import extract as task
from helpers.locks import locked_by_another_process

SMALL = {"encoder.width": 16, "encoder.ffn_width": 32, "encoder.layers": 2, "objective.target.top_k": 2, "data.workers": 0}
LENGTHS = (8000, 3000, 0, 400, 12000, 300, 5000, 9000, 4000, 7000)
"""Samples of the clips below; 0 stands for one that is no sound, and 300 are too few for a position."""


def build(name: str, **overrides: Any) -> Model:
    recipe = load_recipe(name, SMALL | {key.replace("__", "."): value for key, value in overrides.items()})
    modality = recipe.build_modality()
    torch.manual_seed(0)
    return Model(build_encoder(modality, recipe.encoder).eval().requires_grad_(False), modality, recipe)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard for every few inputs."""
    monkeypatch.setattr("data2vec.tasks.extraction.decode.CHUNK", 2)
    monkeypatch.setattr(task, "WINDOW", 1)
    monkeypatch.setattr(shares, "SHARD_SECONDS", 0)


@pytest.fixture
def speech() -> Model:
    return build("speech/v1-tiny")


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Two classes of clips; one is unreadable, and one too short."""
    rng = np.random.default_rng(0)
    for i, samples in enumerate(LENGTHS):
        path = tmp_path / "clips" / "ab"[i >= 5] / f"{i}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        if samples:
            soundfile.write(path, rng.normal(0, 0.1, samples), 16000)
        else:
            path.write_bytes(b"no sound")
    return tmp_path / "clips"


def read(path: Path) -> tuple[np.ndarray, np.ndarray, list[str], dict[str, Any]]:
    """Features, lengths, names and the rest, as docs/features.md reads them."""
    if path.suffix == ".npy":
        about = json.loads(path.with_name(f"{path.name}.json").read_text())
        return np.load(path, mmap_mode="r"), np.array(about.pop("lengths")), about.pop("names"), about
    if path.suffix == ".safetensors":
        tensors = load_file(path)
        with safe_open(path, "numpy") as file:
            words = file.metadata()
        assert tensors["offsets"].tolist() == [0, *np.cumsum(tensors["lengths"])]
        about = {
            key: value if key in ("layers", "data", "model", "precision") else json.loads(value) for key, value in words.items()
        }
        return tensors["hidden"], tensors["lengths"], json.loads(bytes(tensors["names"])), about
    table = pq.read_table(path)
    about = {key.decode(): json.loads(value) for key, value in table.schema.metadata.items()}
    lengths = np.array(table["length"].to_pylist())
    rows = [None if row is None else np.array(row, np.float32) for row in table["features"].to_pylist()]
    shape = next(row.shape for row in rows if row is not None)
    rows = [np.zeros(shape if about["pool"] else (0, *shape[1:]), np.float32) if row is None else row for row in rows]
    return (np.stack if about["pool"] else np.concatenate)(rows), lengths, table["name"].to_pylist(), about


@pytest.mark.parametrize("ending", ["npy", "safetensors", "parquet"])
@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("layers", ["last", "all"])
def test_every_file_format_stores_the_features_of_the_model(
    speech: Model, clips: Path, tmp_path: Path, ending: str, pool: bool, layers: str
) -> None:
    out = tmp_path / f"out.{ending}"
    done = data2vec.features(speech, clips, out, layers, pool, batch=40)  # type: ignore[arg-type]
    hidden, lengths, names, about = read(out)
    assert (done.path, done.inputs, done.positions, len(done.unreadable)) == (out, 10, lengths.sum(), 2)
    assert done.unreadable == about["unreadable"] and done.num_unreadable == about["num_unreadable"] == 2
    assert "2.wav: " in about["unreadable"][0] and "5.wav: too short" in about["unreadable"][1]
    assert names == [str(path) for path in sorted(clips.rglob("*.wav"))]
    assert (about["layers"], about["pool"], about["seconds_per_position"]) == (layers, pool, 0.02)
    shape = (2, 16) if layers == "all" else (16,)
    assert hidden.shape == (10 if pool else lengths.sum(), *shape) and hidden.dtype == np.float32
    offsets = [0, *np.cumsum(lengths)]
    for i, name in enumerate(names):
        mine = hidden[i] if pool else hidden[offsets[i] : offsets[i + 1]]
        if i in (2, 5):
            assert lengths[i] == 0 and not mine.any()
            continue
        alone = speech.features([name], layers, pool)  # type: ignore[arg-type]
        assert lengths[i] == alone.lengths[0]
        expected = alone.hidden[:, 0].numpy() if pool else alone.hidden[:, 0].numpy().swapaxes(0, 1)
        np.testing.assert_allclose(mine, expected.reshape(mine.shape), atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir() if path != clips) == sorted(
        [out.name, f"{out.name}.json"] if ending == "npy" else [out.name]
    )


def test_parquet_keeps_text_and_number_columns(speech: Model, clips: Path, tmp_path: Path) -> None:
    data2vec.features(speech, clips, tmp_path / "out.parquet", pool=True)
    assert pq.read_table(tmp_path / "out.parquet")["label"].to_pylist() == ["a"] * 5 + ["b"] * 5


def packed(clips: Path, path: Path) -> Path:
    """The clips in an archive, or in a table with classes."""
    files = sorted(clips.rglob("*.wav"))
    if path.suffix == ".tar":
        with tarfile.open(path, "w") as tar:
            for file in files:
                tar.add(file, file.name)
                content = file.parent.name.encode()
                info = tarfile.TarInfo(f"{file.stem}.cls")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    else:
        from datasets import ClassLabel, Dataset, Features, Value

        rows = {
            "audio": [{"bytes": file.read_bytes(), "path": file.name} for file in files],
            "label": ["ab".index(file.parent.name) for file in files],
        }
        audio = {"bytes": Value("binary"), "path": Value("string")}
        Dataset.from_dict(rows, Features({"audio": audio, "label": ClassLabel(names=["a", "b"])})).to_parquet(path)
    return path


@pytest.mark.parametrize("ending", ["tar", "parquet"])
def test_archives_and_tables_give_the_features_of_folders(speech: Model, clips: Path, tmp_path: Path, ending: str) -> None:
    data2vec.features(speech, clips, tmp_path / "a.parquet", batch=40)
    data2vec.features(speech, packed(clips, tmp_path / f"in.{ending}"), tmp_path / "b.parquet", batch=40)
    one, other = (pq.read_table(tmp_path / f"{name}.parquet") for name in "ab")
    for column in ("length", "features", "label"):
        assert one[column].to_pylist() == other[column].to_pylist()


def test_lists_of_files_and_arrays_are_inputs(speech: Model, clips: Path, tmp_path: Path) -> None:
    files = sorted(clips.rglob("*.wav"))
    data2vec.features(speech, files, tmp_path / "a.npy", batch=40)
    data2vec.features(speech, clips, tmp_path / "b.npy", batch=40)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    waves = [soundfile.read(files[0], dtype="float32")[0], torch.zeros(200), np.zeros((2, 9000), np.float32)]
    done = data2vec.features(speech, waves, tmp_path / "c.npy")
    short, wrong = done.unreadable
    assert short == "input 2: too short for a single position" and wrong.startswith("input 3: audio of shape (2, 9000)")
    np.testing.assert_allclose(np.load(tmp_path / "c.npy"), np.load(tmp_path / "a.npy")[:24], atol=1e-5)


def test_text_tables_strings_files_and_token_ids_are_inputs(tmp_path: Path) -> None:
    texts = ["nothing", "a small text", "about nothing at all", "a text"]
    save_tokenizer(train_tokenizer(texts * 3, 300), tmp_path)
    text = build("text/v1-tiny", modality__vocab_size=300, data__tokenizer=str(tmp_path))
    (tmp_path / "in.tsv").write_text("\n".join(["text\tkind", *(f"{each}\t{i}" for i, each in enumerate(texts))]))
    (tmp_path / "a.txt").write_text(texts[1])
    data2vec.features(text, tmp_path / "in.tsv", tmp_path / "table.parquet")
    data2vec.features(text, texts, tmp_path / "strings.parquet")
    one, other = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("table", "strings"))
    assert one["features"].to_pylist() == other["features"].to_pylist()
    assert one["kind"].to_pylist() == ["0", "1", "2", "3"]
    assert one["name"].to_pylist() == ["input 1", "input 2", "input 3", "input 4"]
    data2vec.features(text, [tmp_path / "a.txt", [0, 5, 2]], tmp_path / "file.npy")
    hidden, lengths, names, about = read(tmp_path / "file.npy")
    expected = text.features([tmp_path / "a.txt", [0, 5, 2]])
    assert lengths.tolist() == expected.lengths.tolist() and names == [str(tmp_path / "a.txt"), "input 2"]
    assert about["seconds_per_position"] is None
    np.testing.assert_allclose(hidden[: lengths[0]], expected.hidden[0, 0, : lengths[0]], atol=1e-5)
    unknown = build("text/v1-tiny", modality__vocab_size=300)
    for given in (texts, tmp_path / "in.tsv"):
        with pytest.raises(UserError, match="this text model has no tokenizer"):
            data2vec.features(unknown, given, tmp_path / "no.npy")


def test_images_have_the_features_of_the_model(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(tmp_path / "photos" / f"{i}.png")
    vision = build("vision/v2-tiny", data__workers=2)
    data2vec.features(vision, tmp_path / "photos", tmp_path / "out.npy", layers=-1)
    hidden, lengths, names, _ = read(tmp_path / "out.npy")
    expected = vision.features(names, layers=-1)
    assert lengths.tolist() == expected.lengths.tolist()
    np.testing.assert_allclose(hidden.reshape(3, -1, 16), expected.hidden[0], atol=1e-5)


KILLED = """
import os, signal, sys
from data2vec.atomic_io import temporary_path
from data2vec.tasks import shares
from data2vec.tasks.extraction import extract as features, writers, decode
decode.CHUNK, features.WINDOW, shares.SHARD_SECONDS = 2, 1, 0
def killed(path, atomic_write=shares.atomic_write):
    if sys.argv[1] in path.name:  # in the middle of writing
        temporary_path(path).write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    return atomic_write(path)
shares.atomic_write = writers.atomic_write = killed
features.features(sys.argv[2], sys.argv[3], sys.argv[4], batch=8)
"""


@pytest.mark.parametrize(("ending", "at"), [
    ("npy", "000000000006-"),
    ("parquet", "out"),
    pytest.param("npy", "out", marks=pytest.mark.slow),
    pytest.param("parquet", "000000000006-", marks=pytest.mark.slow),
    pytest.param("safetensors", "000000000006-", marks=pytest.mark.slow),
    pytest.param("safetensors", "out", marks=pytest.mark.slow),
])  # fmt: skip
def test_killed_extraction_resumes_bit_equal(speech: Model, clips: Path, tmp_path: Path, ending: str, at: str) -> None:
    save_model_folder(speech, tmp_path / "model")
    out = tmp_path / f"out.{ending}"
    words = (sys.executable, "-c", KILLED, at, str(tmp_path / "model"), str(clips), str(out))
    result = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert result.returncode == -9, result.stderr
    assert not out.exists()
    done = [path.stem for path in sorted(out.with_name(f"{out.name}.parts").glob("*.safetensors"))]
    assert done[:2] == ["000000000000-000000000002", "000000000002-000000000006"]
    assert len(done) == (2 if at != "out" else 4)

    model = data2vec.load(tmp_path / "model")
    if at == "out":
        torch.nn.init.constant_(model.encoder.local_encoder.project.weight, 0)  # nothing is left to be computed
        with pytest.raises(UserError, match=r"out.*\.parts was started with model '"):
            data2vec.features(model, clips, out, batch=8)
        model = data2vec.load(tmp_path / "model")
    data2vec.features(model, clips, out, batch=8)
    data2vec.features(model, clips, tmp_path / f"whole.{ending}", batch=8)
    assert out.read_bytes() == (tmp_path / f"whole.{ending}").read_bytes()
    assert not list(tmp_path.glob("*.parts"))


def test_shards_of_other_settings_are_refused(
    speech: Model, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.npy"
    with monkeypatch.context() as patch:
        patch.setattr(task, "write_features", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            data2vec.features(speech, clips, out)
    for layers, pool, said in (("all", False, "layers 'last', not 'all'"), ("last", True, "pool False, not True")):
        with pytest.raises(UserError, match=rf"out\.npy\.parts was started with {said}: use the same to resume"):
            data2vec.features(speech, clips, out, layers, pool)  # type: ignore[arg-type]
    shutil.copy(clips / "a" / "0.wav", clips / "a" / "another.wav")
    with pytest.raises(UserError, match="was started with content"):
        data2vec.features(speech, clips, out)
    (clips / "a" / "another.wav").unlink()
    data2vec.features(speech, clips, out)
    assert out.exists()


def test_digest_of_rows_that_only_have_a_length_and_items() -> None:
    class Rows:
        def __init__(self, length: int):
            self.length = length

        def __len__(self) -> int:
            return self.length

        def __getitem__(self, index: int) -> int:
            assert index < 9, "read past the end"
            return index % self.length

    modality = build("text/v1-tiny").modality
    assert content_digest(modality, Rows(3)) == content_digest(modality, [0, 1, 2]) != content_digest(modality, Rows(2))


def test_digest_of_texts_says_where_each_ends() -> None:
    one, other = (content_digest(build("text/v1-tiny").modality, texts) for texts in (["ab", "c"], ["a", "bc"]))
    assert one != other


def test_second_extraction_into_the_same_file_is_refused_and_changes_nothing(
    speech: Model, clips: Path, tmp_path: Path
) -> None:
    parts = tmp_path / "out.npy.parts"
    parts.mkdir()
    with locked_by_another_process(parts / ".lock"):
        with pytest.raises(UserError, match="another process extracts features in this folder"):
            data2vec.features(speech, clips, tmp_path / "out.npy")
        assert [path.name for path in parts.iterdir()] == [".lock"]
    data2vec.features(speech, clips, tmp_path / "out.npy")
    assert {path.name for path in tmp_path.iterdir()} == {"clips", "out.npy", "out.npy.json"}


@pytest.mark.parametrize("ending", ["npy", "safetensors", "parquet"])
def test_shares_of_any_number_are_merged_by_the_last_one_in_order(
    speech: Model, clips: Path, tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shares, "SMALLEST_BLOCK", 2)
    data2vec.features(speech, clips, tmp_path / f"whole.{ending}", batch=8)
    for count in (2, 3, 7):
        out = tmp_path / f"{count}.{ending}"
        done = [data2vec.features(speech, clips, out, batch=8, shard=f"{i}/{count}") for i in range(count, 0, -1)]
        assert [each.status is None for each in done] == [False] * (count - 1) + [True]
        if ending == "parquet":  # a row group for each shard
            assert pq.read_table(out).equals(pq.read_table(tmp_path / "whole.parquet"), check_metadata=True)
        else:
            assert out.read_bytes() == (tmp_path / f"whole.{ending}").read_bytes()
    assert str(done[0]).endswith("share 7 of 7 of 10 inputs is empty")
    assert not list(tmp_path.glob("*.parts"))


def test_work_of_shares_is_resumed_by_another_number_of_shares(
    speech: Model, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shares, "SMALLEST_BLOCK", 2)
    monkeypatch.setattr("os.environ", {**os.environ, "RANK": "1", "WORLD_SIZE": "2"})  # of torchrun, whose other process died
    out = tmp_path / "out.npy"
    assert (
        data2vec.features(speech, clips, out, batch=8).status
        == "share 2 of 2 is complete; 6 inputs of other shares are missing"
    )
    monkeypatch.undo()
    monkeypatch.setattr(shares, "SMALLEST_BLOCK", 2)
    computed = []
    monkeypatch.setattr(task, "_compute_shard", lambda *a, real=task._compute_shard: computed.append(a[2]) or real(*a))
    data2vec.features(speech, clips, out, batch=8, shard="1/3")
    assert data2vec.features(speech, clips, out, batch=8).status is None
    assert sum(map(len, computed)) == 6
    data2vec.features(speech, clips, tmp_path / "whole.npy", batch=8)
    assert out.read_bytes() == (tmp_path / "whole.npy").read_bytes()


def test_bf16_products_round_features_and_are_not_mixed_with_others(
    speech: Model, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shares, "SMALLEST_BLOCK", 2)
    data2vec.features(speech, clips, tmp_path / "exact.npy")
    data2vec.features(speech, clips, tmp_path / "rounded.npy", precision="bf16")
    exact, rounded = (read(tmp_path / f"{name}.npy") for name in ("exact", "rounded"))
    assert 0 < np.abs(rounded[0] - exact[0]).max() < 0.1
    assert rounded[3]["precision"] == "bf16"
    data2vec.features(speech, clips, tmp_path / "out.npy", precision="bf16", shard="1/2")
    with pytest.raises(UserError, match="was started with precision 'bf16', not 'fp32'"):
        data2vec.features(speech, clips, tmp_path / "out.npy", shard="2/2")
    with pytest.raises(UserError, match="precision: 'fp16' does not exist; use fp32 or bf16"):
        data2vec.features(speech, clips, tmp_path / "other.npy", precision="fp16")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # those of the compiler itself
def test_compiled_features_are_equal_up_to_rounding_and_a_setting_of_the_shares(
    speech: Model, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shares, "SMALLEST_BLOCK", 2)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    data2vec.features(speech, clips, tmp_path / "eager.npy")
    data2vec.features(speech, clips, tmp_path / "compiled.npy", compile=True)
    eager, compiled = (read(tmp_path / f"{name}.npy") for name in ("eager", "compiled"))
    np.testing.assert_allclose(compiled[0], eager[0], rtol=1e-4, atol=1e-5)
    assert compiled[3]["compile"] is True
    data2vec.features(speech, clips, tmp_path / "out.npy", compile=True, shard="1/2")
    with pytest.raises(UserError, match="was started with compile True, not False"):
        data2vec.features(speech, clips, tmp_path / "out.npy", shard="2/2")


def test_compile_without_a_compiler_is_refused(
    speech: Model, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"^compile: needs a C\+\+ compiler"):
        data2vec.features(speech, clips, tmp_path / "out.npy", compile=True)
    assert not list(tmp_path.glob("out*"))


def test_wrong_and_busy_shares_are_refused(speech: Model, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "SMALLEST_BLOCK", 2)
    out = tmp_path / "out.npy"
    for shard, said in (
        ("0/4", "counted from 1 to 4"),
        ("5/4", "counted from 1 to 4"),
        ("1", "is not i/n"),
        ("1/x", "is not i/n"),
    ):
        with pytest.raises(UserError, match=said):
            data2vec.features(speech, clips, out, shard=shard)
    (tmp_path / "out.npy.parts").mkdir()
    with locked_by_another_process(tmp_path / "out.npy.parts" / ".lock", 4, 1):  # the block of inputs 4 and 5
        assert "is complete" in str(data2vec.features(speech, clips, out, shard="1/3"))
        for shard in ("3/3", None, "1/2"):
            with pytest.raises(UserError, match="another process extracts features in this folder"):
                data2vec.features(speech, clips, out, shard=shard)


def test_invalid_arguments_raise(speech: Model, clips: Path, tmp_path: Path) -> None:
    for out, said in (
        ("out.csv", r"unknown file extension; use \.safetensors"),
        ("no/out.npy", "there is no folder .*no; create it first"),
    ):
        with pytest.raises(UserError, match=said):
            data2vec.features(speech, clips, tmp_path / out)
    for given, said in (
        ([], "inputs: is empty; give at least one"),
        ([clips, clips / "a" / "0.wav"], "is a folder: give one dataset alone, or files"),
        ("nowhere", "there is no such folder"),
        ([clips / "a" / "2.wav", tmp_path / "gone.wav"], r"none of the 2 inputs can be decoded: .*2\.wav: .*gone\.wav: "),
    ):
        with pytest.raises(UserError, match=said):
            data2vec.features(speech, given, tmp_path / "out.npy")  # type: ignore[arg-type]
    torch.nn.init.constant_(speech.encoder.local_encoder.project.weight, float("nan"))
    with pytest.raises(UserError, match="NaN or inf"):
        data2vec.features(speech, clips, tmp_path / "out.npy")
