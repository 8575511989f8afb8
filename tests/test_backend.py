"""The door to TensorFlow: lazy, quiet, honest about what it cannot do."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from vae_anomaly.core import backend


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def with_a_log_level():
    """A process whose user wants all log lines, and first has Keras on another backend."""
    return run(
        """
        import sys, types
        import vae_anomaly.core.backend as backend
        fake = types.ModuleType("keras"); fake.config = types.SimpleNamespace(backend=lambda: "torch")
        sys.modules["keras"] = fake
        try:
            backend.keras.ops
        except ImportError as error:
            print(error)
        del sys.modules["keras"]
        backend.tf.constant(1)
        """,
        TF_CPP_MIN_LOG_LEVEL="0",
    )


def test_another_keras_backend_is_refused_with_the_remedy(with_a_log_level):
    assert "KERAS_BACKEND=tensorflow" in with_a_log_level.stdout
    assert "'torch'" in with_a_log_level.stdout


def test_a_log_level_of_the_users_is_respected(with_a_log_level):
    assert with_a_log_level.returncode == 0
    assert "oneDNN" in with_a_log_level.stderr or "cpu_feature_guard" in with_a_log_level.stderr


@pytest.mark.parametrize("chosen", [None, "1"])
def test_a_log_level_set_inside_is_gone_afterwards(chosen, monkeypatch):
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    if chosen:
        monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", chosen)
    with backend.silence_log_lines():
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "0"
    assert os.environ.get("TF_CPP_MIN_LOG_LEVEL") == chosen


@pytest.fixture(scope="module")
def without_standard_error():
    """What a process found that closed its standard error, loaded TensorFlow, and was forked."""
    ran = run(
        """
        import json, os
        os.close(2)
        before = dict(os.environ)
        from vae_anomaly.core.backend import tf
        facts = {"constant": int(tf.constant(3))}
        facts["changed"] = sorted(set(os.environ.items()) ^ set(before.items()))
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


def test_loading_leaves_the_environment_as_it_was(without_standard_error):
    assert "TF_CPP_MIN_LOG_LEVEL" not in dict(without_standard_error["changed"])


def test_only_tensorflows_log_lines_are_held_back(capfd):
    with backend._drop_log_lines():
        os.write(2, b"I0000 00:00:1.2   1 port.cc:153] oneDNN custom operations are on.\n")
        os.write(2, b"WARNING: All log messages before absl::InitializeLog() is called\n")
        os.write(2, b"a line of the user's own\n")
    assert capfd.readouterr().err == "a line of the user's own\n"


def test_a_process_without_standard_error_is_no_obstacle(without_standard_error):
    assert without_standard_error["constant"] == 3


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


def test_a_forked_process_is_told_to_spawn_instead_of_hanging(without_standard_error):
    assert "fork" in without_standard_error["in the fork"]
    assert "spawn" in without_standard_error["in the fork"]
