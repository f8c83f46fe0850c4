"""The probe of a student while it is trained."""

import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from data2vec.data.dataset import ExampleDataset
from data2vec.distributed import Process
from data2vec.recipe.loading import load_recipe
from data2vec.recipe.recipe import Recipe
from data2vec.tasks.probing.classifiers import accuracies
from data2vec.tasks.probing.labelled import open_labelled
from data2vec.tasks.probing.pooled import pooled
from data2vec.tasks.probing.probe import untrained


class OnlineProbe:
    """Linear probe and nearest k on a student's features, as `data2vec probe` would measure them.

    A copy of the student is measured, in float32 and in evaluation mode: whatever training has put on the student, be it
    compilation or sharding, is not in the way, and nothing of the training moves. `examples`: those of the training data, or
    None when streaming. Every process makes one and calls it at the same steps.

    Raises UserError when data or labels are missing or none can be read."""

    def __init__(self, recipe: Recipe, examples: ExampleDataset | None, process: Process):
        self.settings, self.seed, self.process = recipe.probe, recipe.train.seed, process
        with TemporaryDirectory() as folder:  # what a trained model has of its training data, such as a tokenizer
            files = recipe.build_modality().save(Path(folder), examples)
            kept = {f"data.{key}": str(Path(folder, name)) for key, name in files.items()}
            self.modality = load_recipe(recipe, {"data.streaming": False} | kept).build_modality()
            self.fit, self.held = open_labelled(self.modality, self.settings, self.seed)
        self.encoder = untrained(recipe)
        start = self._measure()
        self.start = {f"{name}_untrained": start[name] for name in ("probe_linear", "probe_knn")}

    def __call__(self, student: Mapping[str, Tensor]) -> dict[str, Any]:
        """With all weights of the student: accuracies on held-out data, 0 to 1, of the layers that do best there, and which
        these are, counted from 1; the same for the weights that training started from; and the seconds that it took."""
        begin = time.monotonic()
        self.encoder.load_state_dict(student)
        found = self._measure()
        return found | self.start | {"probe_seconds": round(time.monotonic() - begin, 4)}

    def _measure(self) -> dict[str, Any]:
        process, k = self.process, self.settings.knn_k
        encoder = self.encoder.to(process.device)
        # From the first time on without what cannot be read.
        x, self.fit = pooled([encoder], self.modality, self.fit, process)
        y, self.held = pooled([encoder], self.modality, self.held, process)
        self.encoder.to("cpu")
        fit, held = self.fit.classes, self.held.classes
        mine = range(process.rank, x.shape[1], process.world_size)
        scores = [(layer + 1, *accuracies(x[0, layer], fit, y[0, layer], held, k, self.seed)) for layer in mine]
        scores = sorted(process.all_gather(scores))
        best, nearest = max(scores, key=lambda score: score[1]), max(scores, key=lambda score: score[2])
        return {
            "probe_linear": best[1],
            "probe_linear_layer": best[0],
            "probe_knn": nearest[2],
            "probe_knn_layer": nearest[0],
        }
