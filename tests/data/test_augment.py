import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from data2vec.data.augment import (
    OPERATIONS,
    RandAugment,
    apply_operation,
    draw_operations,
    rand_augment,
    random_erasing,
    random_erasing_box,
)

FILL = (124, 116, 104)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ON = RandAugment(ops=2)


def tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def enhanced(kind, factor):
    return lambda image: kind(image).enhance(factor)


def test_rand_augment_has_fifteen_operations():
    assert len(set(OPERATIONS)) == 15


@pytest.mark.parametrize(
    ("name", "level", "expected"),
    [
        ("autocontrast", 0.9, ImageOps.autocontrast),
        ("equalize", 0.9, ImageOps.equalize),
        ("invert", -0.9, ImageOps.invert),
        ("posterize", 0.9, lambda image: ImageOps.posterize(image, 1)),
        ("posterize", -0.5, lambda image: ImageOps.posterize(image, 2)),
        ("posterize", 0.0, lambda image: ImageOps.posterize(image, 4)),
        ("solarize", 0.9, lambda image: ImageOps.solarize(image, 26)),
        ("solarize", 0.0, lambda image: image),
        ("color", 0.9, enhanced(ImageEnhance.Color, 1.81)),
        ("contrast", -0.9, enhanced(ImageEnhance.Contrast, 0.19)),
        ("brightness", -1.0, enhanced(ImageEnhance.Brightness, 0.1)),
        ("sharpness", 0.5, enhanced(ImageEnhance.Sharpness, 1.45)),
        ("rotate", 0.9, lambda image: image.rotate(27, Image.Resampling.BICUBIC, fillcolor=FILL)),
        ("rotate", -0.9, lambda image: image.rotate(-27, Image.Resampling.BICUBIC, fillcolor=FILL)),
    ],
)
def test_operations_equal_pillow(picture, name, level, expected):
    image = picture(31, 20)
    assert torch.equal(tensor(apply_operation(image, name, level, FILL)), tensor(expected(image)))


def test_posterize_and_solarize_at_full_strength():
    image = Image.fromarray(np.full((2, 2, 3), 200, np.uint8))
    assert not np.array(apply_operation(image, "posterize", 1.0, FILL)).any()
    assert (np.array(apply_operation(image, "solarize", 1.0, FILL)) == 55).all()


def test_solarize_add_brightens_dark_pixels():
    row = np.array([0, 28, 29, 127, 128, 255], np.uint8)
    image = Image.fromarray(np.repeat(row[None, :, None], 3, axis=2))
    result = np.array(apply_operation(image, "solarize_add", 0.9, FILL))  # by int(99.0)
    assert (result == np.array([99, 127, 128, 226, 128, 255])[None, :, None]).all()


@pytest.mark.parametrize(("level", "shift"), [(0.5, 9), (-0.5, -9)])
def test_translations_move_by_a_fraction_of_the_side(picture, level, shift):
    pixels = tensor(picture(40, 40))
    image = picture(40, 40)
    for name, axis in (("translate_x", 2), ("translate_y", 1)):
        moved = tensor(apply_operation(image, name, level, FILL))  # 0.5 · 0.45 · 40
        kept = 40 - abs(shift)
        assert torch.equal(
            moved.narrow(axis, 0 if shift > 0 else -shift, kept), pixels.narrow(axis, shift if shift > 0 else 0, kept)
        )
        empty = moved.narrow(axis, kept if shift > 0 else 0, abs(shift))
        assert torch.equal(empty, torch.tensor(FILL, dtype=torch.uint8).view(3, 1, 1).expand_as(empty))


def test_shears_are_relative_to_the_upper_left_corner():
    line = np.zeros((20, 20, 3), np.uint8)
    line[:, 10] = 255
    # The result at (x, y) is the source at (x + 0.3·y, y), pixels counted at their centres.
    rows = [np.array(apply_operation(Image.fromarray(line), "shear_x", 1.0, (0, 0, 0)))[y, :, 0] for y in (0, 10)]
    centres, sums = [row @ np.arange(20) for row in rows], [row.sum() for row in rows]
    assert [c / s for c, s in zip(centres, sums, strict=True)] == pytest.approx([10 - 0.15, 10 - 3.15], abs=0.1)
    sideways = apply_operation(Image.fromarray(line.transpose(1, 0, 2)), "shear_y", 1.0, (0, 0, 0))
    upright = apply_operation(Image.fromarray(line), "shear_x", 1.0, (0, 0, 0))
    assert np.array_equal(np.array(sideways).transpose(1, 0, 2), np.array(upright))


