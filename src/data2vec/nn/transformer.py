"""The Transformer of all models: self-attention, and post-norm or pre-norm blocks, with an optional attention bias from the
position encoder."""

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from itertools import repeat
from typing import Annotated, Literal, NamedTuple, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from data2vec.nn import cpu_kernels
from data2vec.nn.cpu_kernels import Dropout, use_cpu_kernels
from data2vec.nn.layer_norm import LayerNorm, autocast_is_on, without_autocast
from data2vec.settings import Settings

Probability = Annotated[float, Field(ge=0, lt=1)]
Width = Annotated[int, Field(gt=0, le=2**18)]
Count = Annotated[int, Field(gt=0, le=2**10)]
"""Bounds on sizes, so that a few digits in a file of settings cannot ask for any amount of memory."""

Bias = Tensor | list[Tensor] | None
"""What is added to the attention logits: one tensor for all blocks, a list with one per block, or nothing."""

BlockState = Literal["attention", "ffn", "residual", "block"]
"""A state inside a block: the output of its self-attention, or of its feed-forward part, before the residual addition; the sum
of the feed-forward output and its residual, before the last norm of a post-norm block; or the output of the block."""


class BlockOutput(NamedTuple):
    """The outputs of one block for a sequence, without the extra tokens."""

    layer: int
    """Index of the block, from 0. Layerdrop leaves gaps."""
    state: Tensor
    """(B, T, D): the state that was asked for, by default the feed-forward output."""
    block: Tensor
    """(B, T, D): the output of the block."""


class TransformerSettings(Settings):
    """The `encoder:` section. Defaults: the Base model of the paper (section 4), as used for speech and text."""

    width: Width = 768
    """D (fairseq: encoder_embed_dim)."""
    layers: Count = 12
    """Number of blocks."""
    heads: Count = 12
    """Attention heads; must divide the width."""
    ffn_width: Width = 3072
    """Inner width of the feed-forward part."""
    norm: Literal["post", "pre"] = "post"
    """Layer norms after each residual addition, or before attention and feed-forward (fairseq: layer_norm_first)."""
    norm_eps: Annotated[float, Field(gt=0)] = 1e-5
    """Epsilon of the layer norms."""
    input_norm: bool = True
    """A layer norm before the first block."""
    final_norm: bool = False
    """A layer norm after the last block."""
    extra_tokens: Annotated[int, Field(ge=0, le=2**10)] = 0
    """Number of learned vectors put before the sequence, such as CLS; never part of targets or features."""
    extra_token_std: Annotated[float, Field(ge=0)] = 0.02
    """Standard deviation of their initial values."""
    prenet_layers: Annotated[int, Field(ge=0)] = 0
    """Number of first blocks that are left out of the targets (data2vec 2.0; fairseq: prenet_depth)."""
    activation: Literal["gelu", "relu"] = "gelu"
    """Activation of the feed-forward part; GELU in its exact form."""
    key_bias: bool = True
    """Whether keys are projected with a bias; not in BEiT."""
    layer_scale: Annotated[float, Field(gt=0)] | None = None
    """Initial value of the learned scale on each residual branch."""
    dropout: Probability = 0.1
    """Dropout on the input, the attention output and the feed-forward output."""
    attention_dropout: Probability = 0.1
    """Dropout on the attention weights."""
    activation_dropout: Probability = 0.0
    """Dropout after the activation of the feed-forward part."""
    drop_path: Probability = 0.0
    """Probability of dropping a residual branch for a sample; increases linearly with depth up to this value."""
    layerdrop: Probability = 0.0
    """Probability of skipping a block in a step."""
    init: Literal["bert", "beit"] = "bert"
    """Initial weights: N(0, 0.02); or the same truncated at one standard deviation and scaled down with depth."""

    @model_validator(mode="after")
    def _heads_divide(self) -> "TransformerSettings":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self


