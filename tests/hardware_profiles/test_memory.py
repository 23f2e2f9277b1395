import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretopress.hardware_profiles.catalogue import load_profile
from paretopress.hardware_profiles.memory import peak_bytes, written_in_place
from paretopress.hardware_profiles.profile import DeviceProfile
from paretopress.hardware_profiles.reference_networks import known_network
from paretopress.spaces.kernels import Family, Kernel, Lifetime


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


def add(index):
    return Kernel(f"k{index}", Family.ADD)


def conv(index):
    return Kernel(f"k{index}", Family.CONV)


def test_a_sum_writes_over_an_operand_that_nothing_else_reads():
    items = [Lifetime("x", 40, -1, 0), Lifetime("a", 50, 0, 1), Lifetime("b", 50, 0, 1), Lifetime("sum", 50, 1, 2)]
    kernels = (conv(0), add(1))
    assert peak_bytes(items, 2) == 150
    assert peak_bytes(written_in_place(items, kernels, (Family.ADD,)), 2) == 140   # x with a and b, then b with the sum
    kept = [Lifetime("a", 50, 0, 2), Lifetime("b", 40, 0, 1), Lifetime("sum", 50, 1, 2)]
    assert written_in_place(kept, kernels, (Family.ADD,)) == tuple(kept)   # one is read later, one too small
    assert written_in_place(items, kernels, (Family.ELEMENTWISE,)) == tuple(items)


@given(lifetimes(), st.data())
def test_in_place_equals_sharing_the_buffer(drawn, data):
    """Brute force: at every moment the output of an in-place kernel and the operand it takes over count once."""
    items, count = drawn
    seen, unique = set(), []
    for item in items:   # one output per kernel
        if item.first not in seen or item.first < 0:
            unique.append(item)
            seen.add(item.first)
    kernels = tuple(add(i) if data.draw(st.booleans()) else conv(i) for i in range(count))
    shorter = written_in_place(unique, kernels, (Family.ADD,))
    taken = [(old, new) for old, new in zip(unique, shorter, strict=True) if old != new]
    for old, new in taken:
        assert new.last == old.last - 1
        assert kernels[old.last].family is Family.ADD
        output = next(item for item in unique if item.first == old.last)
        assert output.size <= old.size
    assert len({old.last for old, _ in taken}) == len(taken)   # no output takes two buffers
    assert peak_bytes(shorter, count) == brute_force(shorter, count) <= peak_bytes(unique, count)


def board(**memory):
    content = load_profile("stm32-h747").plain
    numbers = {
        key: {"value": float(value), "basis": "datasheet", "source": "a board made for this test"}
        for key, value in memory.items()
    }
    return DeviceProfile.from_plain({**content, "memory": numbers}, "board")


def test_what_exceeds_a_device_has_a_reason():
    view = known_network("resnet-8", 8)
    assert load_profile("stm32-h747").over_capacity(view) == ""
    assert board().over_capacity(view) == ""
    assert "49152 bytes of activations exceed its 40000 bytes of SRAM" in board(sram_bytes=40_000).over_capacity(view)
    roomy = board(sram_bytes=50_000, runtime_bytes_per_kernel=100)
    assert "and 1400 of the runtime exceed its 50000" in roomy.over_capacity(view)
    assert "bytes of weights exceed its 70000 bytes of flash" in board(flash_bytes=70_000).over_capacity(view)
    both = board(sram_bytes=4_000, flash_bytes=7_000).over_capacity(view)
    assert "SRAM; " in both
    assert "flash" in both


# ST's model zoo, X-CUBE-AI 9.1.0 on the STM32H747: KiB of the runtime's own data.
RUNTIME_KIB = {"resnet-8": 7.21, "resnet-32": 24.98, "mobilenet-v1-0.25-224": 16.38, "mobilenet-v2-0.35-128": 30.14}


@pytest.mark.parametrize("name", sorted(RUNTIME_KIB))
def test_the_runtimes_own_data_grow_with_kernels(name):
    memory = load_profile("stm32-h747").memory(known_network(name, 8))
    assert memory.runtime_bytes / 1024 == pytest.approx(RUNTIME_KIB[name], rel=0.15)
    assert memory.ram_bytes == memory.peak_activation_bytes + memory.runtime_bytes


WEIGHTS_KIB = {"resnet-8": 76.9, "resnet-32": 464.38}


@pytest.mark.parametrize("name", sorted(WEIGHTS_KIB))
def test_weights_are_those_of_the_vendor(name):
    memory = load_profile("stm32-h747").memory(known_network(name, 8))
    assert memory.weight_bytes / 1024 == pytest.approx(WEIGHTS_KIB[name], rel=0.03)
