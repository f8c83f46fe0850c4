import csv
import json
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

import data2vec
from data2vec.errors import UserError
from data2vec.modalities.speech import Speech
from data2vec.model import Model, blank_model
from data2vec.recipe.loading import load_recipe
from data2vec.tasks.asr.vocabulary import CTCVocabulary
from data2vec.tasks.metrics import error_rates, multi_label_scores
from data2vec.tasks.prediction import table
from data2vec.tasks.prediction.predict import Prediction
from helpers.fine_tuned import KINDS, SMALL, fine_tuned, make_data
from helpers.locks import locked_by_another_process


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_data(tmp_path_factory.mktemp("labelled") / "data")


def build(kind: str, data: dict[str, Path]) -> Model:
    return fine_tuned(kind, data["tokenizer"])


def column(path: Path, name: str) -> list[str]:
    """The labels in the order of the inputs."""
    if path.is_dir() and not (path / "metadata.csv").exists():
        return [file.parent.name for file in sorted(path.rglob("*.png"))]
    file = path / "metadata.csv" if path.is_dir() else path
    with file.open() as lines:
        return [row[name] for row in csv.DictReader(lines, delimiter="\t" if file.suffix == ".tsv" else ",")]


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_on_the_evaluation_data_give_the_scores_of_evaluate(kind: str, data: dict[str, Path]) -> None:
    model, where = build(kind, data), data[kind]
    label = {"events": "events", "transcripts": "transcript", "numbers": "score"}.get(kind, "label")
    scores = data2vec.evaluate(model, where, [f"objective.label={label}"]).scores
    labels, names = column(where, label), model.head.settings.labels  # type: ignore[union-attr]
    found = list(data2vec.predict(model, where, top_k=3 if kind == "events" else 1))
    assert len(found) == len(labels)
    if kind == "transcripts":
        vocabulary = CTCVocabulary(names)
        rates = error_rates([vocabulary.normalize(str(each.value)) for each in found], labels)
        assert (rates.wer, rates.cer) == (scores["wer"], scores["cer"])
    elif kind == "numbers":
        errors = np.float32([each.value for each in found]) - np.array(labels, float)
        assert scores["mean_squared_error"] == pytest.approx(np.square(errors).mean(), rel=1e-6)
    elif kind == "events":
        probabilities = np.array([[dict(each.top)[name] for name in names] for each in found])
        hot = np.array([[name in value.split("|") for name in names] for value in labels])
        assert multi_label_scores(probabilities, hot) == {name: scores[name] for name in ("map", "auroc", "dprime")}
    else:
        assert np.mean([each.value == value for each, value in zip(found, labels, strict=True)]) == scores["accuracy"]


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_do_not_depend_on_the_batch(kind: str, data: dict[str, Path]) -> None:
    model, where = build(kind, data), str(data[kind])
    together, small = (list(data2vec.predict(model, where, batch=batch)) for batch in (4096, 1))
    assert [each.name for each in together] == [each.name for each in small]
    for one, other in zip(together, small, strict=True):
        assert one.value == (other.value if kind != "numbers" else pytest.approx(other.value, abs=1e-4))
        assert one.probability == (None if other.probability is None else pytest.approx(other.probability, abs=1e-5))


