import io
import itertools
import json
import tarfile
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import soundfile
from datasets import Dataset
from PIL import Image

import data2vec
from data2vec.data.check.check import check
from data2vec.data.check.report import LONG_SECONDS, RECIPE_NEEDS, SHORT_SECONDS
from data2vec.errors import CorruptExample, RunStopped, UserError
from data2vec.recipe.loading import load_recipe


def only(found):
    (part,) = found.parts
    return part


def told(part):
    """Reasons by the names of files."""
    return {name.rsplit("/", 1)[-1]: reason for name, reason in (bad.split(": ", 1) for bad in part.unreadable)}


def write(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_bytes(content)
    return folder


@pytest.fixture
def sounds(tmp_path, wave):
    """Good clips of several sorts, and every sort of broken one."""
    folder = tmp_path / "sounds"
    folder.mkdir()
    soundfile.write(folder / "mono.flac", wave(3.0), 16000)
    soundfile.write(folder / "stereo.wav", wave(1.0, 44100, 2, seed=1), 44100)
    soundfile.write(folder / "long.flac", wave(21.0, 8000, seed=2), 8000)
    soundfile.write(folder / "silent.ogg", np.zeros(48000), 16000)
    whole = (folder / "mono.flac").read_bytes()
    again = {
        "again__flac": whole,
        "torn__flac": whole[: len(whole) // 2],
        "nothing__wav": b"",
        "words__mp3": b"these are words",
    }
    return write(folder, **again, notes__pdf=b"x")


@pytest.mark.parametrize("workers", [0, 2])
def test_check_of_audio_files(sounds, workers):
    found = check(sounds, workers=workers)
    part = only(found)
    assert (part.kind, part.examples, part.readable) == ("audio", 8, 5)
    assert told(part).keys() == {"torn.flac", "nothing.wav", "words.mp3"}
    assert part.bytes == sum(path.stat().st_size for path in sounds.iterdir() if path.suffix != ".pdf")
    seconds = part.distributions["seconds"]
    assert (seconds.min, seconds.median, seconds.max, seconds.total) == (1, 3, 21, 31)
    assert seconds.mean == pytest.approx(31 / 5)
    assert part.histogram == {1: 1, 2: 3, 16: 1}
    assert part.counts["sample rate"] == {"16000 Hz": 3, "44100 Hz": 1, "8000 Hz": 1}
    assert part.counts["channels"] == {"mono": 4, "stereo": 1}
    assert part.counts["format"] == {"FLAC PCM_16": 3, "OGG VORBIS": 1, "WAV PCM_16": 1}
    named = {title: [name.rsplit("/", 1)[-1] for name in names] for title, names in part.flagged.items()}
    assert named == {"under 2 s": ["stereo.wav"], "over 20 s": ["long.flac"], "silent": ["silent.ogg"]}
    assert part.duplicates == [[str(sounds / "again.flac"), str(sounds / "mono.flac")]]
    assert found.other_files == "1 .pdf"


def test_truncated_clip_with_a_valid_header_is_unreadable(tmp_path, wave):
    """Its header is whole, so only reading it to the end tells."""
    file = io.BytesIO()
    soundfile.write(file, wave(3.0), 16000, format="FLAC")
    part = only(check(write(tmp_path / "d", torn__flac=file.getvalue()[:-2000]), workers=0))
    assert len(part.unreadable) == 1


def test_check_of_image_files(tmp_path, picture, encoded):
    colour = picture(100, 80)
    files = {
        "a__jpg": encoded(colour, "JPEG"),
        "grey__png": encoded(colour.convert("L"), "PNG"),
        "palette__gif": encoded(colour.convert("P"), "GIF"),
        "icon__png": encoded(picture(20, 16), "PNG"),
        "copy__jpeg": encoded(colour, "JPEG"),
        "torn__jpg": encoded(colour, "JPEG")[:-200],
        "text__jpg": b"this is a letter, and no picture",
        "empty__png": b"",
        "bomb__png": encoded(Image.new("1", (20000, 20000)), "PNG"),
    }
    part = only(check(write(tmp_path / "pictures", **files), workers=0))
    assert (part.kind, part.examples, part.readable) == ("image", 9, 5)
    reasons = told(part)
    assert reasons.keys() == {"torn.jpg", "text.jpg", "empty.png", "bomb.png"}
    assert "possible decompression bomb" in reasons["bomb.png"]
    assert part.distributions["width"].max == 100 and part.distributions["shorter side"].min == 16
    assert part.counts["size"] == {"100 x 80": 4, "20 x 16": 1}
    assert part.counts["format"] == {"JPEG": 2, "PNG": 2, "GIF": 1}
    assert part.counts["mode"] == {"RGB": 3, "L": 1, "P": 1}
    assert part.flagged["tiny"] == [str(tmp_path / "pictures" / "icon.png")]
    assert [len(group) for group in part.duplicates] == [2]


def test_check_of_text_files(tmp_path):
    files = {"a__txt": "zwei Wörter\n".encode(), "b__txt": b"", "c__txt": b"", "latin__txt": "Wörter".encode("latin-1")}
    part = only(check(write(tmp_path / "books", **files), workers=0))
    assert (part.kind, part.examples, part.readable) == ("text", 4, 3)
    assert told(part)["latin.txt"].startswith("not UTF-8")
    assert (part.distributions["words"].total, part.distributions["characters"].total) == (2, 12)
    assert len(part.flagged["empty"]) == 2
    assert part.duplicates == [], "documents without content are empty, not alike"
    assert part.token_counter is not None and "trained on all text" in part.token_counter


def test_token_count_equals_pretraining(tmp_path):
    from data2vec.data.sources.open_dataset import open_dataset
    from data2vec.data.tokenizer import save_tokenizer, train_tokenizer
    from data2vec.modalities.text import TextBlocks, TextData

    texts = ["the cat sat on the mat", "", "a hat is not a cat\n" * 20]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    save_tokenizer(train_tokenizer(texts, 300), tmp_path)
    part = only(check(path, tokenizer=tmp_path, workers=0))
    examples = TextBlocks(open_dataset(str(path), "text"), TextData(block_size=8, tokenizer=str(tmp_path)), 300)
    assert part.distributions["tokens"].total == len(examples.tokens)
    assert part.token_counter == "the given tokenizer"


def test_token_count_of_a_partly_trained_tokenizer_is_an_estimate(tmp_path, monkeypatch):
    monkeypatch.setattr("data2vec.data.check.check.TRAINING_CHARACTERS", 1000)
    (tmp_path / "a.jsonl").write_text('{"text": "words of a hundred letters or so"}\n' * 100)
    part = only(check(tmp_path, workers=0))
    assert part.token_counter is not None and part.token_counter.endswith("(an estimate)")


def test_lines_and_rows_are_named_by_number(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "same"}\n{"text": "\xff"}\n{"text": "same"}\n')
    part = only(check(tmp_path / "a.jsonl", workers=0))
    assert part.unreadable == [f"{tmp_path}/a.jsonl:2: not UTF-8, or without a text"]
    assert part.duplicates == [[f"{tmp_path}/a.jsonl:1", f"{tmp_path}/a.jsonl:3"]]
    (tmp_path / "b.tsv").write_text("sentence\tlabel\ngood\tyes\nbad\tno\ngood\tyes\n")
    part = only(check(tmp_path / "b.tsv", workers=0))
    assert part.classes == {"yes": 2, "no": 1}
    assert part.duplicates == [["example 1", "example 3"]]


def test_scores_and_lists_are_not_classes(tmp_path):
    lines = [{"text": "a", "label": 0.5}, {"text": "b", "label": 1.5}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    import datasets

    datasets.Dataset.from_dict({"text": ["a"], "label": [["x", "y"]]}).to_parquet(tmp_path / "b.parquet")
    for name in ("a.jsonl", "b.parquet"):
        part = only(check(tmp_path / name, workers=0))
        assert part.readable > 0 and part.classes == {}


def test_class_counts_of_sub_folders(tmp_path, picture, encoded):
    for i in range(3):
        write(tmp_path / "cat", **{f"{i}__png": encoded(picture(seed=i), "PNG")})
    write(tmp_path / "dog", a__png=encoded(picture(seed=9), "PNG"))
    assert only(check(tmp_path, workers=0)).classes == {"cat": 3, "dog": 1}


def test_folder_with_several_kinds_reports_each(sounds):
    (sounds / "readme.txt").write_text("Some clips.")
    assert [part.kind for part in check(sounds, workers=0).parts] == ["audio", "text"]
    found = check(sounds, kind="text", workers=0)
    assert [part.kind for part in found.parts] == ["text"]
    assert found.other_files is not None and ".flac" in found.other_files


def test_missing_files_of_metadata_csv_are_unreadable(tmp_path, wave):
    soundfile.write(tmp_path / "a.wav", wave(1.0), 16000)
    (tmp_path / "metadata.csv").write_text("file_name\na.wav\nb.wav\n")
    assert told(only(check(tmp_path, workers=0))) == {"b.wav": "no such file"}


def test_parquet(tmp_path, picture, encoded):
    import datasets

    content = [encoded(picture(seed=i % 2), "PNG") for i in range(4)]
    rows = {"image": [{"bytes": item, "path": f"{i}.png"} for i, item in enumerate(content)], "label": [0, 1, 0, 1]}
    data = datasets.Dataset.from_dict(rows | {"caption": ["words"] * 4})
    data = data.cast_column("label", datasets.ClassLabel(names=["no", "yes"]))
    data.to_parquet(tmp_path / "train-00000.parquet")
    part = only(check(tmp_path, workers=0))
    assert (part.kind, part.examples, part.readable) == ("image", 4, 4)
    assert part.classes == {"no": 2, "yes": 2}
    assert part.duplicates == [["0.png", "2.png"], ["1.png", "3.png"]]


def shard(path, content):
    with tarfile.open(path, "w") as tar:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_break_of_a_truncated_tar_is_one_unreadable_example(tmp_path, picture, encoded):
    for i in range(3):
        pictures = {f"{i}{j}": encoded(picture(seed=j + 10 * (i % 2), noise=60), "PNG") for j in range(6)}
        shard(tmp_path / f"{i}.tar", {f"{k}.png": v for k, v in pictures.items()} | {f"{k}.txt": b"words" for k in pictures})
    whole = (tmp_path / "1.tar").read_bytes()
    (tmp_path / "1.tar").write_bytes(whole[:15000])
    part = only(check(tmp_path, workers=0))
    assert part.kind == "image", "captions are not what is learned from"
    (bad,) = part.unreadable
    assert bad.startswith(f"{tmp_path}/1.tar/") and "not complete (unexpected end of data)" in bad
    assert 12 < part.readable < 18, "what stands before the tear, and the other shards"
    assert part.duplicates == [[f"{tmp_path}/{i}.tar/{i}{j}.png" for i in (0, 2)] for j in range(6)]


def test_check_of_a_url(tmp_path, picture, encoded):
    import fsspec

    shard(tmp_path / "a.tar", {f"{i}.png": encoded(picture(seed=i), "PNG") for i in range(3)})
    fsspec.filesystem("memory").pipe("/checked/a.tar", (tmp_path / "a.tar").read_bytes())
    for where in ("memory://checked", f"file://{tmp_path}"):
        part = only(check(where, workers=0))
        assert (part.kind, part.readable) == ("image", 3)


def test_invalid_arguments_of_check_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="there is no such folder or file"):
        check(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no audio, image or text found; found nothing"):
        check(tmp_path / "empty")
    with pytest.raises(UserError, match="no audio found"):
        check(write(tmp_path / "books", a__txt=b"words"), kind="audio")
    with pytest.raises(UserError, match="'video' is none of audio, image, text"):
        check(tmp_path, kind="video")
    with pytest.raises(UserError, match="workers: -1"):
        check(tmp_path, workers=-1)
    (tmp_path / "a.csv").write_text("sentence,label\nonly one field\n")
    with pytest.raises(UserError, match=r"a\.csv:2: it has 1 cell"):
        check(tmp_path / "a.csv")


def test_json_report_is_complete(sounds, tmp_path):
    for i in range(30):
        (sounds / f"bad{i:02d}.wav").write_bytes(b"no sound" * i)
    found = data2vec.check(sounds, workers=0, out=tmp_path / "found.json")
    written = json.loads((tmp_path / "found.json").read_text())
    assert len(written["parts"][0]["unreadable"]) == 33
    assert written["parts"][0]["duplicates"] == found.parts[0].duplicates
    assert "and 13 more" in str(found) and "bad29" not in str(found)
    with pytest.raises(UserError, match=r"there is no folder .*/not/there"):
        check(sounds, out=tmp_path / "not" / "there" / "found.json")
    with pytest.raises(FrozenInstanceError):
        found.where = "elsewhere"


def test_report_ends_with_the_next_step(tmp_path, clips, wave):
    folder = clips(8, first=2.5)
    assert str(check(folder, workers=0)).endswith(f"Ready: data2vec pretrain speech/v2-tiny data.train={folder}")
    for i in range(2):
        (folder / f"bad{i}.wav").write_bytes(b"x")
    assert "Fix first: 2 of 10 examples cannot be read, data.max_corrupt tolerates 1:" in str(check(folder, workers=0))
    assert "data.max_corrupt=0.2" in str(check(folder, workers=0))
    assert "no example can be read as audio" in str(check(write(tmp_path / "bad", a__wav=b"x"), workers=0))
    short = tmp_path / "short"
    short.mkdir()
    soundfile.write(short / "a.wav", wave(0.2), 16000)
    assert "lower data.min_seconds" in str(check(short, workers=0))
    soundfile.write(short / "a.wav", wave(1), 16000)
    assert "a step of speech/v2-tiny needs 8 seconds, but there are only 1" in str(check(short, workers=0))


def test_short_and_long_clips_are_those_of_the_speech_settings():
    from data2vec.modalities.speech import SpeechData

    assert (SpeechData().min_seconds, SpeechData().max_seconds) == (SHORT_SECONDS, LONG_SECONDS)


@pytest.mark.parametrize("needs", [*itertools.chain(*RECIPE_NEEDS.values())], ids=lambda needs: needs.recipe)
def test_recipe_needs_equal_the_recipes(needs):
    data = load_recipe(needs.recipe).data
    assert (needs.batch, needs.micro_batch) == (data.batch, data.micro_batch)
    assert needs.unit_size == getattr(data, "block_size", 2) - 1
    limits = (getattr(data, "min_seconds", 0), getattr(data, "max_seconds", float("inf")))
    assert (needs.shortest, needs.longest) == limits


def ready_recipe(where):
    """The recipe that a check says to train with, or None."""
    advice = str(check(where, workers=0)).splitlines()[-1]
    return advice.split()[3] if advice.startswith("Ready: data2vec pretrain ") else None


def first_batches(name, where, settings=()):
    """The first step of a training run by this recipe; raises what the run would."""
    from data2vec.data.loader import Loader

    recipe = load_recipe(name, [f"data.train={where}", "data.workers=0", *settings])
    modality, method = recipe.build_modality(), recipe.objective
    loader = Loader(modality, method.mask, modality.rows(str(where)), 1, masks=method.masks_per_sample)
    return next(loader.steps())


@pytest.mark.parametrize("seconds", [(2.5,) * 8, (0.2,) * 20, (0.2,) * 39 + (0.4,), (30.0, 0.5), (0.31,) * 30, (3.9, 4.1, 4.0)])
def test_audio_that_is_ready_trains(tmp_path, wave, seconds):
    for i, length in enumerate(seconds):
        soundfile.write(tmp_path / f"{i}.wav", wave(length, 8000, seed=i), 8000)
    used = sum(min(length, 4) for length in seconds if length >= 0.3)
    assert ready_recipe(tmp_path) == ("speech/v2-tiny" if used >= 8 else None)
    if used >= 8:
        (batch,) = first_batches("speech/v2-tiny", tmp_path)
        assert batch.input.numel() > 0


@pytest.mark.parametrize("number", [63, 64, 95])
def test_images_that_are_ready_train(tmp_path, picture, encoded, number):
    content = encoded(picture(16, 16), "PNG")
    write(tmp_path, **{f"{i}__png": content for i in range(number)})
    assert ready_recipe(tmp_path) == ("vision/v2-tiny" if number >= 64 else None)
    if number >= 64:
        assert [len(batch) for batch in first_batches("vision/v2-tiny", tmp_path)] == [32, 32]


@pytest.mark.parametrize("documents", [40, 400])
def test_text_that_is_ready_trains(tmp_path, documents):
    words = ["one", "two", "three", "four", "five", "six", "seven"]
    rng = np.random.default_rng(0)
    lines = [json.dumps({"text": " ".join(rng.choice(words, 12))}) for _ in range(documents)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert ready_recipe(tmp_path) == ("text/v2-tiny" if documents == 400 else None)
    if documents == 400:
        assert first_batches("text/v2-tiny", tmp_path)[0].input.shape == (8, 128)


def test_text_that_is_ready_with_a_given_tokenizer_trains_with_it(tmp_path):
    """Which makes more tokens of it than one trained on the text would."""
    from data2vec.data.tokenizer import save_tokenizer, train_tokenizer

    save_tokenizer(train_tokenizer(["nothing alike"], 300), tmp_path)
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": "the same sentence again and again"}) + "\n" for _ in range(60))
    )
    assert ready_recipe(tmp_path / "a.jsonl") is None
    said = str(check(tmp_path / "a.jsonl", tokenizer=tmp_path, workers=0)).splitlines()[-1].split()
    assert said[:4] == ["Ready:", "data2vec", "pretrain", "text/v2-tiny"]
    assert said[5:] == [f"data.tokenizer={tmp_path}", "modality.vocab_size=300"]
    batches = first_batches("text/v2-tiny", tmp_path / "a.jsonl", said[5:])
    assert batches[0].input.shape == (8, 128)


def test_decoded_audio_of_parquet_is_read_by_check_and_training(tmp_path, wave):
    import datasets

    signals = [{"array": wave(2.0, 8000, seed=i)[:, 0].tolist(), "sampling_rate": 8000} for i in range(5)]
    datasets.Dataset.from_dict({"audio": signals, "label": ["a"] * 5}).to_parquet(tmp_path / "a.parquet")
    part = only(check(tmp_path / "a.parquet", workers=0))
    assert (part.readable, part.counts["sample rate"], part.distributions["seconds"].total) == (5, {"8000 Hz": 5}, 10)
    assert ready_recipe(tmp_path / "a.parquet") == "speech/v2-tiny"
    assert first_batches("speech/v2-tiny", tmp_path / "a.parquet")[0].input.shape == (4, 32000)


def test_the_tolerated_number_of_bad_examples_is_that_of_training(tmp_path, wave):
    """Of all examples: also of the clips that are left out as too short, and of documents rather than blocks."""
    content = io.BytesIO()
    soundfile.write(content, wave(0.1, 8000), 8000, format="WAV")
    short = {f"s{i}__wav": content.getvalue() for i in range(290)}
    folder = write(tmp_path / "clips", **short, **{f"bad{i}__wav": b"x" for i in range(3)})
    for i in range(7):
        soundfile.write(folder / f"{i}.wav", wave(2.0, 8000, seed=i), 8000)
    assert ready_recipe(folder) == "speech/v2-tiny"
    assert first_batches("speech/v2-tiny", folder)
    (folder / "bad9.wav").write_bytes(b"x")
    assert ready_recipe(folder) is None
    with pytest.raises(RunStopped, match="4 of 301 examples cannot be read"):
        first_batches("speech/v2-tiny", folder)

    lines = [json.dumps({"text": "some words of one of many documents"})] * 297 + [b"\xff".decode("latin-1")] * 3
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="latin-1")
    assert ready_recipe(tmp_path / "a.jsonl") == "text/v2-tiny"
    assert first_batches("text/v2-tiny", tmp_path / "a.jsonl")


def test_a_damaged_shard_is_not_ready_since_it_ends_a_run(tmp_path, picture, encoded):
    for i in range(3):
        shard(tmp_path / f"{i}.tar", {f"{j}.png": encoded(picture(16, 16, seed=100 * i + j), "PNG") for j in range(40)})
    assert ready_recipe(tmp_path) == "vision/v2-tiny"
    whole = (tmp_path / "1.tar").read_bytes()
    with tarfile.open(tmp_path / "1.tar") as tar:
        offset = tar.getmembers()[20].offset
    for cut in (offset + 700, offset + 100, offset):  # within a member, within its header, and in front of it
        (tmp_path / "1.tar").write_bytes(whole[:cut])
        (bad,) = only(check(tmp_path, workers=0)).unreadable
        assert "1.tar/" in bad and "not complete" in bad
        assert ready_recipe(tmp_path) == "vision/v2-tiny"
        first_batches("vision/v2-tiny", tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("anti", "its channels cancel each other"),
        ("gsm", None),
        ("huge_rate", "a sampling rate of 2147483647 Hz"),
        ("nan", "contains NaN or inf samples"),
    ],
)
def test_a_clip_is_unreadable_exactly_where_training_leaves_it_out(tmp_path, wave, content, reason):
    for i in range(10):
        soundfile.write(tmp_path / f"good{i}.wav", wave(2.0, 8000, seed=i), 8000)
    tone = wave(2.0, 8000)[:, 0]
    file = tmp_path / "x.wav"
    if content == "anti":
        soundfile.write(file, np.stack([tone, -tone], 1), 8000)
    elif content == "gsm":
        soundfile.write(file, tone, 8000, subtype="GSM610")
    elif content == "nan":
        soundfile.write(file, np.where(np.arange(len(tone)) == 5, np.nan, tone), 8000, subtype="FLOAT")
    else:
        soundfile.write(file, tone, 8000)
        file.write_bytes(file.read_bytes()[:24] + (2**31 - 1).to_bytes(4, "little") + file.read_bytes()[28:])
    part = only(check(tmp_path, workers=0))
    assert [name.split(": ")[0] for name in part.unreadable] == ([] if reason is None else [str(file)])
    assert all(reason in name for name in part.unreadable)
    examples = load_recipe("speech/v2-tiny").build_modality().labelled([{"audio": {"bytes": None, "path": str(file)}}])
    if reason is None:
        assert examples.load(0, None, None).shape == (round(part.distributions["seconds"].max * 16000),)
    elif content != "huge_rate":  # whose header is that of a clip of no length, which is left out before it is decoded
        with pytest.raises(CorruptExample, match=reason):
            examples.load(0, None, None)


def test_report_shows_the_splits_and_what_is_read_first(tmp_path, clips):
    folder = clips(4)
    for name, number in (("train-clean", 2), ("dev", 1), ("notes", 1)):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(number):
            (tmp_path / "set" / name / f"{i}.flac").write_bytes((folder / f"00{i}.flac").read_bytes())
    found = check(tmp_path / "set", workers=0)
    assert only(found).splits == {"dev": 1, "train-clean": 2} and only(found).examples == 2
    text = str(found)
    assert "splits        dev (1), train-clean (2); train is read" in text
    assert "first         train-clean/0.flac" in text and "train-clean/1.flac" in text and "dev/0.flac" not in text
    assert only(check(tmp_path / "set", split="dev", workers=0)).first == [str(tmp_path / "set" / "dev" / "0.flac")]
    with pytest.raises(UserError, match=r"has no split 'test', only dev \(1\), train-clean \(2\); notes/ belong to none"):
        check(tmp_path / "set", split="test", workers=0)


def test_report_shows_the_beginning_of_the_first_texts_of_the_column(tmp_path):
    (tmp_path / "a.csv").write_text(
        "id,review,stars\n" + "".join(f"tt{i},review {i} {'word ' * 30},{i % 2}\n" for i in range(5))
    )
    with pytest.raises(UserError, match=r"several columns can hold text, review, stars; name one by data\.column"):
        check(tmp_path / "a.csv", workers=0)
    found = check(tmp_path / "a.csv", workers=0, column="review", label="stars")
    assert [text[:10] for text in only(found).first] == ["'review 0 ", "'review 1 ", "'review 2 "]
    assert only(found).classes == {"0": 3, "1": 2} and "first         'review 0 word" in str(found)
    with pytest.raises(UserError, match="--labels: the data has no column 'starz' beside review, only id, stars"):
        check(tmp_path / "a.csv", workers=0, column="review", label="starz")


def test_text_that_fills_no_block_is_said_to_be_less_than_one(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\na,x\nb,y\n")
    block = "a block of text/v2-tiny has 127 tokens, more than all text has: add data, or lower data.block_size"
    assert block in str(check(tmp_path / "a.csv", workers=0))


def test_examples_without_a_label_are_counted(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\na,x\nb,\nc,y\nd, \n")
    found = check(tmp_path / "a.csv", workers=0)
    assert only(found).classes == {"x": 1, "y": 1} and only(found).unlabelled == 2
    assert "classes       2: x (1), y (1); 2 without" in str(found)


def test_dataset_in_memory_is_checked():
    import datasets

    rows = datasets.Dataset.from_dict({"text": ["one", "two"], "label": ["x", "y"]})
    assert only(check(rows, workers=0)).classes == {"x": 1, "y": 1}
    both = datasets.DatasetDict({"train": rows, "test": rows.select([0])})
    found = check(both, split="test", workers=0)
    assert only(found).examples == 1 and only(found).splits == {"test": 1, "train": 1}


def test_lists_of_files_and_transcripts_are_read(tmp_path, clips):
    folder = clips(2)
    (folder / "1.trans.txt").write_text("000 WORDS\n")
    found = check(folder, workers=0)
    assert only(found).kind == "audio" and found.other_files is None
    (folder / "train_manifest.json").write_text('{"audio_filepath": "000.flac"}\n')
    (folder / "speakers.tsv").write_text("id\tname\n0\tA\n")
    found = check(folder, workers=0)
    assert only(found).examples == 1 and found.other_files == "1 .tsv"
    assert only(check(folder / "train_manifest.json", workers=0)).examples == 1


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "csv"])
def test_splits_in_a_column_are_counted(tmp_path, ending):
    rows = Dataset.from_dict({"text": ["one", "two", "three"], "split": ["train", "dev", "train"]})
    path = tmp_path / f"a.{ending}"
    {"jsonl": rows.to_json, "parquet": rows.to_parquet, "csv": rows.to_csv}[ending](str(path))
    found = check(str(path), workers=0)
    assert found.parts[0].splits == {"dev": 1, "train": 2} and found.parts[0].examples == 2
