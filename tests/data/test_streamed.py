"""Streams of real signals, from shards of every form."""

import io
import json
import tarfile
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset

from data2vec.data.loader import Loader
from data2vec.data.sources import open_rows
from data2vec.data.speech import SpeechData
from data2vec.data.text import TextData
from data2vec.data.tokenizer import save_tokenizer, train_tokenizer
from data2vec.data.vision import VisionData
from data2vec.errors import RunStopped, UserError
from data2vec.modalities.speech import Speech, SpeechSettings
from data2vec.modalities.text import Text, TextSettings
from data2vec.modalities.vision import Vision, VisionSettings

STREAMED = {"streaming": True, "streams": 4, "buffer": 16, "workers": 0, "max_bad": 0.2}


class Half:
    def draw(self, rows, grid, rng):
        return SimpleNamespace(hidden=rng.random((rows, *grid)) < 0.5, replaced=None)


@pytest.fixture
def signals(wave, picture, encoded):
    """40 signals of a kind as (name, bytes); two of them broken."""

    def make(kind):
        made = []
        for i in range(40):
            if kind == "text":
                content = f"The signal number {i} says {'na ' * (i % 7 + 20)}and ends.".encode()
            elif kind == "image":
                content = encoded(picture(seed=i), "JPEG")
            else:
                file = io.BytesIO()
                soundfile.write(file, wave(0.5 + i % 9 / 10, seed=i), 16000, format="FLAC")
                content = file.getvalue()
            broken = i in (7, 29)
            made.append((f"{i:02d}.{ENDINGS[kind]}", (b"\xff" if kind == "text" else b"torn") if broken else content))
        return made

    return make


ENDINGS = {"audio": "flac", "image": "jpg", "text": "txt"}


@pytest.fixture
def store(tmp_path, signals):
    """Write signals in a form, five to a shard, below a folder or address; where they are."""

    def write(kind, form, where):
        root = where or f"file://{tmp_path}/set"
        made = signals(kind)
        if form == "files":
            for name, content in made:
                fsspec.open(f"{root}/{name[0]}/{name}", "wb", auto_mkdir=True).open().__class__  # noqa: B018
        for shard in range(8):
            part = made[5 * shard : 5 * shard + 5]
            file = io.BytesIO()
            if form == "tar":
                with tarfile.open(fileobj=file, mode="w") as tar:
                    for name, content in part:
                        info = tarfile.TarInfo(name)
                        info.size = len(content)
                        tar.addfile(info, io.BytesIO(content))
            elif form == "jsonl":
                file.writelines(json.dumps({"text": content.decode("latin-1")}).encode() + b"\n" for _, content in part)
            else:
                column = [{"bytes": content, "path": name} for name, content in part]
                Dataset.from_dict({kind: column}).to_parquet(file)
            with fsspec.open(f"{root}/train-{shard}.{form}", "wb", auto_mkdir=True) as out:
                out.write(file.getvalue())
        return root

    return write