@pytest.mark.parametrize("kind", ["classes of sounds", "transcripts"])
def test_long_recordings_are_predicted_in_the_chunks_of_evaluation(
    kind: str, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(kind, data)
    wave = 0.1 * np.random.default_rng(0).standard_normal(16000 * 5)
    whole = model.logits([wave]).logits
    monkeypatch.setattr(Speech.chunks, "__defaults__", (2.0, 1.0))
    chunked = model.logits([wave]).logits
    assert chunked.shape == whole.shape and not chunked.equal(whole)
    torch.testing.assert_close(chunked, whole, atol=0.05, rtol=0)
    (prediction,) = model.predict([wave])
    if kind == "transcripts":
        assert isinstance(prediction.value, str)
    else:
        assert prediction.probability == pytest.approx(chunked.softmax(-1).max().item(), abs=1e-6)


def test_single_label_prediction_has_the_top_k_classes_most_probable_first(data: dict[str, Path]) -> None:
    model = build("classes of sounds", data)
    wave = np.random.default_rng(0).standard_normal(8000)
    (prediction,) = model.predict(wave, top_k=3)
    expected = model.logits(wave).logits[0].softmax(-1).tolist()
    by_label = dict(zip(("low", "high", "none"), expected, strict=True))
    assert [label for label, _ in prediction.top] == sorted(by_label, key=lambda label: -by_label[label])
    assert dict(prediction.top) == pytest.approx(by_label, abs=1e-6)
    assert (prediction.value, prediction.probability) == prediction.top[0]
    assert prediction.name == "input 1" and prediction.error is None


def test_multi_label_prediction_has_all_labels_of_at_least_the_threshold(data: dict[str, Path]) -> None:
    model = build("events", data)
    with torch.no_grad():
        model.head.out.weight.zero_()  # type: ignore[union-attr]
        model.head.out.bias.copy_(torch.tensor([0.9, 0.5, 0.2]).logit())  # type: ignore[union-attr]
    wave = np.random.default_rng(0).standard_normal(8000)
    for threshold, labels in ((None, ("low", "high")), (0.1, ("low", "high", "none")), (0.95, ())):
        (prediction,) = model.predict(wave, threshold=threshold)
        assert prediction.value == labels
        assert prediction.probability == pytest.approx((0.9, 0.5, 0.2)[: len(labels)], abs=1e-4)


def test_unreadable_inputs_keep_their_place_and_have_an_error(
    data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    files = [tmp_path / f"{i}.wav" for i in range(4)]
    for file in files:
        soundfile.write(file, rng.standard_normal(4000) / 9, 16000)
    files[1].write_bytes(b"no sound")
    soundfile.write(files[2], rng.standard_normal(50), 16000)
    model = build("classes of sounds", data)
    predictions = data2vec.predict(model, files)
    found = list(predictions)
    assert len(predictions) == 4 and [each.name for each in found] == [str(file) for file in files]
    assert [each.error is None for each in found] == [True, False, False, True]
    assert found[1].value is found[1].probability is None and not found[1].error.startswith(str(tmp_path))  # type: ignore[union-attr]
    assert "too short" in str(found[2].error)
    with pytest.raises(UserError, match=r"none of the 2 inputs can be decoded: .*1\.wav: .*2\.wav: too short"):
        model.predict(files[1:3])
    monkeypatch.setattr("data2vec.tasks.prediction.table.NAMED", 1)
    done = predictions.save(tmp_path / "out.csv")
    assert (len(done.unreadable), done.num_unreadable) == (1, 2), "all are counted, not all are kept"
    assert str(done).splitlines()[::3] == [f"{tmp_path}/out.csv: 2 predictions", "  and 1 more"]


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("kind", KINDS)
def test_tables_of_every_format_hold_the_predictions_and_the_own_columns(
    kind: str, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "ROWS", 3)
    model, where = build(kind, data), str(data[kind])
    top_k = 2 if kind.startswith(("classes", "events")) else 1
    expected = list(data2vec.predict(model, where, top_k))
    written = {}
    for ending in ("csv", "jsonl", "parquet"):
        done = data2vec.predict(model, where, top_k).save(tmp_path / f"out.{ending}")
        assert (done.path.name, done.inputs, done.unreadable) == (f"out.{ending}", len(expected), [])
        written[ending] = read(done.path)
    assert written["jsonl"] == written["parquet"]
    rows = written["jsonl"]
    assert [row["name"] for row in rows] == [each.name for each in expected]
    assert [row["prediction"] for row in rows] == [
        list(each.value) if isinstance(each.value, tuple) else each.value for each in expected
    ]
    assert all(row["error"] is None for row in rows)
    if top_k == 2:
        assert [list(zip(row["top_labels"], row["top_probabilities"], strict=True)) for row in rows] == [
            list(each.top) for each in expected
        ]
    assert ("probability" in rows[0]) == (top_k == 2)
    if kind in ("classes of pairs", "numbers"):
        assert [row["text"] for row in rows] == column(data[kind], "sentence1")
    for plain, row in zip(written["csv"], rows, strict=True):
        shown = {key: "" if value is None else value for key, value in row.items()}
        assert plain == {key: json.dumps(value) if isinstance(value, list) else str(value) for key, value in shown.items()}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "out.jsonl", "out.parquet"]


def test_own_columns_with_the_name_of_a_column_of_the_table_are_left_out_with_a_warning(
    data: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "t.csv").write_text("text,error,mark\nthe film,3,a\n")
    with caplog.at_level(logging.WARNING):
        data2vec.predict(build("numbers", data), str(tmp_path / "t.csv")).save(tmp_path / "out.jsonl")
    (row,) = read(tmp_path / "out.jsonl")
    assert (row["text"], row["error"], row["mark"]) == ("the film", None, "a")
    assert "own columns error are left out" in caplog.text


def test_without_a_column_the_one_that_the_model_has_learned_from_is_read_if_there_is_one(
    data: dict[str, Path], tmp_path: Path
) -> None:
    model = build("numbers", data)
    model = replace(model, recipe=load_recipe(model.recipe, {"data.column": "body"}))
    (tmp_path / "both.csv").write_text("text,body\nit is poor,the film is fine\n")
    (tmp_path / "text.csv").write_text("text\nit is poor\n")
    for name, column, text in (
        ("both.csv", None, "the film is fine"),
        ("both.csv", "text", "it is poor"),
        ("text.csv", None, "it is poor"),
    ):
        (found,) = data2vec.predict(model, str(tmp_path / name), column=column)
        assert found.value == model.predict([text])[0].value


def test_a_data_set_without_rows_is_refused(data: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,label\n")
    with pytest.raises(UserError, match=r"t\.csv: has no rows"):
        data2vec.predict(build("numbers", data), str(tmp_path / "t.csv"))


@pytest.mark.parametrize("as_list", [False, True])
def test_the_input_is_never_replaced_by_its_predictions(as_list: bool, data: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("text,prediction\nthe film,3\n")
    (tmp_path / "link.csv").symlink_to(path)
    found = data2vec.predict(build("numbers", data), [path] if as_list else str(path))
    with pytest.raises(UserError, match=r"--out .*link\.csv: is the input, which would be replaced"):
        found.save(tmp_path / "link.csv")
    assert path.read_text() == "text,prediction\nthe film,3\n"


def test_jsonl_has_null_for_numbers_that_json_does_not_have(data: dict[str, Path], tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "b", "c"], "x": [1.5, math.inf, math.nan]}), tmp_path / "t.parquet")
    data2vec.predict(build("numbers", data), str(tmp_path / "t.parquet")).save(tmp_path / "out.jsonl")
    assert [row["x"] for row in read(tmp_path / "out.jsonl")] == [1.5, None, None]


