"""Ensembles: how members differ, how they are trained, and how their scores become one."""

import warnings

import numpy as np
import pandas as pd
import pytest
from conftest import stars, wide
from scipy import stats
from sklearn.base import clone
from sklearn.metrics import roc_auc_score

from vae_anomaly import ConvNetwork, DenseNetwork, VAEDetector
from vae_anomaly.core.rows import usual_range
from vae_anomaly.datasets import make_anomalies
from vae_anomaly.engine.programs import architecture_of, model_of
from vae_anomaly.ensemble.averaging import average, weights_by_row, weights_for
from vae_anomaly.ensemble.decisions import decide
from vae_anomaly.ensemble.recipe import (
    DEFAULT_MEMBERS,
    IMAGE_MEMBERS,
    MIXED_MEMBERS,
    PATCH_MEMBERS,
    Member,
    resolve_recipe,
)
from vae_anomaly.likelihoods import Gaussian
from vae_anomaly.scoring import SCORES, passes
from vae_anomaly.thresholds import OutOfBag

SMALL = {"network": DenseNetwork((16,)), "latent_dim": 2, "epochs": 8, "batch_size": 64, "random_state": 0}


def fit(X, **settings):
    return VAEDetector(**{**SMALL, **settings}).fit(X)


# -- what "auto" means ----------------------------------------------------------------------------------
def test_automatic_epochs_of_a_table_train_the_ensemble_that_detects_best():
    decided = decide(VAEDetector().get_params(deep=False), None, None, n_rows=500)
    assert decided.recipe == (DEFAULT_MEMBERS, 0.2, True)


def test_members_of_mixed_tables_trim_less():
    X = pd.DataFrame({"a": np.random.default_rng(0).normal(size=40), "b": list("xxxxy") * 8})
    detector = VAEDetector(network=DenseNetwork((4,)), random_state=0).fit(X)
    assert len(detector.members_) == len(MIXED_MEMBERS) == 8
    decided = decide(detector.get_params(deep=False), detector.table_, None, n_rows=500)
    assert decided.recipe.members == MIXED_MEMBERS
    for mixed, other in zip(MIXED_MEMBERS, DEFAULT_MEMBERS, strict=True):
        assert mixed.trimmed_fraction <= 0.5 * other.trimmed_fraction


def test_given_epochs_train_one_model_on_all_rows_for_so_long(table):
    detector = fit(table[0])
    assert len(detector.members_) == 1
    assert len(detector.history_["loss"]) == 8
    assert "val_loss" not in detector.history_


@pytest.mark.parametrize(
    ("shape", "image_shape"), [(None, (4, 4)), ((4, 4, 1), None)], ids=["images", "flat"]
)
@pytest.mark.parametrize("epochs", ["auto", 3])
def test_images_get_four_members_that_hold_images_out_however_long_they_train(shape, image_shape, epochs):
    parameters = VAEDetector(ConvNetwork(shape), epochs=epochs).get_params(deep=False)
    decided = decide(parameters, None, image_shape, n_rows=500)
    assert decided.recipe == (IMAGE_MEMBERS, 0.2, epochs == "auto")
    assert isinstance(decided.rule, OutOfBag)


def test_patches_get_members_whose_latents_carry_a_texture():
    decided = decide(VAEDetector().get_params(deep=False), None, (40, 40), n_rows=500)
    assert decided.recipe == (PATCH_MEMBERS, 0.2, True)
    assert [member.beta_factor for member in PATCH_MEMBERS] == [0.3, 0.1, 0.3, 0.1]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"early_stopping": False}, (0.0, False)),
        ({"validation_fraction": 0.0}, (0.0, False)),
        ({"validation_fraction": 0.3}, (0.3, True)),
        ({"n_rows": 9}, (0.0, False)),
        ({"decide": False}, (0.0, False)),
        ({"decide": False, "validation_fraction": 0.3}, (0.3, False)),
        ({"decide": False, "early_stopping": True}, (0.2, True)),
        ({"decide": False, "of_images": True}, (0.2, False)),
        ({"decide": False, "of_images": True, "n_rows": 9}, (0.0, False)),
        ({"of_images": True, "validation_fraction": 0.0}, (0.0, False)),
    ],
    ids=str,
)
def test_a_given_parameter_wins_over_what_auto_would_choose(given, expected):
    parameters = {
        "validation_fraction": "auto",
        "early_stopping": "auto",
        "default_members": DEFAULT_MEMBERS,
        "decide": True,
        "of_images": False,
        "n_rows": 10,
    }
    assert resolve_recipe(1, **{**parameters, **given})[1:] == expected


