"""``bvlc_alexnet.caffemodel``: Caffe's binary NetParameter, a protocol buffer.

Layers are in the field ``layer``, and in ``layers`` in files from before the upgrade of 2014. Each has its weight and
its bias as blobs, in PyTorch's layout. Older blobs say (1, 1, out, in).

``_MESSAGES`` describes only the fields that are needed, by their numbers in caffe.proto
(https://github.com/BVLC/caffe/blob/master/src/caffe/proto/caffe.proto). The library ignores all others.
"""

import functools
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from model.weights.common import Probe, Weights, WeightsError, check_order, find_layers, published

if TYPE_CHECKING:  # imported only if a file is Caffe's
    from google.protobuf import message

DESCRIPTION = "a .caffemodel"

_MESSAGES = {  # name -> fields: name, number, type, repeated
    "BlobShape": (("dim", 1, "INT64", True),),
    "BlobProto": (
        ("num", 1, "INT32", False),
        ("channels", 2, "INT32", False),
        ("height", 3, "INT32", False),
        ("width", 4, "INT32", False),
        ("data", 5, "FLOAT", True),
        ("shape", 7, "BlobShape", False),
        ("double_data", 8, "DOUBLE", True),
    ),
    "LayerParameter": (("name", 1, "STRING", False), ("blobs", 7, "BlobProto", True)),
    "V1LayerParameter": (("name", 4, "STRING", False), ("blobs", 6, "BlobProto", True)),
    "NetParameter": (
        ("name", 1, "STRING", False),
        ("layers", 2, "V1LayerParameter", True),
        ("layer", 100, "LayerParameter", True),
    ),
}


@functools.cache
def net_parameter() -> "type[message.Message]":
    """The class of Caffe's NetParameter, with the fields above."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="alexnet/caffe.proto", package="alexnet.caffe", syntax="proto2")
    for name, fields in _MESSAGES.items():
        described = file.message_type.add(name=name)
        for field, number, kind, repeated in fields:
            entry = described.field.add(name=field, number=number)
            entry.label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            if kind in _MESSAGES:
                entry.type, entry.type_name = kinds.TYPE_MESSAGE, f".alexnet.caffe.{kind}"
            else:
                entry.type = getattr(kinds, f"TYPE_{kind}")
                entry.options.packed = repeated
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("alexnet.caffe.NetParameter"))


def matches(probe: Probe) -> bool:
    """Whether the file begins as a NetParameter does: with a network's name, if it has one, then another field."""
    if probe.head[:1] != b"\x0a":
        return probe.head[:1] == b"\x12" or probe.head[:2] == b"\xa2\x06"  # layers, layer
    end = 2 + (probe.head[1] if len(probe.head) > 1 else 255)
    # layers, input, input_dim, force_backward, state, debug_info, input_shape, layer
    fields = (b"\x12", b"\x1a", b"\x20", b"\x28", b"\x32", b"\x38", b"\x42", b"\xa2")
    return end < 130 and probe.head[end : end + 1] in fields and probe.head[2:end].isascii()


def read(path: str | os.PathLike) -> Weights:
    """Reads the file. Everything in it except AlexNet's layers is ignored."""
    from google.protobuf.message import DecodeError

    net = net_parameter()()
    try:
        net.ParseFromString(Path(path).read_bytes())
        found = {layer.name: layer.blobs for layer in (*net.layers, *net.layer) if layer.blobs}
    except (DecodeError, UnicodeDecodeError) as error:
        raise WeightsError(f"truncated or damaged: not a protocol buffer of Caffe's: {error}") from error

    def arrays(layer: str) -> list[np.ndarray]:
        dims = 4 if layer.startswith("conv") else 2
        return [_array(layer, blob, 1 if index else dims) for index, blob in enumerate(found[layer])]

    layers = find_layers(found, arrays)
    check_order([layer.name for layer in (*net.layers, *net.layer)], "norm1", "pool1")
    return published(layers)


def _array(layer: str, blob: "message.Message", dims: int) -> np.ndarray:
    """A blob as an array, without leading dimensions of 1 until ``dims`` are left."""
    shape = list(blob.shape.dim) if blob.HasField("shape") else [blob.num, blob.channels, blob.height, blob.width]
    if len(shape) > 32:  # Caffe's own limit
        raise WeightsError(f"{layer} has a blob of {len(shape)} dimensions")
    while len(shape) > dims and shape[0] == 1:
        shape.pop(0)
    numbers = blob.data or blob.double_data
    if min(shape, default=1) < 0 or math.prod(shape) != len(numbers):
        raise WeightsError(f"{layer} has a blob of shape {tuple(shape)} with {len(numbers)} numbers")
    return np.array(numbers, np.float64 if blob.double_data else np.float32).reshape(shape)
