"""The `train:` and `log:` sections of a recipe."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from data2vec.recipe.layer_decay import LayerDecay
from data2vec.settings import Settings

Fraction = Annotated[float, Field(ge=0, le=1)]


class TriStage(Settings):
    """Warm up, hold, decay exponentially (wav2vec 2.0, data2vec speech)."""

    name: Literal["tri_stage"] = "tri_stage"
    warmup: Fraction = 0.03
    """Share of all steps spent warming up, linearly from `initial_scale`·lr."""
    hold: Fraction = 0.9
    """Share of all steps at the full learning rate; the rest decays."""
    initial_scale: Annotated[float, Field(ge=0)] = 0.01
    """Where warm-up starts, as a share of lr."""
    final_scale: Annotated[float, Field(gt=0)] = 0.01
    """Where decay ends, as a share of lr."""

    @model_validator(mode="after")
    def _fits(self) -> "TriStage":
        if self.warmup + self.hold > 1:
            raise ValueError(f"warmup and hold together are {self.warmup + self.hold:g} of the steps, more than all of them")
        return self


class Cosine(Settings):
    """Warm up linearly from 0, then half a cosine down to `final_lr`."""

    name: Literal["cosine"] = "cosine"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps until the full learning rate is reached."""
    final_lr: Annotated[float, Field(ge=0)] = 0.0
    """The learning rate of the last step; for parameters whose own peak is lower than that, their peak."""


class Polynomial(Settings):
    """Warm up linearly from 0, then down to 0 at the last step (power 1: a straight line)."""

    name: Literal["polynomial"] = "polynomial"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps until the full learning rate is reached."""
    power: Annotated[float, Field(gt=0)] = 1.0
    """The exponent of the decay."""


Schedule = Annotated[TriStage | Cosine | Polynomial, Field(discriminator="name")]


class TrainSettings(Settings):
    """Steps are optimizer steps; the batch is in the `data` section."""

    steps: Annotated[int, Field(gt=0)] = 1000
    """Optimizer steps of the whole run."""
    seed: Annotated[int, Field(ge=0)] = 1
    """Fixes initial weights, order of the data, crops, masks and dropout."""
    lr: Annotated[float, Field(gt=0)] = 5e-4
    """Peak learning rate."""
    head_lr: Annotated[float, Field(gt=0)] | None = None
    """That of the head in fine-tuning, where it is another."""
    schedule: Schedule = TriStage()
    """How the learning rate moves, per optimizer step."""
    betas: Annotated[tuple[Fraction, Fraction], Field(strict=False)] = (0.9, 0.98)
    """Adam's decay rates."""
    eps: Annotated[float, Field(gt=0)] = 1e-6
    """Adam's epsilon."""
    layer_decay: LayerDecay | None = None
    """Smaller learning rates for lower blocks, in fine-tuning."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled weight decay."""
    decay: Literal["matrices", "all"] = "matrices"
    """What is decayed: weight matrices only, or every parameter, as the released speech and text code does."""
    clip_norm: Annotated[float, Field(ge=0)] = 0.0
    """Gradients are scaled down to this global norm (0: never)."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the matrix products; weights and teacher are float32 always. fp16, with a loss scale, is for GPUs without bf16."""
    device: str = "auto"
    """auto (a GPU when there is one), cpu, cuda, or cuda:N."""
    compile: bool = False
    """Compile each Transformer block."""
    recompute: bool = False
    """Keep only each block's input for backward, and compute the block again there (activation checkpointing)."""
    shard: bool = False
    """With several processes, divide weights, optimizer and teacher among them (FSDP2), instead of a copy for each (DDP)."""
    checkpoint_every: Annotated[int, Field(gt=0)] = 1000
    """Steps between checkpoints; there is always one at the end."""
    keep_checkpoints: Annotated[int, Field(gt=0)] = 2
    """How many checkpoints stay on disk; older ones are removed."""


class LogSettings(Settings):
    """What a run writes beside its checkpoints."""

    every: Annotated[int, Field(gt=0)] = 50
    """Steps between lines of metrics.jsonl, each with loss and health."""
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(default_factory=list)
    """Where these lines also go: a list of tensorboard, wandb, trackio. Each needs the extra of its name."""
    project: str = "data2vec"
    """What wandb and trackio file the run under; the run is called like its folder."""
    report: bool = True
    """Draw report.html when the run ends."""
