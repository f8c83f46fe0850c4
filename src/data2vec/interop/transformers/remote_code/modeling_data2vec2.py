"""data2vec 2.0 for Hugging Face transformers: configuration, embeddings, Transformer, models and their losses in one file.

The file is part of a model folder. `AutoModel.from_pretrained(folder, trust_remote_code=True)` runs it; it needs torch and
transformers only. Parameter names equal those of the data2vec package, which writes such folders and reads them back.

Shapes: B batch, T positions, D width, C channels, H heads, E extra tokens, V labels.
Attention is `sdpa` or `eager`; calls that return attention weights are eager. Flash attention takes no position bias.
`padding` (B, T) is True at padded positions. They never influence other positions: the output for an input does not depend on
the rest of its batch.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    CausalLMOutput,
    ImageClassifierOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import can_return_tuple

Numbers = list[int] | tuple[int, ...]
INPUT_NAMES = {"speech": "input_values", "vision": "pixel_values", "text": "input_ids", "sound": "input_values"}


class Data2Vec2Config(PretrainedConfig):
    """The architecture; defaults are those of the Base speech model."""

    model_type: ClassVar[str] = "data2vec2"

    modality: Literal["speech", "vision", "text", "sound"] = "speech"
    """Input: `input_values` at 16 kHz, normalised `pixel_values`, `input_ids`, or, of sound, `input_values` (B, F, N), a
    normalised log-mel spectrogram."""
    hidden_size: int = 768
    """Width D."""
    num_hidden_layers: int = 12
    """Number of Transformer blocks."""
    num_attention_heads: int = 12
    """Attention heads H."""
    intermediate_size: int = 3072
    """Inner width of the feed-forward network."""
    hidden_act: Literal["gelu", "relu"] = "gelu"
    """Activation of the feed-forward network."""
    norm: Literal["post", "pre"] = "post"
    """Layer norm after each residual addition (post) or before attention and feed-forward (pre)."""
    layer_norm_eps: float = 1e-5
    """Epsilon of the Transformer's layer norms."""
    input_norm: bool = True
    """Layer norm before the first block."""
    final_norm: bool = False
    """Layer norm after the last block."""
    extra_tokens: int = 0
    """Learned vectors prepended to the sequence, such as CLS (E). They are not part of the output."""
    key_bias: bool = True
    """Bias in the key projection."""
    layer_scale: float | None = None
    """Initial value of LayerScale on each residual branch; None: no LayerScale."""
    hidden_dropout: float = 0.1
    """Dropout on the input, the attention output and the feed-forward output."""
    attention_dropout: float = 0.1
    """Dropout on the attention weights."""
    activation_dropout: float = 0.0
    """Dropout after the activation of the feed-forward network."""
    drop_path: float = 0.0
    """Stochastic depth: probability of skipping a residual branch per sample, increasing linearly with depth to this value."""
    layerdrop: float = 0.0
    """Probability of skipping a block in a training step."""
    initializer_range: float = 0.02
    """Standard deviation of newly initialised weights."""
    mask_vector: bool = False
    """Whether the weights include the mask embedding, which only pre-training uses."""

    conv_dim: Numbers = (512,) * 7
    """Speech: output channels of the convolutional feature extractor's layers."""
    conv_kernel: Numbers = (10, 3, 3, 3, 3, 2, 2)
    """Speech: kernel sizes of these layers."""
    conv_stride: Numbers = (5, 2, 2, 2, 2, 2, 2)
    """Speech: strides of these layers."""
    conv_norm: Literal["layer", "group"] = "layer"
    """Speech: layer norm after every convolution, or group norm over time after the first one only."""
    conv_bias: bool = False
    """Speech: bias in these convolutions."""
    position_depth: int = 5
    """Speech, and text with convolutional positions: convolutions in the position encoder."""
    position_kernel: int = 19
    """Kernel size of these convolutions."""
    position_groups: int = 16
    """Groups of these convolutions."""
    alibi: bool = False
    """Speech: ALiBi attention bias with a learned scale per head."""

    image_size: int = 224
    """Vision: height and width of the input in pixels."""
    patch_size: int = 16
    """Vision: height and width of a patch."""
    positions: Literal["relative", "sincos"] = "sincos"
    """Vision: learned relative position bias, or fixed sine-cosine position embeddings."""
    position_tables: int = 1
    """Vision: number of relative position bias tables; 1 is shared by all blocks, otherwise one per block."""

    num_mel_bins: int = 128
    """Sound: mel bands N of a spectrogram."""
    num_frames: int = 1024
    """Sound: frames F to which the preprocessor fills a clip up."""
    spectrogram_patch: Numbers = (16, 16)
    """Sound: frames and mel bands of a patch."""
    position_scale: float = 1.0
    """Sound: factor of the sine-cosine position embeddings."""
    attend_padding: bool = False
    """Sound: whether the weights are trained with padding that is attended to, as EAT."""

    vocab_size: int = 32
    """Text: vocabulary size. Speech: number of CTC labels."""
    pad_token_id: int = 0
    """Text: padding token. Speech: CTC blank."""
    max_position_embeddings: int = 514
    """Text: maximum sequence length plus 2, as in RoBERTa."""
    text_positions: Literal["learned", "conv", "alibi"] = "learned"
    """Text: learned position embeddings, convolutions over the sequence, or an ALiBi attention bias alone."""
    embedding_norm: bool = True
    """Text: layer norm on the sum of token and position embeddings."""
    scale_embedding: bool = False
    """Text: multiply token embeddings by sqrt(D)."""

    classifier_pooling: Literal["mean", "first", "class-token", "attention", "linear-softmax"] = "mean"
    """Classifiers: pool by the mean over positions, or take the first position, or the last extra token; or a mean with
    attention weights from a learned query; or pool the probabilities of each position (linear-softmax)."""
    classifier_norm_eps: float | None = None
    """Classifiers: epsilon of a layer norm on the pooled vector; None: no norm."""
    classifier_hidden_layer: Literal["linear", "tanh"] | None = None
    """Classifiers: hidden layer before the output layer, linear or followed by tanh; None: no hidden layer."""
    classifier_hidden_width: int | None = None
    """Classifiers: width of the hidden layer; None: D."""
    weighted_layers: int | None = None
    """Heads: number of blocks, if they read a learned weighted sum of all block outputs, each layer-normalised; None: the
    encoder's output."""

    @property
    def inputs_to_logits_ratio(self) -> int:
        """Speech: samples per position."""
        return math.prod(self.conv_stride)


