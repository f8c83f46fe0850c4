"""The `probe:` section of a recipe."""

from typing import Annotated

from pydantic import Field

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
    neighbours: Annotated[int, Field(gt=0)] = 10
    """k of the nearest-neighbour classifier (cosine distance)."""
    limit: Annotated[int, Field(gt=0)] = 10000
    """At most this many examples of `data`, and as many of `valid`, drawn with the run's seed."""
    every: Annotated[int, Field(gt=0)] = 1000
    """Optimizer steps between probes while training; the first and the last step are always probed."""
