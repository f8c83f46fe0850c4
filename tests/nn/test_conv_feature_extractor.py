import pytest
import torch
from torch.nn import functional as F

from data2vec.nn.conv_feature_extractor import ConvFrontEnd


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


def test_norm_over_time_leaves_out_padding() -> None:
    torch.manual_seed(0)
    front_end = ConvFrontEnd(((8, 10, 5), (8, 3, 2)), "group")
    torch.nn.init.normal_(front_end.norms[0].weight)
    torch.nn.init.normal_(front_end.norms[0].bias)
    waveform, samples = torch.randn(3, 200), torch.tensor([200, 61, 20])
    together = front_end(waveform, samples)
    for row, count in enumerate(samples.tolist()):
        alone = front_end(waveform[row : row + 1, :count])[0]
        torch.testing.assert_close(together[row, : len(alone)], alone, atol=1e-5, rtol=1e-5)