class ConvFeatureExtractor(nn.Module):
    """Unpadded convolutions, each followed by a norm and GELU: (B, samples) to (B, T, C)."""

    def __init__(self, config: Data2Vec2Config):
        super().__init__()
        layers = zip([1, *config.conv_dim], config.conv_dim, config.conv_kernel, config.conv_stride, strict=False)
        self.convs = nn.ModuleList(nn.Conv1d(*layer, bias=config.conv_bias) for layer in layers)
        first = config.conv_dim[0]
        self.norms = nn.ModuleList(
            map(nn.LayerNorm, config.conv_dim) if config.conv_norm == "layer" else [nn.GroupNorm(first, first)]
        )

    def forward(self, waveform: Tensor, attention_mask: Tensor | None) -> Tensor:
        x = waveform[..., None]
        samples = None if attention_mask is None else attention_mask.sum(1)
        conv: Any
        for i, conv in enumerate(self.convs):
            x = convolve(conv, x)
            norm = self.norms[i] if i < len(self.norms) else None
            if isinstance(norm, nn.GroupNorm):
                lengths = None if samples is None else (samples - conv.kernel_size[0]) // conv.stride[0] + 1
                x = norm_over_time(norm, x, lengths)
            elif norm is not None:
                x = norm(x)
            x = F.gelu(x)
        return x


def norm_over_time(norm: nn.GroupNorm, x: Tensor, lengths: Tensor | None) -> Tensor:
    """Normalise each channel of `x` (B, T, C) over the first `lengths` (B,) time steps of each row."""
    if lengths is None:
        return norm(x.transpose(1, 2)).transpose(1, 2)
    padding = torch.arange(x.shape[1], device=x.device) >= lengths[:, None]
    count = lengths.clamp(min=1)[:, None, None]
    x = x - zero_padding(x, padding).sum(1, keepdim=True) / count
    variance = zero_padding(x, padding).square().sum(1, keepdim=True) / count
    return x * torch.rsqrt(variance + norm.eps) * norm.weight + norm.bias


def convolve(conv: Any, x: Tensor) -> Tensor:
    """Convolve `x` (B, T, C) over time; as a one-row image, because channels-last 2-D kernels are faster on a CPU."""
    image, weight = x.transpose(1, 2).unsqueeze(2), conv.weight.unsqueeze(2)
    y = F.conv2d(image, weight, conv.bias, (1, *conv.stride), (0, *conv.padding), groups=conv.groups)
    return y.squeeze(2).transpose(1, 2)


class WaveformEncoder(nn.Module):
    """Convolutional feature extractor, layer norm and projection to D."""

    def __init__(self, config: Data2Vec2Config):
        super().__init__()
        self.layers = list(zip(config.conv_kernel, config.conv_stride, strict=True))
        self.conv = ConvFeatureExtractor(config)
        self.norm = nn.LayerNorm(config.conv_dim[-1])
        self.project = nn.Linear(config.conv_dim[-1], config.hidden_size)
        self.mask_vector = nn.Parameter(torch.empty(config.hidden_size)) if config.mask_vector else None

    def forward(self, waveform: Tensor, attention_mask: Tensor | None) -> Tensor:
        return self.project(self.norm(self.conv(waveform, attention_mask)))

    def position_padding(self, waveform: Tensor, attention_mask: Tensor | None) -> Tensor | None:
        if attention_mask is None:
            return None
        frames = torch.arange(self.length(waveform.shape[1]), device=waveform.device)
        return frames >= self.length(attention_mask.sum(1))[:, None]

    def length(self, samples: Any) -> Any:
        """Number of output positions for a number of samples."""
        for kernel, stride in self.layers:
            samples = (samples - kernel) // stride + 1
        return samples


