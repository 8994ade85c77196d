"""The currencies that money of this system may be in."""

from __future__ import annotations

from typing import Final

from iso4217 import Currency

CURRENCIES: Final = frozenset(currency.code for currency in Currency if currency.exponent is not None)
"""Active ISO 4217 codes with a minor unit, which excludes gold, test codes and "no currency"."""
