"""The door to TensorFlow: lazy, quiet, honest about what it cannot do."""

import json
import os
import subprocess
import sys
import textwrap
import threading
import types

import pytest

from vae_anomaly.core import backend, log_lines


def run(code, *, without=(), **environment):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**{name: value for name, value in os.environ.items() if name not in without}, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_another_keras_backend_is_refused_with_the_remedy(monkeypatch):
    keras = types.ModuleType("keras")
    keras.config = types.SimpleNamespace(backend=lambda: "torch")
    monkeypatch.setitem(sys.modules, "keras", keras)
    with pytest.raises(ImportError, match="configured for 'torch'.*KERAS_BACKEND=tensorflow"):
        backend._open()


def test_a_keras_backend_that_is_not_installed_is_refused_with_the_remedy(monkeypatch):
    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == "keras":
                raise ModuleNotFoundError("No module named 'jax'")

    monkeypatch.setenv("KERAS_BACKEND", "jax")
    monkeypatch.delitem(sys.modules, "keras", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    with pytest.raises(ImportError, match="configured for 'jax'.*KERAS_BACKEND=tensorflow"):
        backend._open()


# -- log lines ----------------------------------------------------------------------------------------------
@pytest.mark.wide
@pytest.mark.parametrize(("level", "is_silent"), [("0", False), ("3", True), (None, True)])
def test_a_log_level_of_the_users_is_respected_and_the_highest_is_as_silent_as_none(level, is_silent):
    code = "from vae_anomaly.core.backend import tf; tf.constant(1)"
    ran = run(code, without={"TF_CPP_MIN_LOG_LEVEL"}, **({"TF_CPP_MIN_LOG_LEVEL": level} if level else {}))
    assert ran.returncode == 0
    assert ("oneDNN custom operations" in ran.stderr) is not is_silent
    assert (ran.stderr == "") is is_silent


@pytest.mark.wide
def test_file_descriptor_2_stays_the_processs_own_while_tensorflow_is_imported():
    """What another thread, child processes and C write arrives at once and in order, whatever comes next."""
    ran = run(
        """
        import ctypes, os, subprocess, sys, threading, time
        import vae_anomaly.core.backend as backend

        seen, stop = set(), threading.Event()

        def write():
            number = 0
            while not stop.is_set():
                os.write(2, b"%d\\n" % number)
                number += 1
                seen.add(os.fstat(2)[:3])
                time.sleep(0.001)
            os.write(2, b"%d lines\\n" % number)

        def call():
            while not stop.is_set():
                subprocess.run([sys.executable, "-S", "-c", "import os; os.write(2, b'child\\\\n')"])

        seen.add(os.fstat(2)[:3])
        threads = [threading.Thread(target=target) for target in (write, call)]
        for thread in threads:
            thread.start()
        backend.tf.constant(1)
        assert "TF_CPP_MIN_LOG_LEVEL" not in os.environ
        stop.set()
        for thread in threads:
            thread.join()
        seen.add(os.fstat(2)[:3])
        libc = ctypes.CDLL(None)
        stream = ctypes.c_void_p.in_dll(libc, "stderr") if sys.platform == "linux" else None
        if stream is not None:
            libc.fputs(b"of C\\n", stream)
        os.write(1, b"%d" % len(seen))
        os._exit(0)
        """,
        without={"TF_CPP_MIN_LOG_LEVEL"},
    )
    assert ran.stdout == "1", ran.stderr
    lines = ran.stderr.splitlines()
    if sys.platform == "linux":
        assert lines.pop() == "of C"
    assert "child" in lines
    *numbers, last = [line for line in lines if line != "child"]
    assert numbers == [str(number) for number in range(len(numbers))]
    assert last == f"{len(numbers)} lines"


@pytest.mark.parametrize("chosen", [None, "1"])
def test_a_log_level_set_inside_is_gone_afterwards(chosen, monkeypatch):
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    if chosen:
        monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", chosen)
    with log_lines.silence_log_lines():
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "0"
    assert os.environ.get("TF_CPP_MIN_LOG_LEVEL") == chosen


@pytest.mark.parametrize("chosen", [None, "1"])
def test_of_several_threads_that_silence_tensorflow_the_last_restores_the_log_level(chosen, monkeypatch):
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    if chosen:
        monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", chosen)
    entered, first_has_left = threading.Event(), threading.Event()

    def second():
        with log_lines.silence_log_lines():
            entered.set()
            first_has_left.wait()

    thread = threading.Thread(target=second)
    with log_lines.silence_log_lines():
        thread.start()
        entered.wait()
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == (chosen or "3")
    first_has_left.set()
    thread.join()
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


# -- forks --------------------------------------------------------------------------------------------------
def test_a_forked_process_is_told_to_spawn_instead_of_hanging(facts):
    assert "had been started when this process was forked" in facts["in the fork"]
    assert "spawn" in facts["in the fork"]


IN_A_FORK = """
import os, signal, sys, threading, time
import numpy as np
from vae_anomaly import VAEDetector
{before}
child = os.fork()
if child == 0:
    signal.alarm(60)  # ends a process that hangs
    code = 1
    try:
        X = np.random.RandomState(0).normal(size=(200, 3))
        VAEDetector(epochs=1, random_state=0).fit(X).predict(X)
        code = 10
    except RuntimeError as error:
        print(error, flush=True)
        code = 20
    finally:
        os._exit(code)
_, status = os.waitpid(child, 0)
print("hung" if os.WIFSIGNALED(status) else {{10: "fitted", 20: "refused"}}[os.WEXITSTATUS(status)])
"""
FORKED_AFTER = {
    "an eager computation": ("import tensorflow as tf; tf.constant(1)", "refused"),
    "an import in another thread": (
        """
for_import = threading.Thread(target=__import__, args=("tensorflow",))
for_import.start()
while "tensorflow.python.eager" not in sys.modules:
    time.sleep(0.001)
""",
        "refused",
    ),
    "an opening in another thread": (
        """
from vae_anomaly.core import backend, forks
threading.Thread(target=backend.open_tensorflow).start()
while not forks._imports:
    time.sleep(0.0001)
""",
        "refused",
    ),
    "an import": ("import tensorflow", "fitted"),
    "an opening that starts nothing": (
        "from vae_anomaly.core import backend; backend.open_tensorflow(); backend.keras.layers.Dense(1)",
        "fitted",
    ),
}


@pytest.mark.wide
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize(
    ("before", "outcome"),
    FORKED_AFTER.values(),
    ids=FORKED_AFTER,
)
def test_tensorflow_is_refused_in_a_forked_process_exactly_if_it_would_hang(before, outcome):
    ran = run(IN_A_FORK.format(before=before))
    assert ran.returncode == 0, ran.stderr
    *error, found = ran.stdout.splitlines()
    assert found == outcome
    if outcome == "refused":
        was = "had been started" if "constant" in before else "was being imported"
        assert f"TensorFlow {was} when this process was forked, and would hang here" in error[0]


@pytest.mark.wide
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux names the threads of a process")
def test_a_session_of_the_parents_counts_as_started():
    pytest.importorskip("tensorflow", minversion="2.21", reason="earlier releases name no threads")
    before = """
import tensorflow as tf
with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    session.run(tf.ones((3, 3)) @ tf.ones((3, 3)))
"""
    assert run(IN_A_FORK.format(before=before)).stdout.splitlines()[-1] == "refused"


@pytest.mark.wide
def test_warm_up_imports_tensorflow_in_the_background():
    code = """
        import sys, threading, time
        import vae_anomaly
        start = time.perf_counter()
        vae_anomaly.warm_up()
        seconds = time.perf_counter() - start
        print(seconds, "keras" in sys.modules)
        (thread,) = [thread for thread in threading.enumerate() if thread.name == "vae_anomaly.warm_up"]
        thread.join()
        print("tensorflow" in sys.modules and "keras" in sys.modules)
        vae_anomaly.warm_up()
        detector = vae_anomaly.VAEDetector(epochs=1).fit([[0.0, 1.0], [1.0, 0.0], [2.0, 1.0]])
        print(detector.score_samples([[0.0, 1.0]]).shape)
    """
    outcome = run(code)
    first, second, third = outcome.stdout.splitlines()
    seconds, was_imported = first.split()
    assert float(seconds) < 0.5
    assert was_imported == "False"
    assert (second, third) == ("True", "(1,)")
    assert outcome.stderr == ""


def test_an_import_that_fails_in_the_background_is_told_of_by_the_fit(monkeypatch):
    monkeypatch.setattr(backend, "_is_open", False)
    monkeypatch.setattr(backend, "_open", lambda: 1 / 0)
    backend.warm_up()
    for thread in threading.enumerate():
        if thread.name == "vae_anomaly.warm_up":
            thread.join()
    with pytest.raises(ZeroDivisionError):
        backend.open_tensorflow()
