"""The detector with each posterior and prior: everything that it has with the usual ones."""

import copy
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import stars
from sklearn.utils.estimator_checks import estimator_checks_generator

import vae_anomaly
from vae_anomaly import ConvNetwork, DenseNetwork, KerasNetwork, VAEDetector, likelihoods, plotting
from vae_anomaly.checkpoints import Checkpoint, CheckpointFile
from vae_anomaly.core.backend import keras
from vae_anomaly.core.weights import PROGRESS
from vae_anomaly.engine.programs import architecture_of
from vae_anomaly.flows import Autoregressive, Coupling, Planar, Spline
from vae_anomaly.model.vae import VAE
from vae_anomaly.networks import Network
from vae_anomaly.objectives import Chi, Objective, Renyi
from vae_anomaly.posteriors import POSTERIORS, Categorical, Gaussian, Implicit
from vae_anomaly.posteriors import Flow as FlowPosterior
from vae_anomaly.priors import PRIORS, AggregatePosterior, Mixture, Prior, Standard, VampPrior
from vae_anomaly.priors import Flow as FlowPrior

rng = np.random.RandomState(0)
X = rng.normal(size=(80, 2)) @ rng.normal(size=(2, 3)) + 0.3 * rng.normal(size=(80, 3))
GAPS = np.where(rng.uniform(size=X.shape) < 0.2, np.nan, X)
GAPS[::2] = X[::2]

# What the detector is made of, and the classes of posteriors and priors that are met at least once.
PARTS = {
    "iaf, flow": {"posterior": FlowPosterior([Autoregressive(4)], 3), "prior": FlowPrior([Coupling(4)])},
    "categorical": {"posterior": Categorical(2, 3)},
    "implicit": {"posterior": Implicit(2, 3, n_units=8)},
    "vamp": {"prior": VampPrior(4)},
    "planar": {"posterior": FlowPosterior([Planar()] * 2, 3)},
    "coupling, mixture": {"posterior": FlowPosterior([Coupling(4)] * 2, 3), "prior": Mixture(3)},
    "spline": {"posterior": FlowPosterior([Spline(3, n_units=4)] * 2, 3)},
    "mixture": {"prior": Mixture(3)},
    "autoregressive prior": {"prior": FlowPrior([Autoregressive(4)] * 2)},
    "aggregate": {"prior": AggregatePosterior(6)},
    "implicit, mixture": {"posterior": Implicit(3, 4, False, 4, 8), "prior": Mixture(3)},
    "straight through": {"posterior": Categorical(2, 3, 0.5, straight_through=True, max_enumerated=0)},
}


def with_parts(*by_default):
    """Each of the detectors; those that are not named here are `wide`."""
    return pytest.mark.parametrize("name", stars({name: name for name in PARTS}, by_default))


class OwnNetwork(Network):
    """One dense layer each; ``width`` more numbers than are wanted come out of the decoder."""

    def __init__(self, made=lambda encoder, decoder: (encoder, decoder), width=0):
        self.made = made
        self.width = width

    def build(self, n_features, latent_dim, n_params):
        x, z = keras.Input((n_features,)), keras.Input((latent_dim,))
        heads = [keras.layers.Dense(latent_dim)(x) for _ in range(2)]
        decoder = keras.Model(z, keras.layers.Dense(n_features * n_params + self.width)(z))
        return self.made(keras.Model(x, heads), decoder)


def one_output(encoder, decoder):
    return keras.Model(encoder.inputs, encoder.outputs[0]), decoder


@pytest.mark.parametrize(
    ("network", "error", "message"),
    [
        (OwnNetwork(lambda *models: None), TypeError, r"must return two Keras models.*received None"),
        (
            OwnNetwork(lambda encoder, decoder: (decoder, encoder)),
            ValueError,
            r"one input of width 3; .* \[2\]",
        ),
        (OwnNetwork(one_output), ValueError, r"z_mean of width 2, z_log_var of width 2.* widths \[2\]"),
        (
            OwnNetwork(width=1),
            ValueError,
            r"decoder that OwnNetwork.build .* one output of width 3; .* \[4\]",
        ),
    ],
    ids=["nothing", "the wrong way round", "one head", "another width"],
)
def test_a_network_that_builds_other_models_is_refused_by_what_is_wrong(network, error, message):
    with pytest.raises(error, match=message):
        VAEDetector(network, latent_dim=2, epochs=1).fit(X)


