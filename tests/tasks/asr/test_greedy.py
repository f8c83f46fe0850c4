import pytest
import torch

from data2vec.tasks.asr.greedy import GreedyDecoder
from data2vec.tasks.asr.vocabulary import CTCVocabulary

LETTERS = CTCVocabulary(["<s>", "<pad>", "</s>", "<unk>", "|", "A", "B"])
PIECES = CTCVocabulary(["<s>", "▁ca", "t", "▁a"])


def logits(path: list[int], labels: int) -> torch.Tensor:
    found = torch.zeros(1, len(path), labels)
    found[0, range(len(path)), path] = 5
    return found


def test_repeats_collapse_unless_separated_by_a_blank() -> None:
    path = [5, 5, 0, 5, 6, 4, 0, 4, 6, 0, 5]
    (found,) = GreedyDecoder(LETTERS)(logits(path, 7), [11])
    assert found.text == "AAB BA"
    assert [(word.start, word.end) for word in found.words] == [(0, 5), (8, 11)]
    (shorter,) = GreedyDecoder(LETTERS)(logits(path, 7), torch.tensor([4]), seconds_per_position=0.02)
    assert [(word.text, word.start, word.end) for word in shorter.words] == [("AA", 0, pytest.approx(0.08))]


def test_prefixed_pieces_start_words() -> None:
    path = [0, 1, 1, 0, 2, 2, 0, 3, 0, 3, 3, 1]
    (found,) = GreedyDecoder(PIECES)(logits(path, 4), [12])
    assert found.text == "cat a a ca"
    assert [(word.start, word.end) for word in found.words] == [(1, 6), (7, 8), (9, 11), (11, 12)]


def test_score_is_the_log_probability_of_the_path() -> None:
    x = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    found = GreedyDecoder(PIECES)(x, [6, 2])
    expected = x.float().log_softmax(-1).amax(-1)
    assert [each.score for each in found] == pytest.approx([expected[0].sum().item(), expected[1, :2].sum().item()])


def test_special_labels_are_never_decoded() -> None:
    x = logits([1, 5, 3, 2], 7)
    x[..., 6] = 1
    assert GreedyDecoder(LETTERS)(x, [4])[0].text == "BAB"
    assert x[0, 0, 1] == 5  # the logits are left as they are
