"""``bvlcalexnet-12.onnx`` and its like: an ONNX graph of five convolutions and three fully connected layers.

Names of initializers differ from exporter to exporter; the order of the nodes does not. So the first ``Conv`` is conv1,
the first ``Gemm`` fc6, and a node's second and third inputs are its weight and bias. ONNX has Caffe's layout, with
fc6's columns in the order C, H, W.
"""

import os
from typing import TYPE_CHECKING

import numpy as np
import torch

from model.weights.common import (
    LAYERS,
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

if TYPE_CHECKING:  # the library is imported for its own files alone
    import onnx

DESCRIPTION = "an .onnx file"


def matches(probe: Probe) -> bool:
    """Whether a file with this beginning and end is in this format: its first field is the version of ONNX, a byte."""
    return probe.head[:1] == b"\x08" and 1 <= int.from_bytes(probe.head[1:2], "little") < 32


def read(path: str | os.PathLike, name: str) -> Weights:
    """Reads the file; nothing outside it is opened, whatever it says."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(read_bounded(path, name))
    except DecodeError as error:
        raise WeightsError(f"{name}: truncated or damaged: not a protocol buffer of ONNX's: {error}") from error
    graph = model.graph
    nodes = {kind: [node for node in graph.node if node.op_type == kind] for kind in ("Conv", "Gemm")}
    if len(nodes["Conv"]) != 5 or len(nodes["Gemm"]) != 3:
        raise WeightsError(
            f"{name}: must be a graph of 5 Conv and 3 Gemm, got {len(nodes['Conv'])} and {len(nodes['Gemm'])}"
        )
    check_order(name, [node.op_type for node in graph.node], "LRN", "MaxPool")
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    layers = {
        layer: _layer(name, layer, node, tensors)
        for layer, node in zip(LAYERS, nodes["Conv"] + nodes["Gemm"], strict=True)
    }
    return published(name, layers)


def _layer(name: str, layer: str, node: "onnx.NodeProto", tensors: dict) -> tuple[torch.Tensor, torch.Tensor]:
    if len(node.input) != 3:
        raise WeightsError(f"{name}: {layer} must have a weight and a bias, got {len(node.input) - 1} of them")
    weight, bias = (_array(name, layer, input, tensors) for input in node.input[1:])
    check_arrays(name, layer, weight, bias)
    if node.op_type == "Gemm":
        given = {attribute.name: attribute for attribute in node.attribute}
        for factor in ("alpha", "beta"):
            if factor in given and given[factor].f != 1.0:
                raise WeightsError(f"{name}: {layer} has the factor {factor} {given[factor].f}, which AlexNet has not")
        if "transB" not in given or not given["transB"].i:
            weight = weight.T
    return to_tensors(name, layer, weight, bias)


def _array(name: str, layer: str, tensor: str, tensors: dict) -> np.ndarray:
    import onnx

    if tensor not in tensors:
        raise WeightsError(f"{name}: {layer}'s tensor {tensor!r} is not stored in the file")
    if tensors[tensor].data_location == onnx.TensorProto.EXTERNAL:
        raise WeightsError(f"{name}: {layer}'s tensor {tensor!r} is kept in another file, which is not read")
    try:
        return onnx.numpy_helper.to_array(tensors[tensor])
    except Exception as error:  # a shape that the numbers do not fill, a type that is not known
        raise WeightsError(f"{name}: {layer}'s tensor {tensor!r} is damaged: {reason(error)}") from error
