import numpy as np
import pytest
import torch

from data2vec.data.mixing import ImageMixing, WaveformMixing, mix_images, mix_waveforms

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
MIXUP = ImageMixing(cutmix=0, label_smoothing=0)
CUTMIX = ImageMixing(mixup=0, label_smoothing=0)


def one_hot(batch: int, labels: int = 0) -> torch.Tensor:
    return torch.eye(labels or batch)[:batch]


def distinct(batch: int, height: int, width: int) -> torch.Tensor:
    """Pictures of one value each."""
    return torch.arange(batch).float().view(-1, 1, 1, 1).expand(-1, 3, height, width).contiguous()


def test_mixup_equals_the_formula() -> None:
    x, y = torch.randn(4, 3, 6, 5), one_hot(4)
    mixed, labels = mix_images(x, y, MIXUP, np.random.default_rng(0))
    kept = labels[0, 0]
    assert 0 < kept < 1
    assert torch.allclose(mixed[0], kept * x[0] + (1 - kept) * x[3])
    assert torch.allclose(mixed[2], kept * x[2] + (1 - kept) * x[1])
    assert torch.allclose(labels, kept * y + (1 - kept) * y.flip(0))


def test_mixed_byte_images_are_bytes() -> None:
    x, y = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8), one_hot(4)
    mixed, labels = mix_images(x, y, MIXUP, np.random.default_rng(0))
    expected, _ = mix_images(x.float(), y, MIXUP, np.random.default_rng(0))
    assert mixed.dtype == torch.uint8
    assert (mixed.float() - expected).abs().max() <= 0.5
    assert labels.dtype == torch.float32


@pytest.mark.parametrize(("height", "width"), [(24, 24), (8, 8), (7, 31), (1, 1)])
def test_cutmix_labels_are_weighted_by_the_clipped_box_area(height: int, width: int) -> None:
    x, y = distinct(4, height, width), one_hot(4).double()
    shares = []
    for seed in range(300):
        mixed, labels = mix_images(x, y, CUTMIX, np.random.default_rng(seed))
        for row in range(4):
            assert ((mixed[row] == row) | (mixed[row] == 3 - row)).all()
            assert labels[row, row].item() == pytest.approx((mixed[row, 0] == row).double().mean().item(), abs=1e-12)
        changed = (mixed[0, 0] != 0).nonzero()
        if len(changed):  # one box
            sides = changed.amax(0) - changed.amin(0) + 1
            assert int(sides.prod()) == len(changed)
        shares.append(labels[0, 0].item())
    if height == width == 24:
        assert min(shares) < 0.25 and max(shares) == 1


def test_mixing_probabilities() -> None:
    x, y = distinct(2, 16, 16), one_hot(2)

    def kinds(settings: ImageMixing) -> dict[str, float]:
        found = {"none": 0, "mixup": 0, "cutmix": 0}
        for seed in range(1000):
            mixed, _ = mix_images(x, y, settings, np.random.default_rng(seed))
            values = mixed.unique()
            between = ((values != 0) & (values != 1)).any()
            found["mixup" if between else "none" if torch.equal(mixed, x) else "cutmix"] += 1
        return {kind: count / 1000 for kind, count in found.items()}

    assert kinds(ImageMixing(prob=0))["none"] == 1
    assert kinds(ImageMixing(prob=0.6, cutmix=0)) == pytest.approx({"none": 0.4, "mixup": 0.6, "cutmix": 0}, abs=0.05)
    assert kinds(ImageMixing(mixup=0))["mixup"] == 0
    assert kinds(ImageMixing(switch_prob=0.3))["mixup"] == pytest.approx(0.7, abs=0.05)
    assert kinds(ImageMixing(mixup=0, cutmix=0))["none"] == 1


