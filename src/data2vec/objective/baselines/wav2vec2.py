"""wav2vec 2.0: tell the quantised local features of a masked position from those of other masked positions
(Baevski et al., 2020, arXiv 2006.11477).

B batch, T positions, D width, C channels of the local features, N masked positions of the whole batch, K distractors, G groups
of V codebook entries.
"""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from data2vec.batch import MaskedBatch
from data2vec.errors import UserError
from data2vec.modalities.base import Modality
from data2vec.nn.encoder import Encoder
from data2vec.objective.base import ObjectiveOutput
from data2vec.objective.baselines.codes import perplexity
from data2vec.objective.baselines.masked_prediction import MaskedPrediction, MaskedPredictionSettings
from data2vec.objective.diagnostics import LossTerm, representation_stats, sum_terms, term_stats
from data2vec.objective.masking import SpanMask

Count = Annotated[int, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]


class Wav2Vec2Settings(MaskedPredictionSettings):
    """The `objective:` section of wav2vec 2.0. Defaults: the Base model."""

    name: Literal["wav2vec2"] = "wav2vec2"
    """The objective: wav2vec 2.0."""
    view: Literal["mask_token"] = "mask_token"
    """All positions are encoded, with the mask vector at masked ones."""
    mask: SpanMask = SpanMask(min_spans=2)
    """What is masked: spans, the same number of positions in every row, among which distractors are drawn."""
    groups: Count = 2
    """G: codebooks, whose entries are concatenated (fairseq: latent_groups)."""
    entries: Count = 320
    """V: entries of a codebook (fairseq: latent_vars)."""
    quantized_width: Count = 256
    """Width of quantised and contextual vectors where they are compared (fairseq: final_dim)."""
    gumbel: Annotated[tuple[float, float, float], Field(strict=False)] = (2.0, 0.5, 0.999995)
    """Temperature of the Gumbel softmax at the start, its minimum, and its factor per step (fairseq: latent_temp)."""
    distractors: Count = 100
    """K: drawn from the other masked positions of the same row (fairseq: num_negatives)."""
    temperature: Annotated[float, Field(gt=0)] = 0.1
    """Divides the cosines (fairseq: logit_temp)."""
    diversity_weight: Weight = 0.1
    """Weight of the loss that keeps all entries in use."""
    penalty_weight: Weight = 10.0
    """Weight of the mean square of the convolutions' outputs."""


