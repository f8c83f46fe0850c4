"""Time to draw masks: `python benchmarks/masks.py`. One thread; median of many draws."""

import statistics
import time

import numpy as np

from data2vec.objective.masking import BlockMask, FixedBlockMask, RandomMask, SpanMask, TokenMask

CASES = (
    ("speech v1, 64 x 499", SpanMask(), 64, (499,)),
    ("text v1, 64 x 512", TokenMask(prob=0.35, length=4, keep=0, random=0), 64, (512,)),
    ("images v1, 64 x 14 x 14", BlockMask(), 64, (14, 14)),
    ("speech v2, 16 x 8 masks x 799", FixedBlockMask(), 16 * 8, (799,)),
    ("text v2, 4 x 8 masks x 512", RandomMask(), 4 * 8, (512,)),
    ("images v2, 16 x 16 masks x 14 x 14", FixedBlockMask(prob=0.8, adjust=0.07, length=3, inverse=True), 16 * 16, (14, 14)),
)

if __name__ == "__main__":
    rng = np.random.default_rng(0)
    for name, mask, rows, grid in CASES:
        times = []
        for _ in range(200):
            begin = time.perf_counter()
            mask.draw(rows, grid, rng)
            times.append(time.perf_counter() - begin)
        print(f"{name:36} {1000 * statistics.median(times):.2f} ms")