def test_mixup_weights_follow_the_beta_distribution() -> None:
    x, y = torch.zeros(2, 3, 1, 1), one_hot(2).double()
    settings = ImageMixing(mixup=0.8, cutmix=0, label_smoothing=0)
    shares = [mix_images(x, y, settings, np.random.default_rng(seed))[1][0, 0].item() for seed in range(3000)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.02)
    assert np.var(shares) == pytest.approx(1 / (4 * (2 * 0.8 + 1)), abs=0.005)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_mixed_labels_sum_to_one(batch: int) -> None:
    y = torch.softmax(torch.randn(batch, 7), dim=1)
    for seed in range(50):
        _, labels = mix_images(distinct(batch, 8, 8), y, ImageMixing(), np.random.default_rng(seed))
        assert labels.sum(1).numpy() == pytest.approx(1, abs=1e-5)
        assert (labels >= 0.1 / 7).all()


def test_label_smoothing_applies_without_mixing() -> None:
    _, labels = mix_images(
        distinct(2, 4, 4), one_hot(2, 10), ImageMixing(prob=0, label_smoothing=0.1), np.random.default_rng(0)
    )
    assert labels[0].numpy() == pytest.approx([0.91] + [0.01] * 9)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("settings", [MIXUP, CUTMIX])
def test_mixing_with_the_same_seed_is_identical(settings: ImageMixing, device: str) -> None:
    x, y = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8), one_hot(6)
    before = x.clone()
    state = torch.get_rng_state()
    one = mix_images(x, y, settings, np.random.default_rng((1, 2)))
    again = mix_images(x.to(device), y.to(device), settings, np.random.default_rng((1, 2)))
    other = mix_images(x, y, settings, np.random.default_rng((1, 3)))
    assert (again[0].cpu().int() - one[0].int()).abs().max() <= (device != "cpu")
    assert torch.allclose(again[1].cpu(), one[1])
    assert not torch.equal(other[0], one[0])
    assert torch.equal(x, before) and torch.equal(torch.get_rng_state(), state)


def test_mixed_waveforms_equal_the_formula() -> None:
    x, y = torch.randn(6, 50), one_hot(6)
    mixed, labels = mix_waveforms(x, y, WaveformMixing(), np.random.default_rng(0))
    kept = labels.diagonal().min()
    assert 0.5 <= kept < 1
    moved = 0
    for row in range(6):
        other = int((labels[row] - kept * y[row]).argmax())
        expected = (kept * x[row] + (1 - kept) * x[other]) / (kept**2 + (1 - kept) ** 2).sqrt()
        assert torch.allclose(mixed[row], expected, atol=1e-6)
        assert torch.allclose(labels[row], kept * y[row] + (1 - kept) * y[other])
        moved += other != row
    assert moved


def test_mixed_waveforms_keep_the_variance() -> None:
    x, y = torch.randn(8, 20_000), (torch.rand(8, 5) < 0.4).float()
    mixed, labels = mix_waveforms(x, y, WaveformMixing(), np.random.default_rng(5))
    # A clip that is its own partner becomes louder, as released.
    own = torch.tensor(np.random.default_rng(5).permutation(8) == np.arange(8))
    assert mixed[~own].std(1).numpy() == pytest.approx(1, abs=0.03)
    assert labels.sum(0).numpy() == pytest.approx(y.sum(0).numpy(), abs=1e-5)  # each label moves, none is lost


def test_waveform_mixing_probability() -> None:
    x, y = torch.randn(200, 4), torch.eye(200)
    mixed, labels = mix_waveforms(x, y, WaveformMixing(prob=0.7), np.random.default_rng(0))
    alone = labels.diagonal() == 1
    assert alone.float().mean().item() == pytest.approx(0.3, abs=0.1)
    assert torch.equal(mixed[alone], x[alone])
    assert len(labels.diagonal()[~alone].unique()) == 1
    same, _ = mix_waveforms(x, y, WaveformMixing(prob=0), np.random.default_rng(0))
    assert torch.equal(same, x)


def test_waveform_weights_are_uniform() -> None:
    x, y = torch.zeros(2, 1), one_hot(2).double()
    shares = [mix_waveforms(x, y, WaveformMixing(), np.random.default_rng(seed))[1][0, 0].item() for seed in range(2000)]
    mixed = [share for share in shares if share < 1]  # a clip may be its own partner
    assert len(mixed) / 2000 == pytest.approx(0.5, abs=0.05)
    assert (min(mixed), np.mean(mixed), max(mixed)) == pytest.approx((0.5, 0.75, 1), abs=0.01)
