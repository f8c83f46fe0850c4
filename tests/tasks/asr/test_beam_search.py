import sys
from collections import defaultdict
from functools import cache
from itertools import groupby, product
from math import exp, log
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data2vec.errors import UserError
from data2vec.tasks.asr.beam_search import BeamSearch
from data2vec.tasks.asr.greedy import GreedyDecoder
from data2vec.tasks.asr.ngram import NGram, estimate_ngram
from data2vec.tasks.asr.vocabulary import CTCVocabulary
from helpers.fuzzing import examples

pytest.importorskip("flashlight.lib.text", reason="flashlight-text has no wheel for this Python")

VOCABULARY = CTCVocabulary(["<s>", "|", "A", "B", "C"])
LEXICON = ["A", "AB", "BA", "CAB", "CC", "C"]
WIDE = {"beam": 100000, "threshold": 1e6}
cases = st.tuples(st.integers(0, 2**31), st.integers(1, 5))


@pytest.fixture(scope="module")
def model() -> NGram:
    return estimate_ngram(["A AB", "BA CAB A", "CC C A", "AB BA BA C", "A D"], order=2)


@pytest.fixture(scope="module")
def arpa(model: NGram, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lm") / "words.arpa"
    model.save_arpa(path)
    return path


def logits_of(case: tuple[int, int]) -> torch.Tensor:
    seed, frames = case
    return 2 * torch.randn(frames, len(VOCABULARY.labels), generator=torch.Generator().manual_seed(seed))


@cache
def paths(frames: int) -> list[tuple[tuple[int, ...], str]]:
    """Every path of so many frames, with the labels that it stands for put together; flashlight leaves out a separator that
    is there from the first frame on."""
    every = product(range(len(VOCABULARY.labels)), repeat=frames)
    found = ((path, "".join(VOCABULARY.labels[i] for i, _ in groupby(path) if i)) for path in every)
    return [(path, text[1:] if path[0] == 1 else text) for path, text in found]


def texts(logits: torch.Tensor, silence: float, log_add: bool) -> dict[str, float]:
    """The best alignment of every string of labels, or their sum, over all paths that there are."""
    scores = logits.log_softmax(-1)
    scores[:, 1] += silence
    rows = scores.tolist()
    found: dict[str, list[float]] = defaultdict(list)
    for path, text in paths(len(rows)):
        found[text].append(sum(row[i] for row, i in zip(rows, path, strict=True)))
    return {text: together(each, log_add) for text, each in found.items()}


def together(scores: list[float], log_add: bool) -> float:
    top = max(scores)
    return top + log(sum(exp(score - top) for score in scores)) if log_add else top


@examples(40)
@given(cases, st.sampled_from([0.0, 1.0, 2.5]), st.sampled_from([-1.0, 0.0, 3.0]), st.sampled_from([-0.7, 0.0]), st.booleans())
def test_search_with_lexicon_and_lm_finds_the_best_of_all_paths(
    model: NGram, arpa: Path, case: tuple[int, int], lm: float, word: float, silence: float, log_add: bool
) -> None:
    logits = logits_of(case)
    sentences: dict[str, list[float]] = defaultdict(list)
    for text, score in texts(logits, silence, log_add).items():
        if set(words := [word for word in text.split("|") if word]) <= set(LEXICON):
            sentences[" ".join(words)].append(score)
    scores = {
        text: together(each, log_add) + lm * model.score_sentence(text) + word * len(text.split())
        for text, each in sentences.items()
    }
    best = max(scores, key=scores.__getitem__)
    given = {"lm_weight": lm, "word_score": word, "silence_score": silence, "log_add": log_add}
    (found,) = BeamSearch(VOCABULARY, arpa, LEXICON, **WIDE, **given)(logits[None], [len(logits)])
    assert found.text == best
    assert found.score == pytest.approx(scores[best], abs=1e-3)


@examples(40)
@given(cases, st.sampled_from([-0.7, 0.0]), st.booleans())
def test_search_without_lexicon_finds_the_best_of_all_paths(case: tuple[int, int], silence: float, log_add: bool) -> None:
    logits = logits_of(case)
    scores = texts(logits, silence, log_add)
    best = max(scores, key=scores.__getitem__)
    (found,) = BeamSearch(VOCABULARY, **WIDE, silence_score=silence, log_add=log_add)(logits[None], [len(logits)])
    assert found.text == " ".join(best.replace("|", " ").split())
    assert found.score == pytest.approx(scores[best], abs=1e-3)


@examples(20)
@given(cases)
def test_search_with_a_label_lm_finds_the_best_of_all_paths(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[int, int]
) -> None:
    letters = estimate_ngram(["A | A B |", "B A | C A B | A |", "C C | C |"], order=3)
    letters.save_arpa(path := tmp_path_factory.mktemp("lm") / "letters.arpa")
    logits = logits_of(case)
    alone = texts(logits, 0, False)
    scores = {text: score + 1.5 * letters.score_sentence(" ".join(text)) for text, score in alone.items()}
    best = max(scores, key=scores.__getitem__)
    (found,) = BeamSearch(VOCABULARY, path, **WIDE, lm_weight=1.5)(logits[None], [len(logits)])
    assert found.text == " ".join(best.replace("|", " ").split())
    assert found.score == pytest.approx(scores[best], abs=1e-3)


@examples(30)
@given(st.integers(0, 2**31))
def test_beam_of_one_equals_greedy_decoding(seed: int) -> None:
    vocabulary = CTCVocabulary.from_texts(["SOME LETTERS"])
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(3, 20, len(vocabulary.labels), generator=generator)
    lengths = [20, 7, 0]
    for one, other in zip(
        BeamSearch(vocabulary, beam=1)(logits, lengths), GreedyDecoder(vocabulary)(logits, lengths), strict=True
    ):
        assert one.text == other.text and one.words == other.words
        assert one.score == pytest.approx(other.score, abs=1e-3)


def peaks(vocabulary: CTCVocabulary, path: str) -> torch.Tensor:
    """Logits of a path, one character a frame, "." the blank."""
    logits = torch.zeros(1, len(path), len(vocabulary.labels))
    for frame, label in enumerate(path):
        logits[0, frame, 0 if label == "." else vocabulary.labels.index(label)] = 10
    return logits


@pytest.mark.parametrize("lexicon", [None, LEXICON])
def test_words_have_start_and_end_times(lexicon: list[str] | None) -> None:
    path = ".AAB.||.CA.B|..CCC."
    (found,) = BeamSearch(VOCABULARY, lexicon=lexicon)(peaks(VOCABULARY, path), [len(path)], seconds_per_position=0.5)
    assert [(word.text, word.start, word.end) for word in found.words] == [("AB", 0.5, 2), ("CAB", 4, 6), ("C", 7.5, 9)]


def test_lexicon_corrects_misrecognised_letters() -> None:
    path = "CB.B||"
    (free,), (bound,) = (BeamSearch(VOCABULARY, lexicon=each)(peaks(VOCABULARY, path), [6]) for each in (None, ["CAB", "A"]))
    assert free.text == "CBB" and bound.text == "CAB"


def test_last_word_piece_may_span_several_frames() -> None:
    vocabulary = CTCVocabulary(["<s>", "▁ca", "t", "▁a", "s"])
    path = [0, 1, 1, 2, 2, 2, 0, 3, 3, 3, 1, 2]
    logits = torch.zeros(1, len(path), 5)
    logits[0, range(len(path)), path] = 10
    (found,) = BeamSearch(vocabulary, lexicon=["cat", "a", "cats"])(logits, [len(path)])
    (plain,) = GreedyDecoder(vocabulary)(logits, [len(path)])
    assert found.text == plain.text == "cat a cat"
    assert found.words == plain.words
    assert found.score == pytest.approx(plain.score - 3, abs=1e-4)  # three words, no label lost


def test_unknown_score_allows_prefixes_of_words() -> None:
    path = "CA.B|"
    found = [
        BeamSearch(VOCABULARY, lexicon=["CAB", "B"], unknown_score=each)(peaks(VOCABULARY, path), [5])[0] for each in (None, 5)
    ]
    assert [each.text for each in found] == ["CAB", "CA B"]


def test_lexicon_file_maps_words_to_labels(tmp_path: Path) -> None:
    file = tmp_path / "lexicon.txt"
    file.write_text("Ahoy\tA B |\nCab C A B\n\nA\n")
    found = BeamSearch(VOCABULARY, lexicon=file)(peaks(VOCABULARY, "AB|CAB|A|"), [9])
    assert found[0].text == "Ahoy Cab A"


def test_default_lexicon_is_the_words_of_the_lm(arpa: Path, caplog: pytest.LogCaptureFixture) -> None:
    search = BeamSearch(VOCABULARY, arpa)
    assert search.words == ["A", "AB", "BA", "C", "CAB", "CC"]
    assert "1 of the 7 words" in caplog.text and "D" in caplog.text


def test_duplicate_words_are_merged(capfd: pytest.CaptureFixture[str]) -> None:
    search = BeamSearch(VOCABULARY, lexicon=["A", "B"] * 10)
    assert search.words == ["A", "B"] and not capfd.readouterr().err


def test_with_weights_equals_a_new_search(arpa: Path) -> None:
    logits = logits_of((3, 5))[None]
    weighed = BeamSearch(VOCABULARY, arpa, LEXICON).with_weights(lm_weight=0.5, word_score=2.0)
    assert weighed(logits, [5]) == BeamSearch(VOCABULARY, arpa, LEXICON, lm_weight=0.5, word_score=2.0)(logits, [5])


def test_no_frames_give_empty_text(arpa: Path) -> None:
    for lexicon in (None, LEXICON):
        (found,) = BeamSearch(VOCABULARY, lexicon=lexicon)(torch.zeros(1, 4, 5), [0])
        assert (found.text, found.score, found.words) == ("", 0, ())


def test_invalid_files_and_settings_raise(tmp_path: Path) -> None:
    text = tmp_path / "no.arpa"
    text.write_text("hello\n")
    with pytest.raises(UserError, match="no file"):
        BeamSearch(VOCABULARY, tmp_path / "missing")
    with pytest.raises(UserError, match="is not an ARPA file"):
        BeamSearch(VOCABULARY, text)
    with pytest.raises(UserError, match="neither an ARPA file"):
        BeamSearch(VOCABULARY, text, LEXICON)
    with pytest.raises(UserError, match="X is spelled with 'x'"):
        BeamSearch(VOCABULARY, lexicon=["X x |"])
    with pytest.raises(UserError, match="u, v, w, x, y, z, Z have the same spelling"):
        BeamSearch(VOCABULARY, lexicon=[f"{word} A |" for word in "uvwxyzZuv"])
    with pytest.raises(UserError, match="'Z'"):
        BeamSearch(VOCABULARY, lexicon=["AZ"])
    with pytest.raises(UserError, match="contains no word"):
        BeamSearch(VOCABULARY, lexicon=[])
    estimate_ngram(["a ab c"]).save_arpa(text)
    with pytest.raises(UserError, match="contains no word of the lexicon, such as 'A'"):
        BeamSearch(VOCABULARY, text, LEXICON)
    with pytest.raises(UserError, match="beam: "):
        BeamSearch(VOCABULARY, beam=0)


def test_missing_flashlight_raises_with_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flashlight.lib.text.decoder", None)
    with pytest.raises(UserError, match=r"pip install data2vec\[decode\]"):
        BeamSearch(VOCABULARY)
