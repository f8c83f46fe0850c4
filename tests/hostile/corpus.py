"""Hostile inputs: a small function makes each kind, so that every kind is tried at every entry point (`entries.py`).

    @case("pictures", "image")
    def postscript_as_png(folder: Path) -> Path: ...

writes the input into an empty folder and returns what a user would give to a command. `signal` says which model and which
objective fit it. Data is written beside a few good examples (`good`), so that a run can go on without the bad one.
"""

import io
import json
import os
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from helpers import hostile_pickles
from helpers.damaged_runs import DAMAGES, FILES

Signal = Literal["image", "audio", "text"]
PRIVATE = "PRIVATE_WORDS"
"""In the private file of a user, which no entry point may open; its path is in the environment, under this name."""
IMPORTED = "HOSTILE_IMPORTED"
"""The environment variable with the path of a file that exists once code of a hostile input has run."""


class Hostile(NamedTuple):
    """One hostile input."""

    kind: str
    """data: pictures, audio, texts, tables, archives, links; or settings, models, runs, official files, …"""
    name: str
    signal: Signal
    make: Callable[[Path], Path]
    """Writes it into an empty folder; returns what a user gives to a command."""

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}"


CASES: list[Hostile] = []
DATA = ("pictures", "audio", "texts", "tables", "archives", "links")
"""Kinds that are a dataset; the others are given to entry points of their own (`entries.ENTRIES`)."""


def add(kind: str, name: str, signal: Signal, make: Callable[[Path], Path]) -> None:
    """Add one input."""
    assert all((kind, name) != (case.kind, case.name) for case in CASES), f"{kind}/{name} exists"
    CASES.append(Hostile(kind, name, signal, make))


