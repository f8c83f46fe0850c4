"""What a beam search weighs."""

from typing import Annotated

from pydantic import Field

from data2vec.settings import Settings


class BeamSettings(Settings):
    """What a beam search weighs, and how widely it looks."""

    beam: Annotated[int, Field(gt=0)] = 50
    """Hypotheses that are kept: 50 while training, 1500 for results (fairseq)."""
    token_beam: Annotated[int, Field(gt=0)] | None = None
    """Only so many of the likeliest labels of a frame are tried; none: all."""
    threshold: Annotated[float, Field(gt=0)] = 50.0
    """Hypotheses that are worse than the best by more than this are dropped."""
    lm_weight: float = 2.0
    """Weight of the language model, whose log10-probabilities are added."""
    word_score: float = -1.0
    """Added for every word of the lexicon."""
    silence_score: float = 0.0
    """Added for every frame of the separator."""
    unknown_score: float | None = None
    """Added for a word that is not in the lexicon, which can only be the beginning of one that is (flashlight); none: no such
    words."""
    log_add: bool = False
    """Whether the alignments of a hypothesis are summed; else the best one stands for all."""
