import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from data2vec.distributed import Process
from data2vec.modalities.speech import Speech
from data2vec.nn.encoder import build_encoder
from data2vec.nn.heads import CTC, Classifier, ClassifierSettings, CTCSettings, build_head
from data2vec.recipe.loading import load_recipe
from data2vec.recipe.task_settings import RecognitionSettings
from data2vec.tasks.asr.vocabulary import CTCVocabulary
from data2vec.tasks.eval_batches import EvalPass, gather_outputs
from data2vec.tasks.finetuning.evaluate import (
    EvalSet,
    Evaluation,
    Scored,
    _recording_scores,
    compute_logits,
    compute_scores,
    describe_logits,
    load_eval_set,
)
from data2vec.tasks.finetuning.labels import Transcripts

CAPITALS = ("<s>", "<pad>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVKÉ'")
SMALL = tuple(label.lower() for label in CAPITALS)
TEXTS = ("The cat sat", "on a mat", "a café", "it's time", "no", "she read it")


@pytest.fixture
def recognize(tmp_path: Path) -> Callable[..., Scored]:
    """The scores of a head with `labels` that recognizes the texts `heard` in recordings with the texts `written`."""

    def run(labels: tuple[str, ...], heard: list[str], written: list[str]) -> Scored:
        for i in range(len(written)):
            soundfile.write(tmp_path / f"{i}.wav", np.zeros(1600), 16000)
        rows = [f'{i}.wav,"{text}"' for i, text in enumerate(written)]
        (tmp_path / "metadata.csv").write_text("\n".join(["file_name,transcript", *rows]))
        vocabulary = CTCVocabulary(labels)
        modality = load_recipe("speech/ctc-tiny").build_modality()
        eval_set = load_eval_set(modality, str(tmp_path), Transcripts(vocabulary), "transcript")
        head = CTC(CTCSettings(labels=labels), 8)
        describe = describe_logits(head, RecognitionSettings())
        return compute_scores([(i, describe(logits(vocabulary, text))) for i, text in enumerate(heard)], head, eval_set)

    return run


def logits(vocabulary: CTCVocabulary, text: str) -> torch.Tensor:
    """(T, V) of a head that is sure of a text: each label in one frame, and blanks between."""
    path = [label for i in vocabulary.encode(text) for label in (i, 0)] or [0, 0]
    return 20.0 * torch.nn.functional.one_hot(torch.tensor(path), len(vocabulary.labels))


@pytest.mark.parametrize("labels", [CAPITALS, SMALL])
@pytest.mark.parametrize("change", [str.upper, str.lower, str.title, str])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_transcripts_in_any_case_and_form_score_the_same(
    recognize: Callable[..., Scored], labels: tuple[str, ...], change: Callable[[str], str], form: Any
) -> None:
    import unicodedata

    heard = ["the cat sat", "on a hat", "a café", "it's time", "no", "she read it"]
    found = recognize(labels, heard, [unicodedata.normalize(form, change(text)) for text in TEXTS])
    assert found.scores == {"wer": 1 / 14, "cer": pytest.approx(1 / 47)}
    assert found.evidence["wer_uncased"] == 1 / 14 and found.evidence["empty"] == 0


