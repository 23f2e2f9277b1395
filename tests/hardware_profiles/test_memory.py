from hypothesis import given
from hypothesis import strategies as st

from paretopress.hardware_profiles.memory import peak_bytes
from paretopress.spaces.kernels import Lifetime


@st.composite
def lifetimes(draw):
    kernels = draw(st.integers(1, 12))
    items = []
    for index in range(draw(st.integers(0, 15))):
        first = draw(st.integers(-1, kernels - 1))
        items.append(
            Lifetime(f"t{index}", draw(st.integers(0, 1000)), first, draw(st.integers(first, kernels)))
        )
    return items, kernels


def brute_force(items, kernels):
    """Add up every buffer that exists at each moment: before, during each kernel, and after."""
    return max(
        sum(item.size for item in items if item.first <= moment <= max(item.last, item.first))
        for moment in range(-1, kernels + 1)
    )


@given(lifetimes())
def test_equals_brute_force(drawn):
    items, kernels = drawn
    assert peak_bytes(items, kernels) == brute_force(items, kernels)


def test_chain_holds_input_and_output_of_one_kernel():
    chain = [Lifetime("x", 100, -1, 0), Lifetime("a", 50, 0, 1), Lifetime("b", 80, 1, 2)]
    assert peak_bytes(chain, 2) == 150


def test_residual_branch_keeps_the_shortcut_alive():
    items = [
        Lifetime("x", 100, -1, 2),
        Lifetime("a", 50, 0, 1),
        Lifetime("b", 50, 1, 2),
        Lifetime("sum", 100, 2, 3),
    ]
    assert peak_bytes(items, 3) == 250
