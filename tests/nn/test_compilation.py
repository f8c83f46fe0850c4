import shutil

import pytest
import torch

from data2vec.batch import Batch
from data2vec.errors import UserError
from data2vec.nn.compilation import require_compiler, with_compiled_blocks
from data2vec.nn.encoder import build_encoder, padding_invariant
from data2vec.recipe.loading import load_recipe


@pytest.mark.filterwarnings("ignore")  # those of the compiler itself
def test_with_compiled_blocks_gives_the_same_vectors_of_any_length_in_at_most_four_programs() -> None:
    from torch._dynamo.utils import counters

    recipe = load_recipe("speech/v2-tiny", {"encoder.layers": 3})
    encoder = padding_invariant(build_encoder(recipe.build_modality(), recipe.encoder)).eval()
    torch._dynamo.reset()
    counters.clear()
    compiled = with_compiled_blocks(encoder, "eager")
    torch.manual_seed(0)
    with torch.inference_mode():
        for rows, samples in ((1, 4000), (2, 4000), (3, 8000), (1, 6000), (2, 12000), (5, 3000)):
            padding = torch.zeros(rows, samples, dtype=torch.bool)
            padding[1:, samples // 2 :] = True
            batch = Batch(torch.randn(rows, samples) * ~padding, padding if rows > 1 else None)
            (wanted, _), (found, _) = encoder(batch), compiled(batch)
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert 0 < counters["stats"]["unique_graphs"] <= 4
    assert all(one is other for one, other in zip(encoder.parameters(), compiled.parameters(), strict=True))
    assert encoder.transformer.blocks[0]._compiled_call_impl is None


def test_require_compiler_says_what_is_needed_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"^--compile: needs a C\+\+ compiler such as g\+\+ on a CPU, and none was found"):
        require_compiler(torch.device("cpu"), "--compile")
    with pytest.raises(UserError, match=r"needs Triton and a C compiler on a GPU"):
        require_compiler(torch.device("cuda", 0), "--compile")
