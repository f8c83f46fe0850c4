"""The `probe:` section of a recipe, and the `objective:` sections of fine-tuning."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from data2vec.data.mixing import ImageMixing, WaveformMixing
from data2vec.objective.masking import SpanMask
from data2vec.settings import Settings


class ProbeSettings(Settings):
    """What simple classifiers on frozen features are measured on: by `data2vec probe`, and while training."""

    data: str | None = None
    """Labelled data: a folder of class folders, or one with metadata.csv, tsv or parquet. Where a recipe gives it, the
    student is also probed while it is trained."""
    valid: str | None = None
    """Labelled data of the same form, on which accuracy is measured; none: a fifth of `data` is held out for it."""
    label: str = "label"
    """The column that holds the label."""
    knn_k: Annotated[int, Field(gt=0)] = 10
    """k of the nearest-neighbour classifier (cosine distance)."""
    max_examples: Annotated[int, Field(gt=0)] = 10000
    """At most this many examples of `data`, and as many of `valid`, drawn with the run's seed."""
    every: Annotated[int, Field(gt=0)] = 1000
    """Optimizer steps between probes while training; the first and the last step are always probed."""


class SupervisedSettings(Settings):
    """What fine-tuning on any task has in common."""

    masks: ClassVar[int] = 1
    """An input has one view."""
    label: str = "label"
    """The column that holds what is to be told."""
    freeze_steps: Annotated[int, Field(ge=0)] = 0
    """For so many steps only the head learns (fairseq: freeze_finetune_updates); without a model, none."""
    freeze_encoder: bool = False
    """Only the head learns, all the time: what the encoder's features are worth as they are."""
    weighted_layers: bool = False
    """The head is given a learned weighted sum of all blocks' outputs, in place of the last one's (SUPERB); the report shows
    the weights."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of a moving average of all weights, which is what is validated and kept, such as 0.9999; 0: none."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """On the vectors that the head is given (fairseq: final_dropout)."""
    mask: SpanMask | None = None
    """Spans of positions that are hidden in training; without, none are."""
    channel_mask: SpanMask | None = None
    """Spans of channels that are set to zero in training, in all positions of an input."""
    mask_fill: Literal["vector", "noise", "zero"] = "vector"
    """What stands at hidden positions: the model's mask vector; or normal noise of standard deviation 0.01; or zeros. Version 2
    has no mask vector."""
    validate_every: Annotated[int, Field(gt=0)] = 500
    """Optimizer steps between validations; the last step is always validated, and the best model is kept."""


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


class DecodeSettings(BeamSettings):
    """How logits become text: greedy decoding; or, with a language model or a lexicon, beam search (data2vec[decode])."""

    lm: str | None = None
    """An n-gram language model: an ARPA file or a KenLM binary."""
    lexicon: str | None = None
    """A file of words, or of words and their spellings; none: the words of the language model."""


class RecognitionSettings(SupervisedSettings):
    """The `objective:` section of speech recognition by CTC: labels at positions, or blanks."""

    name: Literal["ctc"] = "ctc"
    """The task: connectionist temporal classification."""
    label: str = "transcript"
    """The column that holds the transcript."""
    vocabulary: Annotated[tuple[str, ...], Field(strict=False)] | None = None
    """The labels, blank first; none: those of the model's head, or else the characters of the training transcripts."""
    metric: Literal["wer", "cer"] = "wer"
    """By which the best model is chosen: word or character error rate."""
    decode: DecodeSettings = DecodeSettings()
    """How validation makes text of logits."""


class ClassificationSettings(SupervisedSettings):
    """The `objective:` section of classification, of one class or several, and of regression."""

    name: Literal["classify"] = "classify"
    """The task: one answer an input."""
    problem_type: Literal["single_label_classification", "multi_label_classification", "regression"] = (
        "single_label_classification"
    )
    """One class; or any number of them (several labels in a column are separated by | or ,); or a number."""
    pooling: Literal["mean", "first", "attention", "linear-softmax"] = "mean"
    """The vector of an input: the mean over its positions; the first position's (text); or a mean with weights by a learned
    query. With linear-softmax every position has logits of its own, and confident ones count for more (AudioSet)."""
    balance_classes: bool = False
    """Examples of rare classes are repeated until every class is about as frequent as the commonest, 100 times at most."""
    norm_eps: Annotated[float, Field(gt=0)] | None = None
    """Epsilon of a layer norm on it; without one, there is none."""
    hidden_layer: Literal["linear", "tanh"] | None = None
    """A matrix before the one to the classes, plain or followed by tanh (text)."""
    mixing: ImageMixing | WaveformMixing | None = None
    """Inputs of a batch mixed with one another in training, pictures or waveforms, and their labels with them."""
    label_scale: Annotated[float, Field(gt=0)] = 1.0
    """With regression: numbers are divided by this for training (STS-B: 5)."""
    metric: Literal["accuracy", "matthews", "f1", "accuracy_f1", "pearson_spearman", "map", "mean_squared_error"] = "accuracy"
    """By which the best model is chosen."""
