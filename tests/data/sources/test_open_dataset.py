import io
import json
import tarfile

import numpy as np
import pytest
import soundfile

from data2vec.data.dataset import column_value
from data2vec.data.sources.open_dataset import open_dataset
from data2vec.errors import UserError


def add(tar, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def flac(wave, seed=0):
    file = io.BytesIO()
    soundfile.write(file, wave(0.5, seed=seed), 16000, format="FLAC")
    return file.getvalue()


def names(rows, kind):
    return [row[kind]["path"].rsplit("/", 1)[-1] for row in rows]


@pytest.fixture
def classes(tmp_path):
    for name in ("b/2.png", "a/1.PNG", "a/notes.txt", "b/.hidden.png"):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path / "set"


@pytest.mark.parametrize("streaming", [False, True])
def test_sub_folders_become_labels(classes, streaming):
    rows = open_dataset(str(classes), "image", streaming=streaming)
    assert [(name, row["label"]) for name, row in zip(names(rows, "image"), rows, strict=True)] == [
        ("1.PNG", "a"),
        ("2.png", "b"),
    ]
    assert all(row["image"]["bytes"] is None for row in rows)


def test_deeper_folders_are_not_labels(tmp_path):
    for name in ("12/3/x.wav", "12/4/y.wav"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"x")
    rows = open_dataset(str(tmp_path), "audio")
    assert names(rows, "audio") == ["x.wav", "y.wav"]
    assert rows.column_names == ["audio"]


def test_split_folders_match_by_synonym(tmp_path):
    for split in ("train", "dev"):
        (tmp_path / split).mkdir()
        (tmp_path / split / f"{split}.wav").write_bytes(b"x")
    assert names(open_dataset(str(tmp_path), "audio"), "audio") == ["train.wav"]
    assert names(open_dataset(str(tmp_path), "audio", split="validation"), "audio") == ["dev.wav"]
    with pytest.raises(UserError, match=r"has no split 'test', only dev \(1\), train \(1\): set data.split"):
        open_dataset(str(tmp_path), "audio", split="test")


def test_class_folder_named_train_is_not_a_split(tmp_path):
    for name in ("plane", "train"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(b"x")
    assert open_dataset(str(tmp_path), "image")["label"][:] == ["plane", "train"]


def test_metadata_csv_adds_columns(tmp_path):
    (tmp_path / "metadata.csv").write_text('file_name,transcript,age\nb.wav,"one, two",3\na.wav,7,4\n')
    (tmp_path / "b.wav").write_bytes(b"x")
    rows = open_dataset(str(tmp_path), "audio")
    assert names(rows, "audio") == ["b.wav", "a.wav"]
    assert rows["transcript"][:] == ["one, two", "7"]
    assert rows["age"][:] == ["3", "4"]


@pytest.mark.parametrize("streaming", [False, True])
def test_tsv_is_read_without_quoting(tmp_path, streaming):
    (tmp_path / "train.tsv").write_text('sentence\tlabel\n" quoted\t1\nplain "x"\t0\n')
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\nother\t1\n")
    rows = open_dataset(str(tmp_path), "text", streaming=streaming)
    assert [(row["text"], row["label"]) for row in rows] == [('" quoted', "1"), ('plain "x"', "0")]
    assert [row["text"] for row in open_dataset(str(tmp_path / "dev.tsv"), "text")] == ["other"]


def test_csv_keeps_quotes_line_breaks_long_cells_and_words_for_null(tmp_path):
    long = "word " * 500_000  # more than a block of pyarrow
    (tmp_path / "a.csv").write_text(f'sentence,label\n"a, ""b""\nc",NA\n{long},\n\nnull,x\n', encoding="utf-8-sig")
    rows = open_dataset(str(tmp_path / "a.csv"), "text")
    assert rows["text"][:] == ['a, "b"\nc', long, "null"]
    assert rows["label"][:] == ["NA", "", "x"]


def test_encoding_of_a_table_that_is_not_utf_8_is_a_user_error(tmp_path):
    (tmp_path / "b.csv").write_bytes("sentence,label\ncafé,1\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"b\.csv: 1 of 1 rows .*: not UTF-8; .* save it as UTF-8"):
        open_dataset(str(tmp_path / "b.csv"), "text")


@pytest.mark.parametrize("streaming", [False, True])
def test_jsonl_with_invalid_lines(tmp_path, streaming):
    lines = [
        json.dumps({"text": "née", "score": 0.5, "nested": {"a": 1}}).encode(),
        b'{"text": "\xff"}',
        b"not json",
        b'{"text": "b"}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    rows = list(open_dataset(str(tmp_path), "text", streaming=streaming))
    assert [row["text"] for row in rows] == ["née", None, None, "b"]
    if not streaming:
        assert rows[0]["score"] == 0.5 and rows[0]["nested"] == '{"a": 1}'
    assert rows[1]["path"].endswith("a.jsonl:2")


def test_changed_jsonl_invalidates_the_cache(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n')
    assert open_dataset(str(path), "text")["text"][:] == ["one"]
    path.write_text('{"text": "another"}\n')
    assert open_dataset(str(path), "text")["text"][:] == ["another"]


def test_text_files_are_rows_of_paths(tmp_path):
    (tmp_path / "a.txt").write_text("words")
    rows = open_dataset(str(tmp_path), "text")
    assert rows[0]["text"] == {"bytes": None, "path": str(tmp_path / "a.txt"), "unreadable_because": None}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_tar_archives_are_read_without_unpacking(tmp_path, wave, streaming, ending):
    for shard in range(2):
        with tarfile.open(tmp_path / f"s-{shard}.{ending}", "w:gz" if ending.endswith("gz") else "w") as tar:
            for i in range(2):
                add(tar, f"../d/{shard}{i}.flac", flac(wave, i))
                add(tar, f"../d/{shard}{i}.cls", str(i).encode())
                add(tar, f"../d/{shard}{i}.json", json.dumps({"speaker": "x", "deep": {}}).encode())
    before = sorted(tmp_path.rglob("*"))
    rows = list(open_dataset(str(tmp_path), "audio", streaming=streaming))
    assert names(rows, "audio") == ["00.flac", "01.flac", "10.flac", "11.flac"]
    assert [row["label"] for row in rows] == ["0", "1"] * 2
    if not streaming:
        assert [(row["speaker"], row["deep"]) for row in rows] == [("x", "{}")] * 4
    assert rows[0]["audio"]["bytes"] == flac(wave, 0)
    assert sorted(tmp_path.rglob("*")) == before, "nothing is unpacked"
    assert not (tmp_path.parent / "d").exists()


def test_tar_that_is_truncated_in_its_first_example_is_a_user_error(tmp_path, wave):
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        add(tar, "a.flac", flac(wave))
    whole = (tmp_path / "s.tar").read_bytes()
    (tmp_path / "s.tar").write_bytes(whole[:2000])
    with pytest.raises(UserError, match=r"s\.tar/a\.flac: not complete \(.*\); no example can be read"):
        open_dataset(str(tmp_path), "audio")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("form", ["typed", "struct", "binary"])
def test_parquet(tmp_path, wave, streaming, form):
    import datasets

    content = [flac(wave, i) for i in range(3)]
    values = content if form == "binary" else [{"bytes": item, "path": f"{i}.flac"} for i, item in enumerate(content)]
    data = datasets.Dataset.from_dict({"audio": values, "label": [0, 1, 0]})
    data = data.cast_column("label", datasets.ClassLabel(names=["no", "yes"]))
    if form == "typed":
        data = data.cast_column("audio", datasets.Audio(decode=False))
    data.to_parquet(tmp_path / "train-00000.parquet")
    rows = open_dataset(str(tmp_path), "audio", streaming=streaming)
    assert [row["audio"]["bytes"] for row in rows] == content
    if not streaming:
        assert [column_value(rows, i, "label") for i in range(3)] == ["no", "yes", "no"]


def test_value_of_an_unknown_column_is_a_user_error(classes):
    with pytest.raises(UserError, match="no column 'word' in the data, only image, label"):
        column_value(open_dataset(str(classes), "image"), 0, "word")


def test_missing_folder_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: there is no such folder or file"):
        open_dataset(str(tmp_path / "nowhere"), "audio")


def test_folder_without_files_of_the_kind_is_a_user_error(classes, tmp_path):
    with pytest.raises(UserError, match=r"searched for \.wav \.flac .* found 2 \.png, 1 \.txt") as error:
        open_dataset(str(classes), "audio")
    assert "\n" not in str(error.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"found nothing"):
        open_dataset(str(tmp_path / "empty"), "text")


def test_stream_without_rows_of_the_kind_is_a_user_error(tmp_path, wave):
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        add(tar, "a.flac", flac(wave))
    with pytest.raises(UserError, match=r"no example in it can be read as image"):
        open_dataset(str(tmp_path), "image", streaming=True)


def test_hub_dataset_by_name_and_config(monkeypatch):
    import datasets

    asked = {}

    def load_dataset(*arguments, **options):
        asked.update(options, arguments=arguments)
        return datasets.Dataset.from_dict({"content": ["a"], "other": [1]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = open_dataset("hf://someone/something:small", "text", split="test")
    assert asked == {"arguments": ("someone/something", "small"), "split": "test", "streaming": False, "revision": None}
    assert rows[0] == {"text": "a", "other": 1}


def test_unreachable_hub_is_a_user_error():
    with pytest.raises(UserError, match="hf://someone/nothing") as error:
        open_dataset("hf://someone/nothing", "text")
    assert "\n" not in str(error.value)


def test_symlink_cycles_are_read_once(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.wav").write_bytes(b"x")
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a")
    assert names(open_dataset(str(tmp_path), "audio"), "audio") == ["x.wav"]


def test_media_rows_accept_numpy_indices(classes):
    rows = open_dataset(str(classes), "image")
    assert rows[np.int64(1)]["label"] == "b"
