"""A pretend CUDA device: tensors that hold real values on the CPU and say that they are on cuda:0.

Inside `PretendDevice`, every operation is checked by the rules of CUDA: tensors of two devices do
not mix, a tensor on the device has no NumPy view, and it is not pickled. Values are computed on the
CPU, so they are right. Operations are counted as launches, and what makes the CPU wait for the
device as syncs, each by the line of this project that asked for it.

It cannot tell what needs a GPU: speed, memory, rounding of its kernels, and whether their sums have
the same order each time.
"""

from __future__ import annotations

import collections
import contextlib
import os
import sys
from types import TracebackType
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda:0")
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# fmt: off
#: Operations that start no kernel: views, and memory that nothing is written to.
_NO_LAUNCH = {
    "view", "_unsafe_view", "slice", "select", "expand", "permute", "transpose", "t",
    "unsqueeze", "squeeze", "detach", "alias", "split", "split_with_sizes", "unbind",
    "as_strided", "diagonal", "_reshape_alias", "lift_fresh", "unfold", "view_as_real",
    "narrow", "chunk", "tensor_split", "empty", "empty_like", "new_empty", "empty_strided",
    "new_empty_strided", "resize_", "is_pinned", "sym_size", "sym_stride",
    "_local_scalar_dense", "item",
}
#: Operations whose result the CPU needs, or whose shape depends on values.
_WAITS = {
    "_local_scalar_dense", "item", "equal", "is_nonzero", "nonzero", "masked_select",
    "unique2", "_unique2", "unique_dim", "unique_consecutive", "repeat_interleave",
}
# fmt: on
_COPIES = {"copy_", "_to_copy", "_copy_from"}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
#: Operations that take no CPU tensor beside those of the device, not even one without dimensions.
_STRICT = {"mm", "bmm", "addmm", "cat", "stack", "index_select", "gather", "convolution", "where"}


_ACTIVE: list[PretendDevice] = []
_GENERATOR = torch.Generator
_TENSOR = torch.tensor


class DeviceMismatch(RuntimeError):
    """An operation that CUDA would refuse."""


