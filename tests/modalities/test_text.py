import json
import pickle

import numpy as np
import pytest
import torch

import data2vec
from data2vec.batch import Batch
from data2vec.data import text as text_module
from data2vec.data import token_file
from data2vec.data.sources.open_dataset import open_dataset
from data2vec.data.tokenizer import PAD, encode_texts, load_or_train_tokenizer, load_tokenizer, save_tokenizer, train_tokenizer
from data2vec.errors import UserError
from data2vec.modalities.text import LabelledTexts, Text, TextBlocks, TextData, TextSettings
from data2vec.model import blank_model
from data2vec.recipe.loading import load_recipe

SENTENCES = [f"the {a} {b} the {c}" for a in ("cat", "dog") for b in ("saw", "ate") for c in ("tree", "fish", "house")]
SMALL = TextData(block_size=16, batch_size=4, micro_batch_size=2)


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for i in range(6):
        (folder / f"{i}.txt").write_text("\n".join(SENTENCES * 3) + "\n" * (i % 2), encoding="utf-8")
    return folder


def test_trained_tokenizer_has_roberta_ids_and_the_exact_size(tmp_path):
    tokenizer = train_tokenizer(SENTENCES * 5, 400)
    assert tokenizer.get_vocab_size() == 400
    assert [tokenizer.token_to_id(name) for name in ("<s>", "<pad>", "</s>", "<unk>", "<mask>")] == [0, 1, 2, 3, 399]
    assert sorted(tokenizer.get_vocab().values()) == list(range(400))
    ids = encode_texts(tokenizer, ["the cat <mask> é\n", "the dog"])
    assert tokenizer.decode(ids[0]) == "the cat <mask> é\n"
    assert min(ids[0]) > 3
    assert 399 not in ids[0]
    again = load_tokenizer(save_tokenizer(tokenizer, tmp_path))
    assert encode_texts(again, ["the cat <mask> é\n"])[0] == ids[0]
    assert encode_texts(again, ["the cat <mask> é\n", "x"])[0] == ids[0]


def test_load_tokenizer_from_vocab_and_merges(tmp_path):
    tokenizer = train_tokenizer(SENTENCES * 5, 300)
    tokenizer.model.save(str(tmp_path))
    again = load_tokenizer(tmp_path)
    assert encode_texts(again, SENTENCES) == encode_texts(tokenizer, SENTENCES)


