from pathlib import Path

import numpy as np
import pytest

from data2vec.errors import UserError
from data2vec.tasks.asr.ngram import BEGIN, END, UNKNOWN, NGram, estimate_ngram


def corpus(seed: int, sentences: int) -> list[str]:
    """Sentences of words by Zipf's law, each word with a taste for its neighbour."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(sentences):
        words = [int(rng.zipf(1.5)) % 40]
        for _ in range(rng.integers(0, 9)):
            words.append(words[-1] + 1 if rng.random() < 0.4 else int(rng.zipf(1.5)) % 40)
        found.append(" ".join(f"w{word}" for word in words))
    return found


def words_of(model: NGram) -> list[str]:
    return [gram[0] for gram in model.probabilities if len(gram) == 1 and gram[0] != BEGIN]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("sentences", [3, 300])
def test_probabilities_after_every_context_sum_to_one(order: int, sentences: int) -> None:
    model = estimate_ngram(corpus(order, sentences), order)
    words = words_of(model)
    contexts = [
        (),
        (UNKNOWN,),
        ("w1", "never"),
        *(gram for gram in model.probabilities if len(gram) < order and gram[-1] != END),
    ]
    for context in contexts[:400]:
        assert sum(10 ** model.score_word(word, context) for word in words) == pytest.approx(1, abs=1e-6), context


def test_bigram_probabilities_match_a_manual_computation() -> None:
    """Three sentences; too few for discounts of their own, so these are 0.5, 1 and 1.5."""
    model = estimate_ngram(["a b", "a b", "a c"], order=2)
    # After how many words: a: 1 (<s>), b: 1 (a), c: 1 (a), </s>: 2 (b, c); of 5, 0.5 + 0.5 + 0.5 + 1 are freed for 5 words.
    uniform = 2.5 / 5 / 5
    b, c = (0.5 / 5 + uniform,) * 2
    # "a b" twice, "a c" once: 1 and 0.5 are freed of 3.
    assert 10 ** model.score_word("b", ["a"]) == pytest.approx(1 / 3 + 1.5 / 3 * b)
    assert 10 ** model.score_word("c", [BEGIN, "a"]) == pytest.approx(0.5 / 3 + 1.5 / 3 * c)
    assert 10 ** model.score_word("x", ["a"]) == pytest.approx(1.5 / 3 * uniform)
    assert 10 ** model.score_word("a", []) == pytest.approx(0.5 / 5 + uniform)


def test_discounts_follow_from_the_counts_of_counts() -> None:
    texts = ["a"] + ["b"] * 1 + ["c"] * 1 + ["d"] * 2 + ["e"] * 2 + ["f"] * 3 + ["g"] * 4
    model = estimate_ngram(texts, order=1)
    n1, n2, n3, n4, total = 3, 2, 1, 1, 28  # with 14 ends of sentences
    y = n1 / (n1 + 2 * n2)
    d1, d2, d3 = 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3
    freed = (3 * d1 + 2 * d2 + 3 * d3) / total / 9
    assert 10 ** model.score_word("d", []) == pytest.approx((2 - d2) / total + freed)
    assert 10 ** model.score_word("g", []) == pytest.approx((4 - d3) / total + freed)


@pytest.mark.parametrize("order", [2, 4])
def test_kenlm_gives_the_same_scores_to_the_arpa_file(tmp_path: Path, order: int) -> None:
    pytest.importorskip("flashlight.lib.text", reason="flashlight-text has no wheel for this Python")
    from flashlight.lib.text.decoder.kenlm import KenLM
    from flashlight.lib.text.dictionary import Dictionary

    model = estimate_ngram(corpus(1, 200), order)
    model.save_arpa(tmp_path / "lm.arpa")
    words = [*words_of(model), "never"]
    dictionary = Dictionary(words)
    kenlm = KenLM(str(tmp_path / "lm.arpa"), dictionary)
    for text in [*corpus(2, 50), "never w1 w2 never", ""]:
        state, score = kenlm.start(False), 0.0
        for word in text.split():
            state, part = kenlm.score(state, dictionary.get_index(word) if dictionary.contains(word) else len(words) - 1)
            score += part
        assert score + kenlm.finish(state)[1] == pytest.approx(model.score_sentence(text), abs=1e-4)


def test_higher_order_predicts_held_out_text_better() -> None:
    texts = corpus(5, 500)
    scores = [sum(map(estimate_ngram(texts[:400], order).score_sentence, texts[400:])) for order in (1, 2)]
    assert scores[1] > scores[0]


def test_invalid_texts_and_orders_raise() -> None:
    with pytest.raises(UserError, match="<s> is reserved"):
        estimate_ngram(["a <s>"])
    with pytest.raises(UserError, match="no word"):
        estimate_ngram(["", " "])
    with pytest.raises(UserError, match="order: 0"):
        estimate_ngram(["a"], 0)
