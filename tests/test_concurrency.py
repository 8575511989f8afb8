"""Threads and processes: whatever runs at once, results are those of one after another."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import wide
from joblib import Parallel, delayed
from sklearn.base import clone

from vae_anomaly import DenseNetwork, VAEDetector
from vae_anomaly.ensemble.recipe import Member
from vae_anomaly.monitoring import Monitor

N_SCORING, N_FITTING, N_TURNS = 8, 2, 6


def quick(seed=0, units=12):
    return VAEDetector(network=DenseNetwork((units,)), epochs=2, jit_compile=False, random_state=seed)


def fitted_scores(detector, X):
    return detector.fit(X).score_samples(X)


def at_once(actions):
    """Results of actions that begin together, each in a thread of its own."""
    barrier = threading.Barrier(len(actions))

    def run(action):
        barrier.wait()
        return action()

    with ThreadPoolExecutor(len(actions)) as pool:
        return list(pool.map(run, actions))


@pytest.mark.wide
def test_eight_threads_score_one_detector_while_two_fit_new_ones(table, forget_programs):
    X, _ = table
    detector = quick().fit(X)
    methods = ("score_samples", "predict", "encode", "reconstruct")
    parts = [slice(position, 500, N_SCORING) for position in range(N_SCORING)]
    expected = {name: getattr(detector, name)(X) for name in methods}
    seeds = [[10 * thread + turn for turn in range(N_TURNS)] for thread in range(N_FITTING)]
    settings = {seed: {"seed": seed, "units": 12 + seed % 2} for own in seeds for seed in own}
    of_new = {seed: fitted_scores(quick(**own), X) for seed, own in settings.items()}
    forget_programs()

    def score(part):
        names = (methods[turn % len(methods)] for turn in range(3 * N_TURNS))
        return [(name, getattr(detector, name)(X[part])) for name in names]

    def fit(own):
        return [(seed, fitted_scores(quick(**settings[seed]), X)) for seed in own]

    actions = [lambda part=part: score(part) for part in parts] + [lambda own=own: fit(own) for own in seeds]
    results = at_once(actions)
    for part, scored in zip(parts, results[:N_SCORING], strict=True):
        for name, found in scored:
            np.testing.assert_array_equal(found, expected[name][part])
    for fits in results[N_SCORING:]:
        for seed, found in fits:
            np.testing.assert_array_equal(found, of_new[seed])


def test_threads_that_ask_for_single_rows_get_the_bits_of_the_whole_table(table, forget_programs):
    """They cross the call at which a model gets a program of its own."""
    X, _ = table
    detector = quick().fit(X)
    expected = detector.score_samples(X)
    forget_programs()
    rows = [range(thread, 500, N_SCORING) for thread in range(N_SCORING)]
    actions = [lambda own=own: [detector.score_samples(X[[row]])[0] for row in own] for own in rows]
    for own, found in zip(rows, at_once(actions), strict=True):
        np.testing.assert_array_equal(found, expected[list(own)])


@pytest.mark.wide
def test_ensembles_that_are_fitted_at_once_in_their_own_threads_are_the_serial_ones(table, forget_programs):
    X, _ = table
    ensembles = [quick(seed).set_params(members=[Member(), Member(0.1)]) for seed in range(3)]
    expected = [fitted_scores(clone(detector), X) for detector in ensembles]
    forget_programs()
    found = at_once([lambda detector=detector: fitted_scores(detector, X) for detector in ensembles])
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("backend", ["threading", wide("loky")])
def test_joblib_fits_and_scores_as_one_after_another(backend, table, forget_programs):
    X, _ = table
    shared = quick().fit(X)
    fits = [delayed(fitted_scores)(quick(seed), X) for seed in range(4)]
    scores = [delayed(shared.score_samples)(X[start::4]) for start in range(4)]
    expected = [function(*args) for function, args, _ in [*fits, *scores]]
    forget_programs()
    found = Parallel(n_jobs=4 if backend == "threading" else 2, backend=backend)([*fits, *scores])
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.wide
def test_threads_draw_nothing_from_global_generators(table, draws_after):
    X, _ = table
    detector = quick().fit(X)
    actions = [lambda: detector.score_samples(X)] * 3 + [lambda: fitted_scores(quick(1), X)]
    assert draws_after(lambda: at_once(actions)) == draws_after(lambda: None)


def test_one_detector_serves_monitors_in_many_threads(table):
    X, _ = table
    detector = quick().set_params(calibration=0.5).fit(X)
    expected = Monitor(detector, random_state=0).update(X)
    watches = [lambda: Monitor(detector, random_state=0).update(X)] * 4
    assert at_once(watches) == [expected] * 4