def test_a_number_of_members_differ_by_their_seeds_only():
    decided = decide(VAEDetector(members=3).get_params(deep=False), None, None, n_rows=9)
    assert [vars(member) for member in decided.recipe.members] == [vars(Member())] * 3


def test_members_that_are_none_are_named(table):
    with pytest.raises(TypeError, match=r"number or a list of Member objects; received 'robust'"):
        fit(table[0], members=["robust"])
    with pytest.raises(ValueError, match="members must hold at least one Member; received none"):
        fit(table[0], members=[])
    with pytest.raises(ValueError, match="'trimmed_fraction' parameter of Member"):
        fit(table[0], members=[Member(trimmed_fraction=1.0)])
    with pytest.raises(ValueError, match="'beta_factor' parameter of Member"):
        fit(table[0], members=[Member(beta_factor=-1.0)])


# -- members --------------------------------------------------------------------------------------------
def test_one_plain_member_is_the_plain_detector(table):
    X, _ = table
    expected = fit(X).score_samples(X)
    np.testing.assert_array_equal(fit(X, members=1).score_samples(X), expected)
    np.testing.assert_array_equal(fit(X, members=[Member()]).score_samples(X), expected)


def test_a_beta_factor_multiplies_beta(table):
    X, _ = table
    halved = fit(X, members=[Member(beta_factor=0.5)], beta=0.6)
    np.testing.assert_array_equal(halved.score_samples(X), fit(X, beta=0.3).score_samples(X))


def test_a_trimmed_member_does_not_learn_rare_rows():
    X, y = make_anomalies(2000, 8, kind="cluster", contamination=0.1, random_state=0)
    settings = {"network": "dense", "epochs": 60, "batch_size": 128}
    plain, trimmed = (
        roc_auc_score(y, -fit(X, members=[Member(share)], **settings).score_samples(X)) for share in (0, 0.2)
    )
    assert trimmed > 0.95 > 0.8 > plain


@pytest.mark.parametrize(
    ("contamination", "n_features", "seed"),
    [wide(share, n, seed) for share in (0.05, 0.1, 0.2) for n in (4, 16) for seed in (0, 1, 2)],
)
def test_the_default_finds_a_tight_cluster_of_up_to_a_fifth_of_the_rows(contamination, n_features, seed):
    X, y = make_anomalies(
        1000, n_features, kind="cluster", contamination=contamination, n_irrelevant=4, random_state=seed
    )
    detector = VAEDetector(random_state=seed).fit(X)
    assert roc_auc_score(y, -detector.score_samples(X)) > 0.9


def uneven(n_rows, seed):
    """A column whose spread follows another one."""
    rng = np.random.RandomState(seed)
    size = rng.uniform(-1, 1, n_rows)
    return np.c_[size, rng.normal(size=n_rows) * np.exp(2 * size)]


@pytest.mark.parametrize("likelihood", ["gaussian", wide("student_t")])
def test_a_member_with_a_scale_per_row_learns_noise_that_differs_from_row_to_row(likelihood):
    settings = {"network": DenseNetwork((32,)), "epochs": 120, "likelihood": likelihood, "score": "elbo"}
    members = [Member(), Member(scale="per_row")]
    detector = fit(uneven(1500, 0), members=members, latent_dim=1, **settings)
    of_feature, of_row = detector._fitted.member_scores(detector._fitted.rows(uneven(1500, 1)))
    assert of_row.mean() < of_feature.mean() - 0.4
    # The same deviation, where it is usual and where it is not.
    usual, unusual = np.array([[0.9, 4.0]]), np.array([[-0.9, 4.0]])
    of_both = detector._fitted.member_scores(detector._fitted.rows(np.r_[usual, unusual]))
    feature_gap, row_gap = of_both[:, 1] - of_both[:, 0]
    assert row_gap > 4 > feature_gap


