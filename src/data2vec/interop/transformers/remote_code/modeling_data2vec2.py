"""data2vec 2.0 for Hugging Face transformers: speech, images or text to contextual vectors, with or without a head on them.

This file lies in a model's folder and is read from there by `AutoModel.from_pretrained(folder, trust_remote_code=True)`. It
needs torch and transformers alone. Parameters are named as in the package data2vec, which writes such folders and reads them
again.

Shapes: B batch, T positions, D width, H heads, E extra tokens, V labels. `absent` (B, T) is True at padding, which is kept
from reaching anything: an input's vectors do not depend on what it is batched with.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput, ImageClassifierOutput, SequenceClassifierOutput
from transformers.utils import can_return_tuple

from .configuration_data2vec2 import Data2Vec2Config
from .embeddings_data2vec2 import (
    ConvPositionEncoder,
    LearnedPositionEncoder,
    PatchEmbedding,
    RelativePositionEncoder,
    SinCosPositionEncoder,
    TokenEmbedding,
    WaveformEncoder,
    without,
)

INPUTS = {"speech": "input_values", "vision": "pixel_values", "text": "input_ids"}


class Attention(nn.Module):
    """Self-attention: q, k and v in one matrix, (3D, D) in this order, each split into heads."""

    def __init__(self, config: Data2Vec2Config):
        super().__init__()
        D = config.hidden_size
        self.heads, self.dropout = config.num_attention_heads, config.attention_dropout
        self.qkv = nn.Linear(D, 3 * D, bias=config.key_bias)
        self.q_bias = None if config.key_bias else nn.Parameter(torch.zeros(D))
        self.v_bias = None if config.key_bias else nn.Parameter(torch.zeros(D))
        self.out = nn.Linear(D, D)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """`mask` broadcasts to (B, H, E+T, E+T): bool, True = attend; or added to the logits."""
        qkv = self.qkv(x)
        if self.q_bias is not None and self.v_bias is not None:
            qkv = qkv + torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mask = mask.to(q.dtype) if mask is not None and mask.is_floating_point() else mask
        y = F.scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0)
        return self.out(y.transpose(1, 2).flatten(2))


class Block(GradientCheckpointingLayer):
    """Attention and a feed-forward part, each with a residual connection."""

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

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self._branch(self.attention(self.norm1(x) if self.pre_norm else x, mask), self.scale1)
        x = x if self.pre_norm else self.norm1(x)
        x = x + self._branch(self.ffn(self.norm2(x) if self.pre_norm else x), self.scale2)
        return x if self.pre_norm else self.norm2(x)

    def _branch(self, x: Tensor, scale: Tensor | None) -> Tensor:
        x = self.dropout(x if scale is None else scale * x)
        if not self.training or not self.drop_path:
            return x
        keep = torch.rand(len(x), 1, 1, device=x.device) >= self.drop_path
        return x * (keep / (1 - self.drop_path)).to(x.dtype)


class Transformer(nn.Module):
    """Extra tokens, blocks, norms."""

    def __init__(self, config: Data2Vec2Config):
        super().__init__()
        c, D = config, config.hidden_size
        self.layerdrop = c.layerdrop
        self.extra_tokens = nn.Parameter(torch.empty(c.extra_tokens, D)) if c.extra_tokens else None
        self.input_norm = nn.LayerNorm(D, c.layer_norm_eps) if c.input_norm else nn.Identity()
        self.input_dropout = nn.Dropout(c.hidden_dropout)
        self.blocks = nn.ModuleList(Block(c, i) for i in range(c.num_hidden_layers))
        self.final_norm = nn.LayerNorm(D, c.layer_norm_eps) if c.final_norm else nn.Identity()

    def forward(self, x: Tensor, absent: Tensor | None, bias: Any, keep: bool) -> tuple[Tensor, list[Tensor]]:
        """Contextual vectors (B, T, D); and if they are to be kept, what goes into the first block and comes out of each.

        `bias`: (H, E+T, E+T), added to the attention logits; or a list, of one or one for each block; or None."""
        extra = 0 if self.extra_tokens is None else len(self.extra_tokens)
        if self.extra_tokens is not None:
            x = torch.cat([self.extra_tokens.to(x.dtype).expand(len(x), -1, -1), x], dim=1)
        x = self.input_dropout(self.input_norm(x))
        masks = [_mask(each, absent, extra) for each in (bias if isinstance(bias, list) else [bias])]
        states = [x]
        for i, block in enumerate(self.blocks):
            if not self.training or not self.layerdrop or torch.rand(()) >= self.layerdrop:
                x = block(x, masks[i % len(masks)])
            states += [x] if keep else []
        return self.final_norm(x)[:, extra:], [state[:, extra:] for state in states]


def _mask(bias: Tensor | None, absent: Tensor | None, extra: int) -> Tensor | None:
    """What attention takes of a bias and the padding, of which extra tokens are no part."""
    if absent is None:
        return None if bias is None else bias[None]
    absent = F.pad(absent, (extra, 0))[:, None, None, :]
    return ~absent if bias is None else bias.masked_fill(absent, float("-inf"))


class Data2Vec2PreTrainedModel(PreTrainedModel):
    """What all models here share."""

    config: Data2Vec2Config
    config_class = Data2Vec2Config
    base_model_prefix = "encoder"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _no_split_modules = ["Block"]  # noqa: RUF012 (as transformers declares it)
    _supports_sdpa = True

    def __init__(self, config: Data2Vec2Config):
        super().__init__(config)
        self.main_input_name = INPUTS[config.modality]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # of linear layers, embeddings, convolutions and norms
        if isinstance(module, nn.Conv1d):
            nn.init.kaiming_normal_(module.weight)
        for name, parameter in module.named_parameters(recurse=False):
            if name in ("extra_tokens", "mask_vector"):
                nn.init.normal_(parameter, std=self.config.initializer_range)
            elif name in ("q_bias", "v_bias", "table"):
                nn.init.zeros_(parameter)
            elif name in ("scale", "scale1", "scale2"):
                nn.init.constant_(parameter, 1.0 if name == "scale" else self.config.layer_scale or 0.0)

    def get_input_embeddings(self) -> nn.Module:
        """The token vectors of a model of text."""
        base: Any = self.base_model
        return base.local_encoder.tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Put others in their place."""
        base: Any = self.base_model
        base.local_encoder.tokens = value

    def freeze_feature_encoder(self) -> None:
        """Keep the convolutions of the front-end of speech as they are."""
        base: Any = self.base_model
        base.local_encoder.conv.requires_grad_(False)


