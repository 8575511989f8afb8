"""VAEDetector passes every check of scikit-learn's `check_estimator`; none is skipped or excused."""

import os
import subprocess
import sys
from unittest import SkipTest

import numpy as np
import pytest
from conftest import wide
from sklearn.model_selection import KFold
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import (
    check_dataframe_column_names_consistency,
    estimator_checks_generator,
)

from vae_anomaly import DenseNetwork, VAEDetector
from vae_anomaly.ensemble.recipe import Member

DETECTORS = {
    "default": VAEDetector(epochs=5),
    "bernoulli": VAEDetector(epochs=5, likelihood="bernoulli", scaler=MinMaxScaler(clip=True)),
    "unit_gaussian": VAEDetector(epochs=5, likelihood="unit_gaussian", scaler=MinMaxScaler(clip=True)),
    "continuous_bernoulli": VAEDetector(
        epochs=5, likelihood="continuous_bernoulli", scaler=MinMaxScaler(clip=True)
    ),
    "student_t": VAEDetector(epochs=5, likelihood="student_t"),
    "iwae": VAEDetector(epochs=5, score="iwae"),
    "reconstruction_probability": VAEDetector(epochs=5, score="reconstruction_probability"),
    "reconstruction_error": VAEDetector(epochs=5, score="reconstruction_error"),
    "one_draw": VAEDetector(epochs=5, n_draws=1),
    "32_draws": VAEDetector(epochs=5, n_draws=32),
    "linear": VAEDetector(epochs=5, network=DenseNetwork(hidden_units=())),
    "batch_normalization": VAEDetector(epochs=5, network=DenseNetwork(batch_normalization=True)),
    "dropout": VAEDetector(epochs=5, network=DenseNetwork(dropout=0.2)),
    "iwae_objective": VAEDetector(epochs=5, objective="iwae", n_training_draws=5),
    "held_out": VAEDetector(epochs=5, validation_fraction=0.2, early_stopping=True),
    "no_scaler": VAEDetector(epochs=5, scaler=None),
    "folds": VAEDetector(epochs=5, calibration=KFold(3)),
    "held_out_calibration": VAEDetector(epochs=5, calibration=0.3),
    "masked": VAEDetector(epochs=5, masked_fraction=0.2),
    "ensemble": VAEDetector(epochs=5, members=[Member(), Member(trimmed_fraction=0.2)]),
}
# By default these meet every check, and the others two of figures, on rows of one width; `wide` is the rest.
THROUGHOUT = {"default", "held_out_calibration"}
OF_ALL = {"check_methods_sample_order_invariance", "check_methods_subset_invariance"}
OF_FIGURES = {  # and the number of columns of their rows
    "check_fit2d_1sample": 1,
    "check_fit_idempotent": 2,
    "check_estimator_sparse_array": 3,
    "check_methods_sample_order_invariance": 3,
    "check_methods_subset_invariance": 3,
    "check_estimators_dtypes": 5,
}
# scikit-learn runs this check only where the array API is switched on before scipy is imported.
NEEDS_A_PROCESS_OF_ITS_OWN = "check_array_api_input"


def name_of(check):
    return getattr(check, "func", check).__name__


def _checks():
    """Checks whose rows have as many columns follow one another, so that they share compiled programs."""
    found = [
        (name_of(check), position, name, estimator, check)
        for name, detector in DETECTORS.items()
        for position, (estimator, check) in enumerate(estimator_checks_generator(detector, mark=None))
        if name_of(check) != NEEDS_A_PROCESS_OF_ITS_OWN
    ]
    of_figures = [each for each in found if each[0] in OF_FIGURES]
    others = [each for each in found if each[0] not in OF_FIGURES]
    of_figures.sort(key=lambda each: OF_FIGURES[each[0]])
    others.sort(key=lambda each: each[1])
    for check_name, _, name, estimator, check in of_figures + others:
        by_default = name in THROUGHOUT or check_name in OF_ALL
        marks = () if by_default else pytest.mark.wide
        yield pytest.param(estimator, check, id=f"{name}-{check_name}", marks=marks)


# Some checks have so few rows that the threshold warns of it.
of_few_rows = pytest.mark.filterwarnings("ignore:.*training rows cannot tell where a threshold:UserWarning")


@of_few_rows
@pytest.mark.parametrize(("estimator", "check"), list(_checks()))
def test_passes_the_estimator_check(estimator, check):
    try:
        check(estimator)
    except SkipTest as skipped:
        pytest.fail(f"the check was skipped: {skipped}")


def run_where_the_array_api_is_switched_on(code):
    environment = {**os.environ, "SCIPY_ARRAY_API": "1"}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.wide
def test_passes_the_array_api_check_where_it_is_switched_on():
    found = run_where_the_array_api_is_switched_on(
        "from sklearn.utils.estimator_checks import estimator_checks_generator\n"
        "from vae_anomaly import VAEDetector\n"
        "for estimator, check in estimator_checks_generator(VAEDetector(epochs=2), mark=None):\n"
        "    name = getattr(check, 'func', check).__name__\n"
        f"    if name == {NEEDS_A_PROCESS_OF_ITS_OWN!r}:\n"
        "        check(estimator)\n"
        "        print(name)\n"
    )
    assert found.split() == [NEEDS_A_PROCESS_OF_ITS_OWN]


@pytest.mark.wide
def test_passes_every_check_where_the_array_api_is_switched_on():
    found = run_where_the_array_api_is_switched_on(
        "from sklearn.utils.estimator_checks import check_estimator\n"
        "from vae_anomaly import VAEDetector\n"
        "results = check_estimator(VAEDetector(epochs=2), on_fail=None)\n"
        "statuses = {result['check_name']: result['status'] for result in results}\n"
        "assert set(statuses.values()) == {'passed'}, statuses\n"
        "print(len(statuses))\n"
    )
    assert int(found) > 40


def test_column_names_are_consistent():
    check_dataframe_column_names_consistency("VAEDetector", VAEDetector(epochs=2))


def test_no_check_is_skipped_by_a_tag():
    tags = VAEDetector().__sklearn_tags__()
    assert tags.estimator_type == "outlier_detector"
    assert tags.input_tags.two_d_array
    assert not tags.no_validation
    assert not tags.non_deterministic
    assert not tags._skip_test


@pytest.mark.parametrize("contamination", [0.01, wide(0.1), wide(0.25), 0.5])
def test_a_float_contamination_flags_exactly_that_share(contamination):
    X = np.random.RandomState(0).normal(size=(400, 3))
    detector = VAEDetector(epochs=2, contamination=contamination, random_state=0)
    assert (detector.fit_predict(X) == -1).sum() == round(400 * contamination)


@pytest.mark.long
@of_few_rows
@pytest.mark.parametrize(
    "check",
    [
        pytest.param(check, id=name_of(check))
        for _, check in estimator_checks_generator(VAEDetector(), mark=None)
        if name_of(check) != NEEDS_A_PROCESS_OF_ITS_OWN
    ],
)
def test_the_untouched_default_passes_the_estimator_check(check):
    check(VAEDetector())
