"""Settings that every test shares."""

import gc
import os
import signal

# Before torch is imported: two test processes on two cores, each with one thread, are faster than four threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "agg")

from hypothesis import HealthCheck, settings

pytest_plugins = ["helpers.fixtures", "helpers.foreign_pickles"]

# The same examples in every run, and no opinion on how long one takes: machines are shared.
settings.register_profile("data2vec", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("fuzz", deadline=None, max_examples=5000)  # `make fuzz`: other examples in every run
settings.load_profile(os.environ.get("DATA2VEC_HYPOTHESIS", "data2vec"))

# A shell ignores Ctrl-C for what it runs in the background, and nohup a closed terminal; the commands that tests start would
# inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_finish() -> None:
    """Leave what is there before the first test out of garbage collection: hundreds of thousands of objects of libraries and
    collected tests, through which every call of gc.collect in a test would go."""
    gc.collect()
    gc.freeze()