def test_a_network_of_ones_own_may_return_its_heads_side_by_side():
    def side_by_side(encoder, decoder):
        return keras.Model(encoder.inputs, keras.layers.Concatenate()(encoder.outputs)), decoder

    scores = [
        VAEDetector(OwnNetwork(*made), latent_dim=2, epochs=1, random_state=0).fit(X).score_samples(X)
        for made in ([], [side_by_side])
    ]
    np.testing.assert_array_equal(*scores)


class SummedGaussian(likelihoods.Gaussian):
    def log_prob(self, x, parameters):
        return keras.ops.sum(super().log_prob(x, parameters), axis=-1, keepdims=True)


class UnsummedPrior(Prior):
    def log_prob(self, z, weights, vae):
        return -0.5 * z**2


class MeanOfAll(Objective):
    def bound(self, log_weights):
        return keras.ops.mean(log_weights)


class OneDraw(Gaussian):
    def sample(self, context, noise, weights, training=False):
        z, log_q = super().sample(context, noise, weights, training)
        return z[0], log_q


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"likelihood": SummedGaussian()}, r"log_prob of the likelihood .*n_features.* shape \(1, 80, 1\)"),
        ({"prior": UnsummedPrior()}, r"log_prob of the prior .* here \(1, 80\); .* shape \(1, 80, 2\)"),
        ({"objective": MeanOfAll()}, r"bound of the objective .* here \(80,\); .* shape \(\)"),
        ({"posterior": OneDraw()}, r"sample of the posterior .* for z, here \(1, None, 2\)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_part_whose_numbers_have_another_shape_is_refused_by_name(part, message):
    with pytest.raises(ValueError, match=message):
        VAEDetector(DenseNetwork((4,)), latent_dim=2, epochs=1, batch_size=80, **part).fit(X)


def test_a_part_without_a_method_that_is_needed_names_it():
    class NoPrior(Prior):
        pass

    with pytest.raises(NotImplementedError, match="NoPrior has no method log_prob.* class Prior describes"):
        VAEDetector(DenseNetwork((4,)), epochs=1, prior=NoPrior()).fit(X)


each = with_parts("iaf, flow", "categorical", "implicit")
_fitted = {}


def quick(**options):
    settings = {"latent_dim": 2, "epochs": 3, "batch_size": 32, "n_draws": 4, "random_state": 0}
    if isinstance(options.get("posterior"), Categorical):
        del settings["latent_dim"]
    return VAEDetector(DenseNetwork((6,)), **{**settings, **options})


def detector_of(name):
    """One of a kind: tests leave it as it is."""
    if name not in _fitted:
        _fitted[name] = quick(**PARTS[name]).fit(X)
    return _fitted[name]


def test_every_posterior_and_prior_is_tried_in_the_detector():
    tried = [{"posterior": Gaussian(), "prior": Standard()}, *PARTS.values()]
    for part, registry in (("posterior", POSTERIORS), ("prior", PRIORS)):
        assert {type(parts[part]) for parts in tried if part in parts} == set(registry.values())


@each
def test_a_row_scores_the_same_bits_alone_and_among_others(name):
    detector = detector_of(name)
    scores, order = detector.score_samples(X), np.random.RandomState(1).permutation(len(X))
    np.testing.assert_array_equal(detector.score_samples(X[order]), scores[order])
    np.testing.assert_array_equal([detector.score_samples(X[i : i + 1])[0] for i in range(3)], scores[:3])


@each
def test_the_same_seed_gives_the_same_bits(name):
    again = quick(**PARTS[name]).fit(X)
    np.testing.assert_array_equal(again.score_samples(X), detector_of(name).score_samples(X))


@with_parts("iaf, flow", "categorical", "implicit", "vamp")
def test_a_file_holds_the_same_bits(name, tmp_path):
    detector = detector_of(name)
    detector.save(tmp_path / "detector.vae")
    found = vae_anomaly.load(tmp_path / "detector.vae")
    np.testing.assert_array_equal(found.score_samples(X), detector.score_samples(X))
    np.testing.assert_array_equal(found.sample(5, random_state=0), detector.sample(5, random_state=0))
    assert found.get_params()["posterior"] == detector.get_params()["posterior"]
    assert found.members_[0].specification.key == detector.members_[0].specification.key


@pytest.mark.parametrize(
    ("forged", "reason"),
    [
        ({"prior": Mixture(10**9)}, "a network of at least 5000000"),
        ({"posterior": FlowPosterior([Coupling(10**9)])}, "a network of at least"),
        ({"posterior": FlowPosterior("planar", n_context=10**12)}, "a network of at least"),
        ({"posterior": Implicit(n_units=10**9)}, "a network of at least"),
        ({"posterior": Implicit(n_contrast_draws=10**9)}, "a network of at least"),
        ({"posterior": Categorical(10**6, 10**6)}, "the latent dimensions of a member"),
        ({"posterior": FlowPosterior([Mixture()])}, "TypeError"),
        ({"prior": "standard"}, "the specification of a member"),
    ],
)
def test_a_file_of_parts_that_the_weights_cannot_be_of_is_refused(forged, reason, tmp_path):
    detector = copy.copy(detector_of("iaf, flow"))
    state = detector.members_[0]
    detector.members_ = (replace(state, specification=state.specification._replace(**forged)),)
    detector.save(tmp_path / "forged.vae")
    with pytest.raises(vae_anomaly.ModelFileError, match=reason):
        vae_anomaly.load(tmp_path / "forged.vae")


@each
def test_every_weight_is_trained(name):
    detector = detector_of(name)
    shared = architecture_of(detector.members_[0])
    start = shared.initial_state(0, np.asarray(X, dtype="f4"))
    n_trainable = len(shared.template.trainable_variables)
    before, after = (shared.arrays(state)[:n_trainable] for state in (start, detector.members_[0]))
    untrained = [
        variable.path
        for variable, old, new in zip(shared.template.trainable_variables, before, after, strict=True)
        if np.array_equal(old, new)
    ]
    assert untrained == []


@with_parts()
def test_missing_values_cost_nothing_but_what_they_hide(name):
    detector = detector_of(name)
    for answer in (detector.score_samples(GAPS), detector.reconstruct(GAPS), detector.expected(GAPS[:4])):
        assert np.isfinite(answer).all()
    expected, low, high = detector.expected(X[:3], coverage=0.9)
    assert ((low <= high) & np.isfinite(expected)).all()
    trained_on_gaps = quick(**PARTS[name]).fit(GAPS)
    assert np.isfinite(trained_on_gaps.score_samples(GAPS)).all()


@with_parts("iaf, flow", "implicit")
def test_shares_sum_to_the_score_and_the_elbo_is_its_terms(name):
    detector = detector_of(name)
    np.testing.assert_allclose(detector.explain(X).sum(axis=1), -detector.score_samples(X), rtol=1e-9)
    assert detector.score(X) == pytest.approx(detector.score_samples(X).mean(), abs=1e-4)
    assert ((detector.confidence(X) >= 0.5) & (detector.confidence(X) <= 1)).all()


@each
def test_samples_are_drawn_from_the_prior(name):
    model = detector_of(name).model_
    z = np.asarray(model.prior.sample(2000, 1, model.weights_of("prior"), model))
    rows = detector_of(name).sample(500, random_state=0)
    assert rows.shape == (500, 3)
    assert np.isfinite(rows).all()
    # The mean of -log p(z) over draws is the entropy, which lies near that of the standard prior at first.
    entropy = -np.asarray(model.log_prior(z)).mean()
    usual = model.latent_dim * 0.5 * (1 + math.log(2 * math.pi))
    usual = 2 * math.log(3) if model.posterior.latents == "categories" else usual
    assert entropy == pytest.approx(usual, abs=1.5)


@each
def test_encodings_are_the_centers_of_posteriors(name):
    detector = detector_of(name)
    encoded, model = detector.encode(X), detector.model_
    rows = detector.scaler_.transform(X).astype("f4")
    np.testing.assert_allclose(encoded, model.center(model.encode(rows)), rtol=1e-4, atol=1e-5)
    assert encoded.shape == (80, detector.latent_dim_)
    if model.posterior.latents == "categories":
        np.testing.assert_allclose(encoded.reshape(80, 2, 3).sum(axis=2), 1.0, rtol=1e-5)


@each
def test_cards_and_pictures_name_the_parts(name):
    detector = detector_of(name)
    card = detector.model_card()
    specification = detector.members_[0].specification
    for part in PARTS[name]:
        assert card["model"][part] == " ".join(repr(getattr(specification, part)).split())
        assert type(getattr(specification, part)).__name__ in str(card)
    ax = plotting.network_summary(detector)
    own = [v for weights in detector.model_.own_variables.values() for v in weights.values()]
    n_fixed = sum(math.prod(variable.shape) for variable in own if not variable.trainable)
    assert f"{card['model']['weights_of_a_member'] + n_fixed:,} weights" in ax.get_title()
    assert specification.posterior.center_name in plotting.latent_scatter(detector, X).get_xlabel()


@with_parts("iaf, flow")
def test_a_saved_keras_model_computes_the_same(name, tmp_path):
    model = detector_of(name).model_
    model.save(tmp_path / "model.keras")
    found = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(found, VAE)
    noise = np.random.RandomState(0).standard_normal((2, 1, model.posterior.noise_width(model.latent_dim)))
    one, other = (each.infer(X.astype("f4"), noise.astype("f4")) for each in (model, found))
    np.testing.assert_array_equal(other.log_ratio, one.log_ratio)


@with_parts()
def test_keras_own_fit_trains_the_model(name):
    model = detector_of(name).model_
    model.compile("adam")
    losses = model.fit(X.astype("f4"), epochs=3, verbose=0).history["loss"]
    assert np.isfinite(losses).all()
    assert np.isfinite(model.predict(X.astype("f4"), verbose=0)).all()


@with_parts()
@pytest.mark.parametrize("score", ["elbo", "iwae"])
def test_an_onnx_graph_computes_the_same(name, score, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    detector = quick(**PARTS[name], score=score)
    if score == "iwae" and isinstance(detector.posterior, Implicit):
        pytest.skip("refused at fit")
    detector.fit(X).to_onnx(tmp_path / "detector.onnx")
    session = runtime.InferenceSession(tmp_path / "detector.onnx")
    (scores,) = session.run(["score_samples"], {"X": GAPS})
    np.testing.assert_allclose(scores, detector.score_samples(GAPS), rtol=1e-4, atol=1e-4)


@with_parts("categorical")
def test_a_fit_in_two_sittings_ends_with_the_same_bits(name, tmp_path, monkeypatch):
    """Also where the temperature follows the progress of the training."""
    checkpoint, keep = Checkpoint(tmp_path / "fit.ckpt", every=1), CheckpointFile.keep

    def keep_two(self, position, progress):
        keep(self, position, progress)
        if progress.n_epochs == 2:
            raise InterruptedError

    monkeypatch.setattr(CheckpointFile, "keep", keep_two)
    with pytest.raises(InterruptedError):
        quick(**PARTS[name], checkpoint=checkpoint).fit(X)
    monkeypatch.undo()
    resumed = quick(**PARTS[name], checkpoint=checkpoint).fit(X, resume=True)
    np.testing.assert_array_equal(resumed.score_samples(X), detector_of(name).score_samples(X))


@with_parts()
def test_a_warm_start_goes_on_with_the_parts_and_not_with_others(name):
    detector = quick(**PARTS[name], warm_start=True).fit(X)
    before = detector.score(X)
    assert detector.fit(X).score(X) > before - 0.5
    assert len(detector.history_["loss"]) == 6
    detector.set_params(prior="standard", posterior="gaussian", latent_dim=detector.latent_dim_)
    with pytest.raises(ValueError, match="posterior, prior, latent_dim or the width of X have changed"):
        detector.fit(X)


def test_the_temperature_follows_the_training():
    state = detector_of("categorical").members_[0]
    shared = architecture_of(state)
    progress = shared.template.own_variables["posterior"][PROGRESS]
    position = [v is progress for v in shared.template.non_trainable_variables].index(True)
    assert float(state.non_trainable[position]) == pytest.approx(8 / 9)  # of nine steps, the last one


@with_parts()
def test_xla_trains_the_same_model(name):
    by_xla = quick(**PARTS[name], jit_compile=True).fit(X)
    found, expected = (detector.score_samples(X) for detector in (by_xla, detector_of(name)))
    np.testing.assert_allclose(found, expected, rtol=0.02, atol=0.02)


@pytest.mark.wide
@pytest.mark.parametrize("name", PARTS)
def test_mixed_tables_and_images_take_every_part(name):
    frame = pd.DataFrame(X, columns=list("abc")).assign(kind=np.where(X[:, 0] > 0, "high", "low"))
    frame.loc[::7, "kind"] = None
    detector = quick(**PARTS[name], members=2).fit(frame)
    assert np.isfinite(detector.score_samples(frame)).all()
    images = np.random.RandomState(0).uniform(size=(40, 8, 8))
    for network in (DenseNetwork((6,)), ConvNetwork(filters=(4,), dense_units=())):
        detector = quick(**PARTS[name]).set_params(network=network, batch_size=16).fit(images)
        assert np.isfinite(detector.score_samples(images)).all()
    patches = quick(**PARTS[name]).set_params(patches=4, epochs=1).fit(images)
    assert np.isfinite(patches.explain(images[:2])).all()


# -- networks of one's own ------------------------------------------------------------------------------
def keras_encoder(widths):
    x = keras.Input((3,))
    hidden = keras.layers.Dense(6, "relu")(x)
    return keras.Model(x, [keras.layers.Dense(width)(hidden) for width in widths])


def keras_decoder():
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(6, "relu"), keras.layers.Dense(3)])


