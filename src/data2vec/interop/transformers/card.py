"""Usage section of the model card of a transformers folder, and a list of what the folder omits."""

from data2vec.data.audio import SAMPLE_RATE
from data2vec.model import Model

USE = """\
{numpy}from transformers import {processor}, {auto}

folder = "."  # the folder of this file; or owner/name on the hub
processor = {processor}.from_pretrained(folder)
model = {auto}.from_pretrained(folder{more})
inputs = processor({inputs}, return_tensors="pt")
output = model(**inputs).{output}"""
INPUTS = {
    "speech": ("AutoFeatureExtractor", f"[np.zeros({SAMPLE_RATE}, np.float32)], sampling_rate={SAMPLE_RATE}, padding=True"),
    "vision": ("AutoImageProcessor", "[np.zeros((32, 32, 3), np.uint8)]"),
    "text": ("AutoTokenizer", '["a text"], padding=True'),
}
AUTO = {
    "speech": "AutoModelForAudioClassification",
    "vision": "AutoModelForImageClassification",
    "text": "AutoModelForSequenceClassification",
}


def usage_example(model: Model, remote: bool = False) -> str:
    """Code that opens a folder of this model and runs it. `remote`: whether the folder contains its model code."""
    modality = model.modality.settings.name
    processor, inputs = INPUTS[modality]
    head = model.head.settings.name if model.head is not None else None
    auto = {None: "AutoModel", "ctc": "AutoModelForCTC"}.get(head) or AUTO[modality]
    more = ", add_pooling_layer=False" if auto == "AutoModel" and modality == "text" else ""
    more = ", trust_remote_code=True" if remote else more
    numpy = "import numpy as np\n" if "np." in inputs else ""
    use = USE.format(
        numpy=numpy, processor=processor, auto=auto, more=more, inputs=inputs, output="logits" if head else "last_hidden_state"
    )
    if head == "ctc":
        use = use.replace(processor, "AutoProcessor") + "\ntexts = processor.batch_decode(output.argmax(-1))"
    return use


def omitted_parts(model: Model, predictor: str, padding: str) -> list[str]:
    """The parts of a model that a transformers folder leaves out: the teacher, the head or decoder that predicts its targets
    (`predictor`), and a treatment of padding other than `padding`, which its code has."""
    parts = {name.partition(".")[0] for name in model.pretraining}
    omitted = ["the teacher"] * ("teacher" in parts) + [predictor] * bool(parts - {"teacher"})
    configured = getattr(model.modality.settings, "position_padding", padding)
    if model.modality.settings.name == "speech" and configured != padding:
        omitted.append(f"modality.position_padding: {configured} ({padding} there: the last frames of padded clips differ)")
    return omitted
