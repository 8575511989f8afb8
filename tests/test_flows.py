"""Flows: inverse, determinant, identity, and what each transform promises; every class in one table."""

import numpy as np
import pytest
from conftest import wide

from vae_anomaly import flows
from vae_anomaly.core.backend import keras, tf
from vae_anomaly.flows import Autoregressive, Chain, Coupling, Planar, Spline
from vae_anomaly.flows.base import TRANSFORMS

# Each class by its name, with the settings that are tried; `Chain`s stand for several in a row.
TABLE = {
    "planar": Planar(),
    "coupling": Coupling(n_units=8),
    "autoregressive": Autoregressive(n_units=8),
    "spline": Spline(n_bins=5, n_units=8),
}
N_CONTEXT = 3
everything = pytest.mark.parametrize("transform", TABLE.values(), ids=TABLE)
latent_dims = pytest.mark.parametrize("latent_dim", [wide(2), 3, wide(6)])


def chain_of(transform, n=3):
    return Chain((transform,) * n)


def drawn_weights(flow, latent_dim, n_context=N_CONTEXT, seed=0, scale=0.7, dtype="float64"):
    """Random weights, also where a flow starts with zeros."""
    rng = np.random.RandomState(seed)
    return {
        name: tf.constant(scale * rng.standard_normal(weight.shape), dtype)
        for name, weight in flow.weights(latent_dim, n_context).items()
    }


def first_weights(flow, latent_dim, n_context=N_CONTEXT, dtype="float64"):
    rng = np.random.RandomState(0)
    return {
        name: tf.constant(weight.draw(rng, np.zeros((1, 1))), dtype)
        for name, weight in flow.weights(latent_dim, n_context).items()
    }


def points(latent_dim, n_rows=6, seed=1, scale=1.5, dtype="float64"):
    rng = np.random.RandomState(seed)
    return tf.constant(scale * rng.standard_normal((n_rows, latent_dim)), dtype)


def contexts(n_rows=6, seed=2, dtype="float64"):
    return tf.constant(np.random.RandomState(seed).standard_normal((n_rows, N_CONTEXT)), dtype)


def jacobian(flow, z, weights, context):
    """By automatic differentiation: (n_rows, latent_dim, latent_dim)."""
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(z)
        image, _ = flow.forward(z, weights, context)
        columns = tf.unstack(image, axis=1)
    return np.stack([tape.gradient(column, z) for column in columns], axis=1)


def test_the_table_has_every_transform():
    assert {type(transform) for transform in TABLE.values()} == set(TRANSFORMS.values())


@pytest.mark.parametrize("name", flows.NAMED)
def test_named_flows_are_made_of_transforms_of_the_table(name):
    assert {type(transform) for transform in flows.resolve(name).transforms} <= set(TRANSFORMS.values())


@pytest.mark.parametrize(
    ("transforms", "message"),
    [("glow", "transforms must be one of .*'planar'.*'glow'"), ([], "at least one"), ([3], "received 3")],
)
def test_what_is_no_flow_is_refused(transforms, message):
    with pytest.raises((TypeError, ValueError), match=message):
        flows.resolve(transforms)


# -- all of them ----------------------------------------------------------------------------------------
@latent_dims
@everything
def test_the_inverse_of_the_image_is_the_point(transform, latent_dim):
    flow = chain_of(transform)
    # Larger weights make slopes of which no inverse keeps ten digits.
    weights, z, context = drawn_weights(flow, latent_dim, scale=0.4), points(latent_dim), contexts()
    image, _ = flow.forward(z, weights, context)
    assert np.abs(image - z).max() > 0.1
    np.testing.assert_allclose(flow.inverse(image, weights, context), z, rtol=1e-10, atol=1e-10)


@everything
def test_the_inverse_keeps_four_digits_in_single_precision(transform):
    flow = chain_of(transform)
    weights, z = drawn_weights(flow, 3, scale=0.5, dtype="float32"), points(3, dtype="float32")
    context = contexts(dtype="float32")
    image, log_det = flow.forward(z, weights, context)
    assert image.dtype == log_det.dtype == tf.float32
    np.testing.assert_allclose(flow.inverse(image, weights, context), z, rtol=1e-4, atol=1e-4)


