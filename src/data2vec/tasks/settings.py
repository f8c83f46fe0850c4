"""The `probe:` section of a recipe."""

from typing import Annotated

from pydantic import Field

from data2vec.settings import Settings


class ProbeSettings(Settings):
    """What `data2vec probe` measures, and on what."""

    train: str | None = None
    """Labelled data for fitting the probe: a folder of class folders, or one with metadata.csv, tsv or parquet."""
    valid: str | None = None
    """Labelled data of the same form, on which accuracy is measured."""
    label: str = "label"
    """The column that holds the label."""
    neighbours: Annotated[int, Field(gt=0)] = 10
    """k of the nearest-neighbour classifier (cosine distance)."""
    limit: Annotated[int, Field(gt=0)] = 10000
    """At most this many training examples, drawn with the run's seed."""
