"""Which settings in the configuration of a checkpoint are used: each by itself, so that one of them cannot cost the others."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from data2vec.interop.fairseq.key_mapping import FairseqConfig

Path = tuple[str, ...]
Settings = dict[Path, Any]
"""The settings of nested configurations by the path of their keys."""

PRETRAINING_ONLY = re.compile(
    r"(^|\.)(mask_|no_mask|require_same_masks|inverse_mask|keep_masked|add_masks|remove_masks|encoder_zero_mask|ema_|loss_|clone_batch"
    r"|d2v_loss|recon_loss|cls_loss|shared_decoder|decoder\.|average_top_k|target_|min_(target|pred)_var|end_of_block|head_layers"
    r"|\w+_norm_target|l1_beta|l2_loss|layer_results|var_w|\w+_mask_patches|init_extra_token_zero)"
)
"""Settings that a fine-tuned model does not need."""

WITHOUT_EFFECT = {
    # of the run, of initial weights, or derived from others
    "_name", "type", "seed", "max_update", "fp16", "ema_fp32", "ema_same_dtype", "log_norms", "skip_ema", "mae_init",
    "decoder_group", "model_depth", "num_alibi_heads", "embed_dim", "alibi_scale", "max_positions", "normalize", "data",
    "load_checkpoint_heads", "checkpoint_activations", "offload_activations", "min_params_to_wrap",
    "required_seq_len_multiple", "mae_masking",
    # drop path grows with depth up to end_drop_path_rate of the model
    "start_drop_path_rate", "end_drop_path_rate",
    # only with another setting that is listed where it differs
    "mask_channel_length", "mask_channel_before", "mask_channel_selection", "mask_channel_other",
    "no_mask_channel_overlap", "mask_channel_min_space", "mask_min_space", "mask_other", "alibi_max_pos", "alibi_dims",
    "alibi_distance", "enc_dec_transformer", "depthwise_conv_kernel_size", "attn_type", "pos_enc_type", "adp_num",
    "adp_dim", "adp_act_fn", "adp_trf_idx", "projection_ratio", "prenet_layerdrop", "prenet_dropout",
    "learned_alibi_scale", "learned_alibi_scale_per_head", "learned_alibi_scale_per_layer", "init_extra_token_zero",
    # of wav2vec 2.0, and not used by data2vec
    "final_dim", "logit_temp", "quantize_targets", "quantize_input", "same_quantizer", "target_glu", "quantizer_depth",
    "quantizer_factor", "latent_vars", "latent_groups", "latent_dim", "latent_temp", "num_negatives",
    "negatives_from_everywhere", "cross_sample_negatives", "codebook_negatives", "crop_seq_to_multiple",
    # of fairseq's encoder-decoder models, and not used by the encoder
    "max_target_positions", "share_decoder_input_output_embed", "share_all_embeddings", "merge_src_tgt_embed",
    "adaptive_softmax_cutoff", "adaptive_softmax_dropout", "adaptive_softmax_factor", "tie_adaptive_weights",
    "tie_adaptive_proj", "no_cross_attention", "cross_self_attention", "pq_block_size", "base_layers", "base_sublayers",
    "base_shuffle", "export", "no_decoder_final_norm", "embed_path", "layers_to_keep", "xformers_att_config",
    "adaptive_input", "char_inputs",
}  # fmt: skip
"""Official settings that do not change what this package computes, whatever their value."""
NEUTRAL: dict[str, Any] = {
    "dropout_input": 0, "dropout_features": 0, "mask_selection": "static", "no_mask_overlap": False, "mask_dropout": 0,
    "mask_channel_prob": 0, "mask_prob_min": None, "mask_prob_adjust": 0, "inverse_mask": False,
    "relu_dropout": 0, "pq": 0, "scalar": 0, "drop_path_rate": 0,
}  # fmt: skip
"""Official settings without a counterpart here, and the value at which they have no effect."""


class RecordedConfig(dict[str, Any]):
    """A configuration that notes the path of each setting that is read from it in `reads`."""

    def __init__(self, config: Mapping[str, Any], reads: set[Path], path: Path = ()):
        super().__init__({k: RecordedConfig(v, reads, (*path, k)) if isinstance(v, dict) else v for k, v in config.items()})
        self.reads = reads
        self.path = path

    def __getitem__(self, key: str) -> Any:
        self.reads.add((*self.path, key))
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.reads.add((*self.path, key))
        return super().get(key, default)


def flatten(config: FairseqConfig, path: Path = ()) -> Settings:
    """The settings of a nested configuration by path, those of outer levels first."""
    settings: Settings = {}
    for key, value in config.items():
        settings |= flatten(value, (*path, key)) if isinstance(value, dict) and value else {(*path, key): value}
    return dict(sorted(settings.items(), key=lambda item: len(item[0])))


def nest(settings: Settings) -> FairseqConfig:
    """The nested configuration of settings by path."""
    config: FairseqConfig = {}
    for path, value in settings.items():
        section = config
        for key in path[:-1]:
            section = section.setdefault(key, {})
        section[path[-1]] = value
    return config


def usable_settings(settings: Settings, problem_of: Callable[[Settings], str | None]) -> tuple[Settings, dict[Path, str]]:
    """The settings that can be used together, and the problem of each other one.

    `problem_of`: what keeps settings from being used together, or None. None of them must be no problem."""
    used: Settings = {}
    problems: dict[Path, str] = {}

    def add(paths: list[Path]) -> None:
        problem = problem_of(used | {path: settings[path] for path in paths})
        if problem is None:
            used.update({path: settings[path] for path in paths})
            for path in paths:
                problems.pop(path, None)
        elif len(paths) == 1:
            problems[paths[0]] = problem
        else:
            add(paths[: len(paths) // 2])
            add(paths[len(paths) // 2 :])

    add(list(settings))
    for path in list(problems):  # some need others that came later
        add([path])
    return used, problems


def without_counterpart(settings: Settings, reads: Iterable[Path]) -> Settings:
    """The settings that nothing has read and that may have an effect in the official code."""
    known = set(reads)
    return {
        path: value
        for path, value in settings.items()
        if not (path in known or path[-1] in WITHOUT_EFFECT or (path[-1] in NEUTRAL and NEUTRAL[path[-1]] == value))
        and path[:3] != ("model", "transformer", "decoder")
    }
