"""Online probe: a probe of the student during pre-training."""

import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from data2vec.data.dataset import ExampleDataset
from data2vec.distributed import Process
from data2vec.recipe.loading import load_recipe
from data2vec.recipe.recipe import Recipe
from data2vec.settings import JsonDict
from data2vec.tasks.probing.classifiers import classifier_accuracies
from data2vec.tasks.probing.dataset import load_probe_sets
from data2vec.tasks.probing.features import pool_features
from data2vec.tasks.probing.probe import untrained_encoder


class OnlineProbe:
    """Linear probe and nearest neighbours on a student's features, the same measurement as `data2vec probe`.

    It measures a copy of the student in float32 and evaluation mode, so compilation and sharding do not matter and training is
    not affected. `examples`: the training examples, or None when streaming. Every process creates one and calls it at the same
    steps.

    Raises UserError if data or labels are missing, or if no example can be decoded."""

    def __init__(self, recipe: Recipe, examples: ExampleDataset | None, process: Process):
        self.settings, self.seed, self.process = recipe.probe, recipe.train.seed, process
        with TemporaryDirectory() as folder:  # files a model stores from its training data, such as a tokenizer
            files = recipe.build_modality().save(Path(folder), examples)
            paths = {f"data.{key}": str(Path(folder, name)) for key, name in files.items()}
            self.modality = load_recipe(recipe, {"data.streaming": False} | paths).build_modality()
            self.train_set, self.valid_set = load_probe_sets(self.modality, self.settings, self.seed)
        self.encoder = untrained_encoder(recipe)
        scores = self._measure()
        self.untrained_scores = {f"{name}_untrained": scores[name] for name in ("probe_linear", "probe_knn")}

    def __call__(self, student: Mapping[str, Tensor]) -> JsonDict:
        """Measure the student with these weights: accuracies on held-out data, 0 to 1, of the best layers, and their numbers
        from 1; the number of held-out examples; the accuracies of the untrained encoder; and the duration in seconds."""
        start = time.monotonic()
        self.encoder.load_state_dict(student)
        scores = self._measure()
        return scores | self.untrained_scores | {"probe_seconds": round(time.monotonic() - start, 4)}

    def _measure(self) -> JsonDict:
        process, k = self.process, self.settings.knn_k
        encoder = self.encoder.to(process.device)
        # The sets lose the examples that cannot be decoded at the first measurement.
        x, self.train_set = pool_features([encoder], self.modality, self.train_set, process)
        y, self.valid_set = pool_features([encoder], self.modality, self.valid_set, process)
        self.encoder.to("cpu")
        train_y, valid_y = self.train_set.classes, self.valid_set.classes
        scores = [
            (layer + 1, *classifier_accuracies(x[0, layer], train_y, y[0, layer], valid_y, k, self.seed))
            for layer in range(process.rank, x.shape[1], process.world_size)
        ]
        scores = sorted(process.all_gather(scores))
        linear, knn = max(scores, key=lambda score: score[1]), max(scores, key=lambda score: score[2])
        return {
            "probe_linear": linear[1],
            "probe_linear_layer": linear[0],
            "probe_knn": knn[2],
            "probe_knn_layer": knn[0],
            "probe_examples": len(valid_y),
        }