class PatchEmbedding(nn.Module):
    """Linear embedding of square patches."""

    def __init__(self, config: Data2Vec2Config):
        super().__init__()
        self.image, self.patch = config.image_size, config.patch_size
        self.project = nn.Linear(3 * self.patch**2, config.hidden_size)
        self.mask_vector = nn.Parameter(torch.empty(config.hidden_size)) if config.mask_vector else None

    def forward(self, images: Tensor, attention_mask: Tensor | None) -> Tensor:
        if images.shape[1:] != (3, self.image, self.image):
            raise ValueError(f"pixel_values should be (B, 3, {self.image}, {self.image}), not {tuple(images.shape)}")
        return self.project(F.unfold(images, self.patch, stride=self.patch).transpose(1, 2))

    def position_padding(self, images: Tensor, attention_mask: Tensor | None) -> None:
        return None


class SpectrogramPatches(nn.Module):
    """Linear embedding of patches of a normalised log-mel spectrogram (B, F, N), all of one time before those of the next."""

    def __init__(self, config: Data2Vec2Config):
        super().__init__()
        self.bins, (self.time, self.band) = config.num_mel_bins, config.spectrogram_patch
        self.project = nn.Linear(self.time * self.band, config.hidden_size)
        self.mask_vector = nn.Parameter(torch.empty(config.hidden_size)) if config.mask_vector else None

    def forward(self, spectrogram: Tensor, attention_mask: Tensor | None) -> Tensor:
        if spectrogram.ndim != 3 or spectrogram.shape[2] != self.bins or spectrogram.shape[1] % self.time:
            wanted = f"(B, F, {self.bins}), F a multiple of {self.time}"
            raise ValueError(f"input_values should be {wanted}, not {tuple(spectrogram.shape)}")
        patches = spectrogram.unflatten(1, (-1, self.time)).unflatten(3, (-1, self.band)).transpose(2, 3)
        return self.project(patches.flatten(3).flatten(1, 2))

    def position_padding(self, spectrogram: Tensor, attention_mask: Tensor | None) -> Tensor | None:
        if attention_mask is None:
            return None
        rows = attention_mask.eq(0).unflatten(1, (-1, self.time)).all(-1)
        return rows.repeat_interleave(self.bins // self.band, dim=1)


class TokenEmbedding(nn.Module):
    """Token embedding."""

    def __init__(self, config: Data2Vec2Config):
        super().__init__()
        self.scale, self.pad = config.hidden_size**0.5 if config.scale_embedding else 1.0, config.pad_token_id
        self.tokens = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=self.pad)

    def forward(self, tokens: Tensor, attention_mask: Tensor | None) -> Tensor:
        return self.scale * self.tokens(tokens)

    def position_padding(self, tokens: Tensor, attention_mask: Tensor | None) -> Tensor:
        return tokens.eq(self.pad) if attention_mask is None else attention_mask.eq(0)


