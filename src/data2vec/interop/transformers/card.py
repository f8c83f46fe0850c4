"""Usage section of the model card of a transformers folder, and a list of what the folder omits."""

from data2vec.data.audio import SAMPLE_RATE
from data2vec.modalities.sound import SoundSettings
from data2vec.modalities.text import Text
from data2vec.model import Model

USE = """\
{numpy}from transformers import {processor}, {auto}

folder = "."  # the folder of this file; or owner/name on the hub
processor = {processor}.from_pretrained(folder{trust})
model = {auto}.from_pretrained(folder{more})
inputs = processor({inputs}, return_tensors="pt")
output = model(**inputs).{output}"""
USE_WITHOUT_TOKENIZER = """\
import torch
from transformers import {auto}

folder = "."  # the folder of this file; or owner/name on the hub
model = {auto}.from_pretrained(folder{more})
inputs = torch.tensor([[0, 3, 2]])  # token ids, as this folder has no tokenizer
output = model(inputs).{output}"""
INPUTS = {
    "speech": ("AutoFeatureExtractor", f"[np.zeros({SAMPLE_RATE}, np.float32)], sampling_rate={SAMPLE_RATE}, padding=True"),
    "sound": ("AutoFeatureExtractor", f"[np.zeros({SAMPLE_RATE}, np.float32)], sampling_rate={SAMPLE_RATE}"),
    "vision": ("AutoImageProcessor", "[np.zeros((32, 32, 3), np.uint8)]"),
    "text": ("AutoTokenizer", '["a text"], padding=True'),
}
PAIRS = '["a text"], ["another text"], padding=True'
"""Inputs of a model for pairs of texts."""
AUTO = {
    "speech": "AutoModelForAudioClassification",
    "sound": "AutoModelForAudioClassification",
    "vision": "AutoModelForImageClassification",
    "text": "AutoModelForSequenceClassification",
}


def usage_example(model: Model, remote: bool = False) -> str:
    """Code that opens a folder of this model and runs it. `remote`: whether the folder contains its model code."""
    modality = model.modality.settings.name
    processor, inputs = INPUTS[modality]
    inputs = inputs if getattr(model.recipe.data, "second", None) is None else PAIRS
    head = model.head.settings.name if model.head is not None else None
    auto = {None: "AutoModel", "ctc": "AutoModelForCTC"}.get(head) or AUTO[modality]
    more = ", add_pooling_layer=False" if auto == "AutoModel" and modality == "text" else ""
    trust = ", trust_remote_code=True" if remote else ""  # of processors too: they read config.json, which names the code
    more = trust or more
    numpy = "import numpy as np\n" if "np." in inputs else ""
    has_tokenizer = not isinstance(model.modality, Text) or model.modality.tokenizer is not None
    use = (USE if has_tokenizer else USE_WITHOUT_TOKENIZER).format(
        numpy=numpy,
        processor=processor,
        auto=auto,
        trust=trust,
        more=more,
        inputs=inputs,
        output="logits" if head else "last_hidden_state",
    )
    if head == "ctc":
        use = use.replace(processor, "AutoProcessor") + "\ntexts = processor.batch_decode(output.argmax(-1))"
    return use


def omitted_parts(model: Model, predictor: str, padding: str) -> list[str]:
    """The parts of a model that a transformers folder leaves out: the teacher, the head or decoder that predicts its targets
    (`predictor`), and a treatment of padding other than `padding`, which its code has."""
    parts = {name.partition(".")[0] for name in model.pretraining}
    omitted = ["the teacher"] * ("teacher" in parts) + [predictor] * bool(parts - {"teacher"})
    settings = model.modality.settings
    configured = getattr(settings, "position_padding", padding)
    if (settings.name == "speech" or getattr(settings, "positions", None) == "conv") and configured != padding:
        omitted.append(f"modality.position_padding: {configured} ({padding} there: the last positions of padded rows differ)")
    if isinstance(settings, SoundSettings) and not settings.attend_padding:
        omitted.append("the masking of padding: the preprocessor fills clips up to a length, which positions attend to")
    return omitted
