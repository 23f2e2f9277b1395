"""Tables from small integer keys to prices, filled on demand and looked up for many rows at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from paretopress.hardware_profiles.profile import DeviceProfile
from paretopress.spaces.errors import ProfileError
from paretopress.spaces.kernels import Boundary, Kernel

Array = NDArray[np.float64]
Integers = NDArray[np.int64]
LARGEST = 1 << 62


class KeyTable:
    """A table of rows of numbers by key; a key is one row of non-negative integers.

    Keys are numbers in a mixed radix, kept sorted. Where the radices multiply to more than 63 bits, leading digits
    are numbered by a table of their own, which is exact too.
    """

    def __init__(self, radices: Sequence[int], width: int) -> None:
        """Args are the number of values of each digit, and the numbers per row."""
        self._coder = _Coder(radices)
        self._codes: Integers = np.empty(0, dtype=np.int64)
        self._values: Array = np.empty((0, width))

    def __len__(self) -> int:
        return len(self._codes)

    def codes(self, digits: Sequence[Integers], count: int) -> Integers:
        """Keys as numbers, shape (n,)."""
        return self._coder.encode(digits, count)

    def missing(self, codes: Integers) -> tuple[Integers, Integers]:
        """The keys that the table lacks, once each, and for each a position in `codes`."""
        known = np.zeros(len(codes), dtype=bool)
        if len(self._codes):
            places = np.minimum(np.searchsorted(self._codes, codes), len(self._codes) - 1)
            known = self._codes[places] == codes
            if known.all():
                return codes[:0], codes[:0]
        absent = np.flatnonzero(~known)
        found, first = np.unique(codes[absent], return_index=True)
        return found, absent[first]

    def add(self, codes: Integers, values: Array) -> None:
        """Add rows for keys that the table lacks."""
        codes, values = np.concatenate([self._codes, codes]), np.concatenate([self._values, values])
        order = np.argsort(codes, kind="stable")
        self._codes, self._values = codes[order], values[order]

    def rows(self, codes: Integers) -> Array:
        """The rows of known keys, shape (n, width)."""
        found: Array = self._values[np.searchsorted(self._codes, codes)]
        return found


class _Coder:
    """Numbers rows of digits in a mixed radix."""

    def __init__(self, radices: Sequence[int]) -> None:
        self._radices = list(radices)
        self._prefixes: dict[int, tuple[Integers, Integers]] = {}   # digit to known prefixes and their numbers

    def encode(self, digits: Sequence[Integers], count: int) -> Integers:
        code, most = np.zeros(count, dtype=np.int64), 1
        for place, (digit, radix) in enumerate(zip(digits, self._radices, strict=True)):
            if most * radix >= LARGEST:
                code, most = self._numbered(place, code), 1 << 32
            code, most = code * radix + digit, most * radix
        return code

    def _numbered(self, place: int, prefixes: Integers) -> Integers:
        known, numbers = self._prefixes.get(place, (prefixes[:0], prefixes[:0]))
        fresh = np.setdiff1d(prefixes, known)
        if len(fresh):
            known = np.concatenate([known, fresh])
            numbers = np.concatenate([numbers, np.arange(len(numbers), len(known))])
            order = np.argsort(known)
            known, numbers = known[order], numbers[order]
            self._prefixes[place] = (known, numbers)
        return numbers[np.searchsorted(known, prefixes)]


def kernel_costs(device: DeviceProfile, kernels: Sequence[Kernel]) -> Array:
    """Price kernels, shape (n,), infinite where the device cannot execute them or has no figures.

    Whether a kernel is known depends on its family and its widths alone.
    """
    try:
        return device.kernel_cost(kernels)
    except ProfileError:
        pass
    alike: dict[tuple[object, ...], list[int]] = {}
    for index, kernel in enumerate(kernels):
        alike.setdefault((kernel.family, kernel.weight_bits, kernel.activation_bits), []).append(index)
    prices = np.full(len(kernels), np.inf)
    for members in alike.values():
        try:
            prices[members] = device.kernel_cost([kernels[index] for index in members])
        except ProfileError:
            continue
    return prices


def conversion_prices(devices: Sequence[DeviceProfile], boundaries: Sequence[Boundary]) -> Array:
    """Price conversions on every device, shape (n, devices), infinite where it has no figures."""
    found = np.full((len(boundaries), len(devices)), np.inf)
    for number, device in enumerate(devices):
        try:
            found[:, number] = device.boundary_cost(boundaries)
        except ProfileError:
            continue
    return rounded(found)


def rounded(prices: Array) -> Array:
    """Prices to 34 bits: products of matrices differ in their last bits with the number of rows.

    What a search proposes then does not depend on which policies happened to be priced together.
    """
    fraction, exponent = np.frexp(prices)
    found: Array = np.ldexp(np.round(fraction * 2.0**34) / 2.0**34, exponent)
    return found