class ConvPositionEncoder(nn.Module):
    """Grouped convolutions, each followed by a layer norm without parameters and GELU.

    Speech: optionally with ALiBi. Text: optionally with a layer norm on the sum."""

    def __init__(self, config: Data2Vec2Config):
        super().__init__()
        D, kernel, groups = config.hidden_size, config.position_kernel, config.position_groups
        conv = [nn.Conv1d(D, D, kernel, padding=kernel // 2, groups=groups) for _ in range(config.position_depth)]
        self.convs = nn.ModuleList(conv)
        is_text = config.modality == "text"
        self.norm = nn.LayerNorm(D) if is_text and config.embedding_norm else nn.Identity()
        self.alibi = Alibi(config) if config.alibi and not is_text else None

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        y = x = zero_padding(x, padding)
        for conv in self.convs:
            y = convolve(conv, y)[:, : x.shape[1]]  # an even kernel gives one position too many
            y = zero_padding(F.gelu(F.layer_norm(y, y.shape[-1:])), padding)
        return self.norm(x + y)

    def bias(self, length: int) -> Tensor | None:
        return None if self.alibi is None else self.alibi(length)


class AlibiPositionEncoder(nn.Module):
    """An ALiBi attention bias; the vectors get a layer norm only."""

    def __init__(self, config: Data2Vec2Config):
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size) if config.embedding_norm else nn.Identity()
        self.alibi = Alibi(config)

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        return zero_padding(self.norm(x), padding)

    def bias(self, length: int) -> Tensor:
        return self.alibi(length)


class Alibi(nn.Module):
    """Symmetric ALiBi, (H, E+T, E+T): the bias decreases linearly with distance; it is 0 to and from extra tokens."""

    def __init__(self, config: Data2Vec2Config):
        super().__init__()
        self.slopes, self.extra = _alibi_slopes(config.num_attention_heads), config.extra_tokens
        self.scale = nn.Parameter(torch.ones(config.num_attention_heads))

    def forward(self, length: int) -> Tensor:
        position = torch.arange(length, device=self.scale.device)
        distance = F.pad((position[:, None] - position).abs(), (self.extra, 0, self.extra, 0))
        strength = torch.tensor(self.slopes, device=position.device) * self.scale.clamp(min=0)
        return -strength[:, None, None] * distance


def _alibi_slopes(heads: int) -> list[float]:
    """2^(-8i/H) for a power of two; otherwise those of the next lower power, then every second one of twice that power."""
    power = 2 ** int(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    return slopes if power == heads else slopes + _alibi_slopes(2 * power)[0::2][: heads - power]


class SinCosPositionEncoder(nn.Module):
    """Fixed sine-cosine position embeddings: one half of D encodes the column, the other half the row."""

    def __init__(self, config: Data2Vec2Config):
        super().__init__()
        self.side = config.image_size // config.patch_size

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        quarter = x.shape[-1] // 4
        omega = 10000 ** (-torch.arange(quarter, dtype=torch.float32, device=x.device) / quarter)
        angle = torch.arange(self.side, device=x.device)[:, None] * omega
        embedding = torch.cat([angle.sin(), angle.cos()], dim=1).to(x.dtype)  # (side, D/2)
        return x + torch.cat([embedding.repeat(self.side, 1), embedding.repeat_interleave(self.side, 0)], dim=1)

    def bias(self, length: int) -> None:
        return None


class SpectrogramPositions(nn.Module):
    """Fixed sine-cosine position embeddings of any length: one half of D encodes the frequency, the other half the time."""

    def __init__(self, config: Data2Vec2Config):
        super().__init__()
        self.columns, self.scale = config.num_mel_bins // config.spectrogram_patch[1], config.position_scale

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        quarter, rows = x.shape[-1] // 4, x.shape[1] // self.columns
        omega = 10000 ** (-torch.arange(quarter, dtype=torch.float64, device=x.device) / quarter)

        def encode(count: int) -> Tensor:
            angle = torch.arange(count, device=x.device)[:, None] * omega
            return torch.cat([angle.sin(), angle.cos()], dim=1).to(x.dtype)

        frequency, time = encode(self.columns).repeat(rows, 1), encode(rows).repeat_interleave(self.columns, 0)
        return x + self.scale * torch.cat([frequency, time], dim=1)

    def bias(self, length: int) -> None:
        return None


class RelativePositionEncoder(nn.Module):
    """Learned attention bias per offset between two patches (BEiT); three more table rows are for the extra token."""

    def __init__(self, config: Data2Vec2Config):
        super().__init__()
        self.side, self.extra = config.image_size // config.patch_size, config.extra_tokens
        rows = ((2 * self.side - 1) ** 2 + 3 * self.extra, config.num_attention_heads)
        self.table = nn.Parameter(torch.zeros(rows if config.position_tables == 1 else (config.position_tables, *rows)))

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        return x

    def bias(self, length: int) -> list[Tensor]:
        """(H, E+T, E+T): one for all blocks, or one per block."""
        position, count = torch.arange(length, device=self.table.device), 2 * self.side - 1
        row, column = position // self.side, position % self.side
        index = (row[:, None] - row + self.side - 1) * count + column[:, None] - column + self.side - 1
        if self.extra:
            index = F.pad(index, (1, 0, 1, 0))
            index[0, :], index[:, 0], index[0, 0] = count**2, count**2 + 1, count**2 + 2
        return [table[index].movedim(-1, 0).contiguous() for table in self.table.view(-1, *self.table.shape[-2:])]


class LearnedPositionEncoder(nn.Module):
    """Learned position embedding, which skips padding, and a layer norm."""

    def __init__(self, config: Data2Vec2Config):
        super().__init__()
        self.table = nn.Embedding(config.max_position_embeddings, config.hidden_size, padding_idx=1)
        self.norm = nn.LayerNorm(config.hidden_size) if config.embedding_norm else nn.Identity()

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        if x.shape[1] > (longest := self.table.num_embeddings - 2):
            raise ValueError(f"a sequence of {x.shape[1]} positions is longer than the maximum of {longest}")
        count = (~padding).cumsum(1).masked_fill(padding, 0)
        return zero_padding(self.norm(x + self.table(count + 1)), padding)

    def bias(self, length: int) -> None:
        return None


TEXT_POSITIONS = {"learned": LearnedPositionEncoder, "conv": ConvPositionEncoder, "alibi": AlibiPositionEncoder}


def zero_padding(x: Tensor, padding: Tensor | None) -> Tensor:
    """`x` (B, T, D) with zeros at padded positions."""
    return x if padding is None else x.masked_fill(padding[..., None], 0.0)


def eager_attention_forward(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, scaling: float
) -> tuple[Tensor, Tensor]:
    """The output (B, E+T, H, D/H) and the weights (B, H, E+T, E+T), after dropout as in transformers."""
    logits = scaling * q @ k.transpose(-2, -1)
    if mask is not None:
        logits = logits + mask if mask.is_floating_point() else logits.masked_fill(~mask, float("-inf"))
    weights = F.dropout(logits.softmax(-1, dtype=torch.float32).to(q.dtype), dropout)
    return (weights @ v).transpose(1, 2), weights


class Attention(nn.Module):
    """Self-attention; q, k and v are one (3D, D) projection in this order, each split into heads."""

    is_causal = False

    def __init__(self, config: Data2Vec2Config):
        super().__init__()
        D = config.hidden_size
        self.config, self.heads = config, config.num_attention_heads
        self.qkv = nn.Linear(D, 3 * D, bias=config.key_bias)
        self.q_bias = None if config.key_bias else nn.Parameter(torch.zeros(D))
        self.v_bias = None if config.key_bias else nn.Parameter(torch.zeros(D))
        self.out = nn.Linear(D, D)

    def forward(self, x: Tensor, mask: Tensor | None, output_attentions: bool) -> tuple[Tensor, Tensor | None]:
        """The output; with `output_attentions` the weights (B, H, E+T, E+T) too, for which attention is computed eagerly.

        `mask` broadcasts to (B, H, E+T, E+T): bool with True = attend, or floats added to the logits."""
        qkv = self.qkv(x)
        if self.q_bias is not None and self.v_bias is not None:
            qkv = qkv + torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mask = mask.to(q.dtype) if mask is not None and mask.is_floating_point() else mask
        implementation = "eager" if output_attentions else self.config._attn_implementation
        attend: Any = eager_attention_forward if implementation == "eager" else ALL_ATTENTION_FUNCTIONS[implementation]
        dropout = self.config.attention_dropout if self.training else 0.0
        y, weights = attend(self, q, k, v, mask, dropout=dropout, scaling=q.shape[-1] ** -0.5)
        return self.out(y.flatten(2)), weights if output_attentions else None


class Block(GradientCheckpointingLayer):
    """Attention and a feed-forward network, each with a residual connection."""

    def __init__(self, config: Data2Vec2Config, index: int):
        super().__init__()
        c, D, inner = config, config.hidden_size, config.intermediate_size
        self.pre_norm = c.norm == "pre"
        self.attention = Attention(c)
        self.norm1 = nn.LayerNorm(D, c.layer_norm_eps)
        activation = nn.GELU() if c.hidden_act == "gelu" else nn.ReLU()
        self.ffn = nn.Sequential(nn.Linear(D, inner), activation, nn.Dropout(c.activation_dropout), nn.Linear(inner, D))
        self.norm2 = nn.LayerNorm(D, c.layer_norm_eps)
        self.dropout = nn.Dropout(c.hidden_dropout)
        self.drop_path = c.drop_path * index / max(c.num_hidden_layers - 1, 1)
        self.scale1 = None if c.layer_scale is None else nn.Parameter(torch.full((D,), c.layer_scale))
        self.scale2 = None if c.layer_scale is None else nn.Parameter(torch.full((D,), c.layer_scale))

    def forward(self, x: Tensor, mask: Tensor | None = None, output_attentions: bool = False) -> tuple[Tensor, Tensor | None]:
        """The output, and with `output_attentions` the attention weights."""
        y, weights = self.attention(self.norm1(x) if self.pre_norm else x, mask, output_attentions)
        x = x + self._branch(y, self.scale1)
        x = x if self.pre_norm else self.norm1(x)
        x = x + self._branch(self.ffn(self.norm2(x) if self.pre_norm else x), self.scale2)
        return (x if self.pre_norm else self.norm2(x)), weights

    def _branch(self, x: Tensor, scale: Tensor | None) -> Tensor:
        x = self.dropout(x if scale is None else scale * x)
        if not self.training or not self.drop_path:
            return x
        keep = torch.rand(len(x), 1, 1, device=x.device) >= self.drop_path
        return x * (keep / (1 - self.drop_path)).to(x.dtype)


class Transformer(nn.Module):
    """Extra tokens, input norm, blocks, final norm."""

    def __init__(self, config: Data2Vec2Config):
        super().__init__()
        c, D = config, config.hidden_size
        self.layerdrop = c.layerdrop
        self.extra_tokens = nn.Parameter(torch.empty(c.extra_tokens, D)) if c.extra_tokens else None
        self.input_norm = nn.LayerNorm(D, c.layer_norm_eps) if c.input_norm else nn.Identity()
        self.input_dropout = nn.Dropout(c.hidden_dropout)
        self.blocks = nn.ModuleList(Block(c, i) for i in range(c.num_hidden_layers))
        self.final_norm = nn.LayerNorm(D, c.layer_norm_eps) if c.final_norm else nn.Identity()

    def forward(
        self,
        x: Tensor,
        padding: Tensor | None,
        bias: Tensor | list[Tensor] | None,
        output_hidden_states: bool,
        output_attentions: bool,
    ) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor | None]]:
        """The extra tokens (B, E, D) and the output (B, T, D); with `output_hidden_states` the input of the first block and the
        output of each block; with `output_attentions` the attention weights of each block, None for one that layerdrop skips.

        `bias`: (H, E+T, E+T), added to the attention logits; or a list with one for all blocks or one per block; or None."""
        extra = 0 if self.extra_tokens is None else len(self.extra_tokens)
        if self.extra_tokens is not None:
            x = torch.cat([self.extra_tokens.to(x.dtype).expand(len(x), -1, -1), x], dim=1)
        x = self.input_dropout(self.input_norm(x))
        masks = [_attention_mask(b, padding, extra) for b in (bias if isinstance(bias, list) else [bias])]
        states: list[Tensor] = []
        attentions: list[Tensor | None] = []

        def record(x: Tensor) -> Tensor:
            """`x`, computed from the state that is returned, so that the state gets a gradient."""
            if not output_hidden_states:
                return x
            states.append(x[:, extra:] if extra else x)
            return torch.cat([x[:, :extra], states[-1]], dim=1) if extra else x

        x = record(x)
        for i, block in enumerate(self.blocks):
            weights = None
            if not self.training or not self.layerdrop or torch.rand(()) >= self.layerdrop:
                x, weights = block(x, masks[i % len(masks)], output_attentions)
            x = record(x)
            attentions += [weights] if output_attentions else []
        x = self.final_norm(x)
        return x[:, :extra], x[:, extra:] if extra else x, states, attentions


