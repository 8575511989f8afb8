"""An ONNX graph, put together from what converters make of functions and transformers."""

from __future__ import annotations

import contextlib
import copy
import importlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from vae_anomaly.core.backend import open_tensorflow, tf
from vae_anomaly.core.log_lines import silence_log_lines
from vae_anomaly.core.types import Array, Estimator, Tensor

__all__ = [
    "DOMAIN",
    "ML_OPERATORS",
    "OPERATORS",
    "Graph",
    "Onnx",
    "library",
    "nodes_of",
    "session_of",
    "with_operators",
]

#: An object of onnx, which ships no types, or a library that converts to it.
Onnx: TypeAlias = Any
#: Of the functions that a graph has of its own.
DOMAIN = "vae_anomaly"
# How the names of what is neither input nor output begin.
_OWN = "detector/"
#: Versions of ONNX's operators: of early 2023, with the file format of its day. Older runtimes read it too.
OPERATORS, ML_OPERATORS, _FILE_FORMAT = 18, 3, 8
# What tf2onnx does not know, or computes in float32 alone (Log); the first two exact for small arguments too
# (Higham 2002, "Accuracy and stability of numerical algorithms", section 1.14).
_MISSING_OPERATORS = {
    "Log1p": """
        zero = Constant <value_int: int = 0> ()
        one = Pow (x, zero)
        sum = Add (one, x)
        excess = Sub (sum, one)
        logarithm = Log (sum)
        ratio = Div (x, excess)
        product = Mul (logarithm, ratio)
        tiny = Equal (sum, one)
        finite = Where (tiny, x, product)
        overflown = IsInf (sum)
        y = Where (overflown, sum, finite)
    """,
    "Expm1": """
        zero = Constant <value_int: int = 0> ()
        one = Pow (x, zero)
        power = Exp (x)
        excess = Sub (power, one)
        logarithm = Log (power)
        ratio = Div (x, logarithm)
        product = Mul (excess, ratio)
        minus_one = Neg (one)
        vanished = Equal (excess, minus_one)
        bounded = Where (vanished, excess, product)
        tiny = Equal (power, one)
        finite = Where (tiny, x, bounded)
        overflown = IsInf (power)
        y = Where (overflown, power, finite)
    """,
    "Erfc": """
        zero = Constant <value_int: int = 0> ()
        one = Pow (x, zero)
        error = Erf (x)
        y = Sub (one, error)
    """,
    "Log": """
        y = Log (x)
    """,
}


