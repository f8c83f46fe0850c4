"""The `probe:` section of a recipe, and the `objective:` sections of fine-tuning."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from data2vec.data.mixing import ImageMixing, WaveformMixing
from data2vec.data.sources.selection import RowSelection
from data2vec.objective.masking import SpanMask
from data2vec.settings import Settings


class ProbeSettings(Settings):
    """Probing of frozen features by simple classifiers: by `data2vec probe`, and during training."""

    data: str | None = None
    """Labelled data: a folder of class folders, or one with metadata.csv, tsv or parquet. If a recipe sets it, the student
    is also probed during training."""
    valid: str | None = None
    """Labelled data of the same form to evaluate on; none: a held-out fifth of `data`."""
    data_rows: RowSelection = RowSelection()
    """The rows of `data` to use; all by default."""
    valid_rows: RowSelection = RowSelection()
    """The rows of `valid` to use; all by default."""
    label: str = "label"
    """The label column."""
    group: str | None = None
    """A column of groups, such as subjects: what is held out of `data` has no group in common with the rest."""
    folds: Annotated[int, Field(ge=2)] | Literal["leave-one-out"] | None = None
    """Cross-validation on `data` instead of a held-out fifth: so many folds, of complete groups if there is `group`; or one for
    each group. Scores are means over the folds. Only of `data2vec probe`."""
    column: str | None = None
    """The column of the audio, image or text. None: one with a known name, or the only one."""
    knn_k: Annotated[int, Field(gt=0)] = 10
    """k of the nearest-neighbour classifier (cosine distance)."""
    max_examples: Annotated[int, Field(gt=0)] = 10000
    """Maximum number of examples of `data` and `valid`, and of `data.valid` in pre-training, sampled with the run's seed."""
    every: Annotated[int, Field(gt=0)] = 1000
    """Optimizer steps between probes, and between measurements of the loss on `data.valid`, during pre-training; the first and
    the last step are always probed."""


class SupervisedSettings(Settings):
    """The settings that all fine-tuning tasks share."""

    masks_per_sample: ClassVar[int] = 1
    """One view per input."""
    label: str = "label"
    """The label column."""
    freeze_steps: Annotated[int, Field(ge=0)] = 0
    """Steps in which only the head is trained (fairseq: freeze_finetune_updates); 0 when training from scratch."""
    freeze_encoder: bool = False
    """Train only the head, during the entire run, on frozen features."""
    weighted_layers: bool = False
    """The head takes a learned weighted sum of the outputs of all blocks instead of the last one (SUPERB); the report shows the
    weights."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of an exponential moving average of the weights, such as 0.9999; the average is validated and saved. 0: off."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the input of the head (fairseq: final_dropout)."""
    mask: SpanMask | None = None
    """Masking of spans of positions during training; none: no masking."""
    channel_mask: SpanMask | None = None
    """Masking of spans of channels during training: they are zero at all positions of an input; none: no masking."""
    mask_fill: Literal["vector", "noise", "zero"] = "vector"
    """Content of masked positions: the learned mask vector, which version 2 does not have; Gaussian noise of standard deviation
    0.01; or zeros."""
    validate_every: Annotated[int, Field(gt=0)] = 500
    """Optimizer steps between validations; the last step is always validated, and the best model is saved."""
    patience: Annotated[int, Field(gt=0)] | None = None
    """Early stopping: the run ends after this many validations in a row that are not better than the best; none: it makes all
    steps."""


class BeamSettings(Settings):
    """The width and the weights of a beam search."""

    beam: Annotated[int, Field(gt=0)] = 50
    """Hypotheses kept per frame: 50 while training, 1500 for published results (fairseq)."""
    token_beam: Annotated[int, Field(gt=0)] | None = None
    """Most likely labels tried per frame; none: all."""
    threshold: Annotated[float, Field(gt=0)] = 50.0
    """Hypotheses that score worse than the best by more than this are dropped."""
    lm_weight: float = 2.0
    """Weight of the language model's log10-probabilities."""
    word_score: float = -1.0
    """Added for every word of the lexicon."""
    silence_score: float = 0.0
    """Added for every frame of the separator."""
    unknown_score: float | None = None
    """Added for a word that is not in the lexicon, which can only be a prefix of one that is (flashlight); none: no such
    words."""
    log_add: bool = False
    """Sum the alignments of a hypothesis, instead of taking the best one."""


class CTCDecodingSettings(BeamSettings):
    """How logits become text: greedy decoding; or, with a language model or a lexicon, beam search (data2vec[decode])."""

    lm: str | None = None
    """An n-gram language model: an ARPA file or a KenLM binary."""
    lexicon: str | None = None
    """A file of words, or of words and their spellings; none: the words of the language model."""


class RecognitionSettings(SupervisedSettings):
    """The `objective:` section of speech recognition by CTC."""

    name: Literal["ctc"] = "ctc"
    """The task: connectionist temporal classification."""
    label: str = "transcript"
    """The transcript column."""
    vocabulary: Annotated[tuple[str, ...], Field(strict=False)] | None = None
    """The labels, blank first; none: those of the model's head, or else the characters of the training transcripts."""
    metric: Literal["wer", "cer"] = "wer"
    """The metric that selects the best model: word or character error rate."""
    decode: CTCDecodingSettings = CTCDecodingSettings()
    """Decoding for validation."""


class ClassificationSettings(SupervisedSettings):
    """The `objective:` section of single-label and multi-label classification, and of regression."""

    name: Literal["classify"] = "classify"
    """The task: one prediction per input."""
    problem_type: Literal["single_label_classification", "multi_label_classification", "regression"] = (
        "single_label_classification"
    )
    """One class per input; any number of classes (labels separated by | or ,); or a number."""
    pooling: Literal["mean", "first", "class-token", "attention", "linear-softmax"] = "mean"
    """How positions become one prediction: the mean over positions; the first position (text); the last extra token instead of
    them (EAT); attention pooling with a learned query; or linear-softmax pooling of the logits of every position, where
    confident ones weigh more (AudioSet)."""
    balance_classes: bool = False
    """Oversample rare classes until all are about as frequent as the most frequent one, at most 100 times."""
    draws_per_epoch: Annotated[int, Field(gt=0)] | None = None
    """Weighted sampling: an epoch is so many examples, drawn with replacement, each with the sum over its classes of 1 / their
    number of examples as weight; none: an epoch is every example once."""
    norm_eps: Annotated[float, Field(gt=0)] | None = None
    """Epsilon of a layer norm on the pooled vector; none: no norm."""
    hidden_layer: Literal["linear", "tanh"] | None = None
    """A hidden layer before the output layer, linear or with tanh (text); none: no hidden layer."""
    mixing: ImageMixing | WaveformMixing | None = None
    """Mixing of the inputs of a batch and their labels during training: images and spectrograms, or waveforms."""
    label_scale: Annotated[float, Field(gt=0)] = 1.0
    """Regression: labels are divided by this for training (STS-B: 5). The saved model predicts the labels themselves."""
    metric: Literal[
        "accuracy",
        "balanced_accuracy",
        "kappa",
        "weighted_f1",
        "matthews",
        "f1",
        "accuracy_f1",
        "map",
        "auroc",
        "dprime",
        "pearson_spearman",
        "mean_squared_error",
    ] = "accuracy"
    """The metric that selects the best model."""


TaskSettings = RecognitionSettings | ClassificationSettings
"""The `objective:` section of any fine-tuning task."""