def test_each_member_keeps_the_scale_that_it_was_given(table):
    X = table[0]
    members = [Member(), Member(scale="per_row"), Member(scale="per_row", trimmed_fraction=0.2)]
    detector = fit(X, members=members)
    assert detector.members_[0].specification.likelihood.scale == "per_member"
    again = clone(detector).set_params(warm_start=True).fit(X).fit(X)
    for fitted in (detector, again):
        assert [state.has_scale_per_row for state in fitted.members_] == [False, True, True]
        for state in fitted.members_:
            is_per_row = model_of(state).shared.numpy()[1] > 0
            np.testing.assert_array_equal(is_per_row, [state.has_scale_per_row] * X.shape[1])


def test_a_table_of_levels_has_models_of_one_scale():
    X = np.random.RandomState(0).randint(0, 4, size=(120, 5)).astype(float)
    found = fit(X, members=[Member(scale="per_row"), Member()])
    assert found.members_[0].specification.likelihood.scale == "per_feature"
    expected = fit(X, members=2).score_samples(X)
    np.testing.assert_array_equal(found.score_samples(X), expected)
    rows = np.random.RandomState(1).normal(size=(40, 5))
    for first, later in ((X, rows), (rows, X)):
        detector = fit(first, members=[Member(scale="per_row"), Member()])
        before = detector.members_[0].specification.likelihood
        with warnings.catch_warnings():  # of columns that leave what they have held
            warnings.simplefilter("ignore")
            detector.partial_fit(later)
        assert detector.members_[0].specification.likelihood.scale == before.scale


def test_a_scale_per_row_without_a_scale_that_is_learned_is_refused(table):
    with pytest.raises(
        ValueError, match=r"scale='per_row' needs a likelihood.*received Gaussian\(scale=0.5\)"
    ):
        fit(table[0], members=[Member(scale="per_row")], likelihood=Gaussian(0.5))


def test_columns_of_mixed_tables_may_have_a_scale_per_row():
    X = pd.DataFrame(uneven(400, 0), columns=["size", "noise"]).assign(kind=list("xxxxy") * 80)
    detector = fit(X, members=[Member(), Member(scale="per_row")])
    is_per_row = [model_of(state).shared.numpy()[1] > 0 for state in detector.members_]
    np.testing.assert_array_equal(is_per_row, [[0, 0, 0], [1, 1, 0]])
    assert [state.has_scale_per_row for state in detector.members_] == [False, True]
    assert np.isfinite(detector.score_samples(X)).all()


def test_trimming_nothing_of_a_small_batch_keeps_every_row(table):
    X, _ = table
    nothing = fit(X, members=[Member(trimmed_fraction=0.001)])  # rounds to no row of 64
    np.testing.assert_allclose(nothing.score_samples(X), fit(X).score_samples(X), rtol=1e-3)


def test_all_but_one_row_can_be_trimmed(table):
    X, _ = table
    assert np.isfinite(fit(X, members=[Member(trimmed_fraction=0.999)]).score_samples(X)).all()


def test_members_start_differently_and_hold_out_different_rows(table):
    X, _ = table
    first, second = fit(X, members=2, validation_fraction=0.5).members_
    assert np.abs(first.trainable - second.trainable).max() > 0.1
    assert not np.array_equal(first.non_trainable[0], second.non_trainable[0])  # ranges of other rows


def test_every_member_sees_the_usual_range_of_its_training_rows(table):
    X, _ = table
    detector = fit(X, members=2)
    expected = usual_range(detector.scaler_.transform(X).astype("f4"))
    for state in detector.members_:
        np.testing.assert_array_equal(state.non_trainable[0], expected)


