"""Official checkpoints of all six models are read completely, also old, incomplete and inconsistent ones."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import data2vec
from data2vec.batch import Batch
from data2vec.errors import UserError
from data2vec.model import Model
from data2vec.recipe.loading import load_recipe
from helpers.official_files import CONFIGS, ENCODERS, MODELS, TEACHERS, WIDTH, affine, content, fine_tuned, norm, random, save

ALL = pytest.mark.parametrize("name", MODELS)
COMPUTED = ("version", "relative_position_index", "fixed_positional_encoder.positions")


def numbers(tensors: Mapping[str, Tensor]) -> Tensor:
    """All numbers, in order of size: equal when nothing was lost, changed or taken twice."""
    return torch.cat([value.float().flatten() for name, value in tensors.items() if not name.endswith(COMPUTED)]).sort().values


def parts(model: Model) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The student with its prediction head or decoder; and the teacher."""
    teacher = {name: value for name, value in model.pretraining.items() if name.startswith("teacher.")}
    return model.encoder.state_dict() | {n: v for n, v in model.pretraining.items() if n not in teacher}, teacher


def check(model: Model, name: str) -> None:
    student, teacher = parts(model)
    assert all(value.dtype == torch.float32 for value in student.values())
    assert torch.equal(numbers(student), numbers(random(MODELS[name], half=True)))
    expected = {key: value for key, value in random(TEACHERS[name], seed=1).items() if not key.startswith("lm_head")}
    assert torch.equal(numbers(teacher), numbers(expected))


