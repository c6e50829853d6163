"""False-alarm rates as settings name them: one for all products, or one for each."""

from __future__ import annotations

from collections.abc import Collection

from ops.archives.layouts import composed
from ops.errors import SettingError
from ops.plain_text import printable

#: A number for all products, or one by product; None leaves the model's.
Rates = float | dict[str, float] | None


def check(rates: Rates) -> None:
    """Check that rates lie between 0 and 1. Raises SettingError."""
    named = rates if isinstance(rates, dict) else {"": rates}
    for product, rate in named.items():
        if rate is not None and not 0 < rate < 1:
            of_product = f" of {printable(product)}" if product else ""
            raise SettingError(f"false_alarm_rate {rate}{of_product} must lie between 0 and 1")


def by_product(rates: Rates, products: Collection[str]) -> dict[str, float]:
    """The rate of each product for which there is one. Raises SettingError for an unknown one."""
    if rates is None:
        return {}
    if not isinstance(rates, dict):
        return dict.fromkeys(products, rates)
    named = {composed(product): float(rate) for product, rate in rates.items()}
    if unknown := [product for product in named if product not in products]:
        raise SettingError(
            f"false_alarm_rate: the model has no product {printable(unknown[0])!r}; it has "
            f"{', '.join(map(printable, list(products)[:10]))}"
        )
    return named
