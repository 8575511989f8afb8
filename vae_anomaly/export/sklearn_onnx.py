"""A detector as a step of a pipeline that skl2onnx exports.

skl2onnx asks an estimator itself for a parser, `VAEDetector.onnx_parser`, so nothing is registered. The
parser puts a `_Step` in the detector's place, which skl2onnx asks for the rest: of a class that is not
registered, it would refuse options. The detector's graph becomes ONNX functions in a domain of its own, named
by a digest, so that two detectors in one graph, or in graphs that are merged, have different ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from vae_anomaly.core.types import Detector
from vae_anomaly.data.tables import Column
from vae_anomaly.ensemble.fitted import Fitted
from vae_anomaly.export import onnx_model
from vae_anomaly.export.onnx_graph import DOMAIN, ML_OPERATORS, OPERATORS, Onnx, library, nodes_of

__all__ = ["parser"]

_NAME = "VAEDetector"
_OPTION = "score_samples"


def parser(detector: Detector) -> Callable[..., list[Onnx]]:
    """What tells skl2onnx the outputs of a fitted detector; see `VAEDetector.onnx_parser`."""
    check_is_fitted(detector)

    def parse(scope: Onnx, inputs: Sequence[Onnx]) -> list[Onnx]:
        types = library("skl2onnx").common.data_types
        is_double = any(isinstance(variable.type, types.DoubleTensorType) for variable in inputs)
        number = types.DoubleTensorType if is_double else types.FloatTensorType
        outputs = {"label": types.Int64TensorType, "scores": number}
        if _wants_score_samples(detector, scope.options or {}):
            outputs["score_samples"] = number
        scope.replace_raw_operator(detector, _Step(detector), f"{DOMAIN}.{_NAME}")
        return [scope.declare_local_variable(name, kind([None, 1])) for name, kind in outputs.items()]

    return parse


def _wants_score_samples(detector: Detector, options: dict[Any, Any]) -> bool:
    given = {**(options.get(type(detector)) or {}), **(options.get(id(detector)) or {})}
    unknown = [name for name in given if name != _OPTION]
    if unknown:
        raise NameError(
            f"{_NAME} has no option {unknown[0]!r} for an export by skl2onnx; expected {{{_OPTION!r}: True}}."
        )
    return bool(given.get(_OPTION))


@dataclass
class _Step:
    """What skl2onnx sees of a detector."""

    detector: Detector

    def onnx_shape_calculator(self) -> Callable[[Onnx], None]:
        def set_shapes(operator: Onnx) -> None:
            for output in operator.outputs:
                output.type.shape = [operator.inputs[0].get_first_dimension(), 1]

        return set_shapes

    def onnx_converter(self) -> Callable[[Onnx, Onnx, Onnx], None]:
        return self._convert

    def _convert(self, scope: Onnx, operator: Onnx, container: Onnx) -> None:
        """Add the detector to the pipeline's graph."""
        if not hasattr(container, "local_functions"):
            raise ImportError(
                "a VAEDetector in a pipeline needs skl2onnx 1.19.1 or later: pip install -U skl2onnx."
            )
        if container.target_opset_onnx < OPERATORS:
            raise ValueError(
                f"the graph of a VAEDetector needs ONNX's operators of version {OPERATORS} or later; "
                f"received target_opset={container.target_opset_onnx}. Ask for target_opset={OPERATORS}."
            )
        graph = _Nodes(scope, container)
        given = _inputs(graph, self.detector, operator.inputs)
        model = onnx_model.convert(self.detector, container.target_opset_onnx)
        results = graph.whole(model, given)
        scores, decision, label = (graph.node("Unsqueeze", [name, graph.array([1])]) for name in results)
        for output, name in zip(operator.outputs, (label, decision, scores), strict=False):
            to = output.type.to_onnx_type().tensor_type.elem_type
            graph.node("Cast", [name], output.full_name, to=to)


class _Nodes:
    """Nodes of skl2onnx's graph, with names that nothing else has there."""

    def __init__(self, scope: Onnx, container: Onnx) -> None:
        self._scope, self._container = scope, container
        self.types = library("onnx").TensorProto

    def node(self, operator: str, inputs: list[str], output: str | None = None, **attributes: object) -> str:
        output = output or self._name(operator)
        self._container.add_node(
            operator, inputs, output, name=self._scope.get_unique_operator_name(operator), **attributes
        )
        return output

    def array(self, numbers: int | list[int]) -> str:
        return self._initializer(library("onnx").numpy_helper.from_array(np.array(numbers, dtype=np.int64)))

    def whole(self, model: Onnx, inputs: list[str]) -> list[str]:
        """What a model, its graph turned into a function, makes of tensors."""
        digest = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()[:16]
        domain, graph = f"{DOMAIN}.{digest}", model.graph
        for function in model.functions:
            self._define(domain, function.name, function.input, function.output, function.node)
        arrays = [array.name for array in graph.initializer]
        results = [value.name for value in graph.output]
        self._define(domain, _NAME, [*(v.name for v in graph.input), *arrays], results, graph.node)
        given = [*inputs, *map(self._initializer, graph.initializer)]
        outputs = [self._name(name) for name in results]
        name = self._scope.get_unique_operator_name(_NAME)
        self._container.add_node(_NAME, given, outputs, op_domain=domain, op_version=1, name=name)
        return outputs

    def _define(
        self, domain: str, name: str, inputs: Iterable[str], outputs: Iterable[str], nodes: Iterable[Onnx]
    ) -> None:
        """Add an ONNX function, with the versions of operators that the whole graph has in the end."""
        versions = self._container.node_domain_version_pair_sets
        versions.add(("", self._container.target_opset_onnx))
        body = type(self._container)(self._container.target_opset_all, as_function=True)
        body.inputs, body.outputs = ([SimpleNamespace(name=n) for n in names] for names in (inputs, outputs))
        body.nodes = list(nodes)
        for node in nodes_of(SimpleNamespace(node=body.nodes)):
            if node.domain == DOMAIN:
                node.domain = domain
                continue
            self._container.check_white_black_list(node.op_type)
            if node.domain:
                schema = library("onnx").defs.get_schema(node.op_type, ML_OPERATORS, node.domain)
                versions.add((node.domain, schema.since_version))
        body.node_domain_version_pair_sets = versions
        # They are in order, and skl2onnx would not see what the graphs inside of "If" use.
        body.ensure_topological_order = lambda: None
        self._container.local_functions[domain, name] = body

    def _initializer(self, array: Onnx) -> str:
        name = self._name(array.name or "constant")
        self._container.add_initializer(name, array.data_type, list(array.dims), array)
        return name

    def _name(self, seed: str) -> str:
        return str(self._scope.get_unique_variable_name(f"{_NAME}_{seed}"))


