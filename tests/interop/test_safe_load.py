"""Files of the official form are read whole, in both formats of torch.save, though none of their libraries is there."""

import argparse
import sys
import typing
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data2vec.errors import UserError
from data2vec.interop.safe_load import Stub, safe_load, to_plain
from helpers.foreign_pickles import Choice, Config, DictConfig, Dictionary, ListConfig, Meters, Node

Save = Callable[[Any], Path]
ELEMENTS = typing.Optional[typing.List[int]]  # noqa: UP006, UP045 - in the form of the official code


@pytest.fixture(params=["zip", "legacy"])
def save(request: pytest.FixtureRequest, tmp_path: Path) -> Save:
    def write(content: Any, **options: Any) -> Path:
        path = tmp_path / "model.pt"
        torch.save(content, path, _use_new_zipfile_serialization=request.param == "zip", **options)
        return path

    return write


def without_libraries(path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a process reads that has none of them."""
    with monkeypatch.context() as patch:
        for name in [name for name in sys.modules if name.split(".")[0] in ("omegaconf", "fairseq", "examples")]:
            patch.delitem(sys.modules, name)
        content = safe_load(path)
        assert not {"omegaconf", "fairseq", "examples"} & {name.split(".")[0] for name in sys.modules}
    return content


def same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and left.shape == right.shape and bool((left == right).all())
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    return type(left) is type(right) and left == right


def tensors() -> dict[str, Any]:
    torch.manual_seed(0)
    base = torch.randn(4, 6)
    weights = {str(dtype): (base * 10).to(dtype) for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64,
               torch.int64, torch.int32, torch.int16, torch.int8, torch.bool, torch.complex64)}  # fmt: skip
    return weights | {"part": base[1:, ::2].t(), "none": torch.empty(0, 3), "scalar": torch.tensor(2.5)}


def test_tensors_are_read_in_every_dtype(save: Save) -> None:
    assert same(safe_load(save(tensors())), tensors())


def test_state_dict_is_read(save: Save) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    state = model.state_dict()
    assert same(safe_load(save(state)), dict(state))  # its _metadata is an attribute of an OrderedDict


def test_parameters_become_tensors_without_gradient(save: Save) -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.param_group = "decoder"  # type: ignore[attr-defined]
    (read_one,) = safe_load(save([parameter]))
    assert type(read_one) is torch.Tensor and read_one.tolist() == [1.0, 1.0] and not read_one.requires_grad


def test_shared_storages_stay_shared(save: Save) -> None:
    base = torch.arange(10)
    whole, part = safe_load(save([base, base[3:5]]))
    part.zero_()
    assert whole.tolist() == [0, 1, 2, 0, 0, 5, 6, 7, 8, 9]


def test_writing_to_a_tensor_leaves_the_file(save: Save) -> None:
    path = save([torch.ones(3)])
    before = path.read_bytes()
    safe_load(path)[0].zero_()
    assert path.read_bytes() == before


def test_plain_content_is_read(save: Save) -> None:
    content = {
        "numbers": [1, -1, 300, 70000, 2**40, -(2**70), 1.5, True, None],
        "text": ["", "ü" * 300, b"", b"\x00\xff"],
        "containers": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), set(), {1, 2}, frozenset({3}), {}, []],
        1: OrderedDict(b=1, a=2),
        "default": defaultdict(list, {"x": [1]}),
        "numpy": [np.float64(1.5), np.float32(0.5), np.int64(-3), np.bool_(True)],
        "path": Path("/checkpoint/user"),
        "size": torch.Size([2, 3]),
    }
    expected = content | {
        1: {"b": 1, "a": 2}, "default": {"x": [1]}, "numpy": [1.5, 0.5, -3, True], "path": str(Path("/checkpoint/user")),
        "size": torch.Size([2, 3]),
    }  # fmt: skip
    assert same(safe_load(save(content)), expected)


@pytest.mark.parametrize("protocol", [4, 5])
def test_other_pickle_protocols_are_refused_by_number(save: Save, protocol: int) -> None:
    with pytest.raises(UserError, match="the pickle operation FRAME of pickle protocol 4"):
        safe_load(save({"a": 1}, pickle_protocol=protocol))


def test_numpy_arrays_are_read(save: Save) -> None:
    arrays = [np.arange(6.0).reshape(2, 3), np.asfortranarray(np.eye(3, dtype=np.int32)), np.array(True)]
    for got, array in zip(safe_load(save(arrays)), arrays, strict=True):
        assert got.dtype == array.dtype and np.array_equal(got, array)


def stub(name: str, *arguments: Any, state: Any = None) -> Any:
    made = type("Made", (Stub,), {"name": name})(*arguments)
    made.state = state
    return made


def test_classes_become_stubs_with_their_name(save: Save) -> None:
    content = safe_load(save([list[int], ELEMENTS, typing.Any, int, torch.float16, torch.device("cpu")]))
    stubs = content[:4]
    assert all(isinstance(item, Stub) or issubclass(item, Stub) for item in stubs)
    assert to_plain(content[2:]) == ["typing.Any", "builtins.int", "torch.float16", "cpu"]


def test_fairseq_checkpoint_is_read_without_its_libraries(save: Save, libraries: None, monkeypatch: pytest.MonkeyPatch) -> None:
    config = DictConfig({
        "_name": Node("data2vec_multi"), "missing": Node("???"), "nothing": DictConfig(None), "mode": Node(Choice.LAYER),
        "layers": ListConfig([Node(1), Node(2)]), "audio": DictConfig({"depth": Node(5)}), "later": DictConfig("???"),
    })  # fmt: skip
    ema = OrderedDict(a=torch.randn(3), b=torch.randn(2))
    meters = Meters(loss=np.float64(0.25))
    meters.best = 1.0  # type: ignore[attr-defined]
    path = save({
        "args": argparse.Namespace(lr=[0.1], task="audio"), "cfg": {"model": config, "common": Config()},
        "model": OrderedDict({"proj.weight": torch.randn(2, 2).half(), "_ema": ema}),
        "task_state": {"target_dictionary": Dictionary(["<s>", "a"])}, "extra_state": {"metrics": meters},
        "by_choice": {Choice.LAYER: 1},
    })  # fmt: skip
    content = without_libraries(path, monkeypatch)
    assert same(content["model"]["_ema"], dict(ema)) and content["model"]["proj.weight"].dtype == torch.float16
    stand_in = content["cfg"]["model"]
    assert (stand_in.name, stand_in.arguments) == ("omegaconf.dictconfig.DictConfig", ())
    assert content["extra_state"]["metrics"] == {"loss": 0.25}
    del content["model"]
    assert to_plain(content) == {
        "args": {"lr": [0.1], "task": "audio"},
        "cfg": {
            "model": {
                "_name": "data2vec_multi", "missing": "???", "nothing": None, "mode": "layer_norm", "layers": [1, 2],
                "audio": {"depth": 5}, "later": "???",
            },
            "common": {"depth": 2, "mode": "layer_norm", "rates": [0.5]},
        },
        "task_state": {"target_dictionary": {"symbols": ["<s>", "a"], "count": [1, 1], "indices": {"<s>": 0, "a": 1}}},
        "extra_state": {"metrics": {"loss": 0.25}},
        "by_choice": {"layer_norm": 1},
    }  # fmt: skip


def test_deepspeed_checkpoint_is_read(save: Save) -> None:
    content = {"module": OrderedDict({"head.weight": torch.randn(2, 3).half()}), "optimizer": None, "dp_world_size": 8,
               "global_steps": 5, "skipped_steps": 0, "lr_scheduler": None, "csr_tensor_module_names": set()}  # fmt: skip
    assert same(safe_load(save(content)), content | {"module": dict(content["module"])})


def test_to_plain_keeps_sharing(save: Save) -> None:
    laughs: Any = ["ha"]
    for _ in range(60):  # 2^60 strings, were they written out
        laughs = [laughs, laughs]
    got = to_plain(safe_load(save(laughs)))
    for _ in range(60):
        assert got[0] is got[1]
        got = got[0]
    assert got == ["ha"]


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def cycle() -> Any:
    value: list[Any] = []
    value.append({"again": value})
    return value


def side_by_side() -> Any:
    """Each list holds the one before it, and all are first met near the top."""
    chain = [nested(0)]
    for _ in range(150):
        chain.append([chain[-1]])
    return chain


@pytest.mark.parametrize("make", [lambda: nested(101), cycle, side_by_side], ids=["deep", "cycle", "side-by-side"])
def test_to_plain_refuses_cycles_and_deep_nesting(make: Callable[[], Any]) -> None:
    assert to_plain(nested(90)) == nested(90)
    with pytest.raises(UserError, match="contains itself, or is nested deeper than 100"):
        to_plain(make())


def test_to_plain_refuses_keys_other_than_strings_and_numbers() -> None:
    with pytest.raises(UserError, match="a tuple as a key"):
        to_plain({stub("fairseq.Key", (1, 2)): 1})
    with pytest.raises(UserError, match="a list as a key"):
        to_plain({stub("fairseq.Key", state=[1]): 1})


def test_to_plain_of_slots_calls_and_functions() -> None:
    slots = stub("fairseq.Slots", state=(None, {"width": 3}))
    assert to_plain([slots, stub("fairseq.Two", 1, 2), type(stub("fairseq.f"))]) == [{"width": 3}, None, "fairseq.f"]


def test_classes_registered_with_torch_are_not_used_and_stay_registered(save: Save) -> None:
    with torch.serialization.safe_globals([argparse.Namespace]):
        (read,) = safe_load(save([argparse.Namespace(lr=1)]))
        assert argparse.Namespace in torch.serialization.get_safe_globals()
    assert isinstance(read, Stub) and to_plain(read) == {"lr": 1}
    assert not [entry for entry in torch.serialization.get_safe_globals() if isinstance(entry, tuple)]