class _OnDevice(Tensor):
    """A tensor that says it is on cuda:0; `held` has its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> _OnDevice:
        out = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device="meta",  # no kernel of its own: every operation comes to __torch_dispatch__
            requires_grad=False,
        )
        out.held = held
        return out

    @property
    def device(self) -> torch.device:
        return CUDA

    @property
    def is_cuda(self) -> bool:
        return True

    @property
    def is_meta(self) -> bool:
        return False

    def __repr__(self) -> str:
        return f"on cuda:0: {tuple(self.shape)}, {self.dtype}"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        out: Tensor = _OnDevice(self.held.clone())
        if isinstance(self, torch.nn.Parameter):
            out = torch.nn.Parameter(out, self.requires_grad)
        memo[id(self)] = out
        return out

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise DeviceMismatch(f"a tensor of the device is pickled at {_place()}")

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise DeviceMismatch(f"a NumPy view of a tensor of the device at {_place()}")

    __array__ = numpy

    def _waited(self) -> Tensor:
        if _ACTIVE:
            _ACTIVE[-1].syncs[f"item {_place()}"] += 1
        return self.held

    def item(self) -> Any:
        return self._waited().item()

    def tolist(self) -> Any:
        return self._waited().tolist()

    def __float__(self) -> float:
        return float(self._waited())

    def __int__(self) -> int:
        return int(self._waited())

    def __bool__(self) -> bool:
        return bool(self._waited())

    def __index__(self) -> int:
        return int(self._waited())

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not _ACTIVE:
            raise DeviceMismatch(f"{func} of a tensor of the device outside of PretendDevice")
        return _ACTIVE[-1].call(func, args, kwargs or {})


class _CpuGenerator(torch.Generator):
    """`torch.Generator` on any device: numbers of the device are drawn on the CPU."""

    def __new__(cls, *_: Any) -> torch.Generator:  # type: ignore[misc]
        return _GENERATOR()


class PretendDevice(TorchDispatchMode):
    """A context in which `cuda` is a device. Contexts are not nested."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: collections.Counter[str] = collections.Counter()
        self.syncs: collections.Counter[str] = collections.Counter()
        self._pinned: set[int] = set()
        self._patches = [
            mock.patch.object(torch.cuda, "_lazy_init", _nothing),
            mock.patch.object(torch.cuda, "get_device_capability", _capability),
            mock.patch.object(torch.cuda, "is_available", _yes),
            mock.patch.object(torch.cuda, "mem_get_info", _memory),
            mock.patch.object(torch, "Generator", _CpuGenerator),
            mock.patch.object(torch, "tensor", _tensor),
            # Tensors of inference mode have no version, which a subclass needs.
            mock.patch.object(torch._C, "_InferenceMode", _no_grad),
            *(
                mock.patch.object(torch.optim.Optimizer, name, _nothing)
                for name in dir(torch.optim.Optimizer)
                if name.endswith("_graph_capture_health_check")  # asks CUDA for its stream
            ),
        ]

    def __enter__(self) -> PretendDevice:
        for patch in self._patches:
            patch.start()
        _ACTIVE.append(self)
        return super().__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        _ACTIVE.pop()
        for patch in self._patches:
            patch.stop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.call(func, args, kwargs or {})

    def reset(self) -> None:
        """Count from zero."""
        self.launches.clear()
        self.syncs.clear()

    def call(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run an operation by its rules and count it."""
        name = func._overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if name in {"_pin_memory", "is_pinned"}:
            return self._pinning(name, func, args, kwargs)
        if _is_no_copy(name, args, kwargs):
            return args[0]
        _check(name, func, args, tensors)
        ours = any(isinstance(tensor, _OnDevice) for tensor in tensors)
        asked = kwargs.get("device")
        to_device = torch.device(asked).type in {"cuda", "meta"} if asked is not None else ours
        if name == "copy_":
            to_device = isinstance(args[0], _OnDevice)
        if ours or to_device:
            self._count(name, args, kwargs, to_device)
        pins = bool(kwargs.get("pin_memory"))
        if pins:
            kwargs = {**kwargs, "pin_memory": False}
        if asked is not None:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        out = _computed(func, tree_map(_held, args), tree_map(_held, kwargs))
        if pins:
            self._pinned.add(out.untyped_storage().data_ptr())
        known = {id(tensor.held): tensor for tensor in tensors if isinstance(tensor, _OnDevice)}
        return tree_map(lambda leaf: _wrapped(leaf, known, to_device), out)

    def _pinning(self, name: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if isinstance(args[0], _OnDevice):
            raise DeviceMismatch(f"{func} of a tensor of the device at {_place()}")
        if name == "is_pinned":
            return args[0].untyped_storage().data_ptr() in self._pinned
        out = args[0].clone()
        self._pinned.add(out.untyped_storage().data_ptr())
        return out

    def _count(self, name: str, args: Any, kwargs: dict[str, Any], to_device: bool) -> None:
        place = _place()
        if name in _WAITS or (name in _INDEXING and _has_mask(args[1])):
            self.syncs[f"{name} {place}"] += 1
        if name in {"copy_", "_to_copy"}:
            source = args[1] if name == "copy_" else args[0]
            if isinstance(source, _OnDevice) != to_device:
                pinned = source.untyped_storage().data_ptr() in self._pinned if to_device else False
                free = pinned and (kwargs.get("non_blocking") or (name == "copy_" and args[2:3]))
                if not free:
                    kind = "copy to the device" if to_device else "copy to the CPU"
                    self.syncs[f"{kind} {place}"] += 1
        if name not in _NO_LAUNCH:
            self.launches[place] += 1


def _nothing(*_: Any) -> None:
    """In place of what asks the driver."""


def _yes() -> bool:
    return True


def _capability(*_: Any) -> tuple[int, int]:
    """That of an H100."""
    return 9, 0


def _memory(*_: Any) -> tuple[int, int]:
    """Free and total bytes of an H100."""
    return 80 * 2**30, 80 * 2**30


def _tensor(values: Any, *, device: Any = None, **options: Any) -> Tensor:
    """`torch.tensor`, which copies to a device below the level of dispatch."""
    out = _TENSOR(values, **options)
    return out if device is None else out.to(device)


def _no_grad(active: bool) -> contextlib.AbstractContextManager[None]:
    return torch.no_grad() if active else contextlib.nullcontext()


def _computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What an operation gives on a CPU, which has no products of float16 in float32."""
    if func._overloadname not in {"dtype", "dtype_out"} or func._schema.name != "aten::mm":
        return func(*args, **kwargs)
    product = args[0].float() @ args[1].float()
    return kwargs["out"].copy_(product) if "out" in kwargs else product


def _held(leaf: Any) -> Any:
    return leaf.held if isinstance(leaf, _OnDevice) else leaf


def _wrapped(leaf: Any, known: dict[int, _OnDevice], to_device: bool) -> Any:
    """A result: the argument that was changed in place, or a new tensor on its device."""
    if not isinstance(leaf, Tensor):
        return leaf
    if id(leaf) in known:
        return known[id(leaf)]
    return _OnDevice(leaf) if to_device else leaf


def _is_no_copy(name: str, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether `to` asks for what a tensor of the device is already."""
    if name != "_to_copy" or not isinstance(args[0], _OnDevice):
        return False
    device = kwargs.get("device")
    stays = device is None or torch.device(device).type in {"cuda", "meta"}
    same = kwargs.get("dtype") in {None, args[0].dtype}
    return stays and same and kwargs.get("memory_format") is None


def _check(name: str, func: Any, args: Any, tensors: list[Tensor]) -> None:
    """Raises DeviceMismatch for what CUDA refuses."""
    on_device = [tensor for tensor in tensors if isinstance(tensor, _OnDevice)]
    on_cpu = [tensor for tensor in tensors if not isinstance(tensor, _OnDevice)]
    if name in _COPIES or not on_device or not on_cpu:
        return
    if name in _INDEXING:  # a CPU index is copied to the device
        if not isinstance(args[0], _OnDevice):
            raise DeviceMismatch(f"{func}: a CPU tensor indexed by the device's at {_place()}")
        values = args[2] if len(args) > 2 else None
        if isinstance(values, Tensor) and not isinstance(values, _OnDevice) and values.dim():
            raise DeviceMismatch(f"{func}: values on the CPU at {_place()}")
        return
    shapes = [tuple(tensor.shape) for tensor in on_cpu]
    if any(shapes) or name in _STRICT:
        raise DeviceMismatch(f"{func}: CPU tensors {shapes} with the device's at {_place()}")
    if func._schema.is_mutable and not isinstance(args[0], _OnDevice):
        raise DeviceMismatch(f"{func}: a CPU number changed by the device's at {_place()}")


def _has_mask(index: Any) -> bool:
    return any(i is not None and i.dtype in {torch.bool, torch.uint8} for i in index)


def _place() -> str:
    """File and line of this project, or of FrEIA, that asked for the operation."""
    frame = sys._getframe(1)
    while frame:
        file = frame.f_code.co_filename
        if file.startswith((f"{_ROOT}/ops", f"{_ROOT}/pipelines")) or "/FrEIA/" in file:
            return f"{os.path.relpath(file, _ROOT)}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"