class Data2Vec2Model(Data2Vec2PreTrainedModel):
    """The encoder. Every position of `last_hidden_state` and `hidden_states` is a frame, a patch or a token: the extra tokens
    are not among them. `hidden_states`: what goes into the first block, and what comes out of each, before the final norm."""

    local_encoder: Any
    position_encoder: Any

    def __init__(self, config: Data2Vec2Config):
        super().__init__(config)
        features, positions = {
            "speech": (WaveformEncoder, ConvPositionEncoder),
            "vision": (PatchEmbedding, SinCosPositionEncoder if config.positions == "sincos" else RelativePositionEncoder),
            "text": (TokenEmbedding, LearnedPositionEncoder),
        }[config.modality]
        self.local_encoder, self.position_encoder = features(config), positions(config)
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
        **kwargs: Any,
    ) -> BaseModelOutput:
        """One of the inputs, given by name or first; `attention_mask` is 0 at padding, which stands at the end of a row."""
        inputs = _given((input_values, pixel_values, input_ids), kwargs)
        absent = self.local_encoder.absent(inputs, attention_mask)
        given = inputs.to(self.dtype) if inputs.is_floating_point() else inputs
        x = self.position_encoder(self.local_encoder(given, attention_mask), absent)
        keep = bool(self.config.output_hidden_states if output_hidden_states is None else output_hidden_states)
        last, states = self.transformer(x, absent, self.position_encoder.bias(x.shape[1]), keep)
        return BaseModelOutput(last_hidden_state=last, hidden_states=tuple(states) if keep else None)


