"""Hostile inputs, and the entry points that open them."""

import os

# Before torch is imported: processes that are forked must have no threads.
for name, value in (
    ("OMP_NUM_THREADS", "1"),
    ("HF_HUB_OFFLINE", "1"),
    ("MPLBACKEND", "agg"),
    ("TOKENIZERS_PARALLELISM", "false"),
):
    os.environ.setdefault(name, value)
