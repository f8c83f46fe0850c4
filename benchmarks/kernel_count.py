"""Count what a GPU would be asked to do, on PyTorch's meta device: no data, no GPU.

`count_kernels()` is a context in which operations on meta tensors are counted as the kernels that eager PyTorch launches on a
GPU: how many, the bytes they read and write, and the floating-point operations of matrix products. `torch.autocast` follows the
rules of CUDA, for which the meta device has none of its own. What would make the host wait for the device fails: the meta
device has no values for `.item()`, `nonzero` or a boolean index.
"""

import math
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten


def _names(names: str) -> frozenset[str]:
    return frozenset(names.split())


LOWER = _names("linear matmul mm bmm addmm baddbmm addbmm conv1d conv2d conv3d convolution __matmul__ chain_matmul einsum")
"""Functions whose arguments CUDA's autocast casts to the lower precision."""
FLOAT32 = _names(
    "layer_norm native_layer_norm group_norm mse_loss l1_loss smooth_l1_loss huber_loss nll_loss cross_entropy_loss "
    "binary_cross_entropy_with_logits kl_div cosine_similarity cosine_embedding_loss norm exp log log2 log10 log1p expm1 pow "
    "__pow__ __rpow__ rsqrt reciprocal softplus acos asin cosh sinh tan dist cdist pdist renorm"
)
"""Functions whose arguments it casts to float32."""
FLOAT32_RESULT = _names("sum prod cumsum cumprod softmax log_softmax")
"""Functions that it gives the `dtype` float32, without a cast before."""
WIDEST = _names("cat stack addcmul addcdiv index_put scatter_add bilinear dot tensordot")
"""Functions whose arguments it casts to the widest type among them."""

NO_KERNEL = _names(
    "view _unsafe_view detach alias expand permute transpose t unsqueeze squeeze slice select split split_with_sizes unbind "
    "as_strided unfold diagonal lift_fresh empty empty_like empty_strided new_empty new_empty_strided _reshape_alias"
)
WRITES_ONLY = _names("zero_ fill_ copy_ normal_ uniform_ bernoulli_ random_ rand randn zeros ones full arange")
"""Operations that do not read what they write."""
READS_RESULT_ONLY = _names("index_select gather embedding index index_put_ index_copy_")
"""Operations that read and write only as much of their first argument as the others ask for."""
NOT_FUSED = _names(
    "embedding embedding_dense_backward index_select index index_put_ index_put index_copy_ index_add index_add_ gather "
    "scatter_add sort argsort topk cumsum native_batch_norm native_batch_norm_backward"
)
"""Operations that a compiler runs as kernels of their own, like matrix products, and those on lists of tensors."""
TENSORS_A_LAUNCH = 100
"""Tensors that one launch of an operation on a list of tensors takes, about."""


@dataclass
class _Step:
    """One operation."""

    name: str
    fusible: bool
    product: bool
    backward: bool
    over_rows: bool
    updates: bool
    launches: int
    traffic: int
    reads: dict[Any, int] = field(default_factory=dict)
    writes: dict[Any, int] = field(default_factory=dict)