class Attention(nn.Module):
    """Self-attention: q, k and v in one matrix, (3D, D) in this order, each split into heads."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0, key_bias: bool = True):
        super().__init__()
        self.heads = heads
        self.dropout = Dropout(dropout)
        self.qkv = nn.Linear(width, 3 * width, bias=key_bias)
        self.q_bias = self.v_bias = None
        if not key_bias:
            self.q_bias = nn.Parameter(torch.zeros(width))
            self.v_bias = nn.Parameter(torch.zeros(width))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """`x` (B, T, D) to (B, T, D). `mask` broadcasts to (B, H, T, T): bool, True = attend; or float, added to the logits."""
        B, T, D = x.shape
        qkv, mask = self._project(x, mask)
        p = self.dropout.p if self.training else 0.0
        if cpu_kernels.prefers_cpu_attention(qkv, mask, p):
            y = cpu_kernels.attention(qkv, mask, p)
        else:
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            # The fused kernels have no rules for torch.func's jvp and vmap.
            with sdpa_kernel(SDPBackend.MATH) if cpu_kernels.is_transformed() else nullcontext():
                y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p).transpose(1, 2).reshape(B, T, D)
        output: Tensor = self.out(y)
        return output

    def weights(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The attention weights (B, H, T, T) of the same input, without dropout."""
        return cpu_kernels.attention_weights(*self._project(x, mask))

    def _project(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Queries, keys and values (B, T, 3, H, D/H) of `x`, and the mask in their precision."""
        B, T, D = x.shape
        bias: Tensor | None = self.qkv.bias
        if self.q_bias is not None and self.v_bias is not None:
            bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias).view(B, T, 3, self.heads, D // self.heads)
        return qkv, mask.to(qkv.dtype) if mask is not None and mask.is_floating_point() else mask


def compute_dtype(x: Tensor) -> torch.dtype:
    """The precision of matrix products of `x`: autocast's where that is on."""
    return torch.get_autocast_dtype(x.device.type) if autocast_is_on(x) and x.dtype != torch.float64 else x.dtype


def attention_mask(bias: Tensor | None, padding: Tensor | None, extra: int, dtype: torch.dtype | None = None) -> Tensor | None:
    """Combine a bias (H, E+T, E+T) or (B, H, E+T, E+T) with padding (B, T) into the mask of `Attention`.

    `extra`: E, the number of extra tokens, which are never padding. `dtype`: that of queries and keys, to which a bias is cast
    here, once for all blocks. Off the CPU its rows begin at multiples of 8 elements, as fused kernels need; otherwise each
    block would copy it."""
    absent = None if padding is None else F.pad(padding, (extra, 0))[:, None, None, :]  # (B, 1, 1, E+T)
    if bias is None:
        return None if absent is None else ~absent
    bias = bias.unsqueeze(0) if bias.ndim == 3 else bias  # fused kernels support 2 and 4 axes only
    bias = bias if dtype is None else bias.to(dtype)
    bias = bias if absent is None else bias.masked_fill(absent, float("-inf"))
    over = -bias.shape[-1] % 8 if bias.device.type != "cpu" else 0
    return F.pad(bias, (0, over))[..., : bias.shape[-1]] if over else bias


class DropPath(nn.Module):
    """Zero a residual branch with probability `p` for each sample, and scale it by 1 / (1 - p) for the others."""

    keep_prob: Tensor

    def __init__(self, p: float):
        super().__init__()
        self.enabled = p > 0
        # A buffer: a Python number would be compiled into the code, and every block compiled separately.
        self.register_buffer("keep_prob", torch.tensor(1 - p), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        factor = self.draw_factor(x)
        return x if factor is None else x * factor

    def draw_factor(self, x: Tensor) -> Tensor | None:
        """The factor for each sample of `x`, (B, 1, …): 0 or 1 / (1 - p). None stands for 1 everywhere."""
        if not self.training or not self.enabled:
            return None
        keep = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) < self.keep_prob
        return (keep / self.keep_prob).to(x.dtype)


class Block(nn.Module):
    """Attention and a feed-forward part, each with a residual connection."""

    def __init__(self, settings: TransformerSettings, index: int):
        super().__init__()
        s = settings
        self.pre_norm = s.norm == "pre"
        self.attention = Attention(s.width, s.heads, s.attention_dropout, s.key_bias)
        self.norm1 = LayerNorm(s.width, s.norm_eps)
        self.ffn = nn.Sequential(
            nn.Linear(s.width, s.ffn_width),
            nn.GELU() if s.activation == "gelu" else nn.ReLU(),
            Dropout(s.activation_dropout),
            nn.Linear(s.ffn_width, s.width),
        )
        self.norm2 = LayerNorm(s.width, s.norm_eps)
        self.dropout = Dropout(s.dropout)
        self.drop_path = DropPath(s.drop_path * index / max(s.layers - 1, 1))
        self.scale1 = self.scale2 = None
        if s.layer_scale is not None:
            self.scale1 = nn.Parameter(torch.full((s.width,), s.layer_scale))
            self.scale2 = nn.Parameter(torch.full((s.width,), s.layer_scale))

    def forward(self, x: Tensor, mask: Tensor | None = None, source: BlockState = "ffn") -> tuple[Tensor, Tensor]:
        """`x` (B, E+T, D) to the block's output and to its state `source`, both (B, E+T, D)."""
        attended = self.attention(self.norm1(x) if self.pre_norm else x, mask)
        x = self._add_residual(x, attended, self.scale1)
        if not self.pre_norm:
            x = self.norm1(x)
        fed = self._feed_forward(self.norm2(x) if self.pre_norm else x)
        x = self._add_residual(x, fed, self.scale2)
        block = x if self.pre_norm else self.norm2(x)
        if source in ("residual", "block"):
            return block, x if source == "residual" else block
        branch, scale = (attended, self.scale1) if source == "attention" else (fed, self.scale2)
        return block, branch if scale is None else scale * branch

    def _add_residual(self, x: Tensor, branch: Tensor, scale: Tensor | None) -> Tensor:
        """The sum of input and branch (B, E+T, D), after layer scale, dropout and drop path."""
        factor = self.drop_path.draw_factor(x)
        if scale is None or (self.training and self.dropout.p):
            dropped: Tensor = self.dropout(branch if scale is None else scale * branch)
            return x + (dropped if factor is None else dropped * factor)
        with without_autocast(x):  # which would cast the branch before, in a kernel of its own
            total: Tensor = torch.addcmul(x, branch, scale if factor is None else scale * factor)
        return total

    def _feed_forward(self, x: Tensor) -> Tensor:
        """Apply `self.ffn` to `x` (B, T, D)."""
        inner, activation, dropout, outer = cast(tuple[nn.Linear, nn.Module, Dropout, nn.Linear], self.ffn)
        drops = self.training and dropout.p > 0
        if use_cpu_kernels(x) and torch.is_grad_enabled() and isinstance(activation, nn.GELU) and not drops:
            return cpu_kernels.feed_forward(x, inner.weight, inner.bias, outer.weight, outer.bias)
        y: Tensor = self.ffn(x)
        return y


class Transformer(nn.Module):
    """Extra tokens, blocks and norms: a sequence of vectors to a sequence of contextual vectors."""

    def __init__(self, settings: TransformerSettings):
        super().__init__()
        s = settings
        self.settings = s
        self.extra_tokens = nn.Parameter(torch.empty(s.extra_tokens, s.width)) if s.extra_tokens else None
        self.input_norm = LayerNorm(s.width, s.norm_eps) if s.input_norm else nn.Identity()
        self.input_dropout = Dropout(s.dropout)
        self.blocks = nn.ModuleList(Block(s, i) for i in range(s.layers))
        self.final_norm = LayerNorm(s.width, s.norm_eps) if s.final_norm else nn.Identity()
        self.layerdrop_generator = torch.Generator()
        """Decides which blocks layerdrop skips. Separate from the global generator, since all data-parallel processes must
        skip the same blocks."""
        self.kept_blocks: Tensor | None = None
        """(layers,) bool, on the device: the blocks that the next forward pass keeps, drawn by `draw_kept_blocks`. All blocks
        are then computed, in a graph that is always the same, and layerdrop selects their input or output. None: blocks are
        drawn in the forward pass, and skipped."""
        init_weights(self, s.init)
        if self.extra_tokens is not None:
            self.extra_tokens.data.mul_(s.extra_token_std / 0.02)

    def forward(self, x: Tensor, padding: Tensor | None = None, bias: Bias = None) -> Tensor:
        """Contextual vectors (B, E+T, D) of `x` (B, T, D), the extra tokens first.

        `padding` (B, T): True at padded positions. `bias`: added to the attention logits; (H, E+T, E+T), or one per row, or
        a list with one per block."""
        x = self.embed(x)
        for _, _, output in self._run_blocks(self.blocks, x, padding, bias):
            x = output
        y: Tensor = self.final_norm(x)
        return y

    def block_outputs(
        self,
        x: Tensor,
        padding: Tensor | None = None,
        bias: Bias = None,
        prenet: "Transformer | None" = None,
        source: BlockState = "ffn",
    ) -> Iterator[BlockOutput]:
        """The output of each block for `x` (B, T, D), as a generator, so that only one has to be in memory.

        A block runs when its output is requested: leaving the loop early skips the other blocks. The final norm is not
        applied. `prenet`: another Transformer whose extra tokens, input norm and prenet blocks replace those of this one.
        `source`: the state that comes with each output; the others are not kept."""
        extra, first = self.settings.extra_tokens, self.settings.prenet_layers
        blocks = self.blocks if prenet is None else [*prenet.blocks[:first], *self.blocks[first:]]
        for index, state, block in self._run_blocks(blocks, (prenet or self).embed(x), padding, bias, source):
            yield BlockOutput(index, state[:, extra:], block[:, extra:])

    def states(self, x: Tensor, padding: Tensor | None = None, bias: Bias = None) -> Iterator[Tensor]:
        """The input of the first block and the output of every block for `x` (B, T, D), one at a time: blocks + 1 tensors
        (B, T, D), without extra tokens and final norm. A block that layerdrop skips leaves its input as it is."""
        extra, state, count = self.settings.extra_tokens, self.embed(x), 1
        yield state[:, extra:]
        for index, _, output in self._run_blocks(self.blocks, state, padding, bias):
            yield from repeat(state[:, extra:], index + 1 - count)
            state, count = output, index + 2
            yield state[:, extra:]
        yield from repeat(state[:, extra:], len(self.blocks) + 1 - count)

    def embed(self, x: Tensor) -> Tensor:
        """The input of the first block (B, E+T, D): extra tokens in front of `x` (B, T, D), input norm and dropout.

        Without norms between the blocks it is float32 under autocast, too: every block adds to it. Without autocast it has the
        precision of the weights."""
        if self.extra_tokens is not None:
            x = torch.cat([self.extra_tokens.to(x.dtype).expand(x.shape[0], -1, -1), x], dim=1)
        y: Tensor = self.input_dropout(self.input_norm(x))
        autocast = y.dtype in (torch.bfloat16, torch.float16) and autocast_is_on(y)
        return y.float() if autocast and self.settings.norm == "pre" else y

    def _run_blocks(
        self, blocks: Iterable[nn.Module], x: Tensor, padding: Tensor | None, bias: Bias, source: BlockState = "ffn"
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Index, state `source` and output of each block that layerdrop does not skip; both (B, E+T, D)."""
        extra, layerdrop = self.settings.extra_tokens, self.settings.layerdrop if self.training else 0.0
        dtype = compute_dtype(x)
        shared = None if isinstance(bias, list) else attention_mask(bias, padding, extra, dtype)
        kept = self._draw_kept() if layerdrop and self.kept_blocks is None else None
        for index, block in enumerate(blocks):
            if kept is not None and not kept[index]:
                continue
            mask = attention_mask(bias[index], padding, extra, dtype) if isinstance(bias, list) else shared
            output, state = block(x, mask, source)
            x = torch.where(self.kept_blocks[index], output, x) if layerdrop and self.kept_blocks is not None else output
            yield index, state, x

    def draw_kept_blocks(self) -> None:
        """Draw the blocks that the next forward pass keeps into `kept_blocks`, which must be on the device."""
        assert self.kept_blocks is not None
        kept = torch.tensor(self._draw_kept())
        self.kept_blocks.copy_(kept.pin_memory() if self.kept_blocks.is_cuda else kept, non_blocking=True)

    def _draw_kept(self) -> list[bool]:
        """Which blocks layerdrop keeps."""
        draws = torch.rand(len(self.blocks), generator=self.layerdrop_generator)
        kept: list[bool] = (draws >= self.settings.layerdrop).tolist()
        return kept


def init_weights(module: nn.Module, init: str) -> None:
    """Initialise every Linear and the extra tokens in `module`: weights as `init` says, biases with 0.

    bert: N(0, 0.02). beit: the same, truncated at ±0.02, with the last matrix of each residual branch divided by
    sqrt(2·depth)."""

    def fill(tensor: Tensor) -> None:
        if init == "bert":
            nn.init.normal_(tensor, std=0.02)
        else:
            nn.init.trunc_normal_(tensor, std=0.02, a=-0.02, b=0.02)

    for child in module.modules():
        if isinstance(child, nn.Linear):
            fill(child.weight)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
        if isinstance(child, Transformer) and child.extra_tokens is not None:
            fill(child.extra_tokens)
    if init == "beit" and isinstance(module, Transformer):
        for depth, block in enumerate(cast(Iterable[Block], module.blocks), start=1):
            for last in (block.attention.out, cast(nn.Linear, block.ffn[-1])):
                last.weight.data.div_((2 * depth) ** 0.5)
