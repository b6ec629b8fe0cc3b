"""``bvlcalexnet-12.onnx`` and similar: an ONNX graph (https://onnx.ai/onnx/repo-docs/IR.html), a protocol buffer.

Names differ between exporters, but the order does not: the first of five ``Conv`` is conv1, the first of three
``Gemm`` is fc6, and a node's second and third inputs are its weight and bias. The layout is Caffe's.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from model.weights import common
from model.weights.common import LAYER_NAMES, Probe, Weights, WeightsError

if TYPE_CHECKING:  # imported only if a file is ONNX's
    import onnx

DESCRIPTION = "an .onnx file"


def matches(probe: Probe) -> bool:
    """Whether the file begins as an ONNX model does: with the version of ONNX, one byte."""
    return probe.head[:1] == b"\x08" and 1 <= int.from_bytes(probe.head[1:2], "little") < 32


def read(path: str | os.PathLike) -> Weights:
    """Reads the file. It never opens another file, even if this one refers to one."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(Path(path).read_bytes())
    except DecodeError as error:
        raise WeightsError(f"truncated or damaged: not a protocol buffer of ONNX's: {error}") from error
    graph = model.graph
    nodes = {kind: [node for node in graph.node if node.op_type == kind] for kind in ("Conv", "Gemm")}
    if len(nodes["Conv"]) != 5 or len(nodes["Gemm"]) != 3:
        raise WeightsError(f"must be a graph of 5 Conv and 3 Gemm, got {len(nodes['Conv'])} and {len(nodes['Gemm'])}")
    common.check_order([node.op_type for node in graph.node], "LRN", "MaxPool")
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    found = dict(zip(LAYER_NAMES, nodes["Conv"] + nodes["Gemm"], strict=True))
    pair = lambda layer: [_array(layer, input, tensors) for input in found[layer].input[1:]]
    layers = common.find_layers(found, pair, lambda layer, weight: _layout(layer, weight, found[layer]))
    return common.published(layers)


def _layout(layer: str, weight: np.ndarray, node: "onnx.NodeProto") -> np.ndarray:
    """A Gemm's weight is (in, out), unless its attribute ``transB`` says otherwise."""
    if node.op_type == "Conv":
        return weight
    given = {attribute.name: attribute for attribute in node.attribute}
    for factor in ("alpha", "beta"):
        if factor in given and given[factor].f != 1.0:
            raise WeightsError(f"{layer} has the factor {factor} {given[factor].f}, which AlexNet does not have")
    return weight if "transB" in given and given["transB"].i else weight.T


def _array(layer: str, tensor: str, tensors: dict) -> np.ndarray:
    import onnx

    if tensor not in tensors:
        raise WeightsError(f"{layer}'s tensor {tensor!r} is not stored in the file")
    if tensors[tensor].data_location == onnx.TensorProto.EXTERNAL:
        raise WeightsError(f"{layer}'s tensor {tensor!r} is kept in another file, which is not read")
    try:
        return onnx.numpy_helper.to_array(tensors[tensor])
    except Exception as error:  # a shape that the numbers do not fill, or an unknown type
        raise WeightsError(f"{layer}'s tensor {tensor!r} is damaged: {common.reason(error)}") from error
