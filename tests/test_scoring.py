"""Scores: one number for a row, whatever the chunks it was computed in. (Formulas: test_exactness.py.)"""

import numpy as np
import pytest

from vae_anomaly import DenseNetwork, VAEDetector, scoring
from vae_anomaly.scoring import SCORES, Score


@pytest.fixture(scope="module")
def state(table):
    return (
        VAEDetector(network=DenseNetwork((16,)), latent_dim=3, epochs=20, random_state=0)
        .fit(table[0])
        .members_[0]
    )


@pytest.fixture(scope="module")
def rows(table):
    return table[0][:100].astype("f4")


def noise(n_draws):
    return np.random.RandomState(0).standard_normal((n_draws, 3)).astype("f4")


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("n_draws", [65, 128, 200])
def test_chunks_of_draws_change_nothing(monkeypatch, state, rows, name, n_draws):
    draws = noise(n_draws)
    chunked = scoring.score_rows([state], rows, draws, SCORES[name], None)[0]
    monkeypatch.setattr(scoring, "_DRAWS_AT_ONCE", 1000)
    at_once = Score(lambda *a: SCORES[name].per_draw(*a), SCORES[name].combine)  # a key of its own
    np.testing.assert_allclose(scoring.score_rows([state], rows, draws, at_once, None)[0], chunked, rtol=1e-5)


def test_chunks_of_draws_change_no_reconstruction(state, rows):
    draws = noise(130)
    parts = [
        scoring.reconstruct([state], rows, draws[start : start + 13], None)[0] for start in range(0, 130, 13)
    ]
    np.testing.assert_allclose(
        scoring.reconstruct([state], rows, draws, None)[0], np.mean(parts, axis=0), rtol=1e-4, atol=1e-5
    )


def test_the_elbo_is_the_sum_of_its_terms(state, rows):
    terms = scoring.elbo_terms([state], rows, noise(10), None)[0]
    elbo = scoring.score_rows([state], rows, noise(10), SCORES["elbo"], None)[0]
    probability = scoring.score_rows([state], rows, noise(10), SCORES["reconstruction_probability"], None)[0]
    np.testing.assert_allclose(terms.sum(axis=1), elbo, rtol=1e-6)
    np.testing.assert_allclose(terms[:, 0], probability, rtol=1e-6)
    assert (terms[:, 1] > 0).all()


def test_more_draws_settle_the_score(state, rows):
    def spread(n_draws):
        draws = np.random.RandomState(1).standard_normal((20, n_draws, 3)).astype("f4")
        return np.std(
            [scoring.score_rows([state], rows, d, SCORES["elbo"], None)[0] for d in draws], axis=0
        ).mean()

    assert spread(64) == pytest.approx(spread(4) / 4, rel=0.35)


def test_names_are_looked_up_and_unknown_ones_refused():
    assert scoring.resolve_name("auto", 1) == "elbo"
    assert scoring.resolve_name("auto", 2) == "reconstruction_probability"
    assert scoring.resolve("iwae") is SCORES["iwae"]
    own = Score(SCORES["elbo"].per_draw, SCORES["elbo"].combine)
    assert scoring.resolve(own) is own
    with pytest.raises(ValueError, match=r"one of \['auto', 'elbo', .*\]"):
        scoring.resolve_name("energy", 1)
