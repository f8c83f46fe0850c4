import pytest

from data2vec.errors import UserError
from data2vec.tasks.asr.vocabulary import CTCVocabulary

LETTERS = CTCVocabulary(["<s>", "<pad>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"])
PIECES = CTCVocabulary(["<pad>", "<unk>", "▁the", "▁c", "at", "a", "t", "▁", "s", "he", "▁CA"])


def test_letters_end_every_word_with_the_separator() -> None:
    assert [LETTERS.labels[i] for i in LETTERS.encode("THE  CAT ")] == list("THE|CAT|")
    assert LETTERS.decode(LETTERS.encode("THE CAT")) == "THE CAT"


def test_pieces_are_the_longest_that_fit() -> None:
    assert [PIECES.labels[i] for i in PIECES.encode("the cats a")] == ["▁the", "▁c", "at", "s", "▁", "a"]
    assert PIECES.decode(PIECES.encode("the cats a")) == "the cats a"


def test_a_space_parts_words() -> None:
    vocabulary = CTCVocabulary(["<pad>", " ", "a", "b"])
    assert vocabulary.encode("ab b") == [2, 3, 1, 3, 1]
    assert vocabulary.decode([2, 3, 1, 1, 3]) == "ab b"


def test_without_word_separation_text_is_one_word() -> None:
    vocabulary = CTCVocabulary(["<blank>", "你", "好"])
    assert vocabulary.decode(vocabulary.encode("你好")) == "你好"
    with pytest.raises(UserError, match="' '"):
        vocabulary.encode("你 好")


def test_case_is_that_of_the_labels() -> None:
    small = CTCVocabulary.from_texts(["the cat"])
    assert LETTERS.decode(LETTERS.encode("the Cat")) == "THE CAT"
    assert small.decode(small.encode("The CAT")) == "the cat"
    mixed = CTCVocabulary.from_texts(["The cat"])
    with pytest.raises(UserError, match="'C'"):
        mixed.encode("The Cat")


def test_special_labels_are_no_text() -> None:
    assert LETTERS.decode([0, 1, 2, 3, 5]) == "E"
    with pytest.raises(UserError, match="'<', '>'"):
        LETTERS.encode("<s>")
    with pytest.raises(UserError, match=r"'\|'"):
        LETTERS.encode("A|B")


def test_characters_that_no_label_spells_are_named() -> None:
    with pytest.raises(UserError, match="'7', 'Ä' in 'Äh 7'"):
        LETTERS.encode("Äh 7")
    assert LETTERS.encode("") == []


def test_vocabulary_of_texts() -> None:
    vocabulary = CTCVocabulary.from_texts(["bee  see", "bed"])
    assert vocabulary.labels == ("<s>", "<pad>", "</s>", "<unk>", "|", "e", "b", "d", "s")
    with pytest.raises(UserError, match="separates words"):
        CTCVocabulary.from_texts(["a|b"])
    with pytest.raises(UserError, match="'a' occurs more than once"):
        CTCVocabulary(["<s>", "a", "a"])
