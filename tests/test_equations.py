import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kgraft import equations
from tests.reference import grafting as reference

pytestmark = pytest.mark.core

finite = st.floats(-1e3, 1e3, width=32)
normal = st.floats(-1e3, 1e3, width=32, allow_subnormal=False)  # XLA flushes the others to 0
layers = hnp.arrays(np.float32, st.integers(2, 200), elements=finite)
information = st.floats(0, 10)


def layer_entropy(kernel, edges=equations.bin_edges, bins=10):
    counts = equations.bin_counts(kernel, edges(kernel.min(), kernel.max(), bins, kernel.dtype))
    return float(equations.entropy(counts, kernel.size))


def test_entropy_of_a_histogram_computed_by_hand():
    assert equations.entropy([1, 1, 2, 0], 4) == pytest.approx(1.5 * np.log(2))
    assert equations.entropy([[2, 2], [4, 0]], [4, 4]).tolist() == [np.log(2), 0.0]


@settings(deadline=None)
@given(layers)
def test_layer_entropy_is_that_of_numpys_histogram(kernel):
    assert layer_entropy(kernel) == pytest.approx(reference.entropy(kernel), abs=1e-12)


@settings(deadline=None)
@given(layers)
def test_every_weight_is_in_one_bin(kernel):
    edges = equations.bin_edges(kernel.min(), kernel.max(), 10)
    assert equations.bin_counts(kernel, edges).sum() == kernel.size


@settings(deadline=None)
@given(layers)
def test_authors_entropy_is_their_float32_loop(kernel):
    assert layer_entropy(kernel, equations.authors_bin_edges) == pytest.approx(
        reference.authors_entropy(kernel), abs=1e-12
    )


def test_authors_bins_leave_the_largest_weight_out():
    kernel = np.array([0.0, 0.25, 0.5, 1.0], np.float32)
    edges = equations.authors_bin_edges(0.0, 1.0, 2)
    assert equations.bin_counts(kernel, edges).tolist() == [2, 1]


def test_counts_go_on_past_one_block():
    kernel = np.random.default_rng(0).normal(size=200_001).astype(np.float32)
    assert layer_entropy(kernel) == pytest.approx(reference.entropy(kernel), abs=1e-12)


def test_a_constant_layer_has_entropy_zero():
    kernel = np.full((3, 3, 2, 4), 0.1, np.float32)
    assert layer_entropy(kernel) == 0.0
    assert layer_entropy(kernel, equations.authors_bin_edges) == 0.0
    assert equations.filter_entropy(kernel, 10) == 0.0


def test_float64_weights_are_binned_in_float64():
    kernel = np.array([0.0, 0.1, 0.2, 0.3, 1.0])
    assert layer_entropy(kernel) == pytest.approx(reference.entropy(kernel), abs=1e-12)


@pytest.mark.parametrize("edges", [equations.bin_edges, equations.authors_bin_edges])
def test_no_bins_are_refused(edges):
    with pytest.raises(ValueError, match="bins=0"):
        edges(0.0, 1.0, 0)


def test_filter_entropy_sums_over_filters():
    kernel = np.random.default_rng(1).normal(size=(3, 3, 2, 5)).astype(np.float32)
    by_hand = sum(reference.entropy(kernel[..., j]) for j in range(5))
    assert equations.filter_entropy(kernel, 10) == pytest.approx(by_hand)


def test_l1_norm_of_every_filter():
    kernel = np.array([[[1.0, -2.0], [3.0, 4.0]]], np.float32)
    assert equations.filter_l1(kernel).tolist() == [4.0, 6.0]


def test_depthwise_filters_lie_on_the_third_axis():
    kernel = np.arange(2 * 2 * 3 * 2, dtype=np.float32).reshape(2, 2, 3, 2)
    expected = [kernel[:, :, c, m].sum() for c in range(3) for m in range(2)]
    assert equations.filter_l1(kernel, (2, 3)).tolist() == expected


PAPERS = {"amplitude": 0.4, "sharpness": 500.0}


def test_coefficient_of_equal_layers_is_one_half():
    assert equations.graft_coefficient(2.0, 2.0, **PAPERS) == 0.5


def test_coefficient_by_hand():
    assert equations.graft_coefficient(1.0, 0.0, amplitude=0.4, sharpness=1.0) == pytest.approx(0.6)


@given(information, information)
def test_swapping_own_and_donor_gives_one_minus_alpha(own, donor):
    forth = equations.graft_coefficient(own, donor, **PAPERS)
    assert forth + equations.graft_coefficient(donor, own, **PAPERS) == pytest.approx(
        1.0, abs=1e-15
    )


@given(information, information, st.floats(0, 1), st.floats(1e-3, 1e4))
def test_coefficient_stays_in_its_range(own, donor, amplitude, sharpness):
    alpha = equations.graft_coefficient(own, donor, amplitude=amplitude, sharpness=sharpness)
    assert (1 - amplitude) / 2 - 1e-12 <= alpha <= (1 + amplitude) / 2 + 1e-12
    assert alpha == pytest.approx(reference.alpha(own, donor, amplitude, sharpness))


