"""The same weights give the same hidden states here and in Hugging Face transformers."""

from typing import Any

import pytest
import torch

from data2vec.batch import Batch
from data2vec.interop.key_mapping import Table, affine, to_our_keys
from data2vec.interop.transformers.key_mapping import AUDIO, TEXT, VISION
from data2vec.modalities.speech import Speech, SpeechSettings
from data2vec.modalities.text import Text, TextSettings
from data2vec.modalities.vision import Vision, VisionSettings
from data2vec.nn.encoder import build_encoder
from data2vec.nn.transformer import TransformerSettings

transformers = pytest.importorskip("transformers")
SMALL = {"width": 32, "layers": 3, "heads": 4, "ffn_width": 64}
THEIRS = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}


def hidden(modality: Any, settings: TransformerSettings, table: Table, theirs: Any, batch: Batch) -> list:
    """Our blocks' outputs with their weights, and what comes out at the end."""
    encoder = build_encoder(modality, settings).eval()
    mine, foreign = dict(encoder.named_parameters()), theirs.state_dict()
    with torch.no_grad():
        for name, value in to_our_keys(foreign, mine, table).items():
            mine[name].copy_(value)
        states = [output.block for output in encoder.block_outputs(*encoder.local_encoder(batch))]
        return [*states, encoder(batch)[0]]


def jolt(model: Any) -> Any:
    """Random values everywhere, norms and tables included, so that no mix-up goes unseen."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.mark.parametrize("padded", [False, True])
def test_audio_hidden_states_equal_those_of_transformers(padded: bool) -> None:
    layers = ((16, 10, 5), (16, 3, 2), (16, 2, 2))
    config = transformers.Data2VecAudioConfig(
        **THEIRS, conv_dim=(16,) * 3, conv_kernel=(10, 3, 2), conv_stride=(5, 2, 2), num_conv_pos_embeddings=2,
        conv_pos_kernel_size=4, num_conv_pos_embedding_groups=4, feat_extract_norm="layer",
    )  # fmt: skip
    theirs = jolt(transformers.Data2VecAudioModel(config))
    wave = torch.randn(2, 1000, generator=torch.Generator().manual_seed(1))
    padding = torch.arange(1000) >= torch.tensor([1000, 700])[:, None]
    wave = wave.masked_fill(padding & padded, 0)
    modality = Speech(SpeechSettings(conv_layers=layers, position_depth=2, position_kernel=4, position_groups=4), None)
    batch = Batch(wave, padding=padding if padded else None)
    ours = hidden(modality, TransformerSettings(**SMALL), AUDIO, theirs, batch)
    with torch.no_grad():
        out = theirs(wave, attention_mask=(~padding).long() if padded else None, output_hidden_states=True)
    frames = (49, 34) if padded else (49, 49)
    for mine, other in zip(ours, (*out.hidden_states[1:], out.last_hidden_state), strict=True):
        for row, count in enumerate(frames):
            torch.testing.assert_close(mine[row, :count], other[row, :count], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("padded", [False, True])
def test_text_hidden_states_equal_those_of_transformers(padded: bool) -> None:
    config = transformers.Data2VecTextConfig(
        **THEIRS, vocab_size=60, max_position_embeddings=42, type_vocab_size=1, layer_norm_eps=1e-5
    )
    theirs = jolt(transformers.Data2VecTextModel(config, add_pooling_layer=False))
    with torch.no_grad():
        theirs.embeddings.token_type_embeddings.weight.zero_()
    tokens = torch.randint(4, 59, (2, 20), generator=torch.Generator().manual_seed(1))
    if padded:
        tokens[1, 13:] = 1
    padding = tokens == 1
    batch = Batch(tokens, padding=padding if padded else None)
    settings = TransformerSettings(**SMALL, input_norm=False)
    ours = hidden(Text(TextSettings(vocab_size=60, max_length=40), None), settings, TEXT, theirs, batch)
    with torch.no_grad():
        out = theirs(tokens, attention_mask=(~padding).long(), output_hidden_states=True)
    for mine, other in zip(ours, (*out.hidden_states[1:], out.last_hidden_state), strict=True):
        torch.testing.assert_close(mine[~padding], other[~padding], atol=1e-5, rtol=1e-5)


def test_vision_hidden_states_equal_those_of_transformers() -> None:
    config = transformers.Data2VecVisionConfig(
        **THEIRS, image_size=40, patch_size=8, layer_norm_eps=1e-6, layer_scale_init_value=0.1, use_mask_token=True,
        use_shared_relative_position_bias=True, use_mean_pooling=False,
    )  # fmt: skip
    theirs = jolt(transformers.Data2VecVisionModel(config, add_pooling_layer=False))
    image = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(1))
    settings = TransformerSettings(
        **SMALL, norm="pre", norm_eps=1e-6, input_norm=False, final_norm=True, extra_tokens=1, key_bias=False, layer_scale=0.1
    )
    ours = hidden(Vision(VisionSettings(image=40, patch=8), None), settings, VISION, theirs, Batch(image))
    with torch.no_grad():
        out = theirs(image, output_hidden_states=True)
    for mine, other in zip(ours, (*out.hidden_states[1:], out.last_hidden_state), strict=True):
        torch.testing.assert_close(mine, other[:, 1:], atol=1e-5, rtol=1e-5)


def test_group_norm_and_pre_norm_equal_wav2vec2() -> None:
    from transformers.models.wav2vec2 import modeling_wav2vec2 as wav2vec2

    config = transformers.Wav2Vec2Config(
        **THEIRS, conv_dim=(16,) * 3, conv_kernel=(10, 3, 2), conv_stride=(5, 2, 2), feat_extract_norm="group",
        conv_bias=True, do_stable_layer_norm=True, attn_implementation="eager",
    )  # fmt: skip
    front_end = jolt(wav2vec2.Wav2Vec2FeatureEncoder(config))
    settings = SpeechSettings(conv_layers=((16, 10, 5), (16, 3, 2), (16, 2, 2)), conv_norm="group", conv_bias=True)
    ours = Speech(settings, None).build_local_encoder(32).conv
    table = affine("convs.{i}", "conv_layers.{i}.conv") | affine("norms.{i}", "conv_layers.{i}.layer_norm")
    ours.load_state_dict(to_our_keys(front_end.state_dict(), ours.state_dict(), table))
    wave = torch.randn(2, 1000, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours(wave), front_end(wave).transpose(1, 2), atol=1e-5, rtol=1e-5)

    layer = jolt(wav2vec2.Wav2Vec2EncoderLayerStableLayerNorm(config))
    from data2vec.nn.transformer import Block

    block = Block(TransformerSettings(**SMALL, norm="pre"), 0).eval()
    state = {f"encoder.layers.0.{name}": value for name, value in layer.state_dict().items()}
    mine = {f"transformer.blocks.0.{name}": value for name, value in block.state_dict().items()}
    block.load_state_dict({name[21:]: value for name, value in to_our_keys(state, mine, AUDIO).items()})
    x = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(block(x)[0], layer(x), atol=1e-5, rtol=1e-5)
