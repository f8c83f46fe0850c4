import numpy as np
import pytest
import torch

from data2vec.data.erasing import box, erase

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_boxes_have_the_asked_areas_and_ratios():
    rng = np.random.default_rng(0)
    top, left, height, width = np.array([box(300, 400, rng) for _ in range(4000)]).T
    assert (top >= 0).all() and (top + height <= 300).all()
    assert (left >= 0).all() and (left + width <= 400).all()
    area, ratio = height * width / (300 * 400), np.log(height / width)
    assert 0.019 < area.min() < 0.03
    assert 0.32 < area.max() < 0.337
    assert area.mean() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.01)
    assert ratio.min() == pytest.approx(np.log(0.3), abs=0.05)
    assert ratio[area < 0.1].max() == pytest.approx(-np.log(0.3), abs=0.05)
    assert ratio[area < 0.1].mean() == pytest.approx(0, abs=0.05)


def test_noise_is_normal_once_it_is_normalised():
    picture = torch.full((3, 400, 400), 255, dtype=torch.uint8)
    mean, std = (0.5, 0.45, 0.4), (0.1, 0.09, 0.08)  # 4 deviations and more fit into bytes
    erased = erase(picture, 1.0, mean, std, np.random.default_rng(0))
    inside = (erased != 255).all(0)
    values = (erased[:, inside] / 255 - torch.tensor(mean)[:, None]) / torch.tensor(std)[:, None]
    assert values.mean(1).numpy() == pytest.approx(0, abs=0.02)
    assert values.std(1).numpy() == pytest.approx(1, abs=0.02)
    assert torch.corrcoef(values).sub(torch.eye(3)).abs().max() < 0.03  # each colour by itself
    assert (picture == 255).all()  # what was given is left alone


def test_noise_wider_than_bytes_is_cut_off():
    picture = torch.full((3, 64, 64), 100, dtype=torch.uint8)
    erased = erase(picture, 1.0, (0.5,) * 3, (0.5,) * 3, np.random.default_rng(0))
    inside = (erased != 100).any(0)
    assert (erased[:, inside] == 0).float().mean().item() == pytest.approx(0.159, abs=0.04)
    assert (erased[:, inside] == 255).float().mean().item() == pytest.approx(0.159, abs=0.04)


def test_chance_and_seed():
    picture = torch.zeros(3, 32, 32, dtype=torch.uint8)
    erased = [erase(picture, 0.25, MEAN, STD, np.random.default_rng(seed)) for seed in range(2000)]
    assert np.mean([bool(one.any()) for one in erased]) == pytest.approx(0.25, abs=0.03)
    assert torch.equal(erased[7], erase(picture, 0.25, MEAN, STD, np.random.default_rng(7)))
    assert erase(picture, 0.0, MEAN, STD, np.random.default_rng(0)) is picture


@pytest.mark.parametrize(("height", "width"), [(8, 8), (1, 1), (1, 50), (3, 100)])
def test_small_and_narrow_pictures(height, width):
    for seed in range(200):
        top, left, high, wide = box(height, width, np.random.default_rng(seed))
        assert 0 <= top <= top + high <= height and 0 <= left <= left + wide <= width
        assert high * wide <= height * width / 2
        picture = torch.zeros(3, height, width, dtype=torch.uint8)
        erased = erase(picture, 1.0, MEAN, STD, np.random.default_rng(seed))
        assert erased.shape == picture.shape and int(erased.any(0).sum()) <= height * width / 2
