import pytest
import torch
from torch.nn import functional as F

from data2vec.nn.conv_feature_extractor import ConvFrontEnd, convolve


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (2, 2), (10, 5), (3, 1), (5, 2), (2, 3)])
def test_convolve_is_a_convolution_forward_and_backward(kernel: int, stride: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 53, 6, dtype=torch.double, generator=generator, requires_grad=True)
    weight = torch.randn(5, 6, kernel, dtype=torch.double, generator=generator, requires_grad=True)
    ours, theirs = convolve(x, weight, stride), F.conv1d(x.transpose(1, 2), weight, stride=stride).transpose(1, 2)
    seed = torch.randn(theirs.shape, dtype=torch.double, generator=generator)
    torch.testing.assert_close(ours, theirs)
    for mine, expected in zip(
        torch.autograd.grad(ours, [x, weight], seed), torch.autograd.grad(theirs, [x, weight], seed), strict=True
    ):
        torch.testing.assert_close(mine, expected)


def test_convolve_takes_an_input_that_is_not_contiguous() -> None:
    x, weight = torch.randn(2, 6, 20).transpose(1, 2), torch.randn(5, 6, 3)
    torch.testing.assert_close(convolve(x, weight, 2), F.conv1d(x.transpose(1, 2), weight, stride=2).transpose(1, 2))


def test_convolve_refuses_an_input_shorter_than_its_kernel() -> None:
    with pytest.raises(ValueError, match="2 steps is shorter than the kernel of 3"):
        convolve(torch.randn(1, 2, 4), torch.randn(4, 4, 3), 2)


@pytest.mark.parametrize(
    ("samples", "vectors"),
    [(399, 0), (400, 1), (719, 1), (720, 2), (16000, 49), (32000, 99), (80000, 249), (160000, 499), (320000, 999)],
)
def test_length_of_the_standard_front_end(samples: int, vectors: int) -> None:
    front_end = ConvFrontEnd()
    assert front_end.length(samples) == vectors
    assert front_end.length(torch.tensor([samples])).tolist() == [vectors]


@pytest.mark.parametrize(("norm", "bias"), [("layer", False), ("layer", True), ("group", False), ("group", True)])
def test_front_end_equals_the_textbook_form(norm: str, bias: bool) -> None:
    torch.manual_seed(0)
    layers = ((8, 10, 5), (8, 3, 2), (12, 2, 2))
    front_end = ConvFrontEnd(layers, norm, bias)
    wave = torch.randn(2, 400)
    x = wave[:, None]
    for i, conv in enumerate(front_end.convs):
        x = conv(x)
        if norm == "layer":
            x = front_end.norms[i](x.transpose(1, 2)).transpose(1, 2)
        elif i == 0:
            x = front_end.norms[0](x)
        x = F.gelu(x)
    torch.testing.assert_close(front_end(wave), x.transpose(1, 2), atol=1e-5, rtol=1e-5)
    assert front_end(wave).shape[1] == front_end.length(400)


def test_a_norm_over_time_leaves_out_what_is_not_there() -> None:
    torch.manual_seed(0)
    front_end = ConvFrontEnd(((8, 10, 5), (8, 3, 2)), "group")
    torch.nn.init.normal_(front_end.norms[0].weight)
    torch.nn.init.normal_(front_end.norms[0].bias)
    waveform, samples = torch.randn(3, 200), torch.tensor([200, 61, 20])
    together = front_end(waveform, samples)
    for row, count in enumerate(samples.tolist()):
        alone = front_end(waveform[row : row + 1, :count])[0]
        torch.testing.assert_close(together[row, : len(alone)], alone, atol=1e-5, rtol=1e-5)