def case(kind: str, signal: Signal = "image") -> Callable[[Callable[[Path], Path]], Callable[[Path], Path]]:
    """Add the decorated function as an input, under its name."""

    def register(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
        add(kind, make.__name__, signal, make)
        return make

    return register


def cases(*kinds: str) -> list[Hostile]:
    """The inputs of these kinds; all without any."""
    return [case for case in CASES if not kinds or case.kind in kinds]


def private_file() -> Path:
    """A file of the user outside of every dataset."""
    return Path(os.environ[PRIVATE])


def payload() -> str:
    """A line of Python that leaves a trace, to put where something may run it."""
    return f"open({os.environ[IMPORTED]!r}, 'w').close()\n"


def good(folder: Path, signal: Signal, count: int = 12) -> Path:
    """Write `count` good examples in two classes: a folder per class; for texts, lines of documents."""
    rng = np.random.default_rng(0)
    for number in range(count):
        part = folder / ("a" if number % 2 else "b")
        part.mkdir(parents=True, exist_ok=True)
        if signal == "image":
            from PIL import Image

            Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(part / f"{number:03}.png")
        elif signal == "audio":
            import soundfile

            soundfile.write(part / f"{number:03}.wav", 0.1 * rng.standard_normal(16000).astype(np.float32), 16000)
            (part / f"b-{number}.trans.txt").write_text(f"{number:03} SOME WORDS\n")
        else:
            words = rng.choice(["sun", "rain", "wind", "snow", "fog", "ice"], 300)
            (part / f"{number:03}.txt").write_text(" ".join(words) + "\n")
    return folder


def beside_good(folder: Path, signal: Signal, name: str, content: bytes) -> Path:
    """A dataset of good examples and one file of this content."""
    (good(folder, signal) / "a" / name).write_bytes(content)
    return folder


# Pictures


@case("pictures")
def postscript_named_png(folder: Path) -> Path:
    return beside_good(folder, "image", "evil.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\nshowpage\n")


@case("pictures")
def png_of_89_million_pixels(folder: Path) -> Path:
    def chunk(name: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")

    size = struct.pack(">IIBBBBB", 9000, 9900, 1, 0, 0, 0, 0)
    data = zlib.compress(bytes((9000 // 8 + 1) * 9900), 9)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return beside_good(folder, "image", "evil.png", png)


def picture(name: str, content: bytes) -> None:
    add("pictures", name.replace(".", "_"), "image", lambda folder: beside_good(folder, "image", f"evil.{name[-3:]}", content))


picture(
    "claims_2e9_pixels.bmp", b"BM" + struct.pack("<IHHIIiiHHIIiiII", 70, 0, 0, 54, 40, 46000, 46000, 1, 24, 0, 0, 0, 0, 0, 0)
)
picture("claims_4e9_pixels.ppm", b"P6 65535 65535 255\n" + bytes(9))
picture("gif_without_end.gif", b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0xF7, 0, 0) + bytes(768) + b"\x2c" + bytes(40))
picture("tiff_that_points_to_itself.tif", b"II*\0\x08\0\0\0" + struct.pack("<H", 1) + bytes(12) + struct.pack("<I", 8))
picture("wmf.png", struct.pack("<I", 0x9AC6CDD7) + bytes(60))
picture("fits.png", b"SIMPLE  =                    T" + b" " * 2850)
picture("eps_in_a_jpg.jpg", b"\xff\xd8\xff" + b"%!PS-Adobe-3.0 EPSF-3.0\n(x) run\n")
picture("empty.png", b"")
picture("zeros.png", bytes(1000))
picture("avif_of_nothing.png", struct.pack(">I", 32) + b"ftypavif" + bytes(100))
picture("jp2_of_nothing.png", b"\0\0\0\x0cjP  \r\n\x87\n" + b"\xff" * 100)


# Audio


@case("audio", "audio")
def flac_that_claims_1e10_samples(folder: Path) -> Path:
    rate_channels_bits_samples = 16000 << 44 | 0 << 41 | 15 << 36 | 10**10
    info = bytes([0x10, 0, 0x10, 0, 0, 0, 0, 0, 0, 0]) + rate_channels_bits_samples.to_bytes(8, "big") + bytes(16)
    return beside_good(folder, "audio", "evil.flac", b"fLaC" + b"\x80\x00\x00\x22" + info + bytes(20))


def sound(name: str, ending: str, content: bytes) -> None:
    add("audio", name, "audio", lambda folder: beside_good(folder, "audio", f"evil.{ending}", content))


def wav(rate: int, channels: int, data: bytes, claimed: int | None = None, bits: int = 8) -> bytes:
    step = channels * bits // 8
    form = struct.pack("<HHIIHH", 1, channels, rate, rate * step & 0xFFFFFFFF, step & 0xFFFF, bits)
    size = len(data) if claimed is None else claimed
    return (
        b"RIFF"
        + struct.pack("<I", 0xFFFFFFFF)
        + b"WAVEfmt "
        + struct.pack("<I", 16)
        + form
        + b"data"
        + struct.pack("<I", size)
        + data
    )


sound("wav_at_1_hz", "wav", wav(1, 1, bytes(14000)))
sound("wav_at_2e9_hz", "wav", wav(2**31 - 1, 1, bytes(14000)))
sound("wav_at_0_hz", "wav", wav(0, 1, bytes(14000)))
sound("wav_of_65535_channels", "wav", wav(16000, 65535, bytes(65535)))
sound("wav_of_1024_channels", "wav", wav(16000, 1024, bytes(1024 * 100)))
sound("wav_without_channels", "wav", wav(16000, 0, bytes(1000)))
sound("wav_that_claims_4_gb", "wav", wav(16000, 1, bytes(1000), 2**32 - 2))
sound("mp3_of_nothing", "mp3", b"ID3\x04\0\0\x7f\x7f\x7f\x7f" + bytes(500))
sound("ogg_of_nothing", "ogg", b"OggS\0\x02" + bytes(500))
sound(
    "aiff_that_claims_1e9_frames",
    "aiff",
    b"FORM\xff\xff\xff\xffAIFFCOMM\0\0\0\x12\0\1" + struct.pack(">IH", 10**9, 16) + bytes(200),
)
sound("au_without_size", "au", b".snd" + struct.pack(">IIIII", 24, 0xFFFFFFFF, 3, 16000, 1) + bytes(50))


@case("audio", "audio")
def flac_of_silence_of_four_hours(folder: Path) -> Path:
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, np.zeros(16000 * 3600 * 3, np.int16), 16000, format="FLAC", subtype="PCM_16")
    return beside_good(folder, "audio", "evil.flac", file.getvalue())


# Texts


@case("texts", "text")
def text_of_one_line(folder: Path) -> Path:
    return beside_good(folder, "text", "evil.txt", b"sun " * 2**18)


@case("texts", "text")
def text_of_zero_bytes(folder: Path) -> Path:
    return beside_good(folder, "text", "evil.txt", bytes(2**20))


@case("texts", "text")
def json_lines_that_nest(folder: Path) -> Path:
    lines = [json.dumps({"text": "sun and rain " * 100, "label": "ab"[i % 2]}) for i in range(12)]
    lines[3:3] = ["[" * 100_000, '{"text": ' * 5000, "9" * 100_000, '{"text": null}']
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "data.jsonl"


# Links


@case("links", "text")
def text_that_links_to_a_private_file(folder: Path) -> Path:
    (good(folder, "text") / "a" / "evil.txt").symlink_to(private_file())
    return folder


@case("links", "text")
def text_that_is_a_fifo(folder: Path) -> Path:
    os.mkfifo(good(folder, "text") / "a" / "evil.txt")
    return folder


ENDINGS = {"image": "png", "audio": "wav", "text": "txt"}


def linked(name: str, signal: Signal, target: str) -> None:
    def make(folder: Path) -> Path:
        (good(folder, signal) / "a" / f"evil.{ENDINGS[signal]}").symlink_to(target)
        return folder

    add("links", name, signal, make)


for kind in ("image", "audio", "text"):
    linked(f"{kind}_that_links_to_dev_zero", kind, "/dev/zero")
    linked(f"{kind}_that_links_to_itself", kind, "evil")
    linked(f"{kind}_that_links_to_a_process", kind, "/proc/self/environ")


@case("links", "image")
def picture_that_is_a_fifo(folder: Path) -> Path:
    os.mkfifo(good(folder, "image") / "a" / "evil.png")
    return folder


@case("links", "audio")
def audio_that_is_a_fifo(folder: Path) -> Path:
    os.mkfifo(good(folder, "audio") / "a" / "evil.wav")
    return folder


@case("links", "text")
def folder_that_links_to_a_private_one(folder: Path) -> Path:
    (good(folder, "text") / "c").symlink_to(private_file().parent)
    return folder


@case("links", "audio")
def transcripts_that_link_to_a_private_file(folder: Path) -> Path:
    (good(folder, "audio") / "a" / "evil.trans.txt").symlink_to(private_file())
    return folder


for ending in ("csv", "jsonl", "parquet", "tar"):

    def fifo(folder: Path, ending: str = ending) -> Path:
        os.mkfifo(good(folder, "image") / f"data.{ending}")
        return folder / f"data.{ending}"

    add("links", f"{ending}_that_is_a_fifo", "image", fifo)


# Archives


@case("archives")
def archive_that_links_to_a_private_file(folder: Path) -> Path:
    good(folder / "good", "image")
    with tarfile.open(folder / "data.tar", "w") as tar:
        for path in sorted((folder / "good").rglob("*.png")):
            tar.add(path, f"{path.parent.name}/{path.name}")
        link = tarfile.TarInfo("a/evil.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(private_file())
        tar.addfile(link)
    shutil.rmtree(folder / "good")
    return folder / "data.tar"


def archive(name: str, write: Callable[[tarfile.TarFile], None], mode: str = "w") -> None:
    def make(folder: Path) -> Path:
        good(folder / "good", "image")
        path = folder / ("data.tar.gz" if mode == "w:gz" else "data.tar")
        with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
            for file in sorted((folder / "good").rglob("*.png")):
                tar.add(file, f"{file.parent.name}/{file.name}")
            write(tar)
        shutil.rmtree(folder / "good")
        return path

    add("archives", name, "image", make)


def member(path: str, size: int = 0, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(path)
    info.size = size
    for key, value in fields.items():
        setattr(info, key, value)
    return info


class Zeros:
    """A file of any number of zeros."""

    def read(self, size: int) -> bytes:
        return bytes(size)


archive("member_above_the_archive", lambda tar: tar.addfile(member("../../evil.png", 9), io.BytesIO(bytes(9))))
archive("member_with_an_absolute_path", lambda tar: tar.addfile(member("/etc/evil.png", 9), io.BytesIO(bytes(9))))
archive("member_that_is_a_device", lambda tar: tar.addfile(member("a/evil.png", type=tarfile.CHRTYPE, devmajor=1, devminor=5)))
archive(
    "member_that_is_a_hard_link", lambda tar: tar.addfile(member("a/evil.png", type=tarfile.LNKTYPE, linkname="/etc/passwd"))
)
archive("member_of_1_gb_of_zeros", lambda tar: tar.addfile(member("a/evil.png", 2**30), Zeros()), "w:gz")
archive("member_that_claims_8_gb", lambda tar: tar.fileobj.write(member("a/evil.png", 8 * 2**30 - 1).tobuf()) and None)
archive("header_of_1_gb", lambda tar: tar.addfile(member("x", 2**30, type=tarfile.GNUTYPE_LONGNAME), Zeros()), "w:gz")
archive("json_that_nests", lambda tar: tar.addfile(member("a/001.json", 10**5), io.BytesIO(b"[" * 10**5)))


# Tables


@case("tables", "text")
def parquet_column_that_names_a_private_file(folder: Path) -> Path:
    import pyarrow as pa
    from pyarrow import parquet

    rows = [{"bytes": b"sun and rain " * 200, "path": f"{i}.txt"} for i in range(12)]
    rows.append({"bytes": None, "path": str(private_file())})
    labels = [["a", "b"][i % 2] for i in range(len(rows))]
    parquet.write_table(pa.table({"text": rows, "label": labels}), folder / "data.parquet")
    return folder / "data.parquet"


def table(name: str, signal: Signal, file: str, write: Callable[[Path], str]) -> None:
    def make(folder: Path) -> Path:
        (good(folder, signal) / file).write_text(write(folder))
        return folder

    add("tables", name, signal, make)


for kind, ending in (("image", "png"), ("audio", "wav")):
    for where in ("csv", "jsonl"):
        for way in ("absolute", "relative"):

            def rows(folder: Path, where: str = where, way: str = way) -> str:
                path = str(private_file()) if way == "absolute" else os.path.relpath(private_file(), folder)
                files = [*(str(each.relative_to(folder)) for each in folder.rglob(f"*.{ending}")), path]
                lines = [f"{each},a" if where == "csv" else json.dumps({"file_name": each, "label": "a"}) for each in files]
                return "\n".join([*(["file_name,label"] if where == "csv" else []), *lines]) + "\n"

            table(f"{where}_with_a_{way}_path_to_a_private_file_for_{kind}", kind, f"metadata.{where}", rows)


for kind in ("image", "audio", "text"):
    for form in ("string", "struct"):

        def column(folder: Path, kind: str = kind, form: str = form) -> Path:
            import pyarrow as pa
            from pyarrow import parquet

            paths = [str(private_file())] * 4
            values = paths if form == "string" else [{"bytes": None, "path": path} for path in paths]
            parquet.write_table(pa.table({kind: values, "label": ["a", "b"] * 2}), folder / "data.parquet")
            return folder / "data.parquet"

        if (kind, form) != ("text", "string"):
            add("tables", f"parquet_{form}_of_private_files_for_{kind}", kind, column)


@case("tables", "text")
def saved_dataset_with_parts_elsewhere(folder: Path) -> Path:
    from datasets import Dataset

    Dataset.from_dict({"text": ["sun"] * 4, "label": ["a", "b"] * 2}).save_to_disk(folder / "set")
    state = json.loads((folder / "set" / "state.json").read_text())
    state["_data_files"] = [{"filename": os.path.relpath(private_file(), folder / "set")}]
    (folder / "set" / "state.json").write_text(json.dumps(state))
    return folder / "set"


# Recipes and models


@case("settings")
def yaml_that_expands(folder: Path) -> Path:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    (folder / "evil.yaml").write_text("\n".join(lines) + "\n")
    return folder / "evil.yaml"


def model_folder(folder: Path, signal: Signal = "image", change: Callable[[dict[str, Any]], Any] | None = None) -> Path:
    """A model folder; `change` edits its config.json, or returns another text of it."""
    shutil.copytree(os.environ[f"HOSTILE_MODEL_{signal.upper()}"], folder / "model")
    config = json.loads((folder / "model" / "config.json").read_text(encoding="utf-8"))
    changed = change(config) if change is not None else None
    (folder / "model" / "config.json").write_text(
        changed if isinstance(changed, str) else json.dumps(config), encoding="utf-8", errors="surrogatepass"
    )
    return folder / "model"


@case("models")
def modality_in_a_module_beside_the_model(folder: Path) -> Path:
    (folder / "evil_modality.py").write_text(payload())
    return model_folder(folder, change=lambda config: config["recipe"]["modality"].update(name="evil_modality:Evil"))


SMALL_RECIPE = "modality: {name: vision}\nencoder: {width: 16, layers: 2, heads: 2, ffn_width: 32}\n"
YAML = {
    "nests": "a: " + "[" * 5000,
    "nests_with_an_end": "encoder: " + "[" * 300 + "]" * 300,
    "nests_mappings": "".join(f"{' ' * i}a:\n" for i in range(500)),
    "alias_of_itself": "a: &a [*a]",
    "a_million_digits": SMALL_RECIPE + "train: {steps: " + "9" * 10**5 + "}",
    "a_million_hex_digits": SMALL_RECIPE + "train: {steps: 0x" + "f" * 10**5 + "}",
    "python_object": "a: !!python/object/apply:os.system ['true']",
    "python_name": "a: !!python/name:os.system",
    "set": "a: !!set {b, c}",
    "binary": "a: !!binary aGVsbG8=",
    "omap": "a: !!omap [b: 1]",
    "long_text": "modality: {name: " + "x" * 10**5 + "}",
    "many_keys": "".join(f"k{i}: 1\n" for i in range(5000)),
    "long_key": "x" * 10**5 + ": 1",
    "two_documents": "a: 1\n---\nb: 2\n",
    "no_mapping": "5",
    "list": "[1, 2]",
    "empty": "",
    "null_bytes": "a: \0",
    "key_of_a_list": "? [a]\n: b",
    "key_of_a_number": "1: 2",
    "key_of_null": "~: 2",
    "merge_key": "a: &a {b: 1}\nc: {<<: *a}",
    "merge_of_itself": "a: &a {<<: *a}",
    "nan": SMALL_RECIPE + "train: {lr: .nan}",
    "infinity": SMALL_RECIPE + "train: {lr: .inf}",
    "huge_float": SMALL_RECIPE + "train: {lr: 1e999}",
    "negative": SMALL_RECIPE + "train: {steps: -1}",
    "huge_steps": SMALL_RECIPE + "train: {steps: 9223372036854775808}",
    "half_a_pair": 'modality: {name: "\\ud800"}',
    "timestamp": "a: 2001-12-14t21:59:43.10-05:00",
    "directive": "%YAML 9.9\n---\na: 1",
    "tag_directive": "%TAG ! tag:evil,2000:\n---\n!x a",
    "layers": "modality: {name: vision}\nencoder: {layers: 1000000000}",
    "width": "modality: {name: vision}\nencoder: {width: 1000000000}",
    "image": "modality: {name: vision, image: 1000000, patch: 1}",
    "patch": "modality: {name: vision, image: 1000000, patch: 1000000}",
    "vocab": "modality: {name: text, vocab_size: 100000000000}",
    "conv_layers": "modality: {name: speech, conv_layers: [[1000000000, 10, 5]]}",
    "many_conv_layers": "modality: {name: speech, conv_layers: [" + "[8, 3, 2]," * 2000 + "]}",
    "section_of_text": "modality: vision",
    "modality_of_nothing": "modality: {name: 'nowhere:Thing'}",
    "modality_of_no_class": "modality: {name: 'os:system'}",
    "modality_of_a_module": "modality: {name: 'os:path'}",
    "objective_of_no_class": SMALL_RECIPE + "objective: {name: 'os:system'}",
    "modality_without_a_name": "modality: {name: ':'}",
}
for name, text in YAML.items():

    def recipe(folder: Path, text: str = text) -> Path:
        (folder / "evil.yaml").write_text(text, encoding="utf-8")
        return folder / "evil.yaml"

    add("settings", name, "image", recipe)


@case("settings")
def recipe_that_is_a_fifo(folder: Path) -> Path:
    os.mkfifo(folder / "evil.yaml")
    return folder / "evil.yaml"


@case("settings")
def recipe_that_links_to_dev_zero(folder: Path) -> Path:
    (folder / "evil.yaml").symlink_to("/dev/zero")
    return folder / "evil.yaml"


@case("settings")
def recipe_of_a_run_that_names_a_class(folder: Path) -> Path:
    (folder / "evil_modality.py").write_text(payload())
    (folder / "metrics.jsonl").write_text("")
    (folder / "recipe.yaml").write_text("modality: {name: 'evil_modality:Evil'}\n")
    return folder / "recipe.yaml"


@case("models")
def objective_in_a_module_beside_the_model(folder: Path) -> Path:
    (folder / "evil_modality.py").write_text(payload())
    return model_folder(folder, change=lambda config: config["recipe"]["objective"].update(name="evil_modality:Evil"))


@case("models")
def transformers_folder_with_code(folder: Path) -> Path:
    (folder / "model").mkdir()
    (folder / "model" / "evil_modality.py").write_text(payload())
    config = {"model_type": "evil", "auto_map": {"AutoModel": "evil_modality.Evil", "AutoConfig": "evil_modality.Evil"}}
    (folder / "model" / "config.json").write_text(json.dumps(config))
    return folder / "model"


def changed(name: str, change: Callable[[dict[str, Any]], Any], signal: Signal = "image") -> None:
    add("models", name, signal, lambda folder: model_folder(folder, signal, change))


def value(*path: str, of: Any) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        for key in path[:-1]:
            config = config[key]
        config[path[-1]] = of

    return change


ODD = {"null": None, "text": "x", "list": [[[]]], "negative": -1, "zero": 0, "huge": 10**18, "float": 1e308, "true": True}
for section, key in (
    ("encoder", "width"),
    ("encoder", "layers"),
    ("encoder", "ffn_width"),
    ("modality", "image"),
    ("modality", "patch"),
):
    for odd, new in ODD.items():
        changed(f"{section}_{key}_is_{odd}", value("recipe", section, key, of=new))
for key in ("recipe", "files", "head", "format", "source", "license"):
    for odd, new in (("null", None), ("text", "x" * 10**5), ("list", [1] * 1000), ("number", 10**18)):
        changed(f"{key}_is_{odd}", value(key, of=new))
changed("config_nests", lambda config: "[" * 100_000)
changed("config_of_a_million_digits", lambda config: json.dumps(config).replace('"width": 16', '"width": ' + "9" * 10**6))
changed("config_is_empty", lambda config: " ")
changed("config_is_a_list", lambda config: "[]")
changed("config_of_half_a_pair", lambda config: json.dumps(config).replace("vision", "\\ud800"))
changed("vocabulary_is_huge", value("recipe", "modality", "vocab_size", of=2**24), "text")
changed("length_is_huge", value("recipe", "modality", "max_length", of=2**20), "text")
changed("tokenizer_is_elsewhere", lambda config: config["files"].update(tokenizer="../../../home/private.txt"), "text")
changed("convolutions_are_huge", value("recipe", "modality", "conv_layers", of=[[2**14, 2**14, 1]] * 60), "audio")
changed(
    "data_is_a_private_file",
    lambda config: config["recipe"]["data"].update(valid=str(private_file()), follow_links=True),
    "text",
)


def replaced(name: str, file: str, make: Callable[[Path], object], signal: Signal = "image") -> None:
    def change(folder: Path) -> Path:
        path = model_folder(folder, signal) / file
        path.unlink(missing_ok=True)
        make(path)
        return path.parent

    add("models", name, signal, change)


for file in ("config.json", "model.safetensors"):
    replaced(f"{file}_is_a_fifo", file, lambda path: os.mkfifo(path))
    replaced(f"{file}_is_dev_zero", file, lambda path: path.symlink_to("/dev/zero"))
    replaced(f"{file}_is_a_folder", file, lambda path: path.mkdir())
    replaced(f"{file}_is_empty", file, lambda path: path.write_bytes(b""))
replaced("weights_that_claim_more", "model.safetensors", lambda path: path.write_bytes((2**60).to_bytes(8, "little") + b"{}"))
replaced("weights_of_a_huge_shape", "model.safetensors", lambda path: path.write_bytes(safetensors([2**40, 2**20])))
replaced("pretraining_is_damaged", "pretraining.safetensors", lambda path: path.write_bytes(b"x" * 100))
replaced("tokenizer_that_explodes", "tokenizer.json", lambda path: path.write_text(exploding_tokenizer()), "text")
replaced("tokenizer_that_nests", "tokenizer.json", lambda path: path.write_text("[" * 10**5), "text")


def safetensors(shape: list[int]) -> bytes:
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(4)


def exploding_tokenizer() -> str:
    raw = json.loads((Path(os.environ["HOSTILE_MODEL_TEXT"]) / "tokenizer.json").read_text())
    steps = [{"type": "Replace", "pattern": {"String": "s"}, "content": "ss"}] * 30
    return json.dumps(raw | {"normalizer": {"type": "Sequence", "normalizers": steps}})


# Run folders


def run_folder(folder: Path) -> Path:
    """A copy of a run of 8 steps on images, with checkpoints at 4 and 8."""
    return Path(shutil.copytree(os.environ["HOSTILE_RUN"], folder / "run"))


def changed_run(name: str, change: Callable[[Path], object]) -> None:
    """A run folder in which `change` has done something."""

    def make(folder: Path) -> Path:
        change(path := run_folder(folder))
        return path

    add("runs", name, "image", make)


def damaged_run(*files: str, damage: Callable[[Path], None]) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        for file in files:
            damage(run / file)

    return change


def replace_by_link(path: Path, target: Path | str) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to(target)


def edited_json(path: Path, *keys: str, of: Any) -> None:
    content = json.loads(path.read_text())
    value(*keys, of=of)(content)
    path.write_text(json.dumps(content))


for damage in DAMAGES:
    what = damage.__name__.removeprefix("damage_")
    for file in FILES:
        changed_run(f"{file.replace('/', '_')}_{what}", damaged_run(file, damage=damage))
    changed_run(f"all_files_{what}", damaged_run(*FILES, damage=damage))
STEP = "checkpoints/step-8"
LINE = '{"step": 9, "samples": 36, "loss": %s, "lr": %s, "%s": 1}\n'
for name, line in {
    "markup": LINE % ('"<script>alert(1)</script>"', "1e-3", "</pre><img src=x onerror=alert(1)>"),
    "control_characters": LINE % ('"\\u001b[2J\\u202e"', "1e-3", "\\u001b]0;x\\u0007"),
    "infinities": LINE % ("Infinity", "-Infinity", "NaN") * 100,
    "huge_numbers": LINE % ("1e308", "9" * 400, "x") + '{"step": %s}\n' % ("9" * 300),
    "lists": LINE % ("[[[1]]]", "{}", "target_std"),
    "steps_that_jump": "".join(f'{{"step": {10**15 * i}, "loss": 1}}\n' for i in range(-5, 5)),
    "a_long_line": '{"step": 9, "x": "' + "y" * 10**7 + '"}\n',
}.items():

    def append(run: Path, line: str = line) -> None:
        with (run / "metrics.jsonl").open("a") as file:
            file.write(line)

    changed_run(f"metrics_of_{name}", append)
changed_run(
    "checkpoint_that_lists_a_private_file",
    lambda run: (run / STEP / "complete.json").write_text(
        json.dumps({os.path.relpath(private_file(), run / STEP): {"bytes": 0, "crc32": "00000000"}})
    ),
)
changed_run("checkpoint_that_links_to_a_private_folder", lambda run: replace_by_link(run / STEP, private_file().parent))
changed_run("checkpoints_that_link_to_themselves", lambda run: replace_by_link(run / "checkpoints", "checkpoints"))
changed_run("model_that_links_to_a_private_folder", lambda run: replace_by_link(run / "model", private_file().parent))
changed_run("metrics_that_link_to_a_private_file", lambda run: replace_by_link(run / "metrics.jsonl", private_file()))
changed_run("recipe_that_links_to_a_private_file", lambda run: replace_by_link(run / "recipe.yaml", private_file()))
changed_run(
    "pickle_in_place_of_weights",
    lambda run: hostile_pickles.zipped(run / "model" / "model.safetensors", hostile_pickles.SYSTEM),
)
changed_run("pickle_beside_the_weights", lambda run: hostile_pickles.zipped(run / STEP / "state.pt", hostile_pickles.SYSTEM))
changed_run("step_of_the_state_is_huge", lambda run: edited_json(run / STEP / "state.json", "step", of=10**18))
changed_run("step_of_the_state_is_text", lambda run: edited_json(run / STEP / "state.json", "step", of="8"))
changed_run(
    "machine_of_markup", lambda run: (run / "machine.json").write_text('[{"exit_reason": "<script>alert(1)</script>"}]')
)
changed_run("checkpoint_of_a_huge_number", lambda run: (run / STEP).rename(run / "checkpoints" / f"step-{'9' * 200}"))


@case("runs")
def run_of_a_modality_in_a_module_beside_it(folder: Path) -> Path:
    (folder / "evil_modality.py").write_text(payload())
    recipe = (run := run_folder(folder)) / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("name: vision", "name: 'evil_modality:Evil'"))
    return run


# Official files: pickles


for name, (payload_bytes, _) in hostile_pickles.CASES.items():

    def official(folder: Path, payload_bytes: bytes = payload_bytes) -> Path:
        return hostile_pickles.zipped(folder / "model.pt", payload_bytes)

    add("official files", name, "image", official)
for name, (write, _) in hostile_pickles.FILES.items():

    def foreign(folder: Path, write: Callable[[Path], Path] = write) -> Path:
        return write(folder / "model.pt")

    add("official files", f"file-{name}", "image", foreign)


def official_content(name: str, change: Callable[[dict[str, Any]], object], of: str = "vision1") -> None:
    """A small checkpoint in the form of the official code; `change` edits its content."""

    def make(folder: Path) -> Path:
        from helpers.official_files import content, save

        change(made := content(of))
        return save(folder, made)

    signal: Signal = "audio" if of.startswith("speech") else "text" if of.startswith("text") else "image"
    add("official files", f"{of}-{name}", signal, make)


for of in ("vision1", "speech1", "text1", "vision2"):
    official_content("as-it-should-be", lambda made: None, of)
    official_content("without-weights", lambda made: made["model"].clear(), of)
    official_content("weights-of-a-number", lambda made: made.update(model=7), of)
    official_content("weights-without-a-shape", lambda made: made.update(model=dict.fromkeys(made["model"], 1.0)), of)
    official_content("weights-of-one-element", lambda made: shrink(made["model"]), of)
    official_content("weights-that-are-repeated", lambda made: repeat(made["model"]), of)
    official_content("names-of-control-characters", lambda made: made["model"].update({"\x1b[2J\u202e": 1}), of)
for of, key in (("speech1", "encoder_attention_heads"), ("vision2", "num_heads"), ("vision2", "clone_batch")):
    for odd, new in ODD.items():
        official_content(f"{key}-is-{odd}", lambda made, key=key, new=new: made["cfg"]["model"].update({key: new}), of)
official_content("config-of-a-list", lambda made: made.update(cfg=[]), "speech1")
official_content("config-that-nests", lambda made: made["cfg"].update(model=nested(200)), "speech1")
official_content("image-is-huge", lambda made: setattr(made["args"], "input_size", 10**9))
official_content("patch-is-zero", lambda made: setattr(made["args"], "patch_size", (0, 0)))


def shrink(weights: dict[str, Any]) -> None:
    for key, tensor in weights.items():
        if not isinstance(tensor, dict):
            weights[key] = tensor.flatten()[:1]


def repeat(weights: dict[str, Any]) -> None:
    """Of a few bytes, and of any size: what torch.save writes of an expanded tensor."""
    for key, tensor in weights.items():
        if not isinstance(tensor, dict):
            weights[key] = tensor.flatten()[:1].expand(2**36)


def nested(depth: int) -> Any:
    found: Any = {}
    for _ in range(depth):
        found = {"model": found}
    return found
