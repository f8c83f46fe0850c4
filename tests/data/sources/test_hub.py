from pathlib import Path

import datasets
import pytest
from huggingface_hub import constants

import data2vec
from data2vec import cli
from data2vec.data.sources.hub import hub_name
from data2vec.data.sources.open_dataset import open_dataset
from data2vec.data.tokenizer import load_tokenizer
from data2vec.errors import UserError


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*arguments: object, **options: object) -> None:
        pytest.fail(f"the hub was asked for {arguments} {options}")

    monkeypatch.setattr("huggingface_hub.snapshot_download", asked)
    monkeypatch.setattr(datasets, "load_dataset", asked)


@pytest.mark.usefixtures("hub_cache")
def test_names_with_the_prefix_are_of_the_hub() -> None:
    assert hub_name("hf://owner/name", "model") == "owner/name"
    assert hub_name("hf://owner/name:config", "dataset") == "owner/name:config"
    for path in (
        "owner/name",
        "name",
        "runs/photos",
        "a/b/c",
        "/a/b",
        "./a",
        "../b",
        "hf://datasets/owner/name/data/",
        "s3://a/b",
    ):
        assert hub_name(path, "dataset") is None
    assert hub_name("hf://owner/name:config", "model") is None


def test_names_in_the_cache_need_no_prefix(hub_cache: Path) -> None:
    (hub_cache / "models--owner--model").mkdir(parents=True)
    (hub_cache / "datasets--owner--set").mkdir()
    (Path(datasets.config.HF_DATASETS_CACHE) / "owner___prepared").mkdir(parents=True)
    assert hub_name("owner/model", "model") == "owner/model"
    assert hub_name("owner/set:small", "dataset") == "owner/set:small"
    assert hub_name("owner/prepared", "dataset") == "owner/prepared"
    assert hub_name("owner/model", "dataset") is hub_name("owner/set", "model") is None


@pytest.mark.usefixtures("hub_cache", "no_network")
@pytest.mark.parametrize("path", ["runs/photos", "data/clps", "facebook/data2vec-audio-base"])
def test_a_path_that_does_not_exist_is_never_sent_to_the_hub(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    message = f"{path}: there is no such folder or file; for the hub, write hf://{path}"
    with pytest.raises(UserError, match=f"^{message}$"):
        data2vec.load(path)
    with pytest.raises(UserError, match=f"^{message}$"):
        open_dataset(path, "audio")
    for words in (
        ["check", path],
        ["probe", path, "--data", "x"],
        ["features", path, "x.wav", "--out", "x.npy"],
        ["pretrain", "vision/v2-tiny", "--out", "nowhere", f"data.train={path}"],
        ["finetune", "vision/classify-tiny", "--out", "nowhere", "--model", path, "data.train=x"],
        ["transcribe", path, "x.wav"],
        ["convert", path, "nowhere", "--to", "data2vec"],
        ["export", path, "--out", "x.onnx"],
        ["evaluate", path, "data.valid=x"],
        ["finetune", "vision/classify-tiny", "--out", "nowhere", f"data.train={path}", "data.valid=."],
        ["compare", "vision/v2-tiny", "--out", "nowhere", "--flops", "1e9", f"data.train={path}", "probe.data=x"],
    ):
        assert cli.main(words) == 2
        assert message in capsys.readouterr().err


@pytest.mark.usefixtures("hub_cache", "no_network")
def test_a_plain_word_and_a_long_path_get_a_plain_message() -> None:
    for path in ("clips", "a/b/clips", "./clips", "../data/clips"):
        for call in (data2vec.load, lambda path: open_dataset(path, "audio")):
            with pytest.raises(UserError, match=r": there is no such folder or file$"):
                call(path)


@pytest.mark.parametrize("path", ["", "  "])
def test_an_empty_path_is_not_the_current_folder(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("a text")
    out = tmp_path / "run"
    text = {"data.train": "a.txt"}
    for call in (
        lambda: data2vec.load(path),
        lambda: open_dataset(path, "text"),
        lambda: data2vec.check(path),
        lambda: load_tokenizer(path),
        lambda: data2vec.pretrain("text/v2-tiny", path, out=out),
        lambda: data2vec.pretrain("text/v2-tiny", out=out, overrides=text | {"data.valid": path}),
        lambda: data2vec.pretrain("text/v2-tiny", out=out, overrides=text | {"data.tokenizer": path}),
        lambda: data2vec.pretrain("text/v2-tiny", out=out, overrides=text | {"init": path}),
        lambda: data2vec.pretrain("text/v2-tiny", out=out, overrides=text | {"probe.data": path}),
        lambda: data2vec.finetune("text/classify-tiny", None, path, out=out),
        lambda: data2vec.finetune("text/classify-tiny", path, "a.txt", out=out),
    ):
        with pytest.raises(UserError, match=r"the name of a file or folder is empty; write \. for the current folder$"):
            call()
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "after"),
    [(["check", ""], "check"), (["probe", "x", "--data", " "], "--data"), (["pretrain", "vision/v2-tiny", "--out="], "--out=")],
)
def test_an_empty_argument_of_the_command_is_refused(words: list[str], after: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2 and f"error: an empty argument after {after}; " in capsys.readouterr().err


@pytest.mark.usefixtures("hub_cache")
def test_names_of_the_hub_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> Path:
        assert not any(pattern.endswith(".py") or pattern == "*" for pattern in allow_patterns)
        return asked.append((name, revision)) or tmp_path

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    for name, revision in (("hf://owner/name", None), ("hf://owner/name@v1.0", None), ("hf://owner/name", "abc123")):
        with pytest.raises(UserError, match="is not a data2vec run or model folder"):
            data2vec.load(name, revision=revision)
    assert asked == [("owner/name", None), ("owner/name", "v1.0"), ("owner/name", "abc123")]
    with pytest.raises(UserError, match="names v1; name one"):
        data2vec.load("hf://owner/name@v1", revision="v2")
    with pytest.raises(UserError, match="is a path; revisions are of models on the hub"):
        data2vec.load(tmp_path, revision="v2")


@pytest.mark.usefixtures("hub_cache")
def test_a_revision_of_a_dataset_reaches_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[tuple[object, ...], object]] = []

    def load_dataset(*arguments: object, revision: object, **options: object) -> None:
        asked.append((arguments, revision))
        raise ValueError("no")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for path in ("hf://owner/name@abc", "hf://owner/name:small@refs/pr/1"):
        with pytest.raises(UserError, match="cannot be read"):
            open_dataset(path, "audio")
    assert asked == [(("owner/name", None), "abc"), (("owner/name", "small"), "refs/pr/1")]
