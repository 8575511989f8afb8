"""A service that scores rows under threads, with nothing but the ONNX file of a detector.

`score_rows` is a plain WSGI application: it takes a JSON list of rows and answers with their scores and
labels. The graph is loaded once and shared by all threads, which onnxruntime allows; neither TensorFlow nor
this library is needed where it runs. Here the standard library's server stands in for gunicorn or the like,
and four clients ask it at once. Rows that the graph does not take are answered by a 400. It needs the extra
``onnx`` (``pip install 'vae-anomaly[onnx]'``). Run it with::

    python examples/service.py
"""

import http.client
import io
import json
import os
import socketserver
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import numpy as np
import onnxruntime
from sklearn.datasets import load_breast_cancer

from vae_anomaly import VAEDetector

N_CLIENTS, N_REQUESTS = 4, 20 if os.environ.get("VAE_ANOMALY_QUICK") else 500


def load_scorer(graph: bytes) -> Callable[[list[list[float]]], dict[str, list[float]]]:
    """Rows -> scores and labels, by the graph of a detector."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # requests come side by side: one core each is enough
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def score(rows: list[list[float]]) -> dict[str, list[float]]:
        scores, labels = session.run(["score_samples", "label"], {"X": np.array(rows, dtype=np.float64)})
        return {"score": scores.tolist(), "label": labels.tolist()}

    return score


def make_application(
    score: Callable[[list[list[float]]], dict[str, list[float]]],
) -> Callable[..., Iterable[bytes]]:
    """The WSGI application of a scorer."""

    def score_rows(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        try:
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            status, answer = "200 OK", json.dumps(score(json.loads(body)))
        except Exception as error:  # of json, numpy or onnxruntime: the rows are not what the graph takes
            status, answer = "400 Bad Request", json.dumps({"error": str(error)[:200]})
        start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(answer)))])
        return [answer.encode()]

    return score_rows


class ThreadingServer(socketserver.ThreadingMixIn, WSGIServer):
    """A thread for each connection."""

    daemon_threads = True


class QuietHandler(WSGIRequestHandler):
    """Writes no line for each request."""

    def log_message(self, *arguments: object) -> None:
        """Nothing."""


def ask(port: int, bodies: list[str]) -> list[tuple[float, int, Any]]:
    """Milliseconds, status and answer of each request of one client."""
    found = []
    for body in bodies:
        start = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("POST", "/", body)
        response = connection.getresponse()
        answer = json.loads(response.read())
        connection.close()
        found.append((1000 * (time.perf_counter() - start), response.status, answer))
    return found


rows = load_breast_cancer().data
detector = VAEDetector(epochs=20, random_state=0).fit(rows)
graph = io.BytesIO()
detector.to_onnx(graph)

application = make_application(load_scorer(graph.getvalue()))
with make_server("127.0.0.1", 0, application, ThreadingServer, QuietHandler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    asked = [[(7 * client + i) % len(rows) for i in range(N_REQUESTS)] for client in range(N_CLIENTS)]
    bodies = [[json.dumps([rows[row].tolist()]) for row in of_client] for of_client in asked]
    with ThreadPoolExecutor(N_CLIENTS) as clients:
        answers = [*chain.from_iterable(clients.map(ask, [server.server_port] * N_CLIENTS, bodies))]
    ((_, status, refused),) = ask(server.server_port, ["[[1.0, 2.0]]"])
    server.shutdown()

expected = detector.score_samples(rows)
scores = np.array([answer["score"][0] for _, _, answer in answers])
assert np.allclose(scores, expected[[*chain.from_iterable(asked)]], rtol=1e-4)
assert status == 400
milliseconds = np.array([taken for taken, _, _ in answers])
print(f"{len(answers)} requests of one row by {N_CLIENTS} clients at once")
print(f"median {np.median(milliseconds):.1f} ms, 99 % below {np.quantile(milliseconds, 0.99):.1f} ms")
print(f"two columns in the place of {rows.shape[1]}: {status}, {refused['error'][:60]}...")