# -- what comes in ------------------------------------------------------------------------------------------
def _inputs(graph: _Nodes, detector: Detector, given: Sequence[Onnx]) -> list[str]:
    """Names of what the detector's own graph takes, made of the variables of a pipeline."""
    for variable in given:
        if not variable.type.to_onnx_type().HasField("tensor_type"):
            raise TypeError(
                f"a VAEDetector takes tensors; the pipeline passes {variable.type}, as {variable.raw_name!r}."
            )
    given = _in_order(detector, given)
    if detector.image_shape_ is not None:
        return [_images(graph, detector, given)]
    widths = [_width(variable) for variable in given]
    if len(given) == 1:
        widths = [widths[0] or detector.n_features_in_]
    n_columns = sum(width or 1 for width in widths)
    if n_columns != detector.n_features_in_:
        raise ValueError(
            f"the detector was fitted on {detector.n_features_in_} columns; the pipeline passes {n_columns}."
        )
    if detector.table_ is None:
        tables = [_numbers(graph, variable) for variable in given]
        return [tables[0] if len(tables) == 1 else graph.node("Concat", tables, axis=1)]
    columns: list[str] = []
    for variable, width in zip(given, widths, strict=True):
        for position in range(width or 1):
            column = detector.table_.columns[len(columns)]
            columns.append(_column(graph, variable, position, column))
    return columns


def _in_order(detector: Detector, given: Sequence[Onnx]) -> list[Onnx]:
    """By the columns' names if the variables have these, as skl2onnx makes them of a DataFrame."""
    if detector.table_ is not None:
        names = [str(column.name) for column in detector.table_.columns]
    else:
        names = list(getattr(detector, "feature_names_in_", ()))
    by_name = {variable.raw_name: variable for variable in given}
    return [by_name[name] for name in names] if by_name.keys() == set(names) else list(given)


def _width(variable: Onnx) -> int | None:
    shape = variable.type.shape
    if not shape:
        return None
    return 1 if len(shape) == 1 else shape[1] if isinstance(shape[1], int) else None


def _numbers(graph: _Nodes, variable: Onnx) -> str:
    """Any numbers as float64."""
    if _holds_texts(graph, variable):
        raise TypeError(
            f"the detector takes numbers only; the pipeline passes texts, as {variable.raw_name!r}. Encode "
            "them before the detector."
        )
    numbers = graph.node("Cast", [variable.full_name], to=graph.types.DOUBLE)
    return graph.node("Unsqueeze", [numbers, graph.array([1])]) if len(variable.type.shape) == 1 else numbers


def _holds_texts(graph: _Nodes, variable: Onnx) -> bool:
    return bool(variable.type.to_onnx_type().tensor_type.elem_type == graph.types.STRING)


def _images(graph: _Nodes, detector: Detector, given: Sequence[Onnx]) -> str:
    """Pixels as float64, in the units that the model works in."""
    shape = list(given[0].type.shape[1:])
    n_pixels = detector.n_features_in_
    if len(given) > 1 or (all(isinstance(n, int) for n in shape) and np.prod(shape) != n_pixels):
        raise ValueError(
            f"the detector was fitted on images of shape {detector.image_shape_}; the pipeline passes "
            f"{', '.join(str(variable.type) for variable in given)}."
        )
    pixels = _numbers(graph, given[0])
    if given[0].type.to_onnx_type().tensor_type.elem_type == graph.types.UINT8:
        fitted: Fitted = detector._fitted
        ones = fitted.preparation.in_units(np.ones((1, n_pixels)), np.dtype(np.uint8), fitted.likelihood)
        divisor = graph.node("Cast", [graph.array(round(1 / ones[0, 0]))], to=graph.types.DOUBLE)
        pixels = graph.node("Div", [pixels, divisor])
    return pixels


def _column(graph: _Nodes, variable: Onnx, position: int, column: Column) -> str:
    """A column of a variable, (n_rows,), of the type that the detector's own graph takes."""
    takes_texts = onnx_model.kind_of(column) is str
    if takes_texts != _holds_texts(graph, variable):
        kinds = ("texts", "numbers") if takes_texts else ("numbers", "texts")
        raise TypeError(
            f"column {column.name!r} of the detector takes {kinds[0]}; the pipeline passes {kinds[1]}, as "
            f"{variable.raw_name!r}. A ColumnTransformer passes one table of one type: export the detector "
            "alone, by skl2onnx with an input for each column, or by to_onnx."
        )
    name = variable.full_name
    if len(variable.type.shape) != 1:
        name = graph.node("Gather", [name, graph.array(position)], axis=1)
    return name if takes_texts else graph.node("Cast", [name], to=graph.types.DOUBLE)
