"""Synthetic videos: a bright shape that moves over a noisy ground in one of four directions. No single frame shows which."""

from pathlib import Path

import numpy as np

DIRECTIONS = {"right": (0, 1), "left": (0, -1), "down": (1, 0), "up": (-1, 0)}


def write_moving_shapes(folder: Path | str, count: int, seed: int = 0, frames: int = 8, side: int = 32) -> None:
    """Write `count` clips of (frames, side, side, 3) bytes as `folder`/DIRECTION/N.npy, as many of each direction.

    Shape, size, place, colours and speed are random; what leaves the frame comes in on the other side."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side]
    for number in range(count):
        name, (down, right) = list(DIRECTIONS.items())[number % len(DIRECTIONS)]
        size, speed = int(rng.integers(3, 6)), float(rng.uniform(2, 4))
        ground, colour = rng.integers(0, 90, 3), rng.integers(120, 256, 3)
        top, left = rng.uniform(0, side, 2)
        is_disc = rng.random() < 0.5
        clip = np.empty((frames, side, side, 3), np.uint8)
        for time in range(frames):
            dy = (rows - top - down * speed * time + side / 2) % side - side / 2
            dx = (columns - left - right * speed * time + side / 2) % side - side / 2
            inside = dy**2 + dx**2 < size**2 if is_disc else np.maximum(abs(dy), abs(dx)) < size * 0.9
            frame = np.where(inside[..., None], colour, ground) + rng.normal(0, 8, (side, side, 3))
            clip[time] = frame.clip(0, 255)
        (Path(folder) / name).mkdir(parents=True, exist_ok=True)
        np.save(Path(folder) / name / f"{number}.npy", clip)
