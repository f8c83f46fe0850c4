"""torch.compile: whether a machine has what it needs, and encoders for inference whose blocks are compiled."""

import copy
import importlib.util
import os
import shutil

import torch

from data2vec.errors import UserError
from data2vec.nn.encoder import Encoder


def can_compile(device: torch.device) -> bool:
    """Whether there is what PyTorch's compiler needs: on a GPU Triton and a C compiler, on a CPU a C++ compiler."""
    if device.type == "cuda":
        compilers = (os.environ.get("CC", "gcc"), "gcc", "cc", "clang")
        return importlib.util.find_spec("triton") is not None and any(map(shutil.which, compilers))
    return any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++")))


def require_compiler(device: torch.device, setting: str) -> None:
    """Raises UserError, which begins with `setting`, if `can_compile` is False."""
    if not can_compile(device):
        needed = "Triton and a C compiler on a GPU" if device.type == "cuda" else "a C++ compiler such as g++ on a CPU"
        raise UserError(f"{setting}: needs {needed}, and none was found; install that, or do not compile")


def with_compiled_blocks(encoder: Encoder, backend: str = "inductor") -> Encoder:
    """A copy of an encoder, all weights shared, whose Transformer blocks are compiled when they are first called, for any
    lengths and batch sizes. Results differ by rounding. `backend`: that of `torch.compile`, for tests without a compiler."""
    shared = {id(tensor): tensor for tensor in (*encoder.parameters(), *encoder.buffers())}
    copied = copy.deepcopy(encoder, shared)
    for block in copied.transformer.blocks:
        block.compile(backend=backend, dynamic=True)
    return copied
