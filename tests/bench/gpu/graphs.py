"""Whether recording the network as a CUDA graph, or compiling it, pays, and changes bits."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tests.bench.gpu.bundle import SIZE
from tests.bench.gpu.ceilings import allow_tf32
from tests.bench.gpu.network import plain_network
from tests.bench.gpu.part import Check, Figure


@torch.inference_mode()
def run(check: Check) -> Iterator[Figure]:
    """Eager, recorded and compiled, by precision and batch."""
    allow_tf32(False)
    name, layers = "wide_resnet50_2", ["layer2", "layer3"]
    if not check.cuda:
        name, layers = "squeezenet1_1", ["features.7", "features.10"]
    for kind in check.size((torch.float32, torch.bfloat16), (torch.float32,)):
        network = plain_network(name, layers).to(check.device, kind)
        for batch in check.size((32, 128), (2,)):
            what = f"{name}, {str(kind).removeprefix('torch.')}, batch {batch}"
            images = torch.rand(batch, 3, SIZE, SIZE, device=check.device).to(kind)
            images = images.contiguous(memory_format=torch.channels_last)
            expected = [layer.clone() for layer in network(images).values()]
            seconds = check.seconds(lambda: network(images))  # noqa: B023
            yield Figure(f"{what}: eager", batch / seconds, "images/s")
            if check.cuda:
                yield from _recorded(check, what, network, images, expected)
        if check.left(60):
            compiled = torch.compile(network)
            found = compiled(images).values()
            same = all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
            seconds = check.seconds(lambda: compiled(images))  # noqa: B023
            note = "same bits" if same else "other bits"
            yield Figure(f"{what}: compiled", len(images) / seconds, "images/s", note)


def _recorded(check: Check, what: str, network, images, expected) -> Iterator[Figure]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # allocations and choices of kernels before the recording
        for _ in range(3):
            network(images)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = list(network(images).values())
    graph.replay()
    same = all(torch.equal(a, b) for a, b in zip(out, expected, strict=True))
    seconds = check.seconds(graph.replay)
    note = "same bits" if same else "other bits"
    yield Figure(f"{what}: recorded as a graph", len(images) / seconds, "images/s", note)
