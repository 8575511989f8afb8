"""The door to TensorFlow: lazy, quiet, honest about what it cannot do."""

import json
import os
import subprocess
import sys
import textwrap
import types

import pytest

from vae_anomaly.core import backend


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def test_another_keras_backend_is_refused_with_the_remedy(monkeypatch):
    keras = types.ModuleType("keras")
    keras.config = types.SimpleNamespace(backend=lambda: "torch")
    monkeypatch.setitem(sys.modules, "keras", keras)
    with pytest.raises(ImportError, match="configured for 'torch'.*KERAS_BACKEND=tensorflow"):
        backend._open()


@pytest.mark.wide
def test_a_log_level_of_the_users_is_respected():
    ran = run("from vae_anomaly.core.backend import tf; tf.constant(1)", TF_CPP_MIN_LOG_LEVEL="0")
    assert ran.returncode == 0
    assert "oneDNN" in ran.stderr or "cpu_feature_guard" in ran.stderr


@pytest.mark.parametrize("chosen", [None, "1"])
def test_a_log_level_set_inside_is_gone_afterwards(chosen, monkeypatch):
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    if chosen:
        monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", chosen)
    with backend.silence_log_lines():
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "0"
    assert os.environ.get("TF_CPP_MIN_LOG_LEVEL") == chosen


@pytest.fixture(scope="module")
def facts():
    """What a process found that closed its standard error, loaded TensorFlow, fitted on a second logical
    processor, which stands in for a GPU, set Keras to another precision, and was forked.
    """
    ran = run(
        """
        import json, os
        os.close(2)
        before = dict(os.environ)
        from vae_anomaly.core.backend import keras, tf
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
        facts = {"constant": int(tf.constant(3))}
        facts["changed"] = sorted(set(os.environ.items()) ^ set(before.items()))

        import numpy as np
        from vae_anomaly import VAEDetector
        from vae_anomaly.engine import tiles
        X = np.random.RandomState(0).normal(size=(300, 4))
        there = VAEDetector(epochs=2, device="cpu:1", random_state=0).fit(X)
        here = VAEDetector(epochs=2, device="cpu:0", random_state=0).fit(X)
        placed = tiles._copy_to_device(there.members_[0], "cpu:1")
        facts["devices"] = [t.device for t in (placed[0], *placed[1])]
        facts["same scores"] = bool((there.score_samples(X) == here.score_samples(X)).all())
        facts["predicted"] = len(there.set_params(device="cpu:0").predict(X))

        def results():
            found = []
            for members, rows in ((1, X[:, :3]), (2, np.where(X[:, :3] > 1, np.nan, X[:, :3]))):
                detector = VAEDetector(epochs=1, members=members, random_state=0).fit(rows)
                found += [detector.score_samples(rows).tolist(), detector.sample(3, 0).tolist()]
            return found
        expected = results()
        for policy, floatx in (("mixed_float16", "float32"), ("float64", "float64")):
            keras.config.set_dtype_policy(policy)
            keras.config.set_floatx(floatx)
            facts[f"same under {policy}"] = results() == expected
            kept = keras.config.dtype_policy().name == policy and keras.config.floatx() == floatx
            facts[f"{policy} stays"] = kept

        to_parent, from_child = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                tf.constant(1)
            except RuntimeError as error:
                os.write(from_child, str(error).encode())
            os._exit(0)
        os.waitpid(pid, 0)
        os.close(from_child)
        facts["in the fork"] = os.read(to_parent, 10_000).decode()
        print(json.dumps(facts))
        """
    )
    return json.loads(ran.stdout)


def test_loading_leaves_the_environment_as_it_was(facts):
    assert "TF_CPP_MIN_LOG_LEVEL" not in dict(facts["changed"])


@pytest.mark.parametrize("policy", ["mixed_float16", "float64"])
def test_a_process_that_computes_in_another_precision_gets_the_same_results_and_keeps_its_own(facts, policy):
    assert facts[f"same under {policy}"]
    assert facts[f"{policy} stays"]


def test_computation_and_state_go_to_the_named_device(facts):
    assert facts["devices"]
    assert all(device.endswith("CPU:1") for device in facts["devices"])
    assert facts["same scores"]
    assert facts["predicted"] == 300


def test_only_tensorflows_log_lines_are_held_back(capfd):
    with backend._drop_log_lines():
        os.write(2, b"I0000 00:00:1.2   1 port.cc:153] oneDNN custom operations are on.\n")
        os.write(2, b"WARNING: All log messages before absl::InitializeLog() is called\n")
        os.write(2, b"a line of the user's own\n")
    assert capfd.readouterr().err == "a line of the user's own\n"


def test_a_process_without_standard_error_is_no_obstacle(facts):
    assert facts["constant"] == 3


def test_gpu_memory_growth_is_asked_for_and_a_refusal_accepted():
    class Refusing:
        asked = 0

        class config:  # noqa: N801
            @staticmethod
            def list_physical_devices(kind):
                return [f"{kind}:0", f"{kind}:1"]

            class experimental:  # noqa: N801
                @staticmethod
                def set_memory_growth(gpu, enable):
                    assert enable
                    Refusing.asked += 1
                    raise RuntimeError("already initialized")

    backend._leave_gpu_memory_to_others(Refusing)
    assert Refusing.asked == 2


def test_a_forked_process_is_told_to_spawn_instead_of_hanging(facts):
    assert "fork" in facts["in the fork"]
    assert "spawn" in facts["in the fork"]
