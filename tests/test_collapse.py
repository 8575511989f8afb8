"""Collapse: models whose reconstructions are all alike are found, trained once more, and warned of."""

import warnings

import numpy as np
import pytest
from conftest import wide
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import roc_auc_score

from vae_anomaly import ConvNetwork, DenseNetwork, VAEDetector
from vae_anomaly.core.backend import tf
from vae_anomaly.ensemble import members
from vae_anomaly.likelihoods import UnitGaussian
from vae_anomaly.training.collapse import has_collapsed, reconstructed_variance

SMALL = {"network": DenseNetwork((32,)), "members": 2, "learning_rate": 3e-3, "epochs": 80, "random_state": 0}


@pytest.fixture(scope="module")
def digits():
    images, names = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8) / 16
    return images[names < 5][:400], images[names < 5][400:600], images[names >= 5][:200]


@pytest.fixture(scope="module")
def noise():
    return np.random.RandomState(0).normal(0.5, 0.1, size=(300, 16, 16))


def fit(X, **settings):
    return VAEDetector(**{**SMALL, **settings}).fit(X)


def found(detector, images):
    """`reconstructed_variance` of each member."""
    rows = detector._fitted.rows(images.reshape(len(images), -1))
    return np.array([reconstructed_variance(state, rows) for state in detector.members_])


def auroc(detector, normal, others):
    scores = -detector.score_samples(np.concatenate([normal, others]))
    return roc_auc_score(np.arange(len(scores)) >= len(normal), scores)


# -- the measure ----------------------------------------------------------------------------------------
def test_it_is_the_variance_of_what_is_expected_at_the_posterior_centers(digits):
    _, new, _ = digits
    detector = fit(digits[0], epochs=3, members=1)
    rows, model = detector._fitted.rows(new.reshape(-1, 64)), detector.model_
    expected = model.likelihood.mean(model.decode(model.center(model.encode(tf.constant(rows)))[None]))[0]
    reference = np.var(expected, axis=0).sum() / np.var(rows, axis=0).sum()
    assert found(detector, new)[0] == pytest.approx(reference, rel=1e-5)


def test_missing_pixels_do_not_count(digits):
    images = digits[1].copy()
    images[::2, 0, 0] = np.nan
    images[:, 7, 7] = np.nan
    detector = fit(digits[0], epochs=20)
    np.testing.assert_allclose(found(detector, images), found(detector, digits[1]), rtol=0.1)


def test_rows_that_do_not_vary_tell_nothing(digits):
    detector = fit(digits[0], epochs=2, members=1)
    rows = np.zeros((5, 64), dtype=np.float32)
    assert np.isnan(reconstructed_variance(detector.members_[0], rows))
    assert not has_collapsed(detector.members_[0], rows)


# -- what a fit makes of it -------------------------------------------------------------------------------
def test_images_that_are_learned_are_reconstructed_each_in_its_own_way(digits):
    assert found(fit(digits[0]), digits[1]).min() > 0.3


def test_a_member_that_collapses_is_trained_again_with_a_warm_up_and_finds_more(digits, monkeypatch):
    train, new, others = digits
    settings = {"beta": 30.0, "members": 3, "epochs": 120, "early_stopping": True}
    again = fit(train, **settings)
    monkeypatch.setattr(members, "has_collapsed", lambda state, rows: False)
    once = fit(train, **settings)
    assert found(once, new).max() < 0.01
    assert found(again, new).min() > 0.05
    assert auroc(again, new, others) > auroc(once, new, others) + 0.1


@pytest.mark.parametrize(
    "settings",
    [
        {"beta": 300.0},
        wide({"likelihood": UnitGaussian(scale=5.0)}),
        wide({"network": ConvNetwork(filters=(4,)), "beta": 300.0, "members": 1}),
    ],
)
def test_a_collapse_that_stays_is_warned_of_once_with_what_to_do(digits, settings):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        detector = fit(digits[0], **settings)
    assert found(detector, digits[1]).max() < 0.01
    assert [warning.category for warning in caught] == [ConvergenceWarning]
    message = str(caught[0].message)
    assert message.startswith("the model has" if len(detector.members_) == 1 else "2 of 2 members have")
    assert "kl_warm_up=0.5" in message
    assert ("beta=1" in message) == (detector.beta > 1)
    assert caught[0].filename == __file__


@pytest.mark.wide
def test_of_noise_the_warning_says_that_there_is_no_more_to_learn(noise):
    with pytest.warns(ConvergenceWarning, match="nothing but noise, there is no more to learn") as caught:
        detector = fit(noise, early_stopping=True, learning_rate=1e-3)
    assert len(caught) == 1
    # That is right: noise of another size is found all the same.
    assert auroc(detector, noise[:100], 0.5 + 1.5 * (noise[100:200] - 0.5)) > 0.9


@pytest.mark.wide
def test_signals_are_watched_too_and_tables_are_not(noise):
    with pytest.warns(ConvergenceWarning, match="collapsed"):
        fit(noise[:, :8, :2], network=ConvNetwork(filters=(4,), dimensions=1), members=1, beta=10.0)
    fit(noise[:, :8, :8].reshape(-1, 64))  # columns that have nothing in common are a table like others


def test_a_second_training_is_announced_on_request(digits, capsys):
    with pytest.warns(ConvergenceWarning):
        fit(digits[0], beta=300.0, members=1, epochs=20, verbose=1)
    printed = capsys.readouterr().out
    assert printed.count("trained again with a KL warm-up") == 1
    assert printed.count("20/20") == 2


def test_a_training_of_few_steps_is_not_called_collapsed(digits):
    fit(digits[0], beta=300.0, epochs=5)


def test_a_warm_up_of_ones_own_is_not_tried_twice(digits, capsys):
    with pytest.warns(ConvergenceWarning) as caught:
        detector = fit(digits[0], beta=300.0, kl_warm_up=0.2, verbose=1)
    assert "trained again" not in capsys.readouterr().out
    assert "kl_warm_up" not in str(caught[0].message)
    assert len(detector.history_["loss"]) == SMALL["epochs"]


@pytest.mark.wide
def test_a_checkpoint_does_not_change_what_a_collapse_leads_to(digits, tmp_path):
    with pytest.warns(ConvergenceWarning):
        plain = fit(digits[0], beta=300.0)
    with pytest.warns(ConvergenceWarning):
        kept = fit(digits[0], beta=300.0, checkpoint=tmp_path / "fit.checkpoint")
    np.testing.assert_array_equal(plain.score_samples(digits[1]), kept.score_samples(digits[1]))