def test_load_tokenizer_from_fairseq_files_uses_ids_of_dict_txt(tmp_path):
    """GPT-2's tokens keep their merges, and have the numbers of their places in dict.txt."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    trained = json.loads(train_tokenizer(SENTENCES * 5, 300).to_str())["model"]
    tokens = [name for name in trained["vocab"] if not name.startswith(("<", "madeupword")) or name == "<"]
    gpt2 = {name: number for number, name in enumerate(tokens)}
    order = np.random.default_rng(0).permutation(len(gpt2))
    merges = [" ".join(pair) for pair in trained["merges"]]
    (tmp_path / "encoder.json").write_text(json.dumps(gpt2))
    (tmp_path / "vocab.bpe").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    (tmp_path / "dict.txt").write_text("".join(f"{number} {9 - i}\n" for i, number in enumerate(order)) + "madeupword0000 0\n")
    reference = Tokenizer(models.BPE(gpt2, [tuple(pair) for pair in trained["merges"]]))
    reference.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    texts = [*SENTENCES, "the caté  sat\n\ton it's mat 2024"]
    place = {int(number): 4 + i for i, number in enumerate(order)}
    found = load_tokenizer(tmp_path)
    assert encode_texts(found, texts) == [[place[number] for number in reference.encode(text).ids] for text in texts]
    assert found.get_vocab_size() == len(gpt2) + 6
    assert found.token_to_id("<mask>") == len(gpt2) + 5
    assert [found.decode(ids) for ids in encode_texts(found, texts)] == texts
    lines = (tmp_path / "dict.txt").read_text().splitlines(keepends=True)
    (tmp_path / "dict.txt").write_text("".join(lines[2:]))
    with pytest.raises(UserError, match=r"dict\.txt: lacks 2 of the tokens of encoder\.json"):
        load_tokenizer(tmp_path)


def test_invalid_tokenizers_are_user_errors(tmp_path):
    with pytest.raises(UserError, match=r"no tokenizer in this folder; looked for tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="not a valid tokenizer"):
        load_tokenizer(tmp_path)
    save_tokenizer(train_tokenizer(SENTENCES, 300), tmp_path)
    with pytest.raises(UserError, match=r"modality.vocab_size: 301, but the tokenizer .* has 300 ids"):
        load_or_train_tokenizer([], str(tmp_path), 301)
    with pytest.raises(UserError, match="need at least 261"):
        train_tokenizer(SENTENCES, 100)


def test_text_blocks_contain_all_documents_in_order(corpus):
    rows = open_dataset(str(corpus), "text")
    examples = TextBlocks(rows, SMALL, 300)
    documents = [(corpus / f"{i}.txt").read_text() for i in range(6)]
    stream = [token for ids in encode_texts(examples.tokenizer, documents) for token in [*ids, 2]]
    blocks = torch.stack([examples.load(i) for i in range(len(examples))])
    assert len(examples) == len(stream) // 15
    assert (blocks[:, 0] == 0).all()
    assert blocks[:, 1:].flatten().tolist() == stream[: len(examples) * 15]
    assert blocks.dtype == torch.int64


def test_encoding_documents_in_pieces_gives_the_same_text(corpus, monkeypatch):
    rows = open_dataset(str(corpus), "text")
    whole = TextBlocks(rows, SMALL, 300)
    monkeypatch.setattr(text_module, "PIECE_CHARACTERS", 50)
    monkeypatch.setattr(token_file, "PIECE_CHARACTERS", 50)
    parts = TextBlocks(list(rows), SMALL, 300, whole.tokenizer)
    text = whole.tokenizer.decode(np.asarray(whole.tokens).tolist())
    assert whole.tokenizer.decode(parts.tokens.tolist()) == text


def test_token_file_is_invalidated_when_a_file_changes(corpus, monkeypatch):
    tokenizer = train_tokenizer(SENTENCES, 300)
    first = TextBlocks(open_dataset(str(corpus), "text"), SMALL, 300, tokenizer)
    with monkeypatch.context() as patch:
        patch.setattr(token_file, "encode_documents", lambda *_: pytest.fail("encoded again"))
        again = TextBlocks(open_dataset(str(corpus), "text"), SMALL, 300, tokenizer)
    assert np.array_equal(first.tokens, again.tokens)
    (corpus / "0.txt").write_text("something else altogether")
    changed = TextBlocks(open_dataset(str(corpus), "text"), SMALL, 300, tokenizer)
    assert len(changed.tokens) < len(first.tokens)
    copied = pickle.loads(pickle.dumps(first))
    assert copied.source.__getstate__()["tokens"] is None
    assert len(pickle.dumps(first.source)) < 1000
    assert torch.equal(copied.load(3), first.load(3))


def test_document_that_is_not_utf8_is_corrupt(corpus):
    (corpus / "latin.txt").write_bytes("café\n".encode("latin-1") * 100)
    (corpus / "6.txt").write_bytes("\ufeffwith a mark".encode())
    examples = TextBlocks(open_dataset(str(corpus), "text"), SMALL, 300)
    assert len(examples.corrupt) == 1
    assert "latin.txt: not UTF-8" in examples.corrupt[0]
    assert "with a mark" in examples.tokenizer.decode(np.asarray(examples.tokens).tolist())
    assert "\ufeff" not in examples.tokenizer.decode(np.asarray(examples.tokens).tolist())


def test_less_text_than_a_block_is_a_user_error(tmp_path):
    (tmp_path / "a.txt").write_text("few words")
    with pytest.raises(UserError, match=r"less than one block \(data.block_size: 512\)"):
        TextBlocks(open_dataset(str(tmp_path), "text"), TextData(), 300)


def test_streamed_text_needs_a_tokenizer_and_gives_the_same_blocks(corpus):
    rows = open_dataset(str(corpus), "text")
    with pytest.raises(UserError, match="streamed text needs one"):
        TextBlocks(list(rows), SMALL, 300)
    whole = TextBlocks(rows, SMALL, 300)
    listed = TextBlocks(list(rows), SMALL, 300, whole.tokenizer)
    assert torch.equal(listed.load(4), whole.load(4))


def test_labelled_texts_are_padded_and_truncated(tmp_path):
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\nthe cat\t1\n" + "the dog ate the fish " * 9 + "\t0\n")
    rows = open_dataset(str(tmp_path / "dev.tsv"), "text")
    with pytest.raises(UserError, match="labelled text needs one"):
        LabelledTexts(rows, SMALL, 300)
    examples = LabelledTexts(rows, SMALL, 300, train_tokenizer(SENTENCES, 300))
    batch = Batch.stack([examples.load(0), examples.load(1)], PAD)
    assert [examples.label(i, "label") for i in range(2)] == ["1", "0"]
    assert batch.input.shape == (2, 16)
    assert batch.input[1, -1] == 2
    length = len(examples.load(0))
    assert batch.input[0, length - 1 :].tolist() == [2] + [1] * (16 - length)
    assert batch.padding.sum(1).tolist() == [16 - length, 0]
    assert Batch.stack([examples.load(0)], PAD).padding is None


def test_replace_draws_random_tokens_at_masked_positions():
    batch = Batch(torch.zeros(4, 500, dtype=torch.int64))
    replaced = np.random.default_rng(0).random((4, 500)) < 0.5
    view = Text(TextSettings(vocab_size=300), TextData()).replace(batch, replaced, np.random.default_rng(1))
    assert (view[~torch.from_numpy(replaced)] == 0).all()
    drawn = view[torch.from_numpy(replaced)]
    assert drawn.min() == 4
    assert drawn.max() == 298
    assert not batch.input.any()


@pytest.mark.parametrize("positions", ["conv", "alibi"])
@pytest.mark.parametrize("name", ["text/v1-tiny", "text/v2-tiny"])
def test_text_model_with_other_positions_sees_distances_and_is_saved(name, positions, tmp_path):
    """The same tokens at other distances give other vectors."""
    small = {"modality.vocab_size": 300, "encoder.width": 16, "encoder.layers": 1, "encoder.heads": 2, "encoder.ffn_width": 16}
    decoder = {"objective.decoder.width": 16, "objective.decoder.groups": 4} if "v2" in name else {}
    recipe = load_recipe(name, small | decoder | {"modality.positions": positions, "objective.target.top_k": 1})
    torch.manual_seed(0)
    model = blank_model(recipe)
    assert not any("table" in key for key in model.encoder.state_dict())
    tokens = torch.tensor([[5, 9, 9, 9, 7, 9], [5, 9, 7, 9, 9, 9]])
    with torch.no_grad():
        out = model.encoder.eval()(Batch(tokens))[0]
        assert not torch.allclose(out[0, 0], out[1, 0], atol=1e-5)
        model.save_pretrained(tmp_path / "model")
        again = data2vec.load(tmp_path / "model").encoder.eval()(Batch(tokens))[0]
    assert torch.equal(out, again)


def test_groups_of_convolutional_positions_must_divide_the_width():
    text = Text(TextSettings(vocab_size=300, positions="conv", position_groups=7), TextData())
    with pytest.raises(UserError, match=r"modality.position_groups: 7 does not divide encoder.width, 16"):
        text.build_position_encoder(16, 2, 0)


def test_texts_that_are_cut_are_named_with_their_tokens():
    tokenizer = train_tokenizer(SENTENCES, 300)
    short, long = "the cat", "the cat saw the tree " * 8
    tokens = len(encode_texts(tokenizer, [long])[0])
    rows = [{"text": text, "label": "x", "more": "the dog"} for text in (short, long, None)]
    assert LabelledTexts(rows, SMALL, 300, tokenizer).cut(np.arange(3)) == [f"example 1: {tokens} tokens"]
    pairs = LabelledTexts(rows, SMALL.model_copy(update={"second": "more"}), 300, tokenizer)
    assert pairs.cut(np.arange(2)) == [f"example 1: {tokens + len(encode_texts(tokenizer, ['the dog'])[0])} tokens"]
    assert len(pairs.load(1)) == SMALL.block_size


def test_examples_longer_than_the_learned_positions_are_refused_before_any_is_read(tmp_path) -> None:
    tokenizer, rows = train_tokenizer(SENTENCES * 5, 300), [{"text": SENTENCES[0]}]
    path = save_tokenizer(tokenizer, tmp_path)
    data = TextData(block_size=17, tokenizer=str(path))
    text = Text(TextSettings(vocab_size=300, max_length=16), data)
    for open_examples in (text.examples, text.labelled):
        with pytest.raises(
            UserError, match=r"data\.block_size: 17 tokens are more .*max_length: 16\); set data\.block_size=16"
        ):
            open_examples(rows)
    assert text.data_defaults() == {"block_size": 16, "tokenizer": str(path.resolve())}
    without_table = Text(TextSettings(vocab_size=300, max_length=16, positions="alibi"), data)
    assert len(without_table.labelled(rows)) == 1 and "block_size" not in without_table.data_defaults()


def test_tokenizer_of_a_text_without_spaces_learns_no_token_beyond_256_characters() -> None:
    tokenizer = train_tokenizer(["ACGT" * 20_000, "\0" * 20_000, " " * 20_000], 400)
    longest = max(len(token) for token in tokenizer.get_vocab() if not token.startswith("madeupword"))
    assert longest == 256