def _attention_mask(bias: Tensor | None, padding: Tensor | None, extra: int) -> Tensor | None:
    """Position bias and padding as one attention mask; extra tokens are never padding."""
    if padding is None:
        return None if bias is None else bias[None]
    padding = F.pad(padding, (extra, 0))[:, None, None, :]
    return ~padding if bias is None else bias.masked_fill(padding, float("-inf"))


class Data2Vec2PreTrainedModel(PreTrainedModel):
    """Configuration, initialisation and loading shared by all models."""

    config: Data2Vec2Config
    config_class = Data2Vec2Config
    base_model_prefix = "encoder"
    main_input_name = INPUT_NAMES["speech"]  # of the class; a model has that of its modality
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _no_split_modules = ["Block"]  # noqa: RUF012 (as transformers declares it)
    _supports_sdpa = True

    def __init__(self, config: Data2Vec2Config):
        super().__init__(config)
        self.main_input_name = INPUT_NAMES[config.modality]

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True  # it is looked up at each call

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # linear layers, embeddings, convolutions and norms
        if isinstance(module, nn.Conv1d):
            nn.init.kaiming_normal_(module.weight)
        for name, parameter in module.named_parameters(recurse=False):
            if name in ("extra_tokens", "mask_vector"):
                nn.init.normal_(parameter, std=self.config.initializer_range)
            elif name in ("q_bias", "v_bias", "table", "mix"):
                nn.init.zeros_(parameter)
            elif name in ("scale", "scale1", "scale2"):
                nn.init.constant_(parameter, 1.0 if name == "scale" else self.config.layer_scale or 0.0)

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding of a text model; the projection of frames or patches to D of others."""
        base: Any = self.base_model
        return getattr(base.local_encoder, self._input_embedding_name)

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace what `get_input_embeddings` returns."""
        base: Any = self.base_model
        setattr(base.local_encoder, self._input_embedding_name, value)

    @property
    def _input_embedding_name(self) -> str:
        return "tokens" if self.config.modality == "text" else "project"

    def freeze_feature_encoder(self) -> None:
        """Disable gradients of the convolutional feature extractor of a speech model."""
        base: Any = self.base_model
        base.local_encoder.conv.requires_grad_(False)