@pytest.mark.parametrize(
    "wrong",
    [
        {"amplitude": 1.1},
        {"amplitude": -0.1},
        {"amplitude": np.nan},
        {"sharpness": 0.0},
        {"sharpness": np.inf},
        {"sharpness": np.nan},
    ],
)
def test_coefficient_refuses_what_is_out_of_range(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        equations.graft_coefficient(1.0, 0.0, **{**PAPERS, **wrong})


@pytest.mark.parametrize("wrong", [np.nan, np.inf, [0.0, -np.inf]])
def test_information_that_is_not_finite_has_no_coefficient(wrong):
    for own, donor in ((wrong, 0.0), (0.0, wrong), (wrong, wrong)):
        with pytest.raises(ValueError, match="must be finite"):
            equations.graft_coefficient(own, donor, **PAPERS)


def test_the_literal_reading_is_refused_where_alpha_could_leave_its_range():
    with pytest.raises(ValueError, match="1/pi"):
        equations.literal_graft_coefficient(1.0, 0.0, **PAPERS)
    alpha = equations.literal_graft_coefficient(1.0, 0.0, amplitude=0.3, sharpness=1.0)
    assert alpha == pytest.approx(0.3 * np.pi / 4 + 0.5)


def tensor(values):
    return keras.ops.convert_to_tensor(np.asarray(values, np.float32))


def numbers(value):
    return keras.ops.convert_to_numpy(value)


@given(st.floats(0, 1))
def test_blending_by_hand(alpha):
    blended = numbers(equations.blend(tensor([1.0, -2.0]), tensor([3.0, 4.0]), alpha))
    expected = [alpha * 1 + (1 - alpha) * 3, alpha * -2 + (1 - alpha) * 4]
    np.testing.assert_allclose(blended, expected, atol=1e-6)


@given(hnp.arrays(np.float32, 7, elements=normal), st.floats(0, 1))
def test_blending_equal_weights_changes_nothing(weights, alpha):
    np.testing.assert_array_equal(
        numbers(equations.blend(tensor(weights), tensor(weights), alpha)), weights
    )


def test_the_ends_of_a_blend_are_exact():
    own, donor = tensor([0.1, 1e-8, 3e7]), tensor([0.7, 1.0, -1e-3])
    np.testing.assert_array_equal(numbers(equations.blend(own, donor, 1.0)), numbers(own))
    np.testing.assert_array_equal(numbers(equations.blend(own, donor, 0.0)), numbers(donor))


def test_the_ends_of_a_blend_are_exact_where_the_step_overflows():
    own, donor = tensor([3e38]), tensor([-3e38])
    np.testing.assert_array_equal(numbers(equations.blend(own, donor, 1.0)), numbers(own))
    np.testing.assert_array_equal(numbers(equations.blend(own, donor, 0.0)), numbers(donor))


def test_half_precision_is_blended_in_float32():
    own = keras.ops.cast(tensor([1.0]), "bfloat16")
    donor = keras.ops.cast(tensor([1.0078125]), "bfloat16")
    blended = equations.blend(own, donor, 0.25)
    assert keras.backend.standardize_dtype(blended.dtype) == "bfloat16"
    assert float(numbers(keras.ops.cast(blended, "float32"))[0]) == 1.0078125


def test_noise_scale_decays():
    assert [equations.noise_scale(0.5, t) for t in range(3)] == [1.0, 0.5, 0.25]
    with pytest.raises(ValueError, match="decay"):
        equations.noise_scale(1.0, 0)


def test_noise_reaches_invalid_filters_only():
    kernel = tensor([[0.01, 1.0], [0.02, -1.0]])
    noise = tensor([[0.5, 0.5], [-0.5, 0.5]])
    np.testing.assert_allclose(
        numbers(equations.noise_scion(kernel, noise, threshold=0.1)),
        [[0.51, 1.0], [-0.48, -1.0]],
        atol=1e-7,
    )


def test_the_largest_filters_are_added_to_the_smallest():
    kernel = tensor([[3.0, 0.01, 1.0, 0.02], [3.0, 0.01, 1.0, 0.02]])
    np.testing.assert_allclose(
        numbers(equations.internal_scion(kernel, threshold=0.1)),
        [[3.0, 3.01, 1.0, 1.02]] * 2,
        atol=1e-6,
    )


def test_internal_scion_keeps_a_depthwise_kernels_shape():
    kernel = np.random.default_rng(2).normal(size=(3, 3, 4, 2)).astype(np.float32)
    kernel[:, :, 1, 0] = 0.0
    grafted = numbers(equations.internal_scion(tensor(kernel), threshold=1e-3, filter_axes=(2, 3)))
    norms = equations.filter_l1(kernel, (2, 3)).reshape(4, 2)
    c, m = np.unravel_index(norms.argmax(), norms.shape)
    expected = kernel.copy()
    expected[:, :, 1, 0] = kernel[:, :, c, m]
    np.testing.assert_allclose(grafted, expected, atol=1e-6)