@latent_dims
@everything
def test_the_log_determinant_is_that_of_the_jacobian(transform, latent_dim):
    flow = chain_of(transform)
    weights, z, context = drawn_weights(flow, latent_dim), points(latent_dim), contexts()
    _, log_det = flow.forward(z, weights, context)
    log_determinant = np.linalg.slogdet(jacobian(flow, z, weights, context))[1]
    np.testing.assert_allclose(log_det, log_determinant, rtol=1e-9, atol=1e-9)


@everything
def test_a_flow_starts_as_the_identity(transform):
    flow = chain_of(transform)
    z = points(3)
    image, log_det = flow.forward(z, first_weights(flow, 3), contexts())
    np.testing.assert_allclose(image, z, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(log_det, 0.0, atol=1e-12)


@everything
def test_two_rows_have_two_flows(transform):
    flow = chain_of(transform)
    weights, z = drawn_weights(flow, 3), points(3)
    one, other = (flow.forward(z, weights, contexts(seed=seed))[0] for seed in (2, 3))
    assert (np.abs(one - other).max(axis=1) > 1e-3).all()


@everything
def test_draws_of_all_rows_are_sent_through_the_rows_own_flows(transform):
    flow = chain_of(transform)
    weights, context = drawn_weights(flow, 3), contexts()
    draws = tf.stack([points(3, seed=seed) for seed in range(4)])
    images, log_dets = flow.forward(draws, weights, context)
    for draw, image, log_det in zip(draws, images, log_dets, strict=True):
        alone, its_log_det = flow.forward(draw, weights, context)
        np.testing.assert_allclose(image, alone, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(log_det, its_log_det, rtol=1e-12, atol=1e-12)


@everything
def test_a_flow_without_context_is_one_for_all_rows(transform):
    flow = chain_of(transform)
    weights, z = drawn_weights(flow, 3, n_context=0), points(3)
    image, _ = flow.forward(z, weights)
    np.testing.assert_allclose(flow.inverse(image, weights), z, rtol=1e-10, atol=1e-10)


@everything
def test_every_weight_gets_a_gradient(transform):
    flow = chain_of(transform)
    weights = drawn_weights(flow, 3)
    with tf.GradientTape() as tape:
        tape.watch(weights)
        image, log_det = flow.forward(points(3), weights, contexts())
        total = tf.reduce_sum(tf.square(image)) + tf.reduce_sum(log_det)
    for name, gradient in tape.gradient(total, weights).items():
        assert gradient is not None, name
        assert np.abs(gradient).max() > 0, name


@everything
def test_far_points_and_their_densities_stay_finite(transform):
    flow = chain_of(transform)
    weights = drawn_weights(flow, 3, dtype="float32", scale=2.0)
    z = tf.constant(1e4 * np.sign(np.random.RandomState(0).standard_normal((6, 3))), "float32")
    image, log_det = flow.forward(z, weights, contexts(dtype="float32"))
    assert np.isfinite(image).all()
    assert np.isfinite(log_det).all()


@everything
def test_the_density_of_the_image_integrates_to_one(transform):
    """By quadrature in two dimensions: log p(y) = log N(z) - log det at the z whose image is y."""
    flow = chain_of(transform, 2)
    weights = drawn_weights(flow, 2, n_context=0, scale=0.4)
    axis = np.linspace(-1, 1, 561) * (6 if isinstance(transform, Spline) else 14)  # a spline ends at its box
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    z = flow.inverse(tf.constant(grid), weights)
    _, log_det = flow.forward(z, weights)
    log_density = -0.5 * np.square(z).sum(axis=-1) - np.log(2 * np.pi) - log_det.numpy()
    assert np.exp(log_density).sum() * (axis[1] - axis[0]) ** 2 == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("transform", [TABLE[name] for name in ("coupling", "autoregressive", "spline")])
def test_one_latent_dimension_is_refused_where_nothing_would_be_changed_by_another(transform):
    with pytest.raises(ValueError, match="needs at least 2 of them; received latent_dim=1"):
        chain_of(transform).check(1)


# -- planar ---------------------------------------------------------------------------------------------
def planar_cases():
    rng = np.random.RandomState(0)
    w, u = rng.standard_normal((2, 50, 4))
    return {
        "random": (w, u),
        "huge": (w, 1e5 * u),
        "opposite": (w, -100 * w),
        "opposite and huge": (100 * w, -1e5 * w),
        "no direction": (0 * w, u),
    }


@pytest.mark.parametrize(("w", "u"), planar_cases().values(), ids=planar_cases())
def test_planar_transforms_never_fold_space(w, u):
    """w · û > -1, a finite log-determinant without an epsilon, and a rising image along w."""
    steps = np.linspace(-3, 3, 101)[:, None]
    for its_w, its_u in zip(w, u, strict=True):
        weights = {"u": its_u, "w": its_w, "b": np.array([0.1])}
        weights = {name: tf.constant(value, "float32") for name, value in weights.items()}
        bent, *_, along = Planar()._parameters(weights, None)
        assert float(along[0]) > -1
        assert np.isfinite(bent).all()
        length = np.linalg.norm(its_w)
        along_w = steps * (its_w / length**2 if length else its_w)
        image, log_det = Planar().forward(tf.constant(along_w, "float32"), weights, None)
        assert np.isfinite(image).all()
        assert np.isfinite(log_det).all()
        if length:  # in float64: the steps of float32 would be too coarse for images of huge u
            precise = {name: tf.cast(value, "float64") for name, value in weights.items()}
            image, _ = Planar().forward(tf.constant(along_w), precise, None)
            assert (np.diff(image.numpy() @ precise["w"].numpy()) > 0).all()


# -- autoregressive -------------------------------------------------------------------------------------
@pytest.mark.parametrize("n_units", [wide(2), 8, wide(31)])
def test_autoregressive_jacobians_are_triangular(n_units):
    transform = Autoregressive(n_units=n_units)
    weights, z = drawn_weights(transform, 4), points(4)
    slopes = jacobian(transform, z, weights, contexts())
    assert (slopes[:, *np.triu_indices(4, 1)] == 0).all()
    if n_units > 3:  # as many as make each latent depend on all before it
        assert (slopes[:, *np.tril_indices(4)] != 0).all()


def test_every_second_transform_sees_the_latents_in_reverse():
    """After two autoregressive transforms each latent depends on each, so the density does too."""
    flow = chain_of(TABLE["autoregressive"], 2)
    weights, z = drawn_weights(flow, 3), points(3)
    assert (jacobian(flow, z, weights, contexts()) != 0).all()


# -- splines --------------------------------------------------------------------------------------------
SPLINE = Spline(n_bins=5, bound=3.0)


def spline_of(x, scale, seed=0):
    raw = scale * np.random.RandomState(seed).standard_normal(3 * SPLINE.n_bins - 1)
    raw = tf.broadcast_to(tf.constant(raw), (len(x), len(raw)))
    return raw, *SPLINE.bend(tf.constant(x), raw)


def test_splines_are_the_identity_of_slope_one_outside_the_box():
    x = np.array([-1e4, -3.001, -3.0, 3.0, 3.001, 1e4])
    _, y, log_slope = spline_of(x, 2.0)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(log_slope, 0.0)


def test_the_slope_of_a_spline_is_continuous_also_at_the_knots():
    x = np.linspace(-3.5, 3.5, 700_001)
    _, y, log_slope = spline_of(x, 1.0)
    assert np.abs(np.diff(np.exp(log_slope))).max() < 2e-3
    np.testing.assert_allclose(np.gradient(y, x)[1:-1], np.exp(log_slope)[1:-1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scale", [1.0, wide(30.0), 1e3])
def test_splines_rise_whatever_their_numbers(scale):
    x = np.linspace(-3.0, 3.0, 2001)
    for seed in range(5):
        _, y, log_slope = spline_of(x, scale, seed)
        assert (np.diff(y) > 0).all()
        assert np.isfinite(log_slope).all()
        assert np.abs(y).max() <= 3.0 + 1e-9


def test_splines_are_computed_in_any_shape():
    x = points(2, dtype="float32")
    raw = keras.ops.zeros((6, 2, 3 * SPLINE.n_bins - 1))
    np.testing.assert_allclose(SPLINE.straighten(SPLINE.bend(x, raw)[0], raw), x, rtol=1e-5, atol=1e-6)
