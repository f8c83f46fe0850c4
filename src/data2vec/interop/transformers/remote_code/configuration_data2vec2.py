"""The settings of data2vec 2.0 for Hugging Face transformers; the model itself is in modeling_data2vec2.py beside this file."""

import math
from typing import ClassVar, Literal

from transformers import PretrainedConfig

Numbers = list[int] | tuple[int, ...]


class Data2Vec2Config(PretrainedConfig):
    """What a model is made of; the defaults are those of the Base model for speech."""

    model_type: ClassVar[str] = "data2vec2"

    modality: Literal["speech", "vision", "text"] = "speech"
    """What goes in: `input_values` at 16 kHz, `pixel_values` already normalised, or `input_ids`."""
    hidden_size: int = 768
    """D."""
    num_hidden_layers: int = 12
    """Blocks."""
    num_attention_heads: int = 12
    """H."""
    intermediate_size: int = 3072
    """Inner width of the feed-forward part."""
    hidden_act: Literal["gelu", "relu"] = "gelu"
    """Its activation."""
    norm: Literal["post", "pre"] = "post"
    """Where a block normalises: after each residual addition, or before each part."""
    layer_norm_eps: float = 1e-5
    """Epsilon of the layer norms of the Transformer."""
    input_norm: bool = True
    """A layer norm before the first block."""
    final_norm: bool = False
    """A layer norm after the last block."""
    extra_tokens: int = 0
    """E: learned vectors put before the sequence; the model does not return what becomes of them."""
    key_bias: bool = True
    """Whether keys are projected with a bias."""
    layer_scale: float | None = None
    """Initial value of a learned scale on each residual branch, where there is one."""
    hidden_dropout: float = 0.1
    """On the input, the attention output and the feed-forward output."""
    attention_dropout: float = 0.1
    """On the attention weights."""
    activation_dropout: float = 0.0
    """After the activation of the feed-forward part."""
    drop_path: float = 0.0
    """Chance to skip a residual branch for a sample, growing linearly with depth up to this value."""
    layerdrop: float = 0.0
    """Chance to skip a whole block in a step."""
    initializer_range: float = 0.02
    """Spread of fresh weights."""
    mask_vector: bool = False
    """Whether the weights hold a vector for hidden positions; only pre-training uses it."""

    conv_dim: Numbers = (512,) * 7
    """Speech: channels of each convolution of the front-end."""
    conv_kernel: Numbers = (10, 3, 3, 3, 3, 2, 2)
    """Speech: their kernels."""
    conv_stride: Numbers = (5, 2, 2, 2, 2, 2, 2)
    """Speech: their strides."""
    conv_norm: Literal["layer", "group"] = "layer"
    """Speech: a norm after every convolution over the channels; or after the first over time."""
    conv_bias: bool = False
    """Speech: whether they have a bias."""
    position_depth: int = 5
    """Speech: layers of the convolutional position encoder."""
    position_kernel: int = 19
    """Speech: their kernel."""
    position_groups: int = 16
    """Speech: their groups."""
    alibi: bool = False
    """Speech: a penalty on attention that grows with distance, with a learned scale a head."""

    image_size: int = 224
    """Vision: side of the square input in pixels."""
    patch_size: int = 16
    """Vision: side of a square patch."""
    positions: Literal["relative", "sincos"] = "sincos"
    """Vision: a learned bias on attention, or fixed sines and cosines."""
    position_tables: int = 1
    """Vision: tables of that bias; one for all blocks, or one for each."""

    vocab_size: int = 32
    """Text: token ids. Speech: labels of CTC."""
    pad_token_id: int = 0
    """Text: the padding. Speech: the blank of CTC."""
    max_position_embeddings: int = 514
    """Text: the longest sequence plus 2, as in RoBERTa."""
    embedding_norm: bool = True
    """Text: a layer norm on tokens plus positions."""
    scale_embedding: bool = False
    """Text: multiply the token vectors by sqrt(D)."""

    classifier_pool: Literal["mean", "first"] = "mean"
    """Classifiers: the mean over positions, or the first one's vector."""
    classifier_norm_eps: float | None = None
    """Classifiers: epsilon of a layer norm on that vector, where there is one."""
    classifier_inner: Literal["linear", "tanh"] | None = None
    """Classifiers: a matrix before the one to the labels, plain or followed by tanh."""
    classifier_inner_width: int | None = None
    """Classifiers: its output width, where it is not D."""

    @property
    def inputs_to_logits_ratio(self) -> int:
        """Speech: samples from one position to the next."""
        return math.prod(self.conv_stride)