@ALL
def test_pretrained_model_is_read_completely(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = data2vec.load(save(tmp_path, content(name)))
    check(model, name)
    assert not caplog.records
    assert not model.encoder.training
    assert not any(p.requires_grad for p in model.encoder.parameters())
    assert model.source == "the official checkpoint model.pt"
    objective = model.recipe.build_objective(model.encoder)
    assert {key for key in objective.state_dict() if not key.startswith("student.")} == model.pretraining.keys()
    teacher = model.recipe.objective.teacher
    assert (model.recipe.encoder.heads, teacher.decay) == (4, 0.75)


@ALL
def test_checkpoint_without_configuration_gets_the_released_settings(name: str, tmp_path: Path) -> None:
    made = content(name)
    made["cfg"] = made["args"] = None
    model = data2vec.load(save(tmp_path, made))
    check(model, name)
    heads = 1 if name in ("speech1", "text1", "vision2", "text2") else 4  # told by the table or the scale of ALiBi
    assert model.recipe.encoder.heads == heads
    released = load_recipe(f"{name[:-1]}/v{name[-1]}-base").objective
    assert model.recipe.objective.teacher.decay == released.teacher.decay
    assert model.recipe.objective.beta == released.beta


def test_settings_that_tensors_cannot_give_come_from_the_configuration(tmp_path: Path) -> None:
    recipes = {name: data2vec.load(save(tmp_path, content(name))).recipe for name in MODELS}
    assert recipes["speech1"].objective.teacher.position_encoder == "averaged"
    assert recipes["speech1"].encoder.dropout == recipes["text1"].encoder.dropout == 0.2
    assert recipes["text1"].objective.mask.prob == 0.2  # of its task
    assert recipes["vision1"].objective.target.top_k == 1
    assert (recipes["vision1"].objective.beta, recipes["vision1"].encoder.drop_path) == (1.5, 0.125)
    assert recipes["vision1"].modality.image == 20
    assert recipes["vision2"].objective.teacher.anneal_steps == 77  # "${optimization.max_update}"
    assert recipes["vision2"].objective.cls_loss == 0.5
    assert (recipes["vision2"].encoder.layers, recipes["vision2"].encoder.prenet_layers) == (3, 1)
    assert [recipes[name].objective.mask.prob for name in ("speech2", "vision2")] == [0.25, 0.75]
    assert all(recipes[name].objective.masks_per_sample == 3 for name in ("speech2", "vision2", "text2"))


def test_weights_are_mapped_to_their_counterparts(tmp_path: Path) -> None:
    official = random(MODELS["speech1"], half=True)
    ours = data2vec.load(save(tmp_path, content("speech1"))).encoder.state_dict()
    joined = torch.cat([official[f"encoder.layers.1.self_attn.{part}_proj.weight"] for part in "qkv"]).float()
    assert torch.equal(ours["transformer.blocks.1.attention.qkv.weight"], joined)
    assert torch.equal(ours["position_encoder.convs.1.weight"], official["encoder.pos_conv.1.0.weight"].float())
    assert torch.equal(ours["local_encoder.conv.convs.3.weight"], official["feature_extractor.conv_layers.3.0.weight"].float())
    official = random(MODELS["vision2"], half=True)
    ours = data2vec.load(save(tmp_path, content("vision2"))).encoder.state_dict()
    prenet = official["modality_encoders.IMAGE.context_encoder.blocks.0.mlp.fc2.weight"].float()
    assert torch.equal(ours["transformer.blocks.0.ffn.3.weight"], prenet)
    assert torch.equal(ours["transformer.blocks.2.norm2.bias"], official["blocks.1.norm2.bias"].float())
    patches = official["modality_encoders.IMAGE.local_encoder.proj.weight"].float()
    assert torch.equal(ours["local_encoder.project.weight"], patches.flatten(1))


@ALL
def test_missing_tensor_is_named(name: str, tmp_path: Path) -> None:
    optional = (*COMPUTED, "decoder.proj.bias") if name == "text2" else COMPUTED
    wanted = [key for key in MODELS[name] if not key.endswith(optional)]
    for key in wanted[:: max(1, len(wanted) // 12)]:
        made = content(name)
        del made["model"][key]
        with pytest.raises(UserError, match=rf"weights are missing: .*{key.replace('final_proj.0', 'final_proj')}"):
            data2vec.load(save(tmp_path, made))
    made = content(name)
    teacher = made.get("model_ema") or made["model"].get("_ema") or made["model"].get("encoder._ema")
    lost = next(key for key in teacher if key.endswith("fc1.weight"))
    del teacher[lost]
    with pytest.raises(UserError, match=rf"weights are missing: .*{lost}"):
        data2vec.load(save(tmp_path, made))


@ALL
def test_checkpoint_with_encoder_only_is_read(name: str, tmp_path: Path) -> None:
    made = content(name)
    made["model"] = random(ENCODERS[name])
    made.pop("model_ema", None)
    model = data2vec.load(save(tmp_path, made))
    assert model.pretraining == {}
    assert torch.equal(numbers(model.encoder.state_dict()), numbers(random(ENCODERS[name])))


def test_tensors_override_contradicting_configuration(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    wrong = CONFIGS["speech1"] | {"encoder_layers": 12, "encoder_embed_dim": 768, "conv_pos": 95, "pos_conv_depth": 5}
    check(data2vec.load(save(tmp_path, content("speech1", wrong))), "speech1")
    assert "encoder_layers is 12 in its configuration but 2 in its tensors; using the tensors" in caplog.text
    assert "pos_conv_depth is 5" in caplog.text


def test_unknown_tensors_are_ignored_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in MODELS:
        caplog.clear()
        made = content(name)
        made["model"] |= {"shared.weight": torch.zeros(3), "quantizer.vars": torch.zeros(2)}
        check(data2vec.load(save(tmp_path, made)), name)
        assert "ignored unknown tensors: quantizer.vars, shared.weight" in caplog.text


def _replaced(name: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        name = name.replace(old, new)
    return name


def test_keys_of_older_files_are_renamed(tmp_path: Path) -> None:
    made = content("text1")
    old = {"encoder.sentence": "decoder.sentence", "layernorm_embedding": "emb_layer_norm", "regression_head": "lm_head"}
    renamed = {_replaced(key, old): value for key, value in made["model"].items()}
    check(data2vec.load(save(tmp_path, made | {"model": renamed})), "text1")
    made, root = content("vision2"), "modality_encoders.IMAGE"
    places = made["model"].pop(f"{root}.fixed_positional_encoder.positions")
    made["model"] |= {f"{root}.positional_encoder.pos_embed": places, f"{root}.encoder_mask": torch.zeros(1)}
    check(data2vec.load(save(tmp_path, made)), "vision2")
    made = content("speech2")
    made["model"]["modality_encoders.AUDIO.alibi_scale"].squeeze_(0)
    check(data2vec.load(save(tmp_path, made)), "speech2")


def test_single_alibi_scale_is_expanded_to_all_heads(tmp_path: Path) -> None:
    config = CONFIGS["speech2"] | {"num_heads": 4}
    made = content("speech2", config)
    for tensors in (made["model"], made["model"]["_ema"]):
        tensors["modality_encoders.AUDIO.alibi_scale"] = torch.full((1, 1, 1, 1, 1), 0.5)
    scale = data2vec.load(save(tmp_path, made)).encoder.position_encoder.alibi.scale
    assert scale.tolist() == [0.5] * 4


def test_fixed_positions_other_than_sine_cosine_are_refused(tmp_path: Path) -> None:
    made = content("vision2")
    made["model"]["modality_encoders.IMAGE.fixed_positional_encoder.positions"] += 0.01
    with pytest.raises(UserError, match=r"positions are not sine-cosine positions"):
        data2vec.load(save(tmp_path, made))


def test_unsupported_encoder_setting_is_refused_by_name(tmp_path: Path) -> None:
    for name, change, told in (
        ("vision2", {"layer_norm_first": True}, "layer_norm_first"),
        ("text2", {"norm_affine": False}, "norm_affine"),
        ("speech1", {"layer_type": "conformer"}, "layer_type"),
        ("text1", {"transformer": {"encoder": {"learned_pos": False, "attention_heads": 4}}}, "learned positions"),
        ("speech2", {"modalities": {"audio": {"conv_pos_pre_ln": True}}}, "conv_pos_pre_ln"),
    ):
        with pytest.raises(UserError, match=told):
            data2vec.load(save(tmp_path, content(name, CONFIGS[name] | change)))
    made = content("speech1")
    made["model"] |= {"encoder.pos_conv.0.weight_g": torch.zeros(1, 1, 128)}
    with pytest.raises(UserError, match=r"wav2vec 2\.0 \(pos_conv_depth: 1\)"):
        data2vec.load(save(tmp_path, made))


UNUSABLE = [
    ("vision2", {"recon_loss": 1}, "recon_loss 1 (recon_loss 1 is not supported, only 0)"),
    (
        "speech2",
        {"average_top_k_layers": 9},
        "average_top_k_layers 9 (objective.target.top_k: 9 is more than encoder.layers, 2)",
    ),
    ("text1", {"loss_scale": "strange"}, "loss_scale 'strange' ('<=' not supported"),
    ("vision1", {"target_layers": "[0]"}, "target_layers [0] (target_layers [0] is not supported"),
    ("speech1", {"mask_prob": 1.5}, "mask_prob 1.5 (its recipe: objective.mask.prob"),
]


@pytest.mark.parametrize(("name", "change", "told"), UNUSABLE, ids=[name for name, _, _ in UNUSABLE])
def test_unusable_setting_is_listed_and_costs_no_other(
    name: str, change: dict[str, Any], told: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = data2vec.load(save(tmp_path, content(name))).recipe
    model = data2vec.load(save(tmp_path, content(name, CONFIGS[name] | change)))
    check(model, name)
    assert len(caplog.records) == 1
    assert f"settings not understood, left at those of the released recipe: {told}" in caplog.text
    released = {"average_top_k_layers": "top_k", "loss_scale": "loss_scale", "target_layers": "top_k", "mask_prob": "prob"}
    ours, theirs = model.recipe.objective.flat(), expected.objective.flat()
    changed = {key.rpartition(".")[2] for key in ours if ours[key] != theirs[key]}
    assert changed <= {released.get(next(iter(change)))}
    assert (model.recipe.encoder, model.recipe.objective.teacher.decay) == (expected.encoder, 0.75)


def test_several_unusable_settings_are_all_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    unusable = {"recon_loss": 1, "d2v_loss": 0.5, "loss_beta": -1, "shared_decoder": {"decoder_dim": 8}}
    model = data2vec.load(save(tmp_path, content("vision2", CONFIGS["vision2"] | unusable)))
    assert all(name in caplog.text for name in unusable)
    assert (model.recipe.objective.teacher.decay, model.recipe.objective.masks_per_sample) == (0.75, 3)


def test_prenet_setting_without_prenet_is_no_obstacle(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    audio = {"mask_prob": 0.25, "prenet_layerdrop": 0.05, "prenet_depth": 0, "prenet_dropout": 0.1}
    model = data2vec.load(save(tmp_path, content("speech2", CONFIGS["speech2"] | {"modalities": {"audio": audio}})))
    assert not caplog.records
    assert (model.recipe.objective.mask.prob, model.recipe.objective.masks_per_sample) == (0.25, 3)


def test_dropout_stands_for_those_that_older_files_lack(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("speech2", "vision2", "text2"):
        recipe = data2vec.load(save(tmp_path, content(name, CONFIGS[name] | {"encoder_dropout": 0.3}))).recipe
        assert recipe.encoder.dropout == 0.3
        assert not caplog.records
    data2vec.load(save(tmp_path, content("speech2", CONFIGS["speech2"] | {"encoder_dropout": 0.3, "post_mlp_drop": 0.1})))
    assert "post_mlp_drop 0.1 (post_mlp_drop 0.1 is not supported, only 0.3)" in caplog.text


def test_drop_path_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    changes = {"start_drop_path_rate": 0.1, "end_drop_path_rate": 0.2, "modalities": {"image": {"end_drop_path_rate": 0.0}}}
    recipe = data2vec.load(save(tmp_path, content("vision2", CONFIGS["vision2"] | changes))).recipe
    assert recipe.encoder.drop_path == 0.2
    assert not caplog.records


def test_setting_without_a_counterpart_is_listed_where_it_has_an_effect(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes = {"mask_channel_prob": 0.1, "mask_channel_length": 64, "dropout_input": 0.0, "num_negatives": 7, "new_thing": [1]}
    data2vec.load(save(tmp_path, content("speech1", CONFIGS["speech1"] | changes)))
    assert caplog.text.endswith("settings without a counterpart here, ignored: mask_channel_prob 0.1; new_thing [1]\n")


def test_emotion2vec_is_opened_as_speech_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = content("speech2", CONFIGS["speech2"] | {"cls_type": "chunk", "cls_loss": 1, "skip_ema": True})
    tokens = torch.randn(1, 3, WIDTH, generator=torch.Generator().manual_seed(1))
    for tensors in (made["model"], made["model"]["_ema"]):
        tensors["modality_encoders.AUDIO.extra_tokens"] = tokens
    model = data2vec.load(save(tmp_path, made))
    assert "an emotion2vec model, opened as data2vec 2 speech; its utterance-level loss is left out" in caplog.text
    assert torch.equal(model.encoder.transformer.extra_tokens.view(3, -1), tokens[0])
    assert model.features([torch.randn(4000)]).hidden.shape[-1] == WIDTH


def test_fine_tuned_model_needs_no_settings_of_pretraining(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = fine_tuned("speech2", affine("w2v_encoder.proj", 32, WIDTH), "w2v_encoder.w2v_model.", _name="wav2vec_ctc")
    audio = {"encoder_zero_mask": False, "mask_length": 10, "mask_prob": 0.5, "mask_dropout": 0.1}
    inner = made["cfg"]["model"]["w2v_args"]
    inner["model"] = CONFIGS["speech2"] | {"recon_loss": 1, "layerdrop": 0.25, "modalities": {"audio": audio}}
    model = data2vec.load(save(tmp_path, made))
    assert model.recipe.encoder.layerdrop == 0.25
    assert not caplog.records


def test_conv_strides_come_from_the_configuration_or_wav2vec(tmp_path: Path) -> None:
    first = {"feature_extractor.conv_layers.0.0.weight": torch.randn(8, 1, 8)}
    with pytest.raises(UserError, match=r"give the strides of the convolutions \[8, 3, 3, 3, 3, 2, 2\]"):
        data2vec.load(save(tmp_path, content("speech1", **first)))
    strides = CONFIGS["speech1"] | {"conv_feature_layers": "[(512,8,4)] + [(512,3,3)] * 4 + [(512,2,1)] * 2"}
    recipe = data2vec.load(save(tmp_path, content("speech1", strides, **first))).recipe
    assert recipe.modality.conv_layers == ((8, 8, 4), *[(8, 3, 3)] * 4, *[(8, 2, 1)] * 2)


def test_configuration_in_omegaconf_or_namespace_is_read(tmp_path: Path, libraries: None) -> None:
    from helpers.foreign_pickles import DictConfig, Node

    def omegaconf(tree: Any) -> Any:
        return DictConfig({k: omegaconf(v) for k, v in tree.items()}) if isinstance(tree, dict) else Node(tree)

    for name in MODELS:
        made = content(name)
        made["cfg"] = omegaconf(made["cfg"] if "cfg" in made else {"model": vars(made.pop("args"))})
        recipe = data2vec.load(save(tmp_path, made)).recipe
        assert recipe == data2vec.load(save(tmp_path, content(name), "plain.pt")).recipe
        if name in ("speech1", "vision1"):
            made = content(name) | {"cfg": None, "args": argparse.Namespace(**CONFIGS[name])}
            assert data2vec.load(save(tmp_path, made)).recipe == recipe


def test_file_without_a_data2vec_model_is_refused(tmp_path: Path) -> None:
    for made, told in (
        ([torch.zeros(1)], "expected a checkpoint with named weights, found a list"),
        ({"model": {}}, "not a data2vec 1 or 2 model; its keys: none"),
        ({"weight": torch.zeros(2)}, "its keys: weight"),
        ({"model": {"modality_encoders.AUDIO.x": torch.zeros(1), "modality_encoders.TEXT.x": torch.zeros(1)}}, "AUDIO, TEXT"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=told):
            data2vec.load(save(tmp_path, made))
    with pytest.raises(UserError, match=r"blocks\.0\.mlp\.fc2\.weight has shape \(96, 64\)"):
        data2vec.load(save(tmp_path, content("vision1", **{"blocks.0.mlp.fc2.weight": torch.zeros(96, WIDTH)})))


def test_fairseq_port_of_vision_1_gives_its_encoder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = {"cls_token": "cls_emb", "mask_token": "mask_emb", "embed.proj": "embed.conv", "lm_head": "final_proj",
             "fc1": "0", "fc2": "2"}  # fmt: skip
    inside = ("blocks.", "norm.", "rel_pos_bias.")
    made = {
        _replaced(f"encoder.{key}" if key.startswith(inside) else key, names): value
        for key, value in random(MODELS["vision1"]).items()
    }
    model = data2vec.load(save(tmp_path, {"cfg": {"model": {"image_size": 20}}, "model": made | {"_ema": {}}}))
    assert torch.equal(numbers(model.encoder.state_dict()), numbers(random(ENCODERS["vision1"])))
    assert (model.recipe.encoder.norm_eps, model.pretraining) == (1e-5, {})
    assert "only the encoder is used" in caplog.text


def test_ctc_labels_come_from_file_then_dictionary_then_numbers(tmp_path: Path, libraries: None) -> None:
    from helpers.foreign_pickles import Dictionary

    for name in ("speech1", "speech2"):
        made = fine_tuned(name, affine("w2v_encoder.proj", 32, WIDTH), "w2v_encoder.w2v_model.", _name="wav2vec_ctc")
        model = data2vec.load(save(tmp_path, made))
        assert torch.equal(numbers(model.encoder.state_dict()), numbers(random(ENCODERS[name], half=True)))
        assert model.head is not None
        assert torch.equal(model.head.out.weight, made["model"]["w2v_encoder.proj.weight"])
        assert model.head.settings.labels[:6] == ("<s>", "<pad>", "</s>", "<unk>", "|", "E")
        assert (model.recipe.encoder.heads, model.pretraining) == (4, {})
    made = fine_tuned("speech1", affine("w2v_encoder.proj", 6, WIDTH), "w2v_encoder.w2v_model.")
    labels = [data2vec.load(save(tmp_path, made)).head.settings.labels]
    (tmp_path / "dict.ltr.txt").write_text("| 9\nÄ 3\n")
    labels.append(data2vec.load(save(tmp_path, made)).head.settings.labels)
    made["task_state"] = {"target_dictionary": Dictionary(["<s>", "<pad>", "</s>", "<unk>", "|", "Ö"])}
    labels.append(data2vec.load(save(tmp_path, made)).head.settings.labels)
    assert [each[5] for each in labels] == ["label 5", "Ä", "Ö"]


@pytest.mark.parametrize("name", ["speech1", "speech2"])
def test_speech_head_other_than_ctc_is_ignored_with_a_warning(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = fine_tuned(name, affine("proj", 10, WIDTH), "w2v_encoder.w2v_model.", _name="audio_classification_w2v")
    model = data2vec.load(save(tmp_path, made))
    assert "ignored its head, which is not a CTC head: proj.bias, proj.weight" in caplog.text
    assert model.head is None
    assert torch.equal(numbers(model.encoder.state_dict()), numbers(random(ENCODERS[name], half=True)))


def test_image_classifier_is_read(tmp_path: Path) -> None:
    head = norm("fc_norm") | affine("head", 10, WIDTH)
    model = data2vec.load(save(tmp_path, fine_tuned("vision2", head, "model.", prediction_mode="MEAN_POOLING")))
    settings = model.head.settings
    assert (settings.pooling, settings.norm_eps, settings.hidden_layer, len(settings.labels)) == ("mean", 1e-6, None, 10)
    assert torch.equal(numbers(model.head.state_dict()), numbers(random(head, seed=2)))
    assert torch.equal(numbers(model.encoder.state_dict()), numbers(random(ENCODERS["vision2"], half=True)))
    assert model.recipe.modality.mean[0] == 0.485
    for mode in ("CLS_TOKEN", 3):
        with pytest.raises(UserError, match="prediction_mode"):
            data2vec.load(save(tmp_path, fine_tuned("vision2", head, "model.", prediction_mode=mode)))

    made = fine_tuned("vision1", head)
    for key in ("norm.weight", "norm.bias", "mask_token", "rel_pos_bias.relative_position_bias_table"):
        del made["model"][key]
    tables = random({f"blocks.{i}.attn.relative_position_bias_table": (84, 4) for i in range(2)})
    module = made["model"] | tables
    model = data2vec.load(save(tmp_path, {"module": module}))  # of deepspeed
    assert torch.equal(model.encoder.position_encoder.table, torch.stack(list(tables.values())))
    assert torch.equal(numbers(model.head.state_dict()), numbers(random(head, seed=2)))
    assert (model.recipe.modality.mean, model.recipe.modality.std) == ((0.5,) * 3, (0.5,) * 3)
    assert (model.recipe.encoder.final_norm, model.recipe.modality.mask_vector) == (False, False)
    assert model.head(model.encoder(Batch(torch.zeros(2, 3, 20, 20)))[0]).shape == (2, 10)
    del module["fc_norm.weight"], module["fc_norm.bias"]
    with pytest.raises(UserError, match="prediction_mode CLS_TOKEN"):
        data2vec.load(save(tmp_path, {"module": module}))


def test_sentence_classifier_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def head(name: str, labels: int, inner: int = WIDTH) -> dict[str, tuple[int, ...]]:
        root = f"classification_heads.{name}"
        return affine(f"{root}.dense", inner, WIDTH) | affine(f"{root}.out_proj", labels, inner)

    for name, prefix in (("text1", ""), ("text2", "model.")):
        model = data2vec.load(save(tmp_path, fine_tuned(name, head("mnli", 3), prefix)))
        settings = model.head.settings
        assert (settings.pooling, settings.hidden_layer, settings.hidden_width, settings.norm_eps) == (
            "first",
            "tanh",
            None,
            None,
        )
        assert (len(settings.labels), settings.problem_type) == (3, "single_label_classification")
        assert torch.equal(numbers(model.encoder.state_dict()), numbers(random(ENCODERS[name], half=True)))
        assert torch.equal(numbers(model.head.state_dict()), numbers(random(head("mnli", 3), seed=2)))
        assert model.recipe.encoder.heads == 4
    model = data2vec.load(save(tmp_path, fine_tuned("text1", head("stsb", 1, 48) | head("other", 2))))
    assert (model.head.settings.problem_type, model.head.settings.hidden_width) == ("regression", 48)
    assert "has heads stsb, other; using stsb" in caplog.text


def test_tokenizer_beside_the_checkpoint_is_used(tmp_path: Path) -> None:
    from data2vec.data.tokenizer import save_tokenizer, train_tokenizer

    assert data2vec.load(save(tmp_path, content("text1"))).recipe.data.tokenizer is None
    save_tokenizer(train_tokenizer(["a small text"] * 3, 300), tmp_path)
    recipe = data2vec.load(save(tmp_path, content("text1"))).recipe
    assert recipe.data.tokenizer == str(tmp_path.resolve())