def _given(inputs: tuple[Tensor | None, ...], kwargs: dict[str, Any]) -> Tensor:
    """The one input that is there. Raises ValueError when there is none or several, or anything that would have no effect."""
    there = [each for each in inputs if each is not None]
    if unknown := [name for name, value in kwargs.items() if value is not None and value is not False]:
        raise ValueError(f"{', '.join(unknown)}: data2vec2 has no such argument")
    if len(there) != 1:
        raise ValueError(f"give one of {', '.join(INPUTS.values())}")
    return there[0]


class CTC(nn.Module):
    """Contextual vectors (B, T, D) to logits (B, T, V), which say blank at padding."""

    def __init__(self, config: Data2Vec2Config):
        super().__init__()
        self.blank = config.pad_token_id
        self.out = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, x: Tensor, absent: Tensor | None) -> Tensor:
        logits = self.out(x)
        if absent is None:
            return logits
        blank = torch.arange(logits.shape[-1], device=x.device) == self.blank
        return torch.where(absent[..., None], torch.where(blank, 0.0, -1e4).to(logits.dtype), logits)


class Classifier(nn.Module):
    """Contextual vectors (B, T, D) to logits (B, V)."""

    def __init__(self, config: Data2Vec2Config):
        super().__init__()
        c, D = config, config.hidden_size
        self.pool, self.tanh = c.classifier_pool, c.classifier_inner == "tanh"
        inner = (c.classifier_inner_width or D) if c.classifier_inner else D
        self.norm = nn.LayerNorm(D, c.classifier_norm_eps) if c.classifier_norm_eps else nn.Identity()
        self.inner = nn.Linear(D, inner) if c.classifier_inner else nn.Identity()
        self.out = nn.Linear(inner, c.num_labels or 2)

    def forward(self, x: Tensor, absent: Tensor | None) -> Tensor:
        count = x.shape[1] if absent is None else (~absent).sum(1, keepdim=True)
        y = self.inner(self.norm(x[:, 0] if self.pool == "first" else without(x, absent).sum(1) / count))
        return self.out(y.tanh() if self.tanh else y)


class _WithHead(Data2Vec2PreTrainedModel):
    Head: ClassVar[Any] = Classifier
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
        **kwargs: Any,
    ) -> Any:
        """As `Data2Vec2Model`, with `logits`; and where there are `labels`, the `loss`."""
        inputs = _given((input_values, pixel_values, input_ids), kwargs)
        out = self.encoder(inputs, attention_mask, output_hidden_states=output_hidden_states)
        absent = self.encoder.local_encoder.absent(inputs, attention_mask)
        logits = self.head(out.last_hidden_state, absent)
        loss = None if labels is None else self.loss(logits.float(), labels, absent)
        return self.Output(loss=loss, logits=logits, hidden_states=out.hidden_states)

    def loss(self, logits: Tensor, labels: Tensor, absent: Tensor | None) -> Tensor:
        """By `config.problem_type`: `labels` (B,) are indices; (B, V) are 0 or 1; (B,) or (B, V) are numbers.

        Where that is None, it becomes a regression for one label, and for more what the type of the labels says."""
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


class Data2Vec2ForCTC(_WithHead):
    """Speech to a label or a blank at every position."""

    Head: ClassVar[Any] = CTC
    Output: ClassVar[Any] = CausalLMOutput

    def loss(self, logits: Tensor, labels: Tensor, absent: Tensor | None) -> Tensor:
        """The mean over the rows of `labels` (B, U) of that per label; a row ends in -100 or blanks."""
        blank = self.config.pad_token_id
        there = (labels >= 0) & (labels != blank)
        frames = torch.full((len(logits),), logits.shape[1]) if absent is None else (~absent).sum(1)
        log_probs = logits.log_softmax(-1).transpose(0, 1)
        return F.ctc_loss(log_probs, labels[there], frames, there.sum(1), blank=blank, zero_infinity=True)


class Data2Vec2ForSequenceClassification(_WithHead):
    """Text to one logit a label."""


class Data2Vec2ForAudioClassification(_WithHead):
    """Speech to one logit a label."""


class Data2Vec2ForImageClassification(_WithHead):
    """An image to one logit a label."""

    Output: ClassVar[Any] = ImageClassifierOutput
