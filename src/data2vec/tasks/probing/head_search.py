"""Training of small heads on frozen features: Adam without schedule, gradients clipped to a norm of 1; the learning rate and
the step are those with the best accuracy on dev."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data2vec.console.progress import progress
from data2vec.errors import UserError
from data2vec.tasks.metrics import Scores
from data2vec.tasks.probing.classifiers import probability_scores
from data2vec.tasks.probing.dataset import ProbeSet, hold_out, load_probe_sets
from data2vec.tasks.probing.probe import FrozenEncoders

BATCH, CLIP_NORM = 32, 1.0
"""Examples of a batch, and the largest norm of a gradient."""
DEV_EVERY = 100
"""Steps between measurements on dev; the best head is kept."""

H = TypeVar("H", bound=nn.Module)
Logits = Callable[[H, int, Tensor], Tensor]
"""From a head, the number of a set (0 training, 1 dev, 2 held-out) and rows (B,) of that set to logits (B, C)."""


@dataclass(frozen=True)
class HeadFit(Generic[H]):
    """The head with the best accuracy on dev."""

    head: H
    lr: float
    dev_accuracy: float
    scores: Scores
    """On the held-out set: those of `probability_scores`."""


def require_steps(steps: int) -> None:
    """Raises UserError unless there is a step."""
    if steps < 1:
        raise UserError(f"steps: {steps}; at least 1 is needed")


def load_head_sets(frozen: FrozenEncoders) -> list[ProbeSet]:
    """The training, the dev and the held-out set; dev is a fifth of what there is for training.

    Raises UserError as `load_probe_sets`."""
    seed = frozen.recipe.train.seed
    train_set, valid_set = load_probe_sets(frozen.modality, frozen.recipe.probe, seed)
    return [*hold_out(train_set, seed), valid_set]


def describe_search(classes: Sequence[str], train: int, dev: int, valid: int, steps: int) -> str:
    """The last line of a table: the classes, the numbers of examples of each set, and what is chosen on dev."""
    return (
        f"Accuracy on {valid} held-out examples of {len(classes)} classes; {train} training examples, {steps} steps; learning "
        f"rate and step chosen on {dev} dev examples."
    )


def class_indices(sets: Sequence[ProbeSet]) -> tuple[np.ndarray, list[Tensor]]:
    """The names (C,) of the classes of the training, the dev and the held-out set, and the indices of their classes, (n,) each.

    Raises UserError if a class has no training example."""
    names = np.unique(sets[0].classes)
    for each in sets[1:]:
        if missing := sorted(set(each.classes.tolist()) - set(names.tolist())):
            raise UserError(
                f"probe.data: no training example of {', '.join(missing[:5])} is left beside those of dev; add some"
            )
    return names, [torch.from_numpy(np.searchsorted(names, each.classes)) for each in sets]


def search_head(
    build: Callable[[], H],
    logits: Logits[H],
    labels: Sequence[Tensor],
    names: np.ndarray,
    rates: Sequence[float],
    steps: int,
    seed: int,
    desc: str,
) -> HeadFit[H]:
    """The head with the best of the learning rates `rates`, and its scores.

    `build`: a new head, whose weights are drawn with `seed`. `labels`: class indices (n,) of the three sets. `names`: of the
    classes. `desc`: label of the progress bar."""
    best_dev, best_lr, best_head = -1.0, 0.0, None
    for lr in progress(rates, desc, unit="learning rate"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            head = build()
        dev = fit_head(head, logits, labels, lr, steps, seed)
        if dev > best_dev:
            best_dev, best_lr, best_head = dev, lr, head
    assert best_head is not None
    probabilities = predict_logits(best_head, logits, 2, len(labels[2])).softmax(-1).numpy()
    scores = probability_scores(probabilities, names, names[labels[2].numpy()])
    return HeadFit(best_head, best_lr, best_dev, scores)


def fit_head(head: H, logits: Logits[H], labels: Sequence[Tensor], lr: float, steps: int, seed: int) -> float:
    """Train a head in place; it gets the weights with the best accuracy on dev during training, which is returned."""
    optimizer = torch.optim.Adam(head.parameters(), lr)
    generator = torch.Generator().manual_seed(seed)
    best, state, order = -1.0, dict[str, Tensor](), torch.empty(0, dtype=torch.long)
    for step in range(1, steps + 1):
        if not len(order):
            order = torch.randperm(len(labels[0]), generator=generator)
        rows, order = order[:BATCH], order[BATCH:]
        optimizer.zero_grad()
        output = logits(head, 0, rows)
        F.cross_entropy(output, labels[0][rows].to(output.device)).backward()
        nn.utils.clip_grad_norm_(head.parameters(), CLIP_NORM)
        optimizer.step()
        if step % DEV_EVERY == 0 or step == steps:
            right = predict_logits(head, logits, 1, len(labels[1])).argmax(-1) == labels[1]
            if (accuracy := float(right.float().mean())) > best:
                best, state = accuracy, {name: value.clone() for name, value in head.state_dict().items()}
    head.load_state_dict(state)
    return best


@torch.no_grad()
def predict_logits(head: H, logits: Logits[H], number: int, count: int) -> Tensor:
    """(n, C) float32 logits of all `count` examples of a set, on the CPU."""
    return torch.cat([logits(head, number, rows).float().cpu() for rows in torch.arange(count).split(256)])