@pytest.mark.wide
def test_the_history_is_the_mean_of_the_members_that_still_train(table):
    X, _ = table
    stopping = {"validation_fraction": 0.3, "early_stopping": True, "patience": 2, "learning_rate": 0.05}
    detector = fit(X, members=3, epochs=100, **stopping)
    alone = []

    class Recorder:  # a member's own history, from what callbacks hear
        def __new__(cls):
            from vae_anomaly.core.backend import keras

            class Callback(keras.callbacks.Callback):
                def on_train_begin(self, logs=None):
                    alone.append([])

                def on_epoch_end(self, epoch, logs=None):
                    alone[-1].append(logs["val_loss"])

            return Callback()

    watched = fit(X, members=3, epochs=100, callbacks=[Recorder()], **stopping)
    assert watched.history_ == detector.history_
    lengths = [len(values) for values in alone]
    assert len(alone) == 3
    assert len(set(lengths)) > 1
    assert len(detector.history_["val_loss"]) == max(lengths)
    for epoch, mean in enumerate(detector.history_["val_loss"]):
        present = [values[epoch] for values in alone if len(values) > epoch]
        assert mean == pytest.approx(np.mean(present))


def test_the_number_of_processors_changes_nothing(table, monkeypatch):
    X, _ = table
    trained = []
    for n_processors in (1, 4):
        monkeypatch.setattr("joblib.cpu_count", lambda n=n_processors: n)
        trained.append(fit(X, members=[Member(), Member(0.1), Member(beta_factor=0.5)]).score_samples(X))
    np.testing.assert_array_equal(*trained)


def test_a_member_that_fails_fails_the_fit(table):
    X, _ = table
    detector = fit(X, members=2)
    before = detector.score_samples(X)
    with pytest.raises(FloatingPointError, match="diverged"):
        detector.set_params(learning_rate=1e20).fit(X)
    np.testing.assert_array_equal(detector.score_samples(X), before)


def test_a_warm_start_goes_on_with_every_member(table):
    X, _ = table
    detector = fit(X, members=2, warm_start=True)
    before = [state.trainable for state in detector.members_]
    detector.fit(X)
    assert len(detector.history_["loss"]) == 16
    for state, earlier in zip(detector.members_, before, strict=True):
        assert 0 < np.abs(state.trainable - earlier).mean() < 0.1
    with pytest.raises(ValueError, match="2 members of the earlier fit, but now there are to be 3"):
        detector.set_params(members=3).fit(X)


def test_a_clone_of_an_ensemble_is_its_equal(table):
    X, _ = table
    detector = VAEDetector(members=[Member(0.1), Member(beta_factor=0.3)], **SMALL)
    expected = detector.fit(X).score_samples(X)
    np.testing.assert_array_equal(clone(detector).fit(X).score_samples(X), expected)


# -- their average --------------------------------------------------------------------------------------
def test_weights_make_the_members_spread_alike():
    scores = np.random.RandomState(0).normal(size=(3, 500)) * [[1], [10], [0.1]] + [[5], [0], [-7]]
    weights = weights_for(scores)
    assert weights.sum() == pytest.approx(1)
    spread = np.subtract(*np.percentile(weights[:, None] * scores, [75, 25], axis=1))
    np.testing.assert_allclose(spread, spread[0])


def test_a_member_without_spread_gets_an_equal_say():
    np.testing.assert_array_equal(weights_for(np.array([[1.0, 1, 1], [1, 2, 3]])), [0.5, 0.5])


@pytest.mark.parametrize("shape", [(4,), (4, 3)])
def test_the_average_is_weighted_over_the_first_axis(shape):
    values, weights = np.random.RandomState(0).normal(size=(2, *shape)), np.array([0.25, 0.75])
    np.testing.assert_allclose(average(values, weights), 0.25 * values[0] + 0.75 * values[1])


def test_the_average_takes_weights_of_each_row():
    values, weights = np.random.RandomState(0).normal(size=(2, 5, 3)), np.random.RandomState(1).rand(2, 5)
    expected = weights[0][:, None] * values[0] + weights[1][:, None] * values[1]
    np.testing.assert_allclose(average(values, weights), expected)


