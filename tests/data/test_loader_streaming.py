"""Real signals streamed from shards of every form, on disk and at an address."""

import functools
import http.server
import io
import json
import tarfile
import threading
from types import SimpleNamespace

import datasets
import fsspec
import pytest
import soundfile
import torch

from data2vec.data.loader import Loader
from data2vec.data.sources.open_dataset import open_dataset
from data2vec.data.tokenizer import save_tokenizer, train_tokenizer
from data2vec.errors import UserError
from data2vec.modalities.speech import Speech, SpeechData, SpeechSettings
from data2vec.modalities.text import Text, TextData, TextSettings
from data2vec.modalities.vision import Vision, VisionData, VisionSettings

ENDINGS = {"audio": "flac", "image": "jpg", "text": "txt"}
BROKEN = (7, 29)


@pytest.fixture
def signals(wave, picture, encoded):
    """40 signals of a kind, as (name, bytes); two of them are broken."""

    def signal(kind, i):
        if i in BROKEN:
            return b"\xff torn"
        if kind == "text":
            return f"Document number {i} says {'what it says ' * (i % 7 + 9)}and ends.".encode()
        if kind == "image":
            return encoded(picture(seed=i), "JPEG")
        file = io.BytesIO()
        soundfile.write(file, wave(0.5 + i % 9 / 10, seed=i), 16000, format="FLAC")
        return file.getvalue()

    return lambda kind: [(f"{i:02d}.{ENDINGS[kind]}", signal(kind, i)) for i in range(40)]


@pytest.fixture
def stored(signals):
    """Write the signals below a place: as files of their own, or eight shards."""

    def shard(kind, form, part):
        file = io.BytesIO()
        if form == "tar":
            with tarfile.open(fileobj=file, mode="w") as tar:
                for name, content in part:
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        elif form == "parquet":
            datasets.Dataset.from_dict({kind: [{"bytes": content, "path": name} for name, content in part]}).to_parquet(file)
        else:
            for _, content in part:
                file.write(content if content[0] == 0xFF else json.dumps({"text": content.decode()}).encode())
                file.write(b"\n")
        return file.getvalue()

    def store(kind, form, where):
        every = signals(kind)
        files = dict(every)
        if form != "files":
            files = {f"shard-{i}.{form}": shard(kind, form, every[5 * i : 5 * i + 5]) for i in range(8)}
        for name, content in files.items():
            with fsspec.open(f"{where}/{name}", "wb", auto_mkdir=True) as file:
                file.write(content)

    return store


@pytest.fixture
def load(tmp_path):
    """Make a loader of what is stored at a place."""
    settings = {"num_streams": 4, "shuffle_buffer": 16, "max_corrupt": 0.1}
    tokenizer = train_tokenizer(["Document number 0123456789 says what it says and ends."] * 9, 300)

    def modality(kind, **more):
        more = settings | {"streaming": True} | more
        if kind == "audio":
            data = SpeechData(min_seconds=0.6, max_seconds=1.2, batch_seconds=8.0, micro_batch_seconds=4.0, **more)
            return Speech(SpeechSettings(), data)
        if kind == "image":
            return Vision(VisionSettings(image=32, patch=16), VisionData(batch_size=8, micro_batch_size=4, **more))
        save_tokenizer(tokenizer, tmp_path)
        data = TextData(block_size=16, tokenizer=str(tmp_path), batch_size=8, micro_batch_size=4, **more)
        return Text(TextSettings(vocab_size=300), data)

    def make(kind, where, rank=0, world=1, **more):
        made = modality(kind, **more)
        return Loader(made, Half(), made.rows(where), 1, rank, world)

    return make


class Half:
    def draw(self, rows, grid, rng):
        masked = rng.random((rows, *grid)) < 0.5
        return SimpleNamespace(masked=masked, replaced=None, predicted=masked)


def take(loader, first, number, places=None):
    steps = loader.steps(first, places)
    taken = [next(steps) for _ in range(number)]
    steps.close()
    return [[(batch.input, batch.mask) for batch in step] for step in taken]


def same(one, other):
    return all(
        torch.equal(x, y)
        for mine, theirs in zip(one, other, strict=True)
        for a, b in zip(mine, theirs, strict=True)
        for x, y in zip(a, b, strict=True)
    )


SHARDS = [
    *((kind, form) for kind in ("audio", "image", "text") for form in ("tar", "parquet")),
    ("text", "jsonl"),
]
FORMS = [
    *((kind, form, place) for kind, form in SHARDS for place in ("disk", "memory")),
    *((kind, "files", "disk") for kind in ("audio", "image", "text")),
]


@pytest.mark.parametrize(("kind", "form", "place"), FORMS)
def test_streaming_reads_every_format(stored, load, tmp_path, kind, form, place):
    where = f"memory://{kind}-{form}" if place == "memory" else str(tmp_path / "set")
    stored(kind, form, where)
    one = load(kind, where, workers=0)
    whole = take(one, 0, 14)
    assert len(one.corrupt.names) == 2 and one.corrupt.total > 40, "more than a pass"
    assert same(take(load(kind, where, workers=2), 0, 14), whole)
    first = load(kind, where, workers=0)
    take(first, 0, 5)
    assert same(take(load(kind, where, workers=1), 5, 9, first.stream_states), whole[5:])
    ranks = [take(load(kind, where, rank, 2, workers=0), 0, 14) for rank in range(2)]
    assert same([a + b for a, b in zip(*ranks, strict=True)], whole)