@dataclass
class Kernels:
    """What was counted."""

    launches: Counter[str] = field(default_factory=Counter)
    """Kernels by operation."""
    bytes: Counter[str] = field(default_factory=Counter)
    """Bytes that kernels other than matrix products read and write, by operation."""
    products: dict[torch.dtype, float] = field(default_factory=lambda: defaultdict(float))
    """Floating-point operations of matrix products, by precision."""
    product_list: list[tuple[torch.dtype, float, int]] = field(default_factory=list)
    """Precision, floating-point operations and bytes of each matrix product."""
    grouped: float = 0.0
    """Floating-point operations of convolutions in groups, which are contained in `products`."""

    steps: list["_Step"] = field(default_factory=list)
    """The operations in their order."""
    values: dict[int, tuple[Any, int]] = field(default_factory=dict)
    """The storages of tensors, and the number of times each was written."""

    def fused(self) -> tuple[int, Counter[str]]:
        """Launches, and bytes besides matrix products by operations, when a compiler fuses as much as can be.

        Element-wise operations, norms and reductions that follow one another without a matrix product between them become one
        kernel, which reads what comes from outside and writes what is used outside. A reduction over rows (the gradient of a
        bias) reads its input in a kernel of its own. Real compilers fuse less, so this is a lower bound."""
        steps, producer, users = self.steps, dict[Any, int](), defaultdict[Any, set[int]](set)
        level, group = [0] * len(steps), list(range(len(steps)))

        def root(i: int) -> int:
            while group[i] != i:
                i = group[i]
            return i

        for i, step in enumerate(steps):
            sources = {value: producer[value] for value in step.reads if value in producer}
            for value in step.reads:
                users[value].add(i)
            level[i] = max((level[j] + (not steps[j].fusible) for j in sources.values()), default=0)
            for j in sources.values():
                same = level[i] == level[j] and steps[j].backward == step.backward
                if step.fusible and steps[j].fusible and same and not step.over_rows:
                    group[root(j)] = i
            producer |= dict.fromkeys(step.writes, i)
        read, written = defaultdict[int, dict[Any, int]](dict), defaultdict[int, dict[Any, int]](dict)
        for i, step in enumerate(steps):
            if step.fusible:
                g = root(i)
                for value, size in step.reads.items():
                    if value not in producer or producer[value] > i or root(producer[value]) != g:
                        read[g][value] = max(size, read[g].get(value, 0))
                for value, size in step.writes.items():
                    if any(root(j) != g for j in users[value]) or step.updates:
                        written[g][value] = size
        names = defaultdict[int, list[str]](list)
        for i, step in enumerate(steps):
            names[root(i)].append(step.name)
        launches, sizes = 0, Counter[str]()
        for g, members in names.items():
            launches += 1 if steps[g].fusible else steps[g].launches
            if not steps[g].product:
                size = sum(read[g].values()) + sum(written[g].values()) if steps[g].fusible else steps[g].traffic
                sizes[" ".join(dict.fromkeys(members)) + " (backward)" * steps[g].backward] += size
        return launches, sizes

    def clear(self) -> None:
        """Count from zero."""
        self.__init__()  # type: ignore[misc]

    def seconds(self, rate: Callable[[torch.dtype], float], bandwidth: float) -> tuple[float, float]:
        """A lower bound of the time in matrix products, at `rate(dtype)` operations per second or `bandwidth` bytes per second,
        whichever takes longer for each; and of the time in all other kernels, at `bandwidth`."""
        in_products = sum(max(count / rate(dtype), size / bandwidth) for dtype, count, size in self.product_list)
        return in_products, sum(self.bytes.values()) / bandwidth

    def _value(self, x: Tensor) -> tuple[int, int]:
        storage = x.untyped_storage()
        return storage._cdata, self.values.setdefault(storage._cdata, (storage, 0))[1]  # kept, so that no other has its address

    def _write(self, x: Tensor) -> None:
        storage = x.untyped_storage()
        self.values[storage._cdata] = storage, self.values.get(storage._cdata, (storage, 0))[1] + 1

    def add(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Count one operation."""
        given = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        made = [x for x in tree_flatten(result)[0] if isinstance(x, Tensor)]
        if name in NO_KERNEL or not any(x.device.type == "meta" for x in (*given, *made)):
            return
        if name == "_to_copy" and made[0].numel() == 0:
            return
        on_lists = name.startswith(("_foreach", "_fused"))
        launches = math.ceil(len(given) / TENSORS_A_LAUNCH) if on_lists else 1
        self.launches[name] += launches
        size = _traffic(name, func, args, given, made)
        operations = _operations(name, args, kwargs, result)
        step = _Step(
            name=name,
            fusible=operations is None and not on_lists and name not in NOT_FUSED,
            product=operations is not None,
            backward=torch._C._current_autograd_node() is not None,
            over_rows=name == "sum" and given[0].ndim > 1 and tuple(args[1] if len(args) > 1 else ()) == (0,),
            updates=any(x is y for x in made for y in given),
            launches=launches,
            traffic=size,
        )
        for x in given if name not in WRITES_ONLY or name == "copy_" else []:
            step.reads[self._value(x)] = _size(x)
        changed = [x for x in made if any(x is y for y in given)]
        for x in changed:
            self._write(x)
        for x in made:
            step.writes[self._value(x)] = _size(x)
        self.steps.append(step)
        if operations is not None:
            dtype = given[0].dtype
            self.products[dtype] += operations
            self.product_list.append((dtype, operations, size))
            if name.startswith("convolution") and _groups(name, args) > 1:
                self.grouped += operations
        else:
            self.bytes[name] += size


def _operations(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> float | None:
    """The floating-point operations of a matrix product; None for other operations."""
    if name == "convolution":
        return 2.0 * result.numel() * args[1][0].numel()
    if name == "convolution_backward":  # of input and weight, as far as asked for; PyTorch's count ignores groups
        return 2.0 * args[0].numel() * args[2][0].numel() * sum(args[10][:2])
    count = flop_registry.get(getattr(aten, name.removesuffix("_"), None))
    return None if count is None else float(count(*args, **kwargs, out_val=result))


def _groups(name: str, args: tuple[Any, ...]) -> int:
    return int(args[8] if name == "convolution" else args[9])


def _size(x: Tensor) -> int:
    """The bytes of the distinct elements of a tensor: an expanded axis counts once."""
    count = math.prod(n for n, stride in zip(x.shape, x.stride(), strict=True) if stride != 0)
    return int(count * x.element_size())


def _traffic(name: str, func: Any, args: tuple[Any, ...], given: list[Tensor], made: list[Tensor]) -> int:
    """The bytes that an operation reads and writes."""
    if name == "_foreach_lerp_":
        return sum(3 * _size(x) for x in args[0])
    if name == "_fused_adamw_":
        return sum(_size(x) for x in args[0]) * 3 + sum(4 * _size(x) for x in args[0])  # p, m, v read and written; g read
    if name == "_foreach_norm":
        return sum(_size(x) for x in args[0])
    read = sum(_size(x) for x in given)
    written = sum(_size(x) for x in made)
    if name in WRITES_ONLY:
        return (_size(given[1]) if name == "copy_" else 0) + (written or _size(given[0]))
    if name in READS_RESULT_ONLY:
        moved = _size(args[-1]) if name in ("index_put_", "index_copy_") and isinstance(args[-1], Tensor) else written
        return 2 * moved + sum(_size(x) for x in given[1:] if not x.is_floating_point())
    if name == "native_layer_norm_backward" and args[5] is not None:
        read += _size(args[0]) + _size(args[1])  # a second kernel for the gradients of the weights
    returned = {id(x) for x in given}
    in_place = [x for x in made if id(x) in returned]
    if not made or in_place:  # in place on a list of tensors
        changed = args[0] if isinstance(args[0], list | tuple) else [args[0]]
        written = sum(_size(x) for x in changed if isinstance(x, Tensor))
    return read + written


class _Autocast:
    """Stands for `torch.autocast` on the meta device; the state is that of the innermost context."""

    state: tuple[bool, torch.dtype] = (False, torch.bfloat16)
    cache: ClassVar[dict[int, tuple[Tensor, Tensor]]] = {}
    depth = 0

    def __init__(self, device_type: str, dtype: torch.dtype | None = None, enabled: bool = True, cache_enabled: bool = True):
        self.new = (enabled, dtype or torch.bfloat16)

    def __enter__(self) -> "_Autocast":
        self.old = _Autocast.state
        _Autocast.state = self.new
        _Autocast.depth += 1
        return self

    def __exit__(self, *error: object) -> None:
        _Autocast.state = self.old
        _Autocast.depth -= 1
        if not _Autocast.depth:
            _Autocast.cache.clear()

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return wrapped


def _cast(x: Any, dtype: torch.dtype) -> Any:
    if not isinstance(x, Tensor) or x.device.type != "meta" or not x.is_floating_point() or x.dtype in (dtype, torch.float64):
        return x
    if not (dtype == _Autocast.state[1] and x.dtype == torch.float32 and x.requires_grad and x.is_leaf and x._base is None):
        return x.to(dtype)
    if id(x) not in _Autocast.cache:
        _Autocast.cache[id(x)] = x, x.to(dtype)
    return _Autocast.cache[id(x)][1]


def _cast_all(values: Any, dtype: torch.dtype) -> Any:
    if isinstance(values, list | tuple) and not isinstance(values, torch.Size):
        return (
            type(values)(_cast_all(list(values), dtype)) if isinstance(values, tuple) else [_cast_all(v, dtype) for v in values]
        )
    return _cast(values, dtype)


class _CudaFunctions(TorchFunctionMode):
    """Autocast as on CUDA, and functions that take another path on a GPU than on the meta device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        enabled, lower = _Autocast.state
        if name == "backward":  # a function inside which this mode would be off
            with self:
                engine = torch.autograd.graph._engine_run_backward
                return engine(
                    (args[0],), (torch.ones_like(args[0]),), False, False, (), allow_unreachable=True, accumulate_grad=True
                )
        if name == "scaled_dot_product_attention":
            return _attention(*args, **kwargs)
        if name == "dropout" and func in (torch.nn.functional.dropout, torch.dropout):
            return _dropout(*args, **kwargs)
        if enabled and name in LOWER:
            args, kwargs = _cast_all(args, lower), {k: _cast_all(v, lower) for k, v in kwargs.items()}
        elif enabled and name in FLOAT32:
            args, kwargs = _cast_all(args, torch.float32), {k: _cast_all(v, torch.float32) for k, v in kwargs.items()}
        elif enabled and name in FLOAT32_RESULT and isinstance(args[0], Tensor) and args[0].dtype == lower:
            kwargs = {"dtype": torch.float32} | kwargs
        elif enabled and name in WIDEST:
            tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor) and x.is_floating_point()]
            if len({x.dtype for x in tensors}) > 1:
                args, kwargs = _cast_all(args, torch.float32), {k: _cast_all(v, torch.float32) for k, v in kwargs.items()}
        return func(*args, **kwargs)