class Graph:
    """An ONNX graph that grows node by node, with functions of its own.

    Parameters
    ----------
    outputs : dict of name to dtype, of shape (n_rows,)
    """

    def __init__(self, outputs: Mapping[str, npt.DTypeLike]) -> None:
        self._onnx = library("onnx")
        self._functions: dict[str, Onnx] = {}
        self._initializers: list[Onnx] = []
        self._nodes: list[Onnx] = []
        self._inputs: list[Onnx] = []
        self._outputs = [self._value_info(name, dtype, ("n_rows",)) for name, dtype in outputs.items()]

    # -- parts ----------------------------------------------------------------------------------------
    def type_of(self, dtype: npt.DTypeLike) -> int:
        """ONNX's number for a type."""
        return int(self._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def input(self, name: str, dtype: npt.DTypeLike, shape: Sequence[int | str | None]) -> str:
        """An input of the graph."""
        if name.startswith(_OWN) or name in {value.name for value in [*self._inputs, *self._outputs]}:
            raise ValueError(
                f"{name!r} is the name of a column, and of something else in the ONNX graph; rename the "
                "column and fit again."
            )
        self._inputs.append(self._value_info(name, dtype, shape))
        return name

    def constant(self, value: Array, name: str = "constant") -> str:
        """An array of the graph's own."""
        name = f"{_OWN}{len(self._initializers)} {name}"
        self._initializers.append(self._onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, operator: str, inputs: Sequence[str], **attributes: object) -> str:
        """What one of ONNX's operators makes of tensors."""
        output = f"{_OWN}{len(self._nodes)} {operator}"
        self._nodes.append(self._onnx.helper.make_node(operator, inputs, [output], **attributes))
        return output

    def chosen(self, condition: str, ways: Sequence[Sequence[tuple[str, Sequence[str]]]]) -> list[str]:
        """Results of calls, each of float64 numbers for rows: the first way's if the condition holds."""
        outputs = [f"{_OWN}{len(self._nodes)} {position}" for position in range(len(ways[0]))]
        infos = [self._value_info(name, np.float64, (None,)) for name in outputs]
        branches = [
            self._onnx.helper.make_graph(
                [
                    self._call(function, inputs, [output])
                    for (function, inputs), output in zip(calls, outputs, strict=True)
                ],
                "branch",
                [],
                infos,
            )
            for calls in ways
        ]
        self._nodes.append(
            self._onnx.helper.make_node(
                "If", [condition], outputs, then_branch=branches[0], else_branch=branches[1]
            )
        )
        return outputs

    def _value_info(self, name: str, dtype: npt.DTypeLike, shape: Sequence[int | str | None]) -> Onnx:
        return self._onnx.helper.make_tensor_value_info(name, self.type_of(dtype), shape)

    # -- functions ------------------------------------------------------------------------------------
    def define(
        self,
        name: str,
        function: Callable[..., tuple[Tensor, ...]],
        inputs: Sequence[tuple[tuple[int | None, ...], npt.DTypeLike]],
        outputs: list[str],
    ) -> None:
        """A function of tensors of these shapes and types, from TensorFlow's operations."""

        def run(*tensors: Tensor) -> dict[str, Tensor]:
            return dict(zip(outputs, function(*tensors), strict=True))

        signature = [tf.TensorSpec(shape, dtype) for shape, dtype in inputs]
        with _silence("tf2onnx"), silence_log_lines():  # it sets TensorFlow's log level on the way
            model, _ = library("tf2onnx").convert.from_function(
                tf.function(run, autograph=False),
                signature,
                opset=OPERATORS,
                custom_ops=dict.fromkeys(_MISSING_OPERATORS, DOMAIN),
            )
        self._add(name, model, [f"tensors_{position}" for position in range(len(inputs))], outputs)

    def transformed(self, X: str, transformer: Estimator, n_columns: int) -> str:
        """What a fitted transformer makes of float64 columns."""
        skl2onnx, name = library("skl2onnx"), type(transformer).__name__
        types = skl2onnx.common.data_types
        try:
            model = skl2onnx.to_onnx(
                transformer,
                initial_types=[("X", types.DoubleTensorType([None, n_columns]))],
                target_opset={"": OPERATORS, "ai.onnx.ml": ML_OPERATORS},
            )
            # Of some, it makes graphs that no runtime takes.
            session_of(model.SerializeToString())
        except Exception as error:
            raise NotImplementedError(
                f"skl2onnx cannot convert the detector's scaler, a {name} ({_first_line(error)}). Scale the "
                "rows before the detector, or choose one of the scalers that `VAEDetector.save` names."
            ) from error
        name = self._unused(name)
        self._add(name, model, ["X"], [output.name for output in model.graph.output])
        return self.node("Cast", self.call(name, [X])[:1], to=self.type_of(np.float64))

    def computed(
        self, name: str, function: Callable[..., tuple[Tensor]], given: Sequence[tuple[str, int | None]]
    ) -> str:
        """What a function from TensorFlow's operations makes of float64 tables of so many columns."""
        name = self._unused(name)
        self.define(name, function, [((None, n_columns), np.float64) for _, n_columns in given], ["rows"])
        return self.call(name, [table for table, _ in given])[0]

    def _unused(self, name: str) -> str:
        return f"{name} {len(self._functions)}"

    def _add(self, name: str, model: Onnx, inputs: list[str], outputs: list[str]) -> None:
        graph, helper = model.graph, self._onnx.helper
        strangers = {node.op_type for node in nodes_of(graph) if not self._knows(node)}
        strangers |= {value.name for value in graph.input} - set(inputs)
        if strangers:
            raise NotImplementedError(
                f"no ONNX operator is known for {', '.join(sorted(strangers))}, which the detector's "
                "network, likelihood or score uses. Write it with other operations of keras.ops, or save the "
                "detector with `save` and score with this package."
            )
        constants = [helper.make_node("Constant", [], [c.name], value=c) for c in graph.initializer]
        self._functions[name] = helper.make_function(
            DOMAIN,
            name,
            inputs,
            outputs,
            [*constants, *graph.node],
            self._operators(),
        )

    def _knows(self, node: Onnx) -> bool:
        if node.domain == DOMAIN:
            return node.op_type in _MISSING_OPERATORS
        return bool(self._onnx.defs.has(node.op_type, node.domain))

    def uses(self, function: str, position: int) -> bool:
        """Whether a function does anything with this input."""
        definition = self._functions[function]
        return any(definition.input[position] in node.input for node in nodes_of(definition))

    def call(self, function: str, inputs: Sequence[str], outputs: Sequence[str] = ()) -> list[str]:
        """What a function makes of tensors; its results get names of their own if there are none."""
        results = self._functions[function].output
        outputs = list(outputs) or [f"{_OWN}{len(self._nodes)} {name}" for name in results]
        self._nodes.append(self._call(function, inputs, outputs))
        return outputs

    def _call(self, function: str, inputs: Sequence[str], outputs: Sequence[str]) -> Onnx:
        return self._onnx.helper.make_node(function, inputs, outputs, domain=DOMAIN)

    # -- the whole ------------------------------------------------------------------------------------
    def _operators(self) -> list[Onnx]:
        versions = {"": OPERATORS, "ai.onnx.ml": ML_OPERATORS, DOMAIN: 1}
        return [self._onnx.helper.make_opsetid(*item) for item in versions.items()]

    def model(self, about: Mapping[str, str]) -> Onnx:
        """The graph as an ONNX model, with its metadata."""
        own = [
            self._onnx.parser.parse_function(
                f'<domain: "{DOMAIN}", opset_import: ["": {OPERATORS}]> {name} (x) => (y) {{{text}}}'
            )
            for name, text in _MISSING_OPERATORS.items()
        ]
        graph = self._onnx.helper.make_graph(
            self._nodes, "detector", self._inputs, self._outputs, self._initializers
        )
        model = self._onnx.helper.make_model(
            graph,
            functions=[*own, *self._functions.values()],
            opset_imports=self._operators(),
            ir_version=_FILE_FORMAT,
            producer_name="vae-anomaly",
        )
        self._onnx.helper.set_model_props(model, dict(about))
        self._onnx.checker.check_model(model)
        return model


def nodes_of(graph: Onnx) -> Iterator[Onnx]:
    """The nodes of a graph or a function, and of the graphs inside."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from nodes_of(attribute.g)


def with_operators(model: Onnx, version: int) -> Onnx:
    """The model, said to be of a later version of ONNX's operators: what it computes is still to be checked.

    Raises
    ------
    NotImplementedError
        If onnx or onnxruntime refuses the model then.
    """
    if version == OPERATORS:
        return model
    onnx, later = library("onnx"), copy.deepcopy(model)
    for part in (later, *later.functions):
        for opset in part.opset_import:
            if opset.domain == "":
                opset.version = version
    try:
        later.ir_version = max(_FILE_FORMAT, onnx.helper.find_min_ir_version_for(later.opset_import, True))
        onnx.checker.check_model(later)
        session_of(later.SerializeToString())
    except Exception as error:
        raise NotImplementedError(
            f"the detector's graph cannot be written in version {version} of ONNX's operators "
            f"({_first_line(error)}). Ask for another: target_opset={OPERATORS} is the surest."
        ) from error
    return later


def session_of(data: bytes) -> Onnx:
    """A session of onnxruntime that runs a model, on the processor and without log lines."""
    runtime = library("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    return runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def library(name: str) -> Onnx:
    """A library of the extra ``onnx``."""
    if name == "tf2onnx":
        open_tensorflow()  # or it would import TensorFlow itself, in another way
    try:
        with silence_log_lines():
            return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"to_onnx needs {name}, which cannot be imported ({error}): pip install 'vae-anomaly[onnx]'."
        ) from error


@contextlib.contextmanager
def _silence(library: str) -> Iterator[None]:
    """Without the log lines of a library, whose errors are told otherwise."""
    logger = logging.getLogger(library)
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
