import pytest
import torch

from ops.search.distance import slack, squared

DIMS = [1, 2, 3, 5, 31, 32, 33, 100, 128]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tree(terms: list[torch.Tensor]) -> torch.Tensor:
    """The sum that `squared` promises: zero-padded to a power of two, halves added to halves."""
    while len(terms) & (len(terms) - 1):
        terms = [*terms, torch.tensor(0.0)]
    while len(terms) > 1:
        half = len(terms) // 2
        terms = [a + b for a, b in zip(terms[:half], terms[half:], strict=True)]
    return terms[0]


@pytest.mark.parametrize("dim", DIMS)
def test_squared_is_nearly_the_sum_in_float64(dim):
    x, y = normal(50, dim), normal(50, dim, seed=1)
    exact = (x.double() - y.double()).square().sum(dim=1)
    torch.testing.assert_close(squared(x, y).double(), exact, rtol=2e-6, atol=0)


@pytest.mark.parametrize("dim", DIMS)
def test_squared_adds_in_the_documented_order(dim):
    x, y = normal(5, dim), normal(5, dim, seed=1)
    terms = (x - y) * (x - y)
    assert squared(x, y).tolist() == [float(tree(list(row))) for row in terms]


@pytest.mark.parametrize("dim", DIMS)
def test_squared_has_the_same_bits_alone_in_a_batch_and_with_arguments_swapped(dim):
    x, y = normal(40, dim), normal(30, dim, seed=1)
    table = squared(x[:, None], y[None])
    assert torch.equal(table, squared(y[None], x[:, None]))
    for i, j in ((0, 0), (39, 29), (7, 21)):
        assert torch.equal(table[i, j], squared(x[i], y[j]))
    assert torch.equal(table[:, 3], squared(x, y[3]))
    wide = torch.zeros(40, 2 * dim)
    wide[:, ::2] = x
    assert torch.equal(squared(wide[:, ::2], y[3]), table[:, 3])  # strides change nothing


def test_equal_vectors_are_exactly_zero_apart():
    x = 1e6 + normal(20, 100)
    assert (squared(x, x.clone()) == 0).all()


def test_arrays_give_the_bits_of_tensors():
    x, y = normal(40, 100), normal(100, seed=1)
    assert squared(x.numpy(), y.numpy()).tolist() == squared(x, y).tolist()


def test_squared_leaves_its_arguments_as_they_are():
    x, y = normal(4, 5), normal(4, 5, seed=1)
    before = x.clone(), y.clone()
    squared(x, y)
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_a_matrix_product_errs_by_less_than_the_slack(offset):
    x, c = normal(300, 128) + offset, normal(200, 128, seed=1) + offset
    x2, c2 = x.square().sum(1, keepdim=True), c.square().sum(1)
    error = (x2 + c2 - 2 * x @ c.T - squared(x[:, None], c[None])).abs()
    assert (error <= slack(128) * (x2 + c2)).all()