def test_a_keras_encoder_returns_what_the_posterior_wants():
    detector = quick(**PARTS["iaf, flow"])
    detector.set_params(network=KerasNetwork(keras_encoder([2, 2, 3]), keras_decoder())).fit(X)
    assert np.isfinite(detector.score_samples(X)).all()
    detector.set_params(network=KerasNetwork(keras_encoder([2, 2]), keras_decoder()))
    with pytest.raises(ValueError, match=r"output shape \(None, 2\) and \(None, 2\) and \(None, 3\)"):
        detector.fit(X)


def test_a_network_without_heads_says_what_is_missing():
    class Old(Network):
        def build(self, n_features, latent_dim, n_params):
            return DenseNetwork((4,)).build(n_features, latent_dim, n_params)

    with pytest.raises(ValueError, match="returns z_mean of width 2.*context of width 3.*`heads`"):
        quick(**PARTS["iaf, flow"]).set_params(network=Old()).fit(X)


# -- manifolds ------------------------------------------------------------------------------------------
@pytest.mark.wide
def test_a_manifold_is_drawn_where_the_prior_lies_and_of_real_latents_alone():
    images = np.random.RandomState(0).uniform(size=(20, 4, 4))
    detector = quick(prior=Mixture(2)).fit(images)
    assert plotting.latent_manifold(detector, 3).images[0].get_array().shape == (14, 14)
    with pytest.raises(ValueError, match="those of the detector are categories: draw samples"):
        plotting.latent_manifold(quick(posterior=Categorical(1, 2)).fit(images), 3)


# -- scikit-learn's checks ------------------------------------------------------------------------------
CONFORMING = {
    **{name: quick(**parts).set_params(batch_size=128) for name, parts in PARTS.items()},
    "renyi": quick(objective=Renyi(0.5), n_training_draws=3),
    "chi": quick(objective=Chi(2), n_training_draws=3),
}


@pytest.mark.wide
@pytest.mark.parametrize("name", CONFORMING)
def test_every_check_of_scikit_learn_is_passed(name):
    detector = CONFORMING[name]
    for estimator, check in estimator_checks_generator(detector, mark=None):
        if getattr(check, "func", check).__name__ != "check_array_api_input":  # see test_conformance
            check(estimator)