class Data2Vec2Model(Data2Vec2PreTrainedModel):
    """The encoder. Positions of `last_hidden_state` and `hidden_states` are frames, patches or tokens, without extra tokens.
    `hidden_states` are the input of the first block and the output of each block, before the final norm. `attentions` are
    (B, H, E+T, E+T), extra tokens first."""

    local_encoder: Any
    position_encoder: Any

    def __init__(self, config: Data2Vec2Config):
        super().__init__(config)
        local_encoder, position_encoder = {
            "speech": (WaveformEncoder, ConvPositionEncoder),
            "vision": (PatchEmbedding, SinCosPositionEncoder if config.positions == "sincos" else RelativePositionEncoder),
            "text": (TokenEmbedding, TEXT_POSITIONS[config.text_positions]),
            "sound": (SpectrogramPatches, SpectrogramPositions),
        }[config.modality]
        self.local_encoder, self.position_encoder = local_encoder(config), position_encoder(config)
        self.transformer = Transformer(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: object,
    ) -> BaseModelOutputWithPooling:
        """Exactly one of the three inputs is required; `attention_mask` is 0 at padding, which is at the end of a row.

        `pooler_output` is the last extra token of a sound model, as of EAT."""
        inputs = _select_input((input_values, pixel_values, input_ids), kwargs)
        padding = self.local_encoder.position_padding(inputs, attention_mask)
        x = inputs.to(self.dtype) if inputs.is_floating_point() else inputs
        x = self.position_encoder(self.local_encoder(x, attention_mask), padding)
        with_states = _flag(self.config, "output_hidden_states", output_hidden_states)
        with_weights = _flag(self.config, "output_attentions", output_attentions)
        bias = self.position_encoder.bias(x.shape[1])
        extra, last, states, weights = self.transformer(x, padding, bias, with_states, with_weights)
        return BaseModelOutputWithPooling(
            last_hidden_state=last,
            pooler_output=extra[:, -1] if self.config.modality == "sound" and self.config.extra_tokens else None,
            hidden_states=tuple(states) if with_states else None,
            attentions=tuple(weights) if with_weights else None,
        )


