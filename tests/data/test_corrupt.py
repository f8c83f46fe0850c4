import pytest

from data2vec.data.corrupt import CorruptExamples
from data2vec.errors import RunStopped


def test_number_of_tolerated_corrupt_examples():
    corrupt = CorruptExamples(0.01, 300)
    corrupt.add(["a: torn", "b: torn", "a: torn"])
    corrupt.add(["c: torn"])
    assert len(corrupt.names) == 3
    with pytest.raises(RunStopped, match=r"4 of 300 .* a: torn; b: torn; c: torn; and 1 more\. Repair"):
        corrupt.add(["d: torn"])
    CorruptExamples(0.01, 20).add(["one is tolerated"])
    with pytest.raises(RunStopped, match="1 of 20"):
        CorruptExamples(0.0, 20).add(["none is tolerated"])
