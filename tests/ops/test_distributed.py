import threading

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ops.distributed import Alone, Distributed, backend
from ops.errors import UserError
from tests.ops.threads import together


def program(group) -> dict[str, torch.Tensor | list[torch.Tensor]]:
    """Every collective once, with shards of different lengths, some of them empty."""
    rank = group.rank
    odd = torch.tensor([0.1, float("nan"), -0.0, 1e-45])[: 4 * rank]
    mine = torch.arange(rank * 3, dtype=torch.int64)
    wide = torch.full((rank, 2, 3), rank + 0.5, dtype=torch.float64)
    return {
        "bits": group.all_gather(odd.view(torch.int32)),
        "uneven": group.all_gather(mine),
        "wide": group.all_gather(wide),
        "empty": group.all_gather(torch.empty(0, 5)),
        "turns": group.all_to_all(
            [torch.full((rank, 2 - to), float(rank)) for to in range(group.size)]
        ),
        "sum": group.all_reduce(torch.tensor([rank, 10])),
        "min": group.all_reduce(torch.tensor([rank, -rank]), "min"),
        "max": group.all_reduce(torch.tensor([rank, -rank]), "max"),
    }


def check_two(found) -> None:
    assert [len(part) for part in found["uneven"]] == [0, 3]
    assert found["uneven"][1].tolist() == [0, 1, 2]
    assert [part.shape for part in found["wide"]] == [(0, 2, 3), (1, 2, 3)]
    assert (found["wide"][1] == 1.5).all()
    expected = torch.tensor([0.1, float("nan"), -0.0, 1e-45]).view(torch.int32)
    assert torch.equal(found["bits"][1], expected)
    assert [part.shape for part in found["empty"]] == [(0, 5), (0, 5)]
    assert [part.shape[0] for part in found["turns"]] == [0, 1]
    assert (found["turns"][1] == 1).all()
    assert found["sum"].tolist() == [1, 20]
    assert found["min"].tolist() == [0, -1]
    assert found["max"].tolist() == [1, 0]


def gradients(group) -> torch.Tensor:
    """Gradients of one step over five inputs, two of them on rank 0, and the first weights."""
    network = torch.nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        network.weight.fill_(1.0)
    inputs = torch.arange(15.0).view(5, 3)
    if group.size > 1:
        inputs = inputs[:2] if group.rank == 0 else inputs[2:]
    model = group.parallel(network)
    (model(inputs).square().sum() * group.size / 5).backward()
    none = model(torch.empty(0, 3)).sum()  # a rank may have nothing in a step
    none.backward()
    return network.weight.grad


def test_gradients_are_those_of_the_whole_step_on_every_rank():
    whole = gradients(Alone())
    for found in together(2, gradients):
        torch.testing.assert_close(found, whole)


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_the_whole_step(tmp_path):
    mp.spawn(train, (str(tmp_path),), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert torch.equal(*found)
    torch.testing.assert_close(found[0], gradients(Alone()))


def train(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save(gradients(Distributed()), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    group = Distributed()
    assert (group.rank, group.size) == (rank, 2)
    torch.save(program(group), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_exchange_uneven_and_empty_shards(tmp_path):
    mp.spawn(worker, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        check_two(torch.load(tmp_path / f"{rank}.pt", weights_only=True))


def test_a_process_group_of_one_equals_alone(tmp_path):
    dist.init_process_group("gloo", f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        found, expected = program(Distributed()), program(Alone())
    finally:
        dist.destroy_process_group()
    for name, value in expected.items():
        parts = value if isinstance(value, list) else [value]
        others = found[name] if isinstance(value, list) else [found[name]]
        assert all(torch.equal(a, b) for a, b in zip(parts, others, strict=True)), name


def test_only_workers_with_a_whole_gpu_each_use_nccl():
    names = [backend(gpus) for gpus in (0.0, 0.5, 1.0, 2.0)]
    assert names == ["gloo", "gloo", "cpu:gloo,cuda:nccl", "cpu:gloo,cuda:nccl"]


def test_buffers_are_sent_in_every_step_only_where_batch_norms_change_them(tmp_path):
    dist.init_process_group("gloo", f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        group = Distributed()
        plain = group.parallel(torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1)))
        changing = group.parallel(torch.nn.Sequential(torch.nn.BatchNorm2d(3)))
    finally:
        dist.destroy_process_group()
    assert (plain.broadcast_buffers, changing.broadcast_buffers) == (False, True)


def test_threads_keep_the_same_contract():
    for found in together(2, program):
        check_two(found)


def test_an_error_on_one_rank_ends_the_others():
    def fails(group):
        if group.rank == 1:
            raise UserError("rank 1")
        return group.all_gather(torch.zeros(1))

    with pytest.raises(UserError, match="rank 1"):
        together(3, fails)
    assert threading.active_count() < 20


def test_what_a_reduction_returns_is_a_copy():
    tensor = torch.tensor([1])
    Alone().all_reduce(tensor).add_(1)
    assert tensor.tolist() == [1]
