import pytest
import torch

from ops.distance import nearest, slack, squared

DIMS = [1, 2, 3, 5, 31, 32, 33, 100, 128]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def find(x, centres, bound=None):
    bound = torch.full((len(x),), torch.inf) if bound is None else bound
    return nearest(x, centres, x.square().sum(1), centres.square().sum(1), bound)


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
def test_squared_adds_in_the_order_that_it_promises(dim):
    x, y = normal(5, dim), normal(5, dim, seed=1)
    terms = (x - y) * (x - y)
    assert squared(x, y).tolist() == [float(tree(list(row))) for row in terms]


@pytest.mark.parametrize("dim", DIMS)
def test_squared_has_the_same_bits_alone_in_a_batch_and_turned_round(dim):
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


CASES = {
    "gaussian": (normal(300, 20), normal(70, 20, seed=1)),
    "offset": (normal(300, 20) + 100, normal(70, 20, seed=1) + 100),
    "grid": (
        torch.randint(0, 3, (300, 4), generator=torch.Generator().manual_seed(0)).float(),
        torch.randint(0, 3, (70, 4), generator=torch.Generator().manual_seed(1)).float(),
    ),
    "all equal": (torch.ones(50, 3), torch.ones(20, 3)),
    "one dimension": (normal(300, 1), normal(70, 1, seed=1)),
    "several blocks": (normal(2100, 3), normal(1100, 3, seed=1)),
    "ties over blocks": (torch.zeros(10, 2), torch.ones(2500, 2)),
}


@pytest.mark.parametrize("case", CASES)
def test_nearest_is_that_of_brute_force_with_the_lowest_index_on_ties(case):
    x, centres = CASES[case]
    found = find(x, centres)
    table = squared(x[:, None], centres[None])
    assert torch.equal(found.value, table.amin(dim=1))
    lowest = (table == table.amin(dim=1, keepdim=True)).int().argmax(dim=1)
    assert torch.equal(found.row, lowest)


@pytest.mark.parametrize("case", CASES)
def test_only_what_is_nearer_than_the_bound_is_found(case):
    x, centres = CASES[case]
    free = find(x, centres)
    bound = free.value.clone()
    bound[::2] = torch.nextafter(bound[::2], torch.tensor(torch.inf))
    found = find(x, centres, bound)
    assert torch.equal(found.row[::2], free.row[::2])
    assert torch.equal(found.value, free.value)
    assert (found.row[1::2] == -1).all()


def test_the_bound_itself_is_not_changed():
    x, centres = CASES["gaussian"]
    bound = torch.full((300,), 1e9)
    find(x, centres, bound)
    assert (bound == 1e9).all()


def test_without_centres_the_bound_stays():
    found = find(normal(3, 2), torch.empty(0, 2), torch.tensor([1.0, 2.0, 3.0]))
    assert found.value.tolist() == [1, 2, 3]
    assert found.row.tolist() == [-1, -1, -1]


def test_a_row_that_is_not_a_number_has_no_nearest():
    x = normal(3, 4)
    x[1, 2] = torch.nan
    assert find(x, normal(5, 4, seed=1)).row[1] == -1
