"""What is told of a folder of transformers: in its model card how to use it, and what has no place in it."""

from data2vec.data.audio import SAMPLE_RATE
from data2vec.model import Model

USE = """\
from transformers import {prepare}, {auto}

prepare = {prepare}.from_pretrained("this/folder")
model = {auto}.from_pretrained("this/folder"{more})
inputs = prepare({given}, return_tensors="pt")
output = model(**inputs).{output}"""
GIVEN = {
    "speech": ("AutoFeatureExtractor", f"[waveform], sampling_rate={SAMPLE_RATE}, padding=True"),
    "vision": ("AutoImageProcessor", "[picture]"),
    "text": ("AutoTokenizer", '["a text"], padding=True'),
}
AUTO = {
    "speech": "AutoModelForAudioClassification",
    "vision": "AutoModelForImageClassification",
    "text": "AutoModelForSequenceClassification",
}


def usage_example(model: Model, remote: bool = False) -> str:
    """Code that opens a folder of this model, and gives it something. `remote`: the folder brings its code."""
    modality = model.modality.settings.name
    prepare, given = GIVEN[modality]
    head = model.head.settings.name if model.head is not None else None
    auto = {None: "AutoModel", "ctc": "AutoModelForCTC"}.get(head) or AUTO[modality]
    more = ", add_pooling_layer=False" if auto == "AutoModel" and modality == "text" else ""
    more = ", trust_remote_code=True" if remote else more
    use = USE.format(prepare=prepare, auto=auto, more=more, given=given, output="logits" if head else "last_hidden_state")
    if head == "ctc":
        use = use.replace(prepare, "AutoProcessor") + "\ntexts = prepare.batch_decode(output.argmax(-1))"
    return use


def omitted_parts(model: Model, predictor: str, padding: str) -> list[str]:
    """What of a model has no place there, in words: the teacher, what predicts its targets (`predictor`), and a treatment of
    padding other than the one there is."""
    parts = {name.partition(".")[0] for name in model.pretraining}
    words = ["the teacher"] * ("teacher" in parts) + [predictor] * bool(parts - {"teacher"})
    ours = getattr(model.modality.settings, "position_padding", padding)
    if model.modality.settings.name == "speech" and ours != padding:
        words.append(f"modality.position_padding: {ours} (it is {padding} there, so the last frames of padded clips differ)")
    return words
