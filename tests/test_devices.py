"""Several devices: members are trained on them in turn, to the same bits as on one.

TensorFlow's logical devices stand in for GPUs. They have to be made before its first operation, in a process
of its own.
"""

import json
import os
import subprocess
import sys
import textwrap

import pytest
from conftest import wide

from vae_anomaly import VAEDetector
from vae_anomaly.engine.devices import device_of


def test_members_take_devices_in_turn():
    assert [device_of(["gpu:0", "gpu:1", "gpu:2"], position) for position in range(5)] == [
        "gpu:0",
        "gpu:1",
        "gpu:2",
        "gpu:0",
        "gpu:1",
    ]
    assert {device_of("gpu:1", position) for position in range(3)} == {"gpu:1"}
    assert device_of(None, 3) is None


WRONG = {
    "no device": ([], ValueError, "device must name at least one device; received none"),
    "a device of no kind": (
        ["cpu:0", "none"],
        ValueError,
        "such as 'cpu' or 'gpu:1'.*received 'none'",
    ),
    "a number": (["cpu:0", 1], TypeError, "a name or a list of names; received 1 in it"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_names_no_device_is_refused(name, table):
    device, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        VAEDetector(device=device, epochs=1).fit(table[0])


@pytest.mark.parametrize("device", ["gpu:7", ["cpu:0", "gpu:7"]])
def test_a_device_that_is_not_there_is_warned_of(device, table):
    with pytest.warns(UserWarning, match="device names 'gpu:7', which TensorFlow does not see here: .*cpu:0"):
        VAEDetector(device=device, epochs=1, members=2).fit(table[0][:50])


@pytest.mark.parametrize("device", [wide("cpu"), wide("CPU:0"), "/device:CPU:0", ("cpu", "cpu:0")])
def test_devices_that_are_there_are_taken_however_they_are_written(device, table):
    VAEDetector(device=device, epochs=1, members=2).fit(table[0][:50])


@pytest.fixture(scope="module")
def facts():
    """What a process with three logical devices found: where each member's steps were, and its results."""
    code = """
        import collections, io, joblib, json
        import numpy as np
        import tensorflow as tf
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 3)
        from vae_anomaly import DenseNetwork, VAEDetector, load
        from vae_anomaly.engine import steps, tiles
        from vae_anomaly.training import epochs

        where = collections.defaultdict(set)
        train_block = epochs.train_block

        def watched(*arguments, noise_seed, **others):
            state, *figures = train_block(*arguments, noise_seed=noise_seed, **others)
            where[noise_seed] |= {tensor.device[-5:] for tensor in state[:3]}
            return state, *figures

        epochs.train_block = watched
        X = np.random.RandomState(0).normal(size=(200, 4))
        settings = {"network": DenseNetwork((8,)), "epochs": 2, "members": 4, "validation_fraction": 0.2}
        with joblib.parallel_config(n_jobs=1):  # so that the first member is the first to begin
            one = VAEDetector(device="cpu:0", random_state=0, **settings).fit(X)
        on_one = list(map(sorted, where.values()))
        seeds = list(where)
        where.clear()
        several = VAEDetector(device=["cpu:2", "cpu:0", "cpu:1"], random_state=0, **settings).fit(X)
        placed = [sorted(where[seed]) for seed in seeds]
        facts = {"one": on_one, "several": placed}
        facts["same scores"] = bool((one.score_samples(X) == several.score_samples(X)).all())
        facts["scored on"] = [sorted(map(str, tiles._tensors[state])) for state in several.members_]
        file = io.BytesIO()
        several.save(file)
        file.seek(0)
        loaded = load(file)
        facts["device of a file"] = loaded.device
        facts["same from a file"] = bool((one.score_samples(X) == loaded.score_samples(X)).all())
        several.partial_fit(X[:50] * 0.9)
        one.partial_fit(X[:50] * 0.9)
        facts["same after more"] = bool((one.score_samples(X) == several.score_samples(X)).all())
        print(json.dumps(facts))
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env={**os.environ}
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_each_member_is_trained_on_its_device(facts):
    assert facts["one"] == [["CPU:0"]] * 4
    assert facts["several"] == [["CPU:2"], ["CPU:0"], ["CPU:1"], ["CPU:2"]]


def test_the_first_device_scores(facts):
    assert facts["scored on"] == [["cpu:2"]] * 4


def test_devices_change_no_bit(facts):
    assert facts["same scores"]
    assert facts["same after more"]


def test_the_devices_of_a_file_are_those_of_the_parameter(facts):
    assert facts["device of a file"] == ["cpu:2", "cpu:0", "cpu:1"]
    assert facts["same from a file"]
