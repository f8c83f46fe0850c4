import io
import json
import tarfile
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import soundfile
from PIL import Image

import data2vec
from data2vec.data.check.check import check
from data2vec.data.check.report import LONG_SECONDS, RECIPE_NEEDS, SHORT_SECONDS
from data2vec.errors import UserError
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
    assert part.unreadable == [f"{tmp_path}/a.jsonl, line 2: not UTF-8, or without a text"]
    assert part.duplicates == [[f"{tmp_path}/a.jsonl, line 1", f"{tmp_path}/a.jsonl, line 3"]]
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
    assert told(only(check(tmp_path, workers=0))) == {"b.wav": "No such file or directory"}


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


def test_truncated_tar_is_one_unreadable_part(tmp_path, picture, encoded):
    for i in range(3):
        pictures = {f"{i}{j}": encoded(picture(seed=j + 10 * (i % 2), noise=60), "PNG") for j in range(6)}
        shard(tmp_path / f"{i}.tar", {f"{k}.png": v for k, v in pictures.items()} | {f"{k}.txt": b"words" for k in pictures})
    whole = (tmp_path / "1.tar").read_bytes()
    (tmp_path / "1.tar").write_bytes(whole[:15000])
    part = only(check(tmp_path, workers=0))
    assert part.kind == "image", "captions are not what is learned from"
    (bad,) = part.unreadable
    assert bad.startswith("part 2 of 3: the rest cannot be read") and "1.tar is not a complete tar archive" in bad
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
    with pytest.raises(UserError, match=r"a\.csv, row 2"):
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


@pytest.mark.parametrize("kind", RECIPE_NEEDS)
def test_recipe_needs_equal_the_recipes(kind):
    needs = RECIPE_NEEDS[kind]
    data = load_recipe(f"{needs.modality}/v2-tiny").data
    assert needs.step == data.batch * (data.block_size - 1 if kind == "text" else 1)
    assert kind != "audio" or (data.min_seconds, load_recipe("speech/v2-base").data.min_seconds) == (
        needs.min_measure,
        needs.base_min_measure,
    )
