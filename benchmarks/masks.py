"""How long masks take to draw: `python benchmarks/masks.py`. One thread; the median of many draws of 64 rows."""

import statistics
import time

import numpy as np

from data2vec.objective.masking import BlockMask, SpanMask, TokenMask

CASES = (
    ("speech, 64 x 499", SpanMask(), (499,)),
    ("text, 64 x 512", TokenMask(prob=0.35, length=4, keep=0, random=0), (512,)),
    ("images, 64 x 14 x 14", BlockMask(), (14, 14)),
)

if __name__ == "__main__":
    rng = np.random.default_rng(0)
    for name, mask, grid in CASES:
        times = []
        for _ in range(200):
            begin = time.perf_counter()
            mask.draw(64, grid, rng)
            times.append(time.perf_counter() - begin)
        print(f"{name:22} {1000 * statistics.median(times):.2f} ms")
