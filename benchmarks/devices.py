"""Whether one model should be trained on several devices at once: a step data-parallel, and on one device.

A variational autoencoder with hidden layers, written down without this library, is trained with Adam on one
logical processor, and on two by `tf.distribute.MirroredStrategy`, each of which takes half of a batch. Each
logical processor computes an operation in one thread, so that two have twice as many cores as one. Both loop
over the steps inside of TensorFlow. What is printed are milliseconds of a step, the least of several rounds,
and, beside it, what two members take that are trained on the two devices at once, per step of both::

    python benchmarks/devices.py
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from typing import Any

os.environ.update(TF_NUM_INTRAOP_THREADS="1", TF_NUM_INTEROP_THREADS="2", TF_CPP_MIN_LOG_LEVEL="3")

import keras
import numpy as np
import tensorflow as tf

CASES = ((10, (64, 32), 128), (100, (256, 128), 128), (256, (512, 256), 512), (784, (1024, 512), 2048))
LATENT_DIM, N_ROUNDS = 8, 5


def model_of(n_features: int, hidden: tuple[int, ...]) -> tuple[Any, Any]:
    def stack(n_inputs: int, widths: tuple[int, ...], n_outputs: int) -> Any:
        layers = [keras.layers.Dense(width, activation="relu") for width in widths]
        return keras.Sequential([keras.Input((n_inputs,)), *layers, keras.layers.Dense(n_outputs)])

    return stack(n_features, hidden, 2 * LATENT_DIM), stack(LATENT_DIM, hidden[::-1], n_features)


def loss_of(models: tuple[Any, Any], rows: Any, n_global: int) -> Any:
    encoder, decoder = models
    mean, log_var = tf.split(encoder(rows), 2, axis=1)
    z = mean + tf.exp(log_var / 2) * tf.random.stateless_normal(tf.shape(mean), (1, 2))
    kl = 0.5 * tf.reduce_sum(mean**2 + tf.exp(log_var) - log_var - 1, axis=1)
    return tf.reduce_sum(0.5 * tf.reduce_sum((rows - decoder(z)) ** 2, axis=1) + kl) / n_global


def program(strategy: Any, n_features: int, hidden: tuple[int, ...], batch_size: int, n_steps: int) -> Any:
    """A function that takes so many steps with batches of these rows, one after another."""
    n_rows = batch_size // strategy.num_replicas_in_sync
    rows = tf.constant(np.random.RandomState(0).normal(size=(n_rows, n_features)), tf.float32)
    with strategy.scope():
        models = model_of(n_features, hidden)
        weights = [*models[0].trainable_variables, *models[1].trainable_variables]
        optimizer = keras.optimizers.Adam(1e-3)
        optimizer.build(weights)

    def step() -> None:
        with tf.GradientTape() as tape:
            loss = loss_of(models, rows, batch_size)
        optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))

    @tf.function
    def steps() -> None:
        for _ in tf.range(n_steps):
            strategy.run(step)

    steps()
    return steps


def seconds_of(*programs: Any) -> float:
    """The least time of a round in which all run at once."""
    found = []
    for _ in range(N_ROUNDS):
        threads = [threading.Thread(target=each) for each in programs]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found.append(time.perf_counter() - start)
    return min(found)


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    names = [device.name for device in tf.config.list_logical_devices("CPU")]
    print("| features | hidden layers | rows of a batch | one device | two, one model | two, two models |")
    print("|---|---|---|---|---|---|")
    for n_features, hidden, batch_size in CASES:
        size = n_features, hidden, batch_size
        n_steps = 20 if batch_size > 1000 else 100
        alone = [program(tf.distribute.OneDeviceStrategy(name), *size, n_steps) for name in names]
        reduction = tf.distribute.HierarchicalCopyAllReduce()
        mirrored = program(tf.distribute.MirroredStrategy(names, reduction), *size, n_steps)
        found = [seconds_of(alone[0]), seconds_of(mirrored), seconds_of(*alone) / 2]
        cells = " | ".join(f"{1000 * seconds / n_steps:.3g} ms" for seconds in found)
        print(f"| {n_features} | {'-'.join(map(str, hidden))} | {batch_size} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