def _flag(config: Data2Vec2Config, name: str, value: bool | None) -> bool:
    """An argument or else the setting of that name. Raises ValueError for a selection of layers by number."""
    value = getattr(config, name) if value is None else value
    if not isinstance(value, bool | None):
        raise ValueError(f"{name}: {value!r} is not supported by data2vec2, only True or False")
    return bool(value)


def _select_input(inputs: tuple[Tensor | None, ...], kwargs: dict[str, object]) -> Tensor:
    """The one input passed. Raises ValueError for none or several, and for arguments that would have no effect."""
    present = [value for value in inputs if value is not None]
    if unknown := [name for name, value in kwargs.items() if value is not None and value is not False]:
        raise ValueError(f"{', '.join(unknown)}: not supported by data2vec2")
    if len(present) != 1:
        raise ValueError(f"pass exactly one of {', '.join(INPUT_NAMES.values())}")
    return present[0]


class BlockMixingHead(nn.Module):
    """What heads share: the weights of block outputs, if they read a sum of these."""

    def __init__(self, config: Data2Vec2Config):
        super().__init__()
        self.mix = nn.Parameter(torch.zeros(config.weighted_layers)) if config.weighted_layers else None

    def combine(self, states: Sequence[Tensor]) -> Tensor:
        """The weighted sum (B, T, D) of layer-normalised block outputs."""
        assert self.mix is not None
        normed = torch.stack([F.layer_norm(x, x.shape[-1:]) for x in states])
        return torch.tensordot(self.mix.softmax(0).to(normed.dtype), normed, 1)


class CTC(BlockMixingHead):
    """CTC head: (B, T, D) to logits (B, T, V), which predict blank at padding."""

    def __init__(self, config: Data2Vec2Config):
        super().__init__(config)
        self.blank = config.pad_token_id
        self.out = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        logits = self.out(x)
        if padding is None:
            return logits
        blank = torch.arange(logits.shape[-1], device=x.device) == self.blank
        return torch.where(padding[..., None], torch.where(blank, 0.0, -1e4).to(logits.dtype), logits)