class Quantizer(nn.Module):
    """Features (N, C) to one entry of each of G codebooks, concatenated, (N, quantized width)."""

    temperature: Tensor

    def __init__(self, settings: Wav2Vec2Settings, channels: int):
        super().__init__()
        s = settings
        if s.quantized_width % s.groups:
            raise UserError(f"objective.quantized_width: {s.quantized_width} is not a multiple of objective.groups: {s.groups}")
        self.settings = s
        self.logits = nn.Linear(channels, s.groups * s.entries)
        nn.init.normal_(self.logits.weight)
        nn.init.zeros_(self.logits.bias)
        self.codebooks = nn.Parameter(torch.empty(s.groups, s.entries, s.quantized_width // s.groups).uniform_())
        self.register_buffer("temperature", torch.tensor(s.gumbel[0]), persistent=False)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantised vectors (N, quantized width), mean probabilities without noise (G, V), and how often each entry is the
        most likely one (G, V)."""
        logits = self.logits(z).float().view(len(z), self.settings.groups, -1)  # (N, G, V)
        best = F.one_hot(logits.argmax(-1), self.settings.entries).float()
        if self.training:
            noise = -torch.empty_like(logits).exponential_().log()
            soft = ((logits + noise) / self.temperature).softmax(-1)
            hard = F.one_hot(soft.argmax(-1), self.settings.entries).float()
            selected = hard + soft - soft.detach()  # straight-through: the value of `hard`, the gradient of `soft`
        else:
            selected = best
        quantized = torch.einsum("ngv,gvd->ngd", selected, self.codebooks.float()).flatten(1)
        return quantized, logits.softmax(-1).mean(0), best.mean(0)


class Wav2Vec2(MaskedPrediction):
    """Student, quantiser, projections and loss."""

    settings: Wav2Vec2Settings

    def __init__(self, encoder: Encoder, settings: Wav2Vec2Settings, modality: Modality, steps: int):
        super().__init__(encoder, settings, modality, steps)
        if not hasattr(encoder.local_encoder, "extract"):
            raise UserError("objective.name: wav2vec2 needs convolutional features; use codes or input_regression")
        if not settings.mask.equal:
            raise UserError("objective.mask.equal: false, but wav2vec2 needs rows of equal masked size; set it to true")
        if settings.mask.min_spans < 2:
            raise UserError(
                "objective.mask.min_spans: 1 may mask a single position of a row, which then has no distractors; set it to 2"
            )
        local_encoder: Any = encoder.local_encoder
        self.quantizer = Quantizer(settings, local_encoder.norm.normalized_shape[0])
        self.project_quantized = nn.Linear(settings.quantized_width, settings.quantized_width)
        self.project_context = nn.Linear(self.width, settings.quantized_width)

    def before_step(self, step: int) -> None:
        """The temperature of the Gumbel softmax at this step."""
        start, minimum, factor = self.settings.gumbel
        self.quantizer.temperature.fill_(max(start * factor ** (step - 1), minimum))

    def forward(self, batch: MaskedBatch, measure: bool = False) -> ObjectiveOutput:
        """The loss of one batch; `measure` also computes statistics."""
        local_encoder: Any = self.student.local_encoder
        convolved, padding = local_encoder.extract(batch)  # (B, T, C), (B, T)
        z = local_encoder.norm(convolved)
        features = local_encoder.project(z)  # (B, T, D)
        context, predicted = self.encode_masked(batch, features, padding)  # (B, T, D), (N, D)

        masked_z = z.flatten(0, 1).index_select(0, batch.predicted_indices)  # (N, C)
        quantized, probabilities, used = self.quantizer(masked_z)
        target = self.project_quantized(quantized).float()  # (N, Q)
        prediction = self.project_context(predicted).float()  # (N, Q)
        logits = contrast(
            prediction, target, draw_distractors(len(batch), len(target), self.settings.distractors, target.device)
        )
        logits = logits / self.settings.temperature  # (N, 1 + K), the true one first
        errors = torch.logsumexp(logits, -1) - logits[:, 0]  # (N,)

        s, N = self.settings, len(errors)
        entries = s.groups * s.entries
        prob_perplexity = torch.stack([perplexity(p) for p in probabilities]).sum()
        diversity = (entries - prob_perplexity) / entries
        penalty = convolved.float().square().mean()
        terms = {
            "contrastive": LossTerm(errors.mean(), errors.sum()),
            "diversity": LossTerm(diversity, N * s.diversity_weight * diversity),
            "penalty": LossTerm(penalty, N * s.penalty_weight * penalty),
        }

        stats = {}
        if measure:
            stats = representation_stats(batch, features, context) | term_stats(terms)
            stats |= {
                "accuracy": (logits.argmax(-1) == 0).float().mean(),
                "code_perplexity": torch.stack([perplexity(p) for p in used]).sum(),
                "prob_perplexity": prob_perplexity.detach(),
                "gumbel_temperature": self.quantizer.temperature.clone(),
            }
        return ObjectiveOutput(sum_terms(terms), errors.detach(), stats)


def draw_distractors(rows: int, count: int, distractors: int, device: torch.device) -> Tensor:
    """(N, K): for each of `count` = N masked positions, as many in each of `rows`, K others of its row, with replacement.

    A row has two or more."""
    per_row = count // rows
    own = torch.arange(count, device=device)
    drawn = torch.randint(per_row - 1, (count, distractors), device=device)
    drawn = drawn + (drawn >= (own % per_row)[:, None])  # never itself
    return (own // per_row * per_row)[:, None] + drawn


def contrast(prediction: Tensor, target: Tensor, distractors: Tensor) -> Tensor:
    """(N, 1 + K): cosines of `prediction` (N, Q) with its own `target` (N, Q) and with those at `distractors` (N, K); minus
    infinity for a distractor that equals the own target."""
    others = target[distractors]  # (N, K, Q)
    same = (others == target[:, None]).all(-1)
    own = F.cosine_similarity(prediction, target, dim=-1)[:, None]
    negative = F.cosine_similarity(prediction[:, None], others, dim=-1).masked_fill(same, float("-inf"))
    return torch.cat([own, negative], dim=-1)
