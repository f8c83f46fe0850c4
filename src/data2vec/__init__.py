"""data2vec: one self-supervised method for speech, images, text, and any signal that can be cut into a sequence.

    run = data2vec.pretrain("vision/v2-tiny", data="photos/", out="run")
    model = data2vec.load("run")
    features = model.features(["photo.jpg"], layers="all")
    data2vec.features(model, "photos/", "photos.npy", pool=True)
    data2vec.predict("fine-tuned", "photos/").save("classes.csv")

The names in `__all__` are the public API. Each is imported on first use, so `import data2vec` is fast.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from data2vec.errors import CorruptExample, RunStopped, Unfinished, UserError

if TYPE_CHECKING:
    from data2vec.batch import Batch
    from data2vec.comparison.compare import compare
    from data2vec.comparison.result import Comparison
    from data2vec.conformance.check_examples import ExampleReport, check_examples
    from data2vec.conformance.check_modality import ModalityReport, check_modality
    from data2vec.conformance.check_recordings import RecordingReport, check_recordings
    from data2vec.data.check.check import check
    from data2vec.feature_extraction import FeatureBatch, LogitBatch
    from data2vec.interop.convert import convert
    from data2vec.interop.export.export import Exported, export
    from data2vec.interop.load import load
    from data2vec.interop.verify import Verification, verify
    from data2vec.model import Model
    from data2vec.recipe.loading import load_recipe
    from data2vec.recipe.recipe import Recipe
    from data2vec.recipe.shipped import recipe_names
    from data2vec.run_dir import Run
    from data2vec.tasks.asr.ngram import estimate_ngram
    from data2vec.tasks.asr.transcribe import transcribe
    from data2vec.tasks.asr.tune import tune_weights
    from data2vec.tasks.extraction.extract import FeatureFile, features
    from data2vec.tasks.finetuning.evaluate import evaluate
    from data2vec.tasks.finetuning.verdict import run_verdict
    from data2vec.tasks.prediction.predict import Prediction, PredictionFile, Predictions, predict
    from data2vec.tasks.probing.attentive import attentive_probe
    from data2vec.tasks.probing.bigram_shift import make_bigram_shift
    from data2vec.tasks.probing.few_shot import few_shot_probe
    from data2vec.tasks.probing.probe import probe
    from data2vec.tasks.probing.superb import superb_probe
    from data2vec.tasks.probing.token_readout import token_readout
    from data2vec.train.adaptation.adapt import adapt
    from data2vec.train.adaptation.result import Adaptation
    from data2vec.train.custom_loop.build import build_loader, build_objective
    from data2vec.train.finetune import finetune
    from data2vec.train.planning.plan import plan
    from data2vec.train.planning.run_plan import RunPlan
    from data2vec.train.pretrain import pretrain
    from data2vec.train.resume import resume

try:
    __version__ = version("data2vec")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+unknown"

__all__ = [
    "Adaptation",
    "Batch",
    "Comparison",
    "CorruptExample",
    "ExampleReport",
    "Exported",
    "FeatureBatch",
    "FeatureFile",
    "LogitBatch",
    "ModalityReport",
    "Model",
    "Prediction",
    "PredictionFile",
    "Predictions",
    "Recipe",
    "RecordingReport",
    "Run",
    "RunPlan",
    "RunStopped",
    "Unfinished",
    "UserError",
    "Verification",
    "adapt",
    "attentive_probe",
    "build_loader",
    "build_objective",
    "check",
    "check_examples",
    "check_modality",
    "check_recordings",
    "compare",
    "convert",
    "estimate_ngram",
    "evaluate",
    "export",
    "features",
    "few_shot_probe",
    "finetune",
    "load",
    "load_recipe",
    "make_bigram_shift",
    "plan",
    "predict",
    "pretrain",
    "probe",
    "recipe_names",
    "resume",
    "run_verdict",
    "superb_probe",
    "token_readout",
    "transcribe",
    "tune_weights",
    "verify",
]

_MODULES = {
    "Adaptation": "train.adaptation.result",
    "Batch": "batch",
    "Comparison": "comparison.result",
    "ExampleReport": "conformance.check_examples",
    "RecordingReport": "conformance.check_recordings",
    "Exported": "interop.export.export",
    "FeatureBatch": "feature_extraction",
    "FeatureFile": "tasks.extraction.extract",
    "LogitBatch": "feature_extraction",
    "Model": "model",
    "ModalityReport": "conformance.check_modality",
    "Prediction": "tasks.prediction.predict",
    "PredictionFile": "tasks.prediction.predict",
    "Predictions": "tasks.prediction.predict",
    "Recipe": "recipe.recipe",
    "Run": "run_dir",
    "RunPlan": "train.planning.run_plan",
    "adapt": "train.adaptation.adapt",
    "attentive_probe": "tasks.probing.attentive",
    "Verification": "interop.verify",
    "build_loader": "train.custom_loop.build",
    "build_objective": "train.custom_loop.build",
    "check": "data.check.check",
    "check_examples": "conformance.check_examples",
    "check_recordings": "conformance.check_recordings",
    "check_modality": "conformance.check_modality",
    "compare": "comparison.compare",
    "convert": "interop.convert",
    "estimate_ngram": "tasks.asr.ngram",
    "evaluate": "tasks.finetuning.evaluate",
    "export": "interop.export.export",
    "features": "tasks.extraction.extract",
    "few_shot_probe": "tasks.probing.few_shot",
    "finetune": "train.finetune",
    "load": "interop.load",
    "load_recipe": "recipe.loading",
    "make_bigram_shift": "tasks.probing.bigram_shift",
    "plan": "train.planning.plan",
    "predict": "tasks.prediction.predict",
    "pretrain": "train.pretrain",
    "probe": "tasks.probing.probe",
    "recipe_names": "recipe.shipped",
    "resume": "train.resume",
    "run_verdict": "tasks.finetuning.verdict",
    "superb_probe": "tasks.probing.superb",
    "token_readout": "tasks.probing.token_readout",
    "transcribe": "tasks.asr.transcribe",
    "tune_weights": "tasks.asr.tune",
    "verify": "interop.verify",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'data2vec' has no attribute {name!r}")
    return getattr(import_module(f"data2vec.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
