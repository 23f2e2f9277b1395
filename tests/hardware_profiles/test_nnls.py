import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

from paretopress.hardware_profiles.nnls import non_negative_least_squares


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 40), st.integers(1, 12), st.booleans())
def test_equals_scipy(seed, rows, features, positive):
    random = np.random.default_rng(seed)
    matrix = random.random((rows, features)) if positive else random.standard_normal((rows, features))
    matrix *= np.exp(random.uniform(-6, 6, features))
    target = random.standard_normal(rows) * 10
    ours = non_negative_least_squares(matrix, target)
    theirs, norm = nnls(matrix, target)
    assert (ours >= 0).all()
    assert np.linalg.norm(matrix @ ours - target) <= norm * (1 + 1e-6) + 1e-8
    if rows > features:
        np.testing.assert_allclose(matrix @ ours, matrix @ theirs, atol=1e-6 * (1 + np.abs(target).max()))


def test_recovers_non_negative_coefficients():
    random = np.random.default_rng(0)
    matrix = random.random((200, 6)) * [1, 1e3, 1e6, 1, 1e-3, 1]
    truth = np.array([3.0, 0.0, 2e-6, 0.5, 0.0, 7.0])
    np.testing.assert_allclose(
        non_negative_least_squares(matrix, matrix @ truth), truth, rtol=1e-6, atol=1e-9
    )


def test_zero_columns_and_opposite_target_give_zero():
    matrix = np.array([[0.0, 1.0], [0.0, 2.0]])
    assert non_negative_least_squares(matrix, np.array([-1.0, -2.0])).tolist() == [0.0, 0.0]
