"""``bvlcalexnet-12.onnx`` and similar: an ONNX graph (https://onnx.ai/onnx/repo-docs/IR.html), a protocol buffer.

It has five convolutions and three fully connected layers. Their names differ between exporters, but their order does
not: the first ``Conv`` is conv1, the first ``Gemm`` is fc6, and a node's second and third inputs are its weight and
bias. The layout is Caffe's, with fc6's columns in the order C, H, W.
"""

import os
from typing import TYPE_CHECKING

import numpy as np

from model.weights.common import (
    LAYER_NAMES,
    LayerTensors,
    Probe,
    Weights,
    WeightsError,
    check_arrays,
    check_order,
    published,
    read_bounded,
    reason,
    to_tensors,
)

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
        model = onnx.load_model_from_string(read_bounded(path))
    except DecodeError as error:
        raise WeightsError(f"truncated or damaged: not a protocol buffer of ONNX's: {error}") from error
    graph = model.graph
    nodes = {kind: [node for node in graph.node if node.op_type == kind] for kind in ("Conv", "Gemm")}
    if len(nodes["Conv"]) != 5 or len(nodes["Gemm"]) != 3:
        raise WeightsError(f"must be a graph of 5 Conv and 3 Gemm, got {len(nodes['Conv'])} and {len(nodes['Gemm'])}")
    check_order([node.op_type for node in graph.node], "LRN", "MaxPool")
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    layers = {
        layer: _layer(layer, node, tensors)
        for layer, node in zip(LAYER_NAMES, nodes["Conv"] + nodes["Gemm"], strict=True)
    }
    return published(layers)


def _layer(layer: str, node: "onnx.NodeProto", tensors: dict) -> LayerTensors:
    if len(node.input) != 3:
        raise WeightsError(f"{layer} must have a weight and a bias, got {len(node.input) - 1} of them")
    weight, bias = (_array(layer, input, tensors) for input in node.input[1:])
    check_arrays(layer, weight, bias)
    if node.op_type == "Gemm":
        given = {attribute.name: attribute for attribute in node.attribute}
        for factor in ("alpha", "beta"):
            if factor in given and given[factor].f != 1.0:
                raise WeightsError(f"{layer} has the factor {factor} {given[factor].f}, which AlexNet does not have")
        if "transB" not in given or not given["transB"].i:
            weight = weight.T
    return to_tensors(layer, weight, bias)


def _array(layer: str, tensor: str, tensors: dict) -> np.ndarray:
    import onnx

    if tensor not in tensors:
        raise WeightsError(f"{layer}'s tensor {tensor!r} is not stored in the file")
    if tensors[tensor].data_location == onnx.TensorProto.EXTERNAL:
        raise WeightsError(f"{layer}'s tensor {tensor!r} is kept in another file, which is not read")
    try:
        return onnx.numpy_helper.to_array(tensors[tensor])
    except Exception as error:  # a shape that the numbers do not fill, or an unknown type
        raise WeightsError(f"{layer}'s tensor {tensor!r} is damaged: {reason(error)}") from error