def test_a_table_is_complete_or_not_there(data: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    out, model = tmp_path / "out.csv", build("classes of sounds", data)
    with pytest.raises(UserError, match="none of the 1 inputs can be decoded"):
        data2vec.predict(model, [tmp_path / "bad.wav"]).save(out)
    with torch.no_grad():
        model.head.out.bias.fill_(np.nan)  # type: ignore[union-attr]
    with pytest.raises(UserError, match="logits are NaN or inf"):
        data2vec.predict(model, str(data["events"])).save(out)
    assert not list(tmp_path.glob("*out*")) and not list(tmp_path.glob(".*"))
    with pytest.raises(UserError, match=r"out\.npy: unknown file extension; use \.csv, \.jsonl, \.parquet"):
        data2vec.predict(model, str(data["events"])).save(tmp_path / "out.npy")
    parts = tmp_path / "out.csv.parts"
    parts.mkdir()
    with locked_by_another_process(parts / ".lock"), pytest.raises(UserError, match="another process predicts in this folder"):
        data2vec.predict(model, str(data["events"])).save(out)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_shares_of_a_table_are_merged_by_the_last_one_and_an_interrupted_one_is_resumed(
    ending: str, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data2vec.tasks.shares.SMALLEST_BLOCK", 2)
    monkeypatch.setattr("data2vec.tasks.extraction.decode.CHUNK", 2)
    monkeypatch.setattr("data2vec.tasks.shares.SHARD_SECONDS", 0)
    model, out = build("classes of sounds", data), tmp_path / f"out.{ending}"
    found = data2vec.predict(model, str(data["events"]), top_k=2, batch=1)
    found.save(tmp_path / f"whole.{ending}")
    done = found.save(out, "3/3")
    assert str(done) == f"{out}: share 3 of 3 is complete; {len(found) - done.inputs} inputs of other shares are missing"
    with monkeypatch.context() as patch:
        compute = found._interpret
        names = list[str]()

        def interrupted(name: str, logits: torch.Tensor) -> Prediction:
            names.append(name)
            if len(names) == 4:
                raise KeyboardInterrupt
            return compute(name, logits)

        patch.setattr(found, "_interpret", interrupted)
        with pytest.raises(KeyboardInterrupt):
            found.save(out, "1/3")
    with pytest.raises(UserError, match=r"\.parts was started with top_k 2, not 1"):
        data2vec.predict(model, str(data["events"]), batch=1).save(out)
    assert found.save(out).inputs == len(found)  # what is missing, by one process
    assert out.read_bytes() == (tmp_path / f"whole.{ending}").read_bytes()
    assert not list(tmp_path.glob("*.parts"))
    with pytest.raises(UserError, match="exists; delete it"):
        found.save(out, "2/3")


def test_pairs_of_texts_need_both_columns(data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("classes of pairs", data)
    row = {"text": "the film is fine", "sentence2": "it is poor"}
    (one,) = model.predict([row])
    (other,) = model.predict([row | {"sentence2": "it is fine"}])
    assert one.probability != other.probability
    wanted = "the model takes pairs of texts, whose second text is in column 'sentence2'"
    for give in (model.predict, model.logits, model.features):
        with pytest.raises(UserError, match=f"input 1: {wanted}; give a table with both columns, or rows such as"):
            give("a text")
    with pytest.raises(UserError, match=f"input 2: {wanted}"):
        model.predict([row, {"text": "alone"}])
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("text,hypothesis\nthe film is fine,it is poor\n")
    with pytest.raises(UserError, match=f"data.second: {wanted}; the data has only text, hypothesis"):
        data2vec.predict(model, str(pairs))
    (named,) = data2vec.predict(model, str(pairs), second="hypothesis")
    assert named.probability == pytest.approx(one.probability)
    pairs.write_text("text,hypothesis,other\nthe film is fine,it is poor,it is fine\n")
    with monkeypatch.context() as patch:
        patch.setattr("data2vec.tasks.prediction.predict.write_table", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            data2vec.predict(model, str(pairs), second="hypothesis").save(tmp_path / "out.csv")
    with pytest.raises(UserError, match="was started with second 'hypothesis', not 'other'"):
        data2vec.predict(model, str(pairs), second="other").save(tmp_path / "out.csv")
    with pytest.raises(UserError, match="this is no model of texts; only these come in pairs"):
        data2vec.predict(build("classes of sounds", data), str(data["events"]), second="x")


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("classes of sounds", {"top_k": 4}, "top_k: 4; this model has 3 labels: give a number from 1 to 3"),
        ("events", {"top_k": 0}, "top_k: 0; this model has 3 labels"),
        ("numbers", {"top_k": 2}, "top_k: 2, but this model predicts a number"),
        ("transcripts", {"top_k": 2}, "top_k: 2, but this model predicts transcripts"),
        ("classes of images", {"threshold": 0.5}, "only multi-label classification has one, and this is single_label_class"),
        ("events", {"threshold": 1.5}, "threshold: 1.5 is not a probability"),
        ("events", {"threshold": "half"}, "threshold: 'half' is not a number"),
        ("events", {"top_k": "2"}, "top_k: '2' is not an integer"),
        ("events", {"top_k": 1.5}, "top_k: 1.5 is not an integer"),
    ],
)
def test_options_that_a_head_does_not_have_are_refused(
    kind: str, options: dict[str, Any], message: str, data: dict[str, Path]
) -> None:
    with pytest.raises(UserError, match=message):
        data2vec.predict(build(kind, data), str(data[kind]), **options)


def test_a_model_without_a_head_is_refused(tmp_path: Path) -> None:
    model = blank_model(load_recipe("speech/v1-tiny", SMALL))
    model.save_pretrained(tmp_path / "model")
    wanted = r"has no head; fine-tune it first \(data2vec finetune\), or use its features \(data2vec features or probe\)"
    with pytest.raises(UserError, match=f"model: {wanted}"):
        data2vec.predict(tmp_path / "model", [np.zeros(9000)])
    for give in (model.predict, model.logits):
        with pytest.raises(UserError, match=f"this model: {wanted}"):
            give([np.zeros(9000)])


def test_texts_that_fill_the_model_are_counted_in_one_warning(
    data: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        list(data2vec.predict(build("numbers", data), ["word " * 3000, "short", "word " * 4000]))
    (record,) = caplog.records
    assert record.getMessage().startswith("predict: 2 of 3 texts have 128 tokens, the most that the model takes")