def test_members_that_err_twice_as_much_in_a_row_weigh_a_quarter_there():
    """As the inverse variances that weigh independent guesses: of a Gaussian, log p = -log(scale) + c."""
    scale = np.array([[1.0, 1.0, 2.0], [2.0, 1.0, 1.0]])
    weights = weights_by_row(np.array([0.5, 0.5]), -np.log(scale) - 0.9)
    np.testing.assert_allclose(weights, [[0.8, 0.5, 0.2], [0.2, 0.5, 0.8]])


def test_where_members_explain_a_row_alike_their_own_weights_decide():
    own = np.array([0.1, 0.9])
    log_likelihood = np.array([[-3.0, -1e9, -np.inf, np.nan]] * 2)
    np.testing.assert_allclose(weights_by_row(own, log_likelihood), np.repeat(own[:, None], 4, axis=1))


def test_a_row_beyond_float32_for_one_member_is_the_others():
    weights = weights_by_row(np.array([0.9, 0.1]), np.array([[-np.inf, np.nan], [-1e30, -5.0]]))
    np.testing.assert_allclose(weights[1], [0.1, 1.0])


@pytest.mark.parametrize("score", stars({score: score for score in SCORES}, {"elbo", "reconstruction_error"}))
def test_a_score_is_the_weighted_mean_of_the_members_scores(table, score):
    X, _ = table
    detector = fit(X, members=3, score=score)
    rows = detector.scaler_.transform(X).astype("f4")
    own = np.stack(
        [passes.score_rows([m], rows, detector.draws_, SCORES[score], None)[0] for m in detector.members_]
    )
    np.testing.assert_allclose(detector.member_weights_, weights_for(own), rtol=1e-6)
    np.testing.assert_allclose(-detector.score_samples(X), detector.member_weights_ @ own, rtol=1e-5)


def test_score_and_reconstruct_average_too_and_encode_is_the_first_members(table):
    X, _ = table
    detector = fit(X, members=2)
    rows = detector.scaler_.transform(X).astype("f4")
    terms = passes.elbo_terms(detector.members_, rows, detector.draws_, None)
    assert detector.score(X) == pytest.approx(-(detector.member_weights_ @ terms.sum(axis=2)).mean())
    by_member, log_likelihood = passes.reconstruct(detector.members_, rows, detector.draws_, None)
    expected = average(by_member, weights_by_row(detector.member_weights_, log_likelihood))
    np.testing.assert_allclose(detector.scaler_.transform(detector.reconstruct(X)), expected, atol=1e-5)
    z_mean, _ = detector.model_.encode(rows)
    np.testing.assert_allclose(detector.encode(X), z_mean, atol=1e-5)


def test_samples_come_from_every_member():
    X = np.random.RandomState(0).normal(size=(300, 2))
    detector = fit(X, members=2)
    first, second = detector.members_
    model = model_of(second)
    model.decoder.layers[-1].bias.assign_add([100.0, 100.0])
    detector.members_ = first, architecture_of(second).state_of(model)
    drawn = detector.sample(400, random_state=0)[:, 0]
    share = (drawn > 50).mean()
    assert share == pytest.approx(detector.member_weights_[1], abs=0.1)


# -- agreement ------------------------------------------------------------------------------------------
@pytest.mark.wide
@pytest.mark.parametrize("n_rows", [300, 1000])
def test_ensembles_of_other_seeds_agree_on_independent_columns_and_with_the_density(n_rows):
    rng = np.random.RandomState(0)
    X, rows = rng.normal(size=(n_rows, 4)), rng.normal(size=(3000, 4))
    scores = [-VAEDetector(random_state=seed).fit(X).score_samples(rows) for seed in range(3)]
    agreement = stats.spearmanr(np.c_[np.transpose(scores), (rows**2).sum(axis=1)])[0]
    assert agreement.mean(where=~np.eye(4, dtype=bool)) > 0.9


@pytest.mark.wide
def test_scores_rise_with_the_distance_from_the_center_of_independent_columns():
    rng = np.random.RandomState(0)
    detector = VAEDetector(random_state=0).fit(rng.normal(size=(1000, 5)))
    directions = rng.normal(size=(200, 5))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    scores = [-detector.score_samples(distance * directions).mean() for distance in np.arange(0, 4, 0.25)]
    assert (np.diff(scores) > 0).all()