class Classifier(BlockMixingHead):
    """Classification head: (B, T, D) to logits (B, V)."""

    def __init__(self, config: Data2Vec2Config):
        super().__init__(config)
        c, D = config, config.hidden_size
        self.pooling, self.tanh = c.classifier_pooling, c.classifier_hidden_layer == "tanh"
        self.query = nn.Linear(D, 1) if c.classifier_pooling == "attention" else None
        inner = (c.classifier_hidden_width or D) if c.classifier_hidden_layer else D
        self.norm = nn.LayerNorm(D, c.classifier_norm_eps) if c.classifier_norm_eps else nn.Identity()
        self.hidden = nn.Linear(D, inner) if c.classifier_hidden_layer else nn.Identity()
        self.out = nn.Linear(inner, c.num_labels or 2)

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        y = self.hidden(self.norm(x if self.pooling == "linear-softmax" else self.pool(x, padding)))
        logits = self.out(y.tanh() if self.tanh else y)
        return linear_softmax(logits, padding) if self.pooling == "linear-softmax" else logits

    def pool(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """One vector (B, D) of each row."""
        if self.query is not None:
            scores = self.query(x)[..., 0]
            scores = scores if padding is None else scores.masked_fill(padding, float("-inf"))
            return (scores.softmax(-1)[..., None] * x).sum(1)
        count = x.shape[1] if padding is None else (~padding).sum(1, keepdim=True)
        return zero_padding(x, padding).sum(1) / count if self.pooling == "mean" else x[:, 0]


def linear_softmax(logits: Tensor, padding: Tensor | None) -> Tensor:
    """Logits (B, T, V) to (B, V): of the probability Σp² / Σp over positions, in which confident ones weigh more."""
    p = F.logsigmoid(logits.float())
    p = p if padding is None else p.masked_fill(padding[..., None], float("-inf"))
    pooled = (2 * p).logsumexp(1) - p.logsumexp(1)
    return pooled - torch.log1p(-pooled.exp().clamp(max=1 - 1e-6))


class PositionClassifier(BlockMixingHead):
    """Classification head of each position: (B, T, D) to logits (B, T, V)."""

    def __init__(self, config: Data2Vec2Config):
        super().__init__(config)
        self.out = nn.Linear(config.hidden_size, config.num_labels or 2)

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        return self.out(x)


class _ModelWithHead(Data2Vec2PreTrainedModel):
    Head: ClassVar[type[BlockMixingHead]] = Classifier
    Output: ClassVar[Any] = SequenceClassifierOutput
    encoder: Any

    def __init__(self, config: Data2Vec2Config):
        super().__init__(config)
        self.encoder = Data2Vec2Model(config)
        self.head = self.Head(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: object,
    ) -> Any:
        """As `Data2Vec2Model`, plus `logits`, and `loss` if `labels` are passed."""
        inputs = _select_input((input_values, pixel_values, input_ids), kwargs)
        with_states = _flag(self.config, "output_hidden_states", output_hidden_states)
        outputs = {"output_hidden_states": with_states or self.head.mix is not None, "output_attentions": output_attentions}
        out = self.encoder(inputs, attention_mask, **outputs, return_dict=True)
        padding = self.encoder.local_encoder.position_padding(inputs, attention_mask)
        if getattr(self.config, "classifier_pooling", None) == "class-token":
            logits = self.head(out.pooler_output[:, None], None)
        else:
            x = out.last_hidden_state if self.head.mix is None else self.head.combine(out.hidden_states[1:])
            logits = self.head(x, padding)
        loss = None if labels is None else self.loss(logits.float(), labels, padding)
        states = out.hidden_states if with_states else None
        return self.Output(loss=loss, logits=logits, hidden_states=states, attentions=out.attentions)

    def loss(self, logits: Tensor, labels: Tensor, padding: Tensor | None) -> Tensor:
        """Loss by `config.problem_type`: single-label `labels` are indices (B,), multi-label 0 or 1 (B, V), regression floats.

        If it is None, it is set as in transformers: one label is regression, else the dtype of `labels` decides."""
        if self.config.problem_type is None and logits.shape[1] == 1:
            self.config.problem_type = "regression"
        elif self.config.problem_type is None:
            single = not labels.is_floating_point()
            self.config.problem_type = "single_label_classification" if single else "multi_label_classification"
        if self.config.problem_type == "regression":
            return F.mse_loss(logits, labels.view_as(logits).float())
        if self.config.problem_type == "single_label_classification":
            return F.cross_entropy(logits, labels.flatten())
        return F.binary_cross_entropy_with_logits(logits, labels.float())


class Data2Vec2ForCTC(_ModelWithHead):
    """Speech recognition: a label or blank at every position."""

    Head: ClassVar[type[BlockMixingHead]] = CTC
    Output: ClassVar[Any] = CausalLMOutput

    def loss(self, logits: Tensor, labels: Tensor, padding: Tensor | None) -> Tensor:
        """CTC loss per label, averaged over the rows of `labels` (B, U); rows are padded with -100 or blanks."""
        blank = self.config.pad_token_id
        valid = (labels >= 0) & (labels != blank)
        frames = torch.full((len(logits),), logits.shape[1]) if padding is None else (~padding).sum(1)
        log_probs = logits.log_softmax(-1).transpose(0, 1)
        return F.ctc_loss(log_probs, labels[valid], frames, valid.sum(1), blank=blank, zero_infinity=True)


class Data2Vec2ForSequenceClassification(_ModelWithHead):
    """Text classification."""


class Data2Vec2ForAudioClassification(_ModelWithHead):
    """Audio classification."""


class Data2Vec2ForImageClassification(_ModelWithHead):
    """Image classification."""

    Output: ClassVar[Any] = ImageClassifierOutput


class _ModelWithPositionHead(_ModelWithHead):
    Head: ClassVar[type[BlockMixingHead]] = PositionClassifier
    Output: ClassVar[Any] = TokenClassifierOutput

    def loss(self, logits: Tensor, labels: Tensor, padding: Tensor | None) -> Tensor:
        """As for one vector per input, over the positions that are not padding and whose label is not -100.

        `labels` are indices (B, T); or (B, T, V), 0 or 1 for several labels at a time, or floats for a regression."""
        if labels.shape not in (logits.shape[:2], logits.shape):
            allowed = f"{tuple(logits.shape[:2])} or {tuple(logits.shape)}"
            raise ValueError(f"labels have shape {tuple(labels.shape)}, but the logits need {allowed}")
        valid = torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device) if padding is None else ~padding
        valid = valid & (labels != -100 if labels.ndim == 2 else (labels != -100).all(-1))
        return super().loss(logits[valid], labels[valid], None)


class Data2Vec2ForTokenClassification(_ModelWithPositionHead):
    """A label for each token."""


class Data2Vec2ForAudioFrameClassification(_ModelWithPositionHead):
    """Labels for each frame of a recording, such as its speakers (`problem_type="multi_label_classification"`)."""


class Data2Vec2ForMaskedLM(Data2Vec2PreTrainedModel):
    """Refused: data2vec predicts vectors of its teacher, not tokens, so its weights have no language model head."""

    def __init__(self, config: Data2Vec2Config):
        raise ValueError(
            "data2vec2 has no masked language model: pre-training predicts vectors, not tokens, so there are no "
            "weights for such a head; use AutoModel, AutoModelForTokenClassification or AutoModelForSequenceClassification"
        )
