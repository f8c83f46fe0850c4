"""The table of a sweep."""

import math

from data2vec.train.sweeps.sweep import Cell, Sweep


def test_a_combination_of_which_a_seed_has_no_score_is_shown_and_not_the_best() -> None:
    whole, broken = Cell({"train.lr": 1e-5}, [0.5, 0.75]), Cell({"train.lr": 1.0}, [math.nan, math.nan])
    found = Sweep("accuracy", [broken, whole])
    assert found.best is whole and math.isnan(broken.spread)
    assert "0.6250   0.6250   0.1768  train.lr=1e-05  <- best" in str(found) and "nan" in found.to_html()
