import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data2vec import cli
from data2vec.data.dataset import ExampleDataset
from data2vec.data.tokenizer import save_tokenizer, train_tokenizer
from data2vec.errors import UserError
from data2vec.model import Model
from data2vec.nn.encoder import Encoder, build_encoder
from data2vec.recipe.loading import load_recipe
from data2vec.tasks.probing.token_readout import (
    MaskedTokens,
    Unigrams,
    View,
    mask_tokens,
    readout_features,
    readout_gains,
    token_readout,
)

WIDTH, TOKENS, T = 16, 8, 32


class Blocks(ExampleDataset):
    """Blocks in which each token is the successor, in a fixed circular order, of the one on its left."""

    def __init__(self, count: int, random: bool = False):
        rng = np.random.default_rng(0)
        order = rng.permutation(TOKENS) + 4
        starts = rng.integers(0, TOKENS, (count, 1))
        places = rng.integers(0, TOKENS, (count, T)) if random else (starts + np.arange(T)) % TOKENS
        self.blocks, self.costs = torch.from_numpy(order[places]), np.ones(count)

    def load(self, index: int, limit: float | None, rng: np.random.Generator | None) -> torch.Tensor:
        return self.blocks[index]


def one_hot_encoder(scale: float = 1.0) -> Encoder:
    """An encoder whose features are one-hot vectors of the tokens, in every layer and without positions."""
    changes = {
        "modality.vocab_size": 300,
        "modality.positions": "alibi",
        "modality.embedding_norm": False,
        "encoder.width": WIDTH,
        "encoder.ffn_width": 16,
        "encoder.layers": 1,
        "objective.target.top_k": 1,
    }
    recipe = load_recipe("text/v1-tiny", changes)
    encoder = build_encoder(recipe.build_modality(), recipe.encoder).eval()
    with torch.no_grad():
        for parameter in encoder.transformer.parameters():
            parameter.zero_()
        encoder.local_encoder.tokens.weight.zero_()
        encoder.local_encoder.tokens.weight[:WIDTH] = scale * torch.eye(WIDTH)
    return encoder


def gains(encoder: Encoder, view: View, random: bool = False) -> tuple[list[dict[str, float]], float]:
    examples = Blocks(900, random)
    parts = np.split(np.arange(900), 3)
    sets = {name: mask_tokens(examples, part, 1000, 0) for name, part in zip(("train", "dev", "test"), parts, strict=True)}
    unigrams = Unigrams(sets["train"])
    return readout_gains(encoder, sets, unigrams, view, 0), unigrams.cross_entropy(sets["test"])


def test_one_hot_neighbours_that_determine_the_token_gain_the_entropy_of_unigrams() -> None:
    layers, entropy = gains(one_hot_encoder(), "neighbours")
    assert entropy == pytest.approx(np.log(TOKENS), abs=0.02)
    assert [sorted(layer) for layer in layers] == [["dev", "test"]]
    assert all(0.95 * entropy < layer["test"] <= entropy for layer in layers)


def test_constant_features_gain_nothing() -> None:
    layers, _ = gains(one_hot_encoder(scale=0), "neighbours")
    assert all(abs(gain) < 0.005 for layer in layers for gain in layer.values())


def test_mask_token_of_an_encoder_without_attention_gains_nothing() -> None:
    layers, _ = gains(one_hot_encoder(), "mask_token")
    assert all(abs(gain) < 0.005 for layer in layers for gain in layer.values())


def test_neighbours_that_are_independent_of_the_token_gain_nothing() -> None:
    layers, _ = gains(one_hot_encoder(), "neighbours", random=True)
    assert all(abs(gain) < 0.02 for layer in layers for gain in layer.values())


def test_neighbour_features_are_those_of_the_adjacent_tokens() -> None:
    masked = mask_tokens(Blocks(3), np.arange(3), 100, 0)
    left, right = readout_features(one_hot_encoder(), masked, "neighbours")[0].split(WIDTH, 1)
    row, column = masked.mask.nonzero(as_tuple=True)
    assert torch.equal(left.argmax(1), masked.blocks[row, column - 1])
    assert torch.equal(right.argmax(1), masked.blocks[row, column + 1])


@pytest.mark.parametrize("positions", ["learned", "conv", "alibi"])
@pytest.mark.parametrize("view", ["neighbours", "mask_token"])
def test_features_do_not_depend_on_masked_tokens(view: View, positions: str) -> None:
    changes = {"encoder.width": 16, "encoder.ffn_width": 16, "encoder.layers": 2, "objective.target.top_k": 2}
    recipe = load_recipe("text/v1-tiny", {**changes, "modality.vocab_size": 300, "modality.positions": positions})
    encoder = build_encoder(recipe.build_modality(), recipe.encoder).eval()
    masked = mask_tokens(Blocks(3), np.arange(3), 100, 0)
    others = MaskedTokens(masked.blocks.masked_fill(masked.mask, 200), masked.mask)
    assert torch.equal(readout_features(encoder, masked, view), readout_features(encoder, others, view))


