"""Specifications: what decides whether two of them can share compiled programs."""

import functools
import math

import numpy as np
import pytest

from vae_anomaly.core.backend import keras
from vae_anomaly.core.spec import Spec, config_json, register
from vae_anomaly.likelihoods import Likelihood
from vae_anomaly.posteriors import Posterior
from vae_anomaly.priors import Prior


class Holder(Spec):
    def __init__(self, value=None):
        self.value = value


def key(value):
    return Holder(value).architecture_key()


EQUAL = {
    "numpy and Python integers": (np.int64(3), 3),
    "numpy and Python floats": (np.float64(0.5), 0.5),
    "lists and tuples": ([1, 2], (1, 2)),
    "functions": (math.sin, math.sin),
    "partial functions": (functools.partial(round, ndigits=2), functools.partial(round, ndigits=2)),
    "nested specifications": (Holder(1), Holder(1)),
    "arrays": (np.arange(3.0), np.arange(3.0)),
    "Keras initializers": (keras.initializers.Constant(0.5), keras.initializers.Constant(0.5)),
    "dictionaries": ({"a": 1}, {"a": 1}),
}
DIFFERENT = {
    "a number and its name": (1, "1"),
    "True and 1": (True, 1),
    "orders": ((1, 2), (2, 1)),
    "functions": (math.sin, math.cos),
    "partial functions": (functools.partial(round, ndigits=2), functools.partial(round, ndigits=3)),
    "nested specifications": (Holder(1), Holder(2)),
    "arrays": (np.arange(3.0), np.arange(3.0) + 1e-15),
    "Keras initializers": (keras.initializers.Constant(0.5), keras.initializers.Constant(0.25)),
    "dictionaries": ({"a": 1}, {"a": 2}),
}


@pytest.mark.parametrize(("one", "other"), EQUAL.values(), ids=EQUAL)
def test_equal_values_have_equal_keys(one, other):
    assert key(one) == key(other)
    assert hash(key(one)) == hash(key(other))


@pytest.mark.parametrize(("one", "other"), DIFFERENT.values(), ids=DIFFERENT)
def test_different_values_have_different_keys(one, other):
    assert key(one) != key(other)


def test_the_class_counts_not_its_name():
    def define():
        class Same(Spec):
            def __init__(self):
                pass

        return Same()

    assert define().architecture_key() != define().architecture_key()


def test_equal_models_have_equal_configurations():
    def dense(units):
        return keras.Sequential([keras.Input((3,), name="x"), keras.layers.Dense(units, name="d")], name="m")

    assert config_json(dense(4)) == config_json(dense(4))
    assert config_json(dense(4)) != config_json(dense(5))


@pytest.mark.parametrize(
    ("base", "name"), [(Likelihood, "gaussian"), (Prior, "standard"), (Posterior, "gaussian")]
)
def test_a_class_of_ones_own_does_not_take_the_name_of_one_of_the_package(base, name):
    with pytest.raises(TypeError, match=rf"Mine has the name '{name}', which is that of vae_anomaly\."):
        type("Mine", (base,), {"name": name, "__module__": "mine", "__qualname__": "Mine"})


def test_a_class_of_ones_own_may_be_defined_anew_as_a_cell_of_a_notebook_does():
    named = {}
    for _ in range(2):
        last = type("Mine", (), {"name": "mine", "__module__": "notebook"})
        register(last, named)
    assert named == {"mine": last}