def test_row_groups_of_a_single_parquet_file_are_shards(signals, load, tmp_path):
    column = [{"bytes": content, "path": name} for name, content in signals("image")]
    datasets.Dataset.from_dict({"image": column}).to_parquet(tmp_path / "one.parquet", batch_size=5)
    one = load("image", str(tmp_path / "one.parquet"), workers=0)
    assert (one.streams.shards, one.streams.count) == (8, 4)
    whole = take(one, 0, 9)
    first = load("image", str(tmp_path / "one.parquet"), workers=2)
    take(first, 0, 4)
    assert same(take(load("image", str(tmp_path / "one.parquet"), workers=0), 4, 5, first.stream_states), whole[4:])


def test_streamed_clips_are_bucketed_by_length_within_a_window(stored, load, tmp_path):
    stored("audio", "tar", str(tmp_path / "set"))
    batches = [waves for step in take(load("audio", str(tmp_path / "set"), workers=0), 0, 20) for waves, _ in step]
    seconds = [waves.shape[1] / 16000 for waves in batches]
    assert all(waves.shape[0] * length <= 4 + 1e-6 for waves, length in zip(batches, seconds, strict=True))
    assert max(seconds) > 1.1 and min(seconds) < 0.8, "long with long, short with short"


@pytest.mark.parametrize("form", ["tar", "parquet", "jsonl"])
def test_remote_data_can_be_indexed(stored, form, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)  # else the library does not read from any address
    kind = "text" if form == "jsonl" else "image"
    stored(kind, form, f"memory://indexed/{form}")
    assert len(open_dataset(f"memory://indexed/{form}", kind)) == 40
    assert len(open_dataset(f"memory://indexed/{form}/shard-0.{form}", kind)) == 5
    assert len(list(open_dataset(f"memory://indexed/{form}/shard-[01]*", kind, streaming=True))) == 10


@pytest.mark.parametrize("form", ["tar", "parquet"])
def test_streaming_from_a_web_server(stored, load, tmp_path, form):
    pytest.importorskip("aiohttp", reason="fsspec reads from web servers by it")
    pytest.importorskip("requests", reason="fsspec reads from web servers by it")
    stored("image", form, str(tmp_path / "set"))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        where = f"http://127.0.0.1:{server.server_port}/set/"
        whole = take(load("image", where, workers=0), 0, 9)
        assert same(take(load("image", where, workers=2), 0, 9), whole)
        server.shutdown()


def test_split_folders_of_a_url(stored):
    for split in ("train", "dev"):
        stored("image", "tar", f"memory://splits/{split}")
    assert open_dataset("memory://splits", "image", "valid", streaming=True).num_shards == 8
    with pytest.raises(UserError, match=r"no split 'test', only dev \(8\), train \(8\)"):
        open_dataset("memory://splits", "image", "test")


def test_file_url_is_a_path(stored, tmp_path):
    stored("image", "files", str(tmp_path / "set"))
    assert len(open_dataset((tmp_path / "set").as_uri(), "image")) == 40


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("memory://nowhere/at/all", "there is no such file or folder"),
        ("memory://mistakes", r"no image found; searched for \.parquet \.tar .*; found 1 \.doc"),
        ("s3://bucket/shards", "reading it needs a package that is not installed: .*s3fs"),
        ("nothing://bucket", "not a supported URL: Protocol not known: nothing"),
        ("file:///nowhere", "there is no such file or folder"),
    ],
)
def test_invalid_urls_are_user_errors_of_one_line(where, message):
    if where.startswith("s3"):
        try:
            import s3fs  # noqa: F401
        except ImportError:
            pass
        else:
            pytest.skip("s3fs is installed")
    fsspec.filesystem("memory").pipe("/mistakes/a.doc", b"x")
    with pytest.raises(UserError, match=message) as error:
        open_dataset(where, "image", streaming=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_truncated_parquet_shard_is_a_corrupt_example(stored, load, tmp_path, workers):
    stored("image", "parquet", str(tmp_path / "set"))
    path = tmp_path / "set" / "shard-5.parquet"
    path.write_bytes(path.read_bytes()[:700])
    loader = load("image", str(tmp_path / "set"), workers=workers)
    take(loader, 0, 9)
    assert [name for name in loader.corrupt.names if name.startswith(f"{path}: not a complete parquet file (")]


@pytest.mark.parametrize("workers", [0, 1])
def test_break_of_a_truncated_tar_shard_is_a_corrupt_example(stored, load, tmp_path, workers):
    stored("image", "tar", str(tmp_path / "set"))
    path = tmp_path / "set" / "shard-5.tar"
    path.write_bytes(path.read_bytes()[:700])
    loader = load("image", str(tmp_path / "set"), workers=workers)
    take(loader, 0, 9)
    assert [name for name in loader.corrupt.names if "shard-5.tar" in name]
