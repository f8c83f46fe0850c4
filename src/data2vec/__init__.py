"""data2vec: one self-supervised method for speech, images, text, and any signal that can be cut into a sequence.

    run = data2vec.pretrain("vision/v2-tiny", data="photos/", out="run")
    model = data2vec.load("run")
    features = model.features(["photo.jpg"], layers="all")
    data2vec.features(model, "photos/", "photos.npy", pool=True)

What is here is public and stays; it is imported when it is first used.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from data2vec.errors import BadExample, RunStopped, UserError

if TYPE_CHECKING:
    from data2vec.data.check.check import check
    from data2vec.feature_extraction import FeatureBatch
    from data2vec.interop.convert import convert
    from data2vec.interop.export.export import Exported, export
    from data2vec.interop.load import load
    from data2vec.model import Model
    from data2vec.recipe.recipe import Recipe
    from data2vec.run_dir import Run
    from data2vec.tasks.asr.transcribe import transcribe
    from data2vec.tasks.extraction.extract import FeatureFile, features
    from data2vec.tasks.finetuning.evaluate import evaluate
    from data2vec.tasks.probing.probe import probe
    from data2vec.train.finetune import finetune
    from data2vec.train.trainer import pretrain

try:
    __version__ = version("data2vec")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"

__all__ = [
    "BadExample",
    "Exported",
    "FeatureBatch",
    "FeatureFile",
    "Model",
    "Recipe",
    "Run",
    "RunStopped",
    "UserError",
    "check",
    "convert",
    "evaluate",
    "export",
    "features",
    "finetune",
    "load",
    "pretrain",
    "probe",
    "transcribe",
]

_HOME = {
    "Exported": "interop.export.export",
    "FeatureFile": "tasks.extraction.extract",
    "FeatureBatch": "feature_extraction",
    "Model": "model",
    "Recipe": "recipe.recipe",
    "Run": "run_dir",
    "check": "data.check.check",
    "convert": "interop.convert",
    "evaluate": "tasks.finetuning.evaluate",
    "export": "interop.export.export",
    "features": "tasks.extraction.extract",
    "finetune": "train.finetune",
    "load": "interop.load",
    "pretrain": "train.trainer",
    "probe": "tasks.probing.probe",
    "transcribe": "tasks.asr.transcribe",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'data2vec' has no attribute {name!r}")
    return getattr(import_module(f"data2vec.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
