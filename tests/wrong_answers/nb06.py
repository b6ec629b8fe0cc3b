"""Wrong answers to the exercises of 06_alexnet."""

WRONG = {
    "sees": {
        "the first layer last": ("in reversed(layers)", "in layers"),
        "one pixel too many": ("+ window - 1", "+ window"),
        "without padding at the start": ("first = first * stride - padding", "first = first * stride"),
        "strides forgotten": ("last = last * stride", "last = last"),
    },
    "grouped": {
        "one group alone": (
            "conv2d(*part, stride, padding) for part in parts]",
            "conv2d(*part, stride, padding) for part in list(parts)[:1]]",
        ),
        "put together as images": ("for part in parts], 1)", "for part in parts], 0)"),
        "no padding": ("*part, stride, padding)", "*part, stride)"),
        "left to the operator": (
            "return torch.cat([kernels.conv2d(*part, stride, padding) for part in parts], 1)",
            "return kernels.conv2d(x, weight, bias, stride, padding, groups=groups)",
        ),
        "left to PyTorch": (
            "return torch.cat([kernels.conv2d(*part, stride, padding) for part in parts], 1)",
            "return torch.nn.functional.conv2d(x, weight, bias, stride, padding, groups=groups)",
        ),
    },
    "fold_mean": {
        "the other sign": ("bias - weight", "bias + weight"),
        "mean of the weights": ("weight.sum((2, 3))", "weight.mean((2, 3))"),
        "one number for all filters": ("weight.sum((2, 3)) @ mean", "(weight.sum((2, 3)) @ mean).mean()"),
    },
}
