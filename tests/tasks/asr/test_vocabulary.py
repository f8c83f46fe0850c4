import pytest

from data2vec.errors import UserError
from data2vec.tasks.asr.vocabulary import CTCVocabulary

LETTERS = CTCVocabulary(["<s>", "<pad>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"])
PIECES = CTCVocabulary(["<pad>", "<unk>", "▁the", "▁c", "at", "a", "t", "▁", "s", "he", "▁CA"])


def test_encode_ends_every_word_with_the_separator() -> None:
    assert [LETTERS.labels[i] for i in LETTERS.encode("THE  CAT ")] == list("THE|CAT|")
    assert LETTERS.decode(LETTERS.encode("THE CAT")) == "THE CAT"


def test_encode_uses_the_longest_matching_pieces() -> None:
    assert [PIECES.labels[i] for i in PIECES.encode("the cats a")] == ["▁the", "▁c", "at", "s", "▁", "a"]
    assert PIECES.decode(PIECES.encode("the cats a")) == "the cats a"


def test_space_label_separates_words() -> None:
    vocabulary = CTCVocabulary(["<pad>", " ", "a", "b"])
    assert vocabulary.encode("ab b") == [2, 3, 1, 3, 1]
    assert vocabulary.decode([2, 3, 1, 1, 3]) == "ab b"


def test_vocabulary_without_word_boundaries_encodes_one_word() -> None:
    vocabulary = CTCVocabulary(["<blank>", "你", "好"])
    assert vocabulary.decode(vocabulary.encode("你好")) == "你好"
    with pytest.raises(UserError, match="' '"):
        vocabulary.encode("你 好")


def test_encode_matches_the_case_of_the_labels() -> None:
    small = CTCVocabulary.from_texts(["the cat"])
    assert LETTERS.decode(LETTERS.encode("the Cat")) == "THE CAT"
    assert small.decode(small.encode("The CAT")) == "the cat"
    mixed = CTCVocabulary.from_texts(["The cat"])
    with pytest.raises(UserError, match="'C'"):
        mixed.encode("The Cat")


@pytest.mark.parametrize("text", ["CAFÉ", "café", "CAFE\u0301", " cafe\u0301 ", "Cafe\u0301"])
def test_normalize_gives_the_case_and_the_composed_form_of_the_labels(text: str) -> None:
    capitals = CTCVocabulary(["<s>", "|", *"CAFÉ"])
    assert capitals.normalize(text) == "CAFÉ"
    assert capitals.decode(capitals.encode(text)) == "CAFÉ"
    assert CTCVocabulary.from_texts([text.lower()]).normalize(text) == "café"
    accents = CTCVocabulary(["<s>", "|", *"CAFE", "\u0301"])
    assert [accents.labels[i] for i in accents.encode(text)] == [*"CAFE", "\u0301", "|"]
    mixed = CTCVocabulary(["<s>", "|", *"CAFÉcafé"])
    assert mixed.normalize("Cafe\u0301  Ca") == "Café Ca"


def test_unspelled_counts_the_characters_without_a_label() -> None:
    assert LETTERS.unspelled("7 Äh, 7!") == {"7": 2, "Ä": 1, ",": 1, "!": 1}
    assert LETTERS.unspelled("the cat") == {}
    assert CTCVocabulary(["<blank>", "你", "好"]).unspelled("你 好") == {" ": 1}


def test_special_labels_are_neither_encoded_nor_decoded() -> None:
    assert LETTERS.decode([0, 1, 2, 3, 5]) == "E"
    with pytest.raises(UserError, match="'<', '>'"):
        LETTERS.encode("<s>")
    with pytest.raises(UserError, match=r"'\|'"):
        LETTERS.encode("A|B")


def test_encode_raises_for_characters_without_a_label() -> None:
    with pytest.raises(UserError, match="'7', 'Ä' in 'Äh 7'"):
        LETTERS.encode("Äh 7")
    assert LETTERS.encode("") == []


def test_from_texts_orders_letters_by_frequency() -> None:
    vocabulary = CTCVocabulary.from_texts(["bee  see", "bed"])
    assert vocabulary.labels == ("<s>", "<pad>", "</s>", "<unk>", "|", "e", "b", "d", "s")
    with pytest.raises(UserError, match="separates words"):
        CTCVocabulary.from_texts(["a|b"])
    with pytest.raises(UserError, match="'a' occurs more than once"):
        CTCVocabulary(["<s>", "a", "a"])