def test_letters_that_the_labels_lack_are_counted_and_named(
    recognize: Callable[..., Scored], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = recognize(CAPITALS, ["no", "no"], ["no, zoo no", "über xx"])
    assert "5 characters have no label: 'X' (2), ',' (1), 'Z' (1), 'Ü' (1); the labels are E T A" in caplog.text
    assert "they count as errors" in caplog.text
    assert found.scores["wer"] > 0.5 and found.examples == 2


def test_evidence_tells_blank_case_and_chance_apart(recognize: Callable[..., Scored]) -> None:
    written = [text.lower() for text in TEXTS]
    right = recognize(SMALL, written, written)
    assert (right.scores["wer"], right.evidence["wer_uncased"]) == (0, 0)
    assert right.evidence["wer_shuffled"] > 0.9 and right.evidence["blank"] == 0.5
    blank = recognize(SMALL, [""] * 6, written)
    assert (blank.scores["wer"], blank.evidence["empty"], blank.evidence["blank"]) == (1, 1, 1)
    chance = recognize(SMALL, ["no"] * 6, written)
    assert chance.evidence["wer_shuffled"] == pytest.approx(chance.scores["wer"], rel=0.1)
    both = (*SMALL, *"ETAONIHSRDLUMWCFGYPBVKÉ")
    cased = recognize(both, [text.upper() for text in written], written)
    assert cased.scores["wer"] == 1 and cased.evidence["wer_uncased"] == 0
    equal = recognize(SMALL, ["no", "no"], ["no", "no"])
    assert "wer_shuffled" not in equal.evidence, "no other transcript differs"


def test_the_result_of_an_evaluation_says_what_is_wrong(recognize: Callable[..., Scored]) -> None:
    written = [text.lower() for text in TEXTS]

    def said(found: Scored) -> str:
        return str(Evaluation(found.scores, found.examples, 0, evidence=found.evidence))

    assert said(recognize(SMALL, written, written)).splitlines()[-1] == "on 6 examples"
    assert "all transcripts are blank (100% are empty" in said(recognize(SMALL, [""] * 6, written))
    assert "the transcripts are at chance" in said(recognize(SMALL, ["no"] * 6, written))
    both = (*SMALL, *"ETAONIHSRDLUMWCFGYPBVKÉ")
    assert "most errors are a case mismatch (word error rate 100%, 0% without regard" in said(
        recognize(both, [text.upper() for text in written], written)
    )


@pytest.mark.parametrize("pooling", [None, "mean", "first", "attention", "linear-softmax"])
@pytest.mark.parametrize("weighted", [False, True])
def test_predictions_of_a_long_recording_in_chunks_equal_those_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, pooling: Any, weighted: bool
) -> None:
    """Without attention, so that a position only depends on its neighbours."""
    sizes = {"encoder.width": 16, "encoder.ffn_width": 32, "encoder.layers": 2, "encoder.heads": 2, "data.workers": 0}
    recipe = load_recipe("speech/v1-tiny", sizes)
    modality, process = recipe.build_modality(), Process(torch.device("cpu"))
    torch.manual_seed(0)
    encoder = build_encoder(modality, recipe.encoder).eval()
    for block in encoder.transformer.blocks:
        torch.nn.init.zeros_(block.attention.out.weight)
    layers = 2 if weighted else None
    if pooling is None:
        settings: Any = CTCSettings(labels=CAPITALS, weighted_layers=layers)
    else:
        settings = ClassifierSettings(labels=("a", "b", "c"), pooling=pooling, norm_eps=1e-5, weighted_layers=layers)
    head = build_head(settings, 16).eval()
    wave = 0.1 * np.random.default_rng(0).standard_normal(16000 * 5)
    examples = modality.labelled([{"audio": {"array": wave, "sampling_rate": 16000}}])
    reading = EvalPass(modality, examples, np.array([0]), process.device)
    compute = compute_logits(encoder, head, modality, lambda logits: logits)
    ((_, whole),) = gather_outputs(reading, compute, process, "logits")
    monkeypatch.setattr(Speech.chunks, "__defaults__", (2.0, 1.0))
    ((_, chunked),) = gather_outputs(reading, compute, process, "logits")
    assert chunked.shape == whole.shape
    torch.testing.assert_close(chunked, whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("problem", "labels", "chance"),
    [
        ("single_label_classification", [0, 0, 0, 1, 2], {"chance_accuracy": 0.6}),
        ("multi_label_classification", [[0], [0, 1], [], [1], [0]], {"chance_map": 0.5}),
        ("regression", [0.1, 0.2, 0.3, 0.4, 0.5], {}),
    ],
)
def test_evidence_of_classification_is_the_score_of_guessing(problem: Any, labels: list[Any], chance: dict[str, float]) -> None:
    names = ("number",) if problem == "regression" else ("a", "b", "c")
    head = Classifier(ClassifierSettings(labels=names, problem_type=problem), 8)
    eval_set = EvalSet(None, np.arange(5), labels, 0)  # type: ignore[arg-type]
    outputs = [(i, torch.randn(len(names), generator=torch.Generator().manual_seed(i)).numpy()) for i in range(5)]
    found = compute_scores(outputs, head, eval_set)
    assert found.evidence == pytest.approx(chance) and found.examples == 5


def test_windows_of_a_recording_vote_by_the_mean_of_their_logits() -> None:
    logits = np.array([[3.0, 0], [0, 1], [0, 1], [0, 2], [0, 1]])
    labels, recordings = np.array([0, 0, 0, 1, 1]), np.array([7, 7, 7, 9, 9])
    found = _recording_scores("single_label_classification", logits, labels, recordings)
    assert found["recording_accuracy"] == 1
    assert _recording_scores("single_label_classification", logits, np.array([0, 1, 0, 1, 1]), recordings) == {}
    assert _recording_scores("single_label_classification", logits, labels, np.arange(5)) == {}
