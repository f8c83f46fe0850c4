import pytest
import torch

from data2vec.tasks.asr.beam_search import BeamSearch
from data2vec.tasks.asr.tune import RANGES, tune_weights
from data2vec.tasks.asr.vocabulary import CTCVocabulary

pytest.importorskip("flashlight.lib.text", reason="flashlight-text has no wheel for this Python")

VOCABULARY = CTCVocabulary(["<s>", "|", "A", "B"])


def heard(first: float, second: float) -> torch.Tensor:
    """Logits of "AB" in which the frame between the letters is a separator or a blank."""
    logits = torch.full((4, 4), -20.0)
    logits[0, 2] = logits[2, 3] = logits[3, 1] = 0
    logits[1, 0], logits[1, 1] = first, second
    return logits


def test_tuning_finds_a_planted_optimum() -> None:
    """One word more costs -word_score: "A B" is right where the separator is worse by 2, "AB" where it is by 3."""
    logits, references = [heard(2, 0), heard(3, 0)] * 2, ["A B", "AB"] * 2
    search = BeamSearch(VOCABULARY, lexicon=["A", "B", "AB"], silence_score=0, word_score=-1)
    found = tune_weights(search, logits, references, trials=40, seed=1, ranges={"word_score": (-5, 5)})
    assert 2 < found.search.settings.word_score < 3
    best, *others = found.trials
    assert best.wer == 0 and best.word_score == found.search.settings.word_score
    assert len(others) == 40 and all(trial.wer > 0 for trial in others if not 2 < trial.word_score < 3)
    assert all(best.word_score <= trial.word_score for trial in others if trial.wer == 0)
    assert str(found).splitlines()[1].split()[0] == "0.00%"


def test_tuning_with_the_same_seed_repeats_the_trials() -> None:
    search = BeamSearch(VOCABULARY, lexicon=["A", "B", "AB"])
    one, other = (tune_weights(search, [heard(1, 0)], ["AB"], trials=8, seed=3) for _ in range(2))
    assert one.trials == other.trials
    given = search.settings
    assert any((t.lm_weight, t.word_score) == (given.lm_weight, given.word_score) for t in one.trials)
    assert all(0 <= t.lm_weight <= 5 and -5 <= t.word_score <= 5 and -8 <= t.silence_score <= 0 for t in one.trials)


def test_trials_are_a_latin_hypercube_of_the_ranges() -> None:
    search = BeamSearch(VOCABULARY, lexicon=["A", "B", "AB"], lm_weight=-1)
    trials = [trial for trial in tune_weights(search, [], [], trials=10).trials if trial.lm_weight != -1]
    for name, (low, high) in RANGES.items():
        strata = [int((trial.weights[name] - low) / (high - low) * 10) for trial in trials]
        assert sorted(strata) == list(range(10))