def _attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False
) -> Tensor:
    """The kernel that CUDA takes: flash attention without a mask, the memory-efficient one with a mask."""
    if _Autocast.state[0]:
        q, k, v = (_cast(x, _Autocast.state[1]) for x in (q, k, v))
        attn_mask = _cast(attn_mask, _Autocast.state[1])
    if attn_mask is None and q.dtype != torch.float32:
        y: Tensor = aten._scaled_dot_product_flash_attention(q, k, v, dropout_p, is_causal)[0]
        return y
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=q.dtype).masked_fill_(~attn_mask, -math.inf)
        B, H, T, S = *q.shape[:3], k.shape[2]
        if attn_mask.stride(-1) != 1 or any(stride % 8 for stride in attn_mask.stride()[:-1]):  # rows aligned to 16 bytes
            attn_mask = torch.nn.functional.pad(attn_mask, (0, -S % 8))[..., :S]
        attn_mask = attn_mask.expand(B, H, T, S)
    grad = torch.is_grad_enabled()
    y = aten._scaled_dot_product_efficient_attention(q, k, v, attn_mask, grad, dropout_p, is_causal)[0]
    return y


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(x, p, True)[0] if training and p else x


class _Counting(TorchDispatchMode):
    def __init__(self, kernels: Kernels):
        super().__init__()
        self.kernels = kernels

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._overloadpacket.__name__
        result = None if name.startswith("_fused_adamw") else func(*args, **kwargs)  # which the meta device has not
        self.kernels.add(name, func, args, kwargs, result)
        return result


@contextmanager
def count_kernels() -> Iterator[Kernels]:
    """A context in which operations on meta tensors are counted as those of eager PyTorch on a GPU."""
    kernels = Kernels()
    enabled = lambda *_: _Autocast.state[0]  # noqa: E731
    dtype = lambda *_: _Autocast.state[1]  # noqa: E731
    with ExitStack() as stack:
        for owner in (torch, torch.amp, torch.amp.autocast_mode):
            stack.enter_context(mock.patch.object(owner, "autocast", _Autocast))
        stack.enter_context(mock.patch.object(torch, "is_autocast_enabled", enabled))
        stack.enter_context(mock.patch.object(torch, "get_autocast_dtype", dtype))
        stack.enter_context(
            mock.patch.object(
                sys.modules["torch.optim.optimizer"], "_get_fused_kernels_supported_devices", return_value=["meta"]
            )
        )
        stack.enter_context(mock.patch.object(torch.nn.utils.clip_grad, "_device_has_foreach_support", return_value=True))
        stack.enter_context(_CudaFunctions())
        stack.enter_context(_Counting(kernels))
        yield kernels
