"""Small random images as files."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_pictures(folder: Path, count: int, seed: int = 0, digits: int = 1) -> Path:
    """Write `count` images of 32×32 with 4×4 colours, as 0.png and so on, padded to `digits`; returns `folder`."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        colours = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(colours).resize((32, 32)).save(folder / f"{i:0{digits}}.png")
    return folder
