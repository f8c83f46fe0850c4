"""How many examples a property is tried on."""

import os

from hypothesis import settings


def examples(number: int) -> settings:
    """`number` examples, but in `make fuzz` as many as its profile says (`conftest.py`)."""
    is_fuzzing = os.environ.get("DATA2VEC_HYPOTHESIS") == "fuzz"
    return settings(max_examples=settings.get_profile("fuzz").max_examples if is_fuzzing else number)
