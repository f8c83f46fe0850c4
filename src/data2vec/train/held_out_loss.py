"""The loss of pre-training on held-out data."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from data2vec.data.bucketing import MicroBatch, sort_by_length
from data2vec.data.dataset import ExampleDataset
from data2vec.data.loader import init_worker
from data2vec.data.masked_batches import Loaded, LoadedBatch, MaskedBatches
from data2vec.distributed import Process
from data2vec.errors import UserError, get_logger
from data2vec.objective.training_objective import AnyTrainingObjective
from data2vec.recipe.loading import load_recipe
from data2vec.recipe.recipe import Recipe
from data2vec.settings import JsonDict

log = get_logger(__name__)


class HeldOutLoss:
    """Measures the loss on `data.valid` in evaluation mode, with the same examples, crops and masks every time.

    The targets come from the current teacher, so the loss may rise as they get harder, as in training. `examples`: those of the
    training data, for a tokenizer made from them. Every process creates one and calls it at the same steps.

    Raises UserError if there is no data, or nothing of it can be used."""

    def __init__(self, recipe: Recipe, examples: ExampleDataset | None, process: Process):
        self.process, self.seed, method = process, recipe.train.seed, recipe.objective
        with TemporaryDirectory() as folder:
            files = recipe.build_modality().save(Path(folder), examples)
            paths = {f"data.{key}": str(Path(folder, name)) for key, name in files.items()}
            modality = load_recipe(recipe, {"data.streaming": False} | paths).build_modality()
            try:
                reader = modality.validation()
                rows = reader.selected_rows(str(recipe.data.valid), recipe.data.valid_rows, "data.valid_rows")
                held_out = modality.examples(rows)
            except UserError as error:
                raise UserError(str(error) if str(error).startswith("data.valid") else f"data.valid: {error}") from None
        indices = np.arange(len(held_out))
        if len(indices) > recipe.probe.max_examples:
            indices = np.sort(np.random.default_rng(self.seed).permutation(indices)[: recipe.probe.max_examples])
        costs = held_out.costs[indices]
        self.micro_batches = [
            MicroBatch(indices[rows], slice(None), float(costs[rows].min()), (self.seed, 0, number))
            for number, rows in enumerate(sort_by_length(costs, modality.data.micro_batch))
        ]
        if not self.micro_batches:
            raise UserError("data.valid: has less than one example; use more, or null")
        self.batches = MaskedBatches(modality, method.mask, method.masks_per_sample, held_out)
        self.workers = modality.data.num_workers
        self.corrupt: dict[str, None] = dict.fromkeys(held_out.corrupt)
        for name in self.corrupt:
            log.warning("data.valid: left out: %s", name)

    @torch.no_grad()
    def __call__(self, objective: AnyTrainingObjective) -> JsonDict:
        """`valid_loss`, per predicted position, of the objective on the device."""
        process, number = self.process, len(self.micro_batches)
        # As many for every process, since sharded weights are gathered by all of them; repeated ones do not count.
        own = [i * process.world_size + process.rank for i in range(-(-number // process.world_size))]
        loader: DataLoader[Loaded] = DataLoader(
            self.batches,
            batch_size=None,
            sampler=[self.micro_batches[index % number] for index in own],
            num_workers=self.workers,
            worker_init_fn=init_worker,
            generator=torch.Generator(),  # else creating the iterator would advance the global random state
        )
        total = torch.zeros(2, dtype=torch.float64)
        objective.eval()
        try:
            with torch.random.fork_rng(devices=[process.device] if process.device.type == "cuda" else []):
                for index, loaded in zip(own, loader, strict=True):
                    if not isinstance(loaded, LoadedBatch):
                        raise loaded
                    self._log_corrupt(loaded.corrupt)
                    # A decoder puts noise at masked positions: the same, whichever process takes the micro-batch.
                    torch.manual_seed(self.seed + index)
                    batch: Any = loaded.batch
                    output = objective(batch.to(process.device))
                    if index < number:
                        targets = objective.num_targets(batch)
                        total += torch.tensor([float(output.loss), targets], dtype=torch.float64)
        finally:
            objective.train()
        loss, predicted = process.sum(total.to(process.device)).tolist()
        return {"valid_loss": loss / predicted}

    def _log_corrupt(self, names: list[str]) -> None:
        for name in names:
            if name not in self.corrupt:
                log.warning("data.valid: left out: %s", name)
                self.corrupt[name] = None
