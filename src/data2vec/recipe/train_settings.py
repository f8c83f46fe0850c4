"""The `train:` and `log:` sections of a recipe."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from data2vec.settings import Fraction, Settings


class TriStage(Settings):
    """Warm up, hold, decay exponentially (wav2vec 2.0, data2vec speech)."""

    name: Literal["tri_stage"] = "tri_stage"
    warmup: Fraction = 0.03
    """Fraction of all steps for linear warm-up from `initial_scale`·lr."""
    hold: Fraction = 0.9
    """Fraction of all steps at the peak learning rate; the rest decays."""
    initial_scale: Annotated[float, Field(ge=0)] = 0.01
    """Learning rate at the start of warm-up, relative to lr."""
    final_scale: Annotated[float, Field(gt=0)] = 0.01
    """Learning rate at the end of decay, relative to lr."""

    @model_validator(mode="after")
    def _fits(self) -> "TriStage":
        if self.warmup + self.hold > 1:
            raise ValueError(f"warmup + hold is {self.warmup + self.hold:g}, and must be at most 1")
        return self


class Cosine(Settings):
    """Linear warm-up from 0, then half a cosine down to `final_lr`."""

    name: Literal["cosine"] = "cosine"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of warm-up."""
    final_lr: Annotated[float, Field(ge=0)] = 0.0
    """Learning rate of the last step; for parameters whose peak is lower, their peak."""


class Polynomial(Settings):
    """Linear warm-up from 0, then polynomial decay to 0 at the last step (power 1: linear)."""

    name: Literal["polynomial"] = "polynomial"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of warm-up."""
    power: Annotated[float, Field(gt=0)] = 1.0
    """Exponent of the decay."""


Schedule = Annotated[TriStage | Cosine | Polynomial, Field(discriminator="name")]


class LayerDecay(Settings):
    """Layer-wise learning rate decay. Defaults: data2vec 1 on ImageNet."""

    rate: Annotated[float, Field(gt=0, le=1)] = 0.65
    """Learning rate of a block relative to the block above it; of the last block, relative to the head."""
    below: Literal["decayed", "full"] = "decayed"
    """Parameters before the first block: one step below it (BEiT, data2vec 1), or at the full rate (data2vec 2.0)."""


class TrainSettings(Settings):
    """Steps are optimizer steps; the batch size is in the `data` section."""

    steps: Annotated[int, Field(gt=0, le=10**9)] = 1000
    """Optimizer steps of the run; auto: the epochs of the published base model, see docs/training.md."""
    seed: Annotated[int, Field(ge=0)] = 1
    """Random seed of initial weights, data order, crops, masks and dropout."""
    lr: Annotated[float, Field(gt=0)] = 5e-4
    """Peak learning rate."""
    head_lr: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate of the head in fine-tuning; null: `lr`."""
    schedule: Schedule = TriStage()
    """Learning rate schedule, per optimizer step."""
    betas: Annotated[tuple[Fraction, Fraction], Field(strict=False)] = (0.9, 0.98)
    """Adam's β₁ and β₂."""
    eps: Annotated[float, Field(gt=0)] = 1e-6
    """Adam's ε."""
    layer_decay: LayerDecay | None = None
    """Layer-wise learning rate decay, in fine-tuning; null: none."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled weight decay."""
    weight_decay_on: Literal["matrices", "all"] = "matrices"
    """Parameters with weight decay: weight matrices only, or all of them, as in the released speech and text code."""
    clip_norm: Annotated[float, Field(ge=0)] = 0.0
    """Gradients are clipped to this global norm (0: no clipping)."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of matrix products; weights and teacher are always float32. fp16 uses a loss scale, for GPUs without bf16."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, or cuda:N."""
    compile: bool | Literal["auto"] = "auto"
    """Compile the forward and backward pass (torch.compile); auto: on a GPU, where there is Triton and a C compiler."""
    recompute: bool = False
    """Activation checkpointing: keep only the input of each block, and recompute the block in the backward pass."""
    shard: bool | Literal["node"] = False
    """With several processes, shard weights, optimizer and teacher (FSDP2) instead of replicating them (DDP); node: only among
    the processes of each machine (HSDP)."""
    communication: Literal["fp32", "bf16"] = "fp32"
    """Precision in which several processes exchange gradients; bf16 halves the traffic, and rounds each gradient before it is
    summed."""
    checkpoint_every: Annotated[int, Field(gt=0)] = 1000
    """Steps between checkpoints; the last step is always saved."""
    keep_checkpoints: Annotated[int, Field(gt=0)] = 2
    """Number of checkpoints to keep; older ones are removed."""
    async_checkpoints: bool = False
    """Write checkpoints while training continues, from a copy of weights, teacher and optimizer in host memory."""
    timeout_minutes: Annotated[float, Field(gt=0)] = 30.0
    """With several processes: how long one waits for the others, before the run stops and names those that do not answer."""


class LogSettings(Settings):
    """What a run writes besides checkpoints."""

    every: Annotated[int, Field(gt=0)] = 50
    """Steps between lines of metrics.jsonl, with loss and health metrics."""
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(default_factory=list)
    """Trackers that also get these metrics: a list of tensorboard, wandb, trackio. Each needs the extra of its name."""
    project: str = "data2vec"
    """Project name in wandb and trackio; the run is named after its folder."""
    report: bool = True
    """Write report.html when the run ends."""
