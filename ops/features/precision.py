"""The arithmetic of a network: which devices have it, and how a network is put into it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch
from torch import nn

#: Of the inputs of products. TF32 is float32 whose products round to 10 bits of mantissa.
Precision = Literal["float32", "tf32", "bfloat16", "float16"]
_TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
#: The first compute capability of CUDA that has it in its tensor cores.
_CAPABILITY = {"tf32": (8, 0), "bfloat16": (8, 0), "float16": (7, 0)}
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def dtype_of(precision: Precision) -> torch.dtype:
    """The type of a network's weights and maps."""
    return _TYPES.get(precision, torch.float32)


def lowered(network: nn.Module, precision: Precision) -> nn.Module:
    """The network in place, with weights of the precision; batch norms keep theirs in float32."""
    dtype = dtype_of(precision)
    if dtype == torch.float32:
        return network
    norms = {name: m for name, m in network.named_modules() if isinstance(m, _BATCH_NORMS)}
    kept = {name: {k: t.clone() for k, t in m.state_dict().items()} for name, m in norms.items()}
    network.to(dtype)
    for name, norm in norms.items():
        norm.float().load_state_dict(kept[name])
    return network


def missing_on(device: torch.device, precision: Precision) -> str:
    """What computes in another arithmetic, or in software; empty if a device has the precision."""
    if precision == "float32":
        return ""
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability >= _CAPABILITY[precision]:
            return ""
        return f"this GPU of compute capability {capability[0]}.{capability[1]}"
    name = {"bfloat16": "_is_mkldnn_bf16_supported", "float16": "_is_mkldnn_fp16_supported"}
    has = getattr(torch.ops.mkldnn, name.get(precision, ""), None)
    return "" if has is not None and has() else "this CPU"


def use_exact_arithmetic() -> None:
    """Let CUDA compute in float32 as a CPU does, by kernels that are the same each time.

    TF32 rounds to ten bits, and is the default of convolutions. Of torch's two interfaces for it,
    the newer one is used alone: torch refuses to read the older one after it.
    """
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    _set_float32("ieee")


@contextlib.contextmanager
def arithmetic(precision: Precision, device: torch.device) -> Iterator[None]:
    """A context in which a network is run: CUDA uses TF32 in it if `precision` says so."""
    if precision != "tf32" or device.type != "cuda":
        yield
        return
    _set_float32("tf32")
    try:
        yield
    finally:
        _set_float32("ieee")


def _set_float32(how: str) -> None:
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # set at run time
    for kind in (convolutions, torch.backends.cuda.matmul):
        kind.fp32_precision = how