def test_rand_augment_with_the_same_seed_is_identical(picture):
    pixels = tensor(picture(32, 24))
    one, same, other = (rand_augment(pixels, RandAugment(ops=8), MEAN, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_rand_augment_without_operations_returns_the_image(picture):
    pixels = tensor(picture(32, 24))
    rng = np.random.default_rng(0)
    assert rand_augment(pixels, RandAugment(), MEAN, rng) is pixels


def test_drawn_operations_and_levels_have_the_stated_distribution():
    rng = np.random.default_rng(0)
    plans = [draw_operations(ON, rng) for _ in range(8000)]
    assert np.bincount([len(plan) for plan in plans], minlength=3) / 8000 == pytest.approx([0.25, 0.5, 0.25], abs=0.02)
    names, levels = zip(*(step for plan in plans for step in plan), strict=True)
    counts = [names.count(name) for name in OPERATIONS]
    assert np.array(counts) / len(names) == pytest.approx(1 / 15, abs=0.012)
    levels = np.array(levels)
    assert (levels < 0).mean() == pytest.approx(0.5, abs=0.02)
    assert abs(levels).max() == 1
    assert (abs(levels) == 1).mean() == pytest.approx(0.0228, abs=0.006)  # two deviations above the mean
    assert np.median(abs(levels)) == pytest.approx(0.9, abs=0.003)
    assert np.quantile(abs(levels), 0.1587) == pytest.approx(0.85, abs=0.005)
    fixed = RandAugment(ops=2, magnitude=3, magnitude_std=0)
    assert {level for _ in range(50) for _, level in draw_operations(fixed, rng)} == {0.3, -0.3}


@pytest.mark.parametrize(("width", "height"), [(8, 8), (5, 40), (1, 1)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_keeps_the_image_size(picture, name, width, height):
    image = picture(width, height)
    for level in (-1.0, 0.0, 0.9):
        assert apply_operation(image, name, level, FILL).size == (width, height)


def test_rand_augment_accepts_any_memory_layout(picture):
    pixels = tensor(picture(20, 12))
    settings = RandAugment(ops=4)
    expected = rand_augment(pixels, settings, MEAN, np.random.default_rng(1))
    assert torch.equal(rand_augment(pixels.contiguous(), settings, MEAN, np.random.default_rng(1)), expected)
    assert expected.shape == (3, 12, 20) and expected.dtype == torch.uint8


def test_random_erasing_boxes_have_the_stated_areas_and_ratios():
    rng = np.random.default_rng(0)
    top, left, height, width = np.array([random_erasing_box(300, 400, rng) for _ in range(4000)]).T
    assert (top >= 0).all() and (top + height <= 300).all()
    assert (left >= 0).all() and (left + width <= 400).all()
    area, ratio = height * width / (300 * 400), np.log(height / width)
    assert 0.019 < area.min() < 0.03
    assert 0.32 < area.max() < 0.337
    assert area.mean() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.01)
    assert ratio.min() == pytest.approx(np.log(0.3), abs=0.05)
    assert ratio[area < 0.1].max() == pytest.approx(-np.log(0.3), abs=0.05)
    assert ratio[area < 0.1].mean() == pytest.approx(0, abs=0.05)


def test_random_erasing_noise_is_standard_normal_after_normalization():
    picture = torch.full((3, 400, 400), 255, dtype=torch.uint8)
    mean, std = (0.5, 0.45, 0.4), (0.1, 0.09, 0.08)  # 4 deviations and more fit into bytes
    erased = random_erasing(picture, 1.0, mean, std, np.random.default_rng(0))
    inside = (erased != 255).all(0)
    values = (erased[:, inside] / 255 - torch.tensor(mean)[:, None]) / torch.tensor(std)[:, None]
    assert values.mean(1).numpy() == pytest.approx(0, abs=0.02)
    assert values.std(1).numpy() == pytest.approx(1, abs=0.02)
    assert torch.corrcoef(values).sub(torch.eye(3)).abs().max() < 0.03  # each colour by itself
    assert (picture == 255).all()  # what was given is left alone


def test_random_erasing_noise_is_clipped_to_bytes():
    picture = torch.full((3, 64, 64), 100, dtype=torch.uint8)
    erased = random_erasing(picture, 1.0, (0.5,) * 3, (0.5,) * 3, np.random.default_rng(0))
    inside = (erased != 100).any(0)
    assert (erased[:, inside] == 0).float().mean().item() == pytest.approx(0.159, abs=0.04)
    assert (erased[:, inside] == 255).float().mean().item() == pytest.approx(0.159, abs=0.04)


def test_random_erasing_probability_and_seed():
    picture = torch.zeros(3, 32, 32, dtype=torch.uint8)
    erased = [random_erasing(picture, 0.25, MEAN, STD, np.random.default_rng(seed)) for seed in range(2000)]
    assert np.mean([bool(one.any()) for one in erased]) == pytest.approx(0.25, abs=0.03)
    assert torch.equal(erased[7], random_erasing(picture, 0.25, MEAN, STD, np.random.default_rng(7)))
    assert random_erasing(picture, 0.0, MEAN, STD, np.random.default_rng(0)) is picture


@pytest.mark.parametrize(("height", "width"), [(8, 8), (1, 1), (1, 50), (3, 100)])
def test_random_erasing_of_small_and_narrow_images(height, width):
    for seed in range(200):
        top, left, high, wide = random_erasing_box(height, width, np.random.default_rng(seed))
        assert 0 <= top <= top + high <= height and 0 <= left <= left + wide <= width
        assert high * wide <= height * width / 2
        picture = torch.zeros(3, height, width, dtype=torch.uint8)
        erased = random_erasing(picture, 1.0, MEAN, STD, np.random.default_rng(seed))
        assert erased.shape == picture.shape and int(erased.any(0).sum()) <= height * width / 2
