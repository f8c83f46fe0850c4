import pytest

from data2vec.console.quantities import format_bytes, format_count, format_duration


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.0123, "12.3 ms"), (2.345, "2.3 s"), (45, "45 s"), (600, "10 min"), (9000, "2.5 h"), (864_000, "10.0 days")],
)
def test_duration_has_a_unit_of_which_there_are_a_few(seconds: float, words: str) -> None:
    assert format_duration(seconds) == words


def test_bytes_and_counts_have_three_digits() -> None:
    assert [format_bytes(n) for n in (0, 999, 7_512_000, 3e12)] == ["0 bytes", "999 bytes", "7.51 MB", "3 TB"]
    assert [format_count(n) for n in (1234, 6_874_000, 1.5e9)] == ["1,234", "6.87 million", "1.5 billion"]
