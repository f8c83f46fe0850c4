"""Run the common model tests of transformers, which come with its source distribution only, on the model code of our folders.

    pip download --no-deps --no-binary :all: transformers==5.23.0
    python tools/transformers_common_tests.py transformers-5.23.0.tar.gz [arguments of pytest]

In an environment with that release, PyTorch, pytest, parameterized, accelerate, peft and psutil; our package is not imported.
"""

import os
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

REPO = Path(__file__).parents[1]
NOT_DISTRIBUTED = {
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
}
"""Modules that the common tests import: their mixins of exporters and of text generation, which are left out."""


def main(sdist: str, *arguments: str) -> int:
    """Unpack the tests beside the model code and run them; returns the exit status of pytest."""
    import pytest

    with tempfile.TemporaryDirectory() as tmp, tarfile.open(sdist) as archive:
        root = Path(tmp)
        for member in archive.getmembers():
            _, _, name = member.name.partition("/")
            if name.startswith("tests/test_modeling_common"):
                member.name = name
                archive.extract(member, root, filter="data")
        for name, text in NOT_DISTRIBUTED.items():
            path = root / "tests" / name
            path.parent.mkdir()
            path.write_text(text)
        for folder in (root / "tests", *(root / "tests").iterdir()):
            if folder.is_dir():
                (folder / "__init__.py").touch()
        code = REPO / "src/data2vec/interop/transformers/remote_code/modeling_data2vec2.py"
        (root / code.name).write_text(code.read_text())
        (root / "tests/test_data2vec2.py").write_text(Path(__file__).read_text())
        os.environ["HF_HUB_OFFLINE"] = "1"
        sys.path.insert(0, tmp)
        options = f"--rootdir={tmp} -p no:cacheprovider -p no:subtests".split()
        return pytest.main([str(root / "tests/test_data2vec2.py"), *options, *arguments])


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}
SPEECH = {"conv_dim": [16, 16], "conv_kernel": [10, 3], "conv_stride": [5, 2], "position_depth": 2, "position_groups": 4}
VISION = {"image_size": 16, "patch_size": 4, "norm": "post"}
TEXT = {"vocab_size": 60, "pad_token_id": 1, "max_position_embeddings": 26, "position_depth": 2, "position_groups": 4}
SOUND = {"num_mel_bins": 32, "spectrogram_patch": [16, 16], "extra_tokens": 1}
CASES: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "Speech": ("speech", ("Model", "ForCTC", "ForAudioClassification", "ForAudioFrameClassification"), SPEECH),
    "SpeechAlibi": ("speech", ("Model", "ForCTC"), SPEECH | {"alibi": True, "conv_norm": "group", "norm": "pre"}),
    "SpeechWeighted": (
        "speech",
        ("ForCTC", "ForAudioClassification", "ForAudioFrameClassification"),
        SPEECH | {"weighted_layers": 2, "classifier_hidden_layer": "linear", "classifier_hidden_width": 8},
    ),
    "SpeechEvents": ("speech", ("ForAudioClassification",), SPEECH | {"classifier_pooling": "linear-softmax"}),
    "Vision": ("vision", ("Model", "ForImageClassification"), VISION | {"classifier_norm_eps": 1e-6}),
    "VisionRelative": ("vision", ("Model", "ForImageClassification"), VISION | {"positions": "relative", "position_tables": 2}),
    "VisionAttentive": (
        "vision",
        ("ForImageClassification",),
        VISION | {"classifier_pooling": "attention", "weighted_layers": 2},
    ),
    "Text": (
        "text",
        ("Model", "ForSequenceClassification", "ForTokenClassification"),
        TEXT | {"classifier_pooling": "first", "classifier_hidden_layer": "tanh"},
    ),
    "TextConv": ("text", ("Model", "ForTokenClassification"), TEXT | {"text_positions": "conv"}),
    "TextAlibi": ("text", ("Model", "ForSequenceClassification"), TEXT | {"text_positions": "alibi", "weighted_layers": 2}),
    "Sound": ("sound", ("Model", "ForAudioClassification"), SOUND | {"classifier_pooling": "class-token"}),
    "SoundMean": ("sound", ("ForAudioClassification",), SOUND | {"extra_tokens": 0, "classifier_norm_eps": 1e-6}),
}
"""Name: the modality, the ends of the names of the tested classes, and the configuration."""


def common_tests() -> dict[str, Any]:
    """A class of tests for each case."""
    import unittest

    import modeling_data2vec2 as code
    import torch
    from modeling_data2vec2 import Data2Vec2Config
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    from .test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor

    ModelTesterMixin.__test__ = False
    MODEL_MAPPING_NAMES["data2vec2"] = "Data2Vec2Model"  # by which the tests know that it has no loss

    class Tester:
        batch_size, seq_length, is_training = 3, 0, True

        def __init__(self, modality: str, settings: dict[str, Any]):
            self.modality, self.settings = modality, {**SMALL, **settings, "modality": modality}
            self.seq_length = {"speech": 49, "vision": 16, "text": 20, "sound": 8}[modality]
            self.__dict__ |= SMALL

        def get_config(self) -> Any:
            return Data2Vec2Config(**self.settings)

        def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, Any]]:
            B = self.batch_size
            if self.modality == "vision":
                inputs = {"pixel_values": floats_tensor([B, 3, 16, 16])}
            elif self.modality == "text":
                inputs = {"input_ids": ids_tensor([B, 20], 58) + 2, "attention_mask": torch.ones(B, 20, dtype=torch.long)}
                inputs["attention_mask"][1, 15:] = 0
            elif self.modality == "sound":
                inputs = {"input_values": floats_tensor([B, 64, 32]), "attention_mask": torch.ones(B, 64, dtype=torch.long)}
            else:
                inputs = {"input_values": floats_tensor([B, 505]), "attention_mask": torch.ones(B, 505, dtype=torch.long)}
                inputs["attention_mask"][1, 400:] = 0
            return self.get_config(), inputs

    def tests(modality: str, endings: tuple[str, ...], settings: dict[str, Any]) -> dict[str, Any]:
        def setUp(self: Any) -> None:
            self.model_tester = Tester(modality, settings)

        def _prepare_for_class(
            self: Any, inputs: dict[str, Any], model_class: Any, return_labels: bool = False
        ) -> dict[str, Any]:
            inputs = ModelTesterMixin._prepare_for_class(self, inputs, model_class, return_labels)
            if return_labels and model_class is not code.Data2Vec2Model:
                shape = {"CTC": (3, 5), "TokenClassification": (3, 20), "AudioFrameClassification": (3, 49)}
                inputs["labels"] = torch.ones(shape.get(model_class.__name__.partition("For")[2], (3,)), dtype=torch.long)
            return inputs

        def test_model_get_set_embeddings(self: Any) -> None:
            for model_class in self.all_model_classes:
                model = model_class(self.model_tester.get_config())
                assert isinstance(model.get_input_embeddings(), torch.nn.Module) and model.get_output_embeddings() is None

        classes = tuple(getattr(code, f"Data2Vec2{ending}") for ending in endings)
        found = {"all_model_classes": classes, "setUp": setUp, "_prepare_for_class": _prepare_for_class, "__test__": True}
        if modality != "text":  # as the tests of transformers' own audio and image models
            found |= {"test_resize_embeddings": False, "test_model_get_set_embeddings": test_model_get_set_embeddings}
        return found

    return {
        f"{name}Test": type(f"{name}Test", (ModelTesterMixin, unittest.TestCase), {**tests(*case), "__module__": __name__})
        for name, case in CASES.items()
    }


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
globals().update(common_tests())