def test_masked_tokens_are_15_percent_never_adjacent_and_not_at_the_ends() -> None:
    masked = mask_tokens(Blocks(600), np.arange(600), 2000, 0)
    assert masked.mask.sum(1).unique().tolist() == [round(0.15 * (T - 2))]
    assert not (masked.mask[:, 1:] & masked.mask[:, :-1]).any()
    assert masked.mask.any(0).tolist() == [False] + [True] * (T - 2) + [False]
    assert 2000 <= len(masked.tokens) < 2004


def test_classes_are_tokens_masked_at_least_twice_and_one_for_all_others() -> None:
    blocks = torch.tensor([[0, 9, 5, 9, 6, 7, 7]])
    unigrams = Unigrams(MaskedTokens(blocks, torch.tensor([[False, True, False, True, False, True, False]])))
    assert unigrams.ids.tolist() == [9]
    assert unigrams.classes(torch.tensor([[9, 7], [4, 9]])).tolist() == [[0, 1], [1, 0]]
    assert unigrams.log_probs.exp().tolist() == pytest.approx([2 / 6, 4 / 6])


@pytest.fixture
def model(tmp_path: Path) -> Model:
    words = ["sun", "sea", "cat", "dog", "tree", "bird", "moon", "rain"]
    rng = np.random.default_rng(0)
    (tmp_path / "text").mkdir()
    (tmp_path / "tokenizer").mkdir()
    for i in range(12):
        (tmp_path / "text" / f"{i:02d}.txt").write_text(" ".join(rng.choice(words, 200)))
    save_tokenizer(train_tokenizer(words, 300), tmp_path / "tokenizer")
    small = {"encoder.width": 16, "encoder.ffn_width": 16, "encoder.layers": 2, "objective.target.top_k": 2}
    small |= {"modality.vocab_size": 300, "data.block_size": 32, "data.tokenizer": str(tmp_path / "tokenizer")}
    recipe = load_recipe("text/v2-tiny", {**small, "train.device": "cpu"})
    return Model(build_encoder(recipe.build_modality(), recipe.encoder).eval(), recipe.build_modality(), recipe)


def test_token_readout_selects_the_layer_on_dev_and_is_reproducible(model: Model, tmp_path: Path) -> None:
    found = token_readout(model, tmp_path / "text", max_tokens=400)
    assert [row.layer for row in found.rows] == [1, 2]
    assert found.best.dev == max(row.dev for row in found.rows)
    assert found.untrained_best.untrained_dev == max(row.untrained_dev for row in found.rows)
    assert found.tokens == {"train": 400, "dev": 100, "test": 100}
    assert f"Nats below the {found.unigrams:.3f} of unigrams on test" in str(found)
    assert token_readout(model, tmp_path / "text", max_tokens=400) == found


def test_probe_with_tokens_prints_the_table_and_writes_it(
    model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model.save_pretrained(tmp_path / "model")
    text = str(tmp_path / "text")
    assert cli.main(["probe", str(tmp_path / "model"), "--tokens", text, "--valid", text, "--view", "mask_token"]) == 0
    assert "view mask_token" in capsys.readouterr().out
    written = json.loads((tmp_path / "model" / "token_readout.json").read_text())
    assert (len(written["rows"]), written["view"]) == (2, "mask_token")
    speech = ("--modality", "data2vec.modalities.speech:Speech")
    assert cli.main(["probe", str(tmp_path / "model"), "--tokens", text, *speech]) == 2
    assert "is a model of modality text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tokens", "a", "--data", "b"], "--tokens cannot be used with --data"),
        (["--view", "mask_token"], "no effect without --tokens"),
    ],
)
def test_probe_refuses_options_that_contradict(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["probe", "model", *options]) == 2
    assert message in capsys.readouterr().err


def test_token_readout_refuses_too_little_text_and_other_modalities(model: Model, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("sun sea cat " * 8)
    with pytest.raises(UserError, match="blocks of text are too few to be split into 3"):
        token_readout(model, tmp_path / "short.txt")
    recipe = load_recipe("vision/v1-tiny")
    vision = Model(build_encoder(recipe.build_modality(), recipe.encoder).eval(), recipe.build_modality(), recipe)
    with pytest.raises(UserError, match="this is a model of vision; only text models have tokens"):
        token_readout(vision, tmp_path)
