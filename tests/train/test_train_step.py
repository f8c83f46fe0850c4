import torch
from torch import nn

from data2vec.batch import Batch
from data2vec.modalities.speech import SpeechSettings, WaveformEncoder
from data2vec.train.train_step import fraction_with_grad

CPU = torch.device("cpu")


def features(scale: float) -> WaveformEncoder:
    """A local encoder after a backward pass."""
    settings = SpeechSettings(conv_layers=((8, 10, 5), (8, 4, 4)), conv_grad_scale=scale, mask_vector=False)
    built = WaveformEncoder(settings, 16)
    built(Batch(torch.randn(2, 405)))[0].square().sum().backward()
    return built


def test_fraction_with_grad_of_a_frozen_feature_extractor_excludes_it() -> None:
    whole, frozen = features(1.0), features(0.0)
    assert fraction_with_grad(whole, CPU).item() == 1
    rest = sum(p.numel() for name, p in frozen.named_parameters() if not name.startswith("conv."))
    assert fraction_with_grad(frozen, CPU).item() == torch.tensor(rest / sum(p.numel() for p in frozen.parameters())).item()


def test_gradients_of_zero_are_none_and_those_that_are_no_number_are_some() -> None:
    whole = features(1.0)
    for p in whole.parameters():
        p.grad = torch.zeros_like(p)
    assert fraction_with_grad(whole, CPU).item() == 0
    for p in whole.parameters():
        p.grad = torch.full_like(p, torch.nan)
    assert fraction_with_grad(whole, CPU).item() == 1


def test_a_front_end_without_weights_has_nothing_to_learn() -> None:
    assert fraction_with_grad(nn.Identity(), CPU).item() == 1
