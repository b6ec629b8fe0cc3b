"""Files of small layers as other programs write them, each format by its own library where there is one."""

import io
import json
import struct

import numpy as np
import onnx
import safetensors.torch
import torch

LAYER_NAMES = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
TORCHVISION = {
    **{f"conv{i + 1}": f"features.{place}" for i, place in enumerate((0, 3, 6, 8, 10))},
    **{f"fc{i + 6}": f"classifier.{place}" for i, place in enumerate((1, 4, 6))},
}


def small_layers(dtype=np.float32, outputs: int = 3) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Eight layers in PyTorch's layout, of a few numbers each. All dimensions of a layer differ."""
    rng, layers = np.random.default_rng(0), {}
    for index, name in enumerate(LAYER_NAMES):
        shape = (index + 5, 3, 2, 4) if name.startswith("conv") else (outputs if name == "fc8" else index + 1, 12)
        layers[name] = rng.standard_normal(shape).astype(dtype), rng.standard_normal(shape[0]).astype(dtype)
    return layers


# Protocol buffers by hand: https://protobuf.dev/programming-guides/encoding


def varint(value: int) -> bytes:
    """Seven bits per byte, the lowest first. All bytes except the last have the eighth bit set."""
    head = b""
    while value > 127:
        head, value = head + bytes([value & 127 | 128]), value >> 7
    return head + bytes([value])


def field(number: int, content: bytes | str | int) -> bytes:
    """A field of bytes (wire type 2), or of a number (wire type 0)."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    content = content.encode() if isinstance(content, str) else content
    return varint(number << 3 | 2) + varint(len(content)) + content


def blob(array: np.ndarray, shape: tuple[int, ...] | None = None, legacy: bool = False, packed: bool = True) -> bytes:
    """Caffe's BlobProto: num, channels, height, width = 1 to 4, or shape = 7; data = 5, double_data = 8."""
    shape = array.shape if shape is None else shape
    if legacy:
        head = b"".join(field(i + 1, d) for i, d in enumerate((1,) * (4 - len(shape)) + tuple(shape)))
    else:
        head = field(7, field(1, b"".join(map(varint, shape))))
    if array.dtype == np.float64:
        return head + field(8, array.astype("<f8").tobytes())
    if not packed:
        return head + b"".join(varint(5 << 3 | 5) + struct.pack("<f", number) for number in array.ravel())
    return head + field(5, array.astype("<f4").tobytes())


def caffemodel(layers: dict, legacy: bool = False, name: str = "AlexNet", **options) -> bytes:
    """NetParameter: name = 1, layers = 2 (V1LayerParameter: bottom = 2, top = 3, name = 4, type = 5, blobs = 6),
    layer = 100 (LayerParameter: name = 1, type = 2, blobs = 7, phase = 10), as in caffe.proto."""
    content = field(1, name) if name else b""
    for layer, arrays in {"data": (), **layers, "prob": ()}.items():
        blobs = [blob(array, legacy=legacy, **options) for array in arrays]
        if legacy:
            body = field(2, "below") + field(3, layer) + field(4, layer) + field(5, 4)
            content += field(2, body + b"".join(field(6, b) for b in blobs) + field(7, b"\0\0\x80\x3f"))
        else:
            body = field(1, layer) + field(2, "Convolution") + b"".join(field(7, b) for b in blobs)
            content += field(100, body + field(10, 1))
    return content


def onnx_model(layers: dict, transposed: bool = True, raw: bool = True, **attributes) -> onnx.ModelProto:
    """A chain of Conv and Gemm. Exporters name initializers by numbers, in no order, and so does this."""
    nodes, initializers = [], []
    for index, (layer, (weight, bias)) in enumerate(layers.items()):
        fully = layer.startswith("fc")
        names = [f"{90 - index}", f"{20 + index}"]
        for name, array in zip(names, (weight if transposed or not fully else weight.T, bias), strict=True):
            values = array.astype(array.dtype.newbyteorder("<")).tobytes() if raw else array.ravel()
            kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
            initializers.append(onnx.helper.make_tensor(name, kind, array.shape, values, raw))
        given = {"transB": int(transposed), **attributes} if fully else {"kernel_shape": weight.shape[2:]}
        nodes.append(onnx.helper.make_node("Gemm" if fully else "Conv", [f"x{index}", *names], [f"y{index}"], **given))
        nodes.append(onnx.helper.make_node("Relu", [f"y{index}"], [f"x{index + 1}"]))
    inputs, outputs = (
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)] for name in ("x0", f"x{len(layers)}")
    )
    return onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", inputs, outputs, initializers[::-1]))


def state_dict(layers: dict, names: dict | None = None) -> dict[str, torch.Tensor]:
    return {
        f"{names[layer] if names else layer}.{part}": torch.from_numpy(array)
        for layer, pair in layers.items()
        for part, array in zip(("weight", "bias"), pair, strict=True)
    }


def pth(state: object, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def safetensors_file(state: dict[str, torch.Tensor], meta: dict | None = None) -> bytes:
    return safetensors.torch.save(state, None if meta is None else {"meta": json.dumps(meta)})


def deep_compression_layer(weight: np.ndarray, bias: np.ndarray, codebook: np.ndarray) -> tuple[int, bytes]:
    """One layer of Deep Compression's file by a loop over the weights: its number of entries, and its bytes."""
    flat, values = weight.ravel().tolist(), codebook.tolist()
    codes, gaps, zeros = [], [], 0
    for value in flat:
        if value == 0.0 and zeros < 15:
            zeros += 1
        elif value == 0.0:  # after 15 zeros, the 16th is stored as an entry of code 0
            codes, gaps, zeros = [*codes, 0], [*gaps, 15], 0
        else:
            codes, gaps, zeros = [*codes, values.index(value)], [*gaps, zeros], 0
    while codes and codes[-1] == 0:  # nothing comes after these
        codes.pop(), gaps.pop()

    def halves(numbers):
        even = numbers + [0] * (len(numbers) % 2)
        return bytes(low | high << 4 for low, high in zip(even[::2], even[1::2], strict=True))

    packed = bytes(codes) if weight.ndim == 4 else halves(codes)
    return len(codes), codebook.astype("<f4").tobytes() + bias.astype("<f4").tobytes() + packed + halves(gaps)


def deep_compression(parts: list[tuple[int, bytes]]) -> bytes:
    return b"".join(struct.pack("<I", entries) for entries, _ in parts) + b"".join(data for _, data in parts)
