"""LoRA of PEFT on our folders: injected, trained with gradient checkpointing, saved, loaded and merged."""

from pathlib import Path
from typing import Any

import pytest
import torch

import data2vec
from data2vec.interop.transformers.folder import write_transformers_folder
from data2vec.model import Model, blank_model
from data2vec.recipe.loading import load_recipe, validate_recipe
from helpers.remote_folders import ENCODER, batch, made

pytestmark = [
    pytest.mark.usefixtures("remote_code_in_tmp"),
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.* is deprecated and will be removed in v6:FutureWarning"),  # names that PEFT uses
]

LABELS = {"CTC": [[2, 3], [3, -100]]}
CASES: dict[str, tuple[str, dict[str, int], dict[str, Any]]] = {
    "v1-text": ("SequenceClassification", {"num_labels": 2}, {"target_modules": ["query", "value"], "task_type": "SEQ_CLS"}),
    "speech": ("CTC", {"vocab_size": 5}, {"target_modules": ["qkv"], "modules_to_save": ["head"]}),
    "vision": ("ImageClassification", {"num_labels": 2}, {"target_modules": ["qkv"], "modules_to_save": ["head"]}),
    "text": ("SequenceClassification", {"num_labels": 2}, {"target_modules": ["qkv"], "modules_to_save": ["head"]}),
}


def model_of(case: str) -> Model:
    if case != "v1-text":
        return made(case)
    raw = load_recipe("text/v1-base").model_dump(mode="json")
    raw["modality"] |= {"vocab_size": 60, "max_length": 24}
    raw["encoder"] |= ENCODER
    return blank_model(validate_recipe(raw, case))


@pytest.mark.parametrize("case", CASES)
def test_adapter_trains_with_checkpointing_and_survives_saving_and_merging(case: str, tmp_path: Path) -> None:
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")  # seconds, for a slow test
    auto, settings, lora = CASES[case]
    write_transformers_folder(model_of(case), tmp_path / "model")
    labels = torch.tensor(LABELS.get(auto, [0, 1]))
    _, inputs = batch(case.removeprefix("v1-"), padded=True)

    def opened() -> Any:
        torch.manual_seed(0)
        auto_class = getattr(transformers, f"AutoModelFor{auto}")
        return auto_class.from_pretrained(tmp_path / "model", trust_remote_code=True, **settings)

    model = peft.get_peft_model(opened(), peft.LoraConfig(r=4, init_lora_weights=False, **lora))
    gradients = []
    for reentrant in (None, True, False):
        if reentrant is not None:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model.train().zero_grad()
        torch.manual_seed(1)
        model(**inputs, labels=labels).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert sum("lora_" in name for name in gradients[0]) == 2 * 3 * len(lora["target_modules"])
    for with_checkpointing in gradients[1:]:
        torch.testing.assert_close(with_checkpointing, gradients[0])

    model.eval().save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    back = peft.PeftModel.from_pretrained(opened(), tmp_path / "adapter").eval()
    with torch.no_grad():
        expected = model(**inputs).logits
        torch.testing.assert_close(back(**inputs).logits, expected)
        merged = back.merge_and_unload()
        torch.testing.assert_close(merged(**inputs).logits, expected, atol=1e-5, rtol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    assert data2vec.load(tmp_path / "merged").head is not None
