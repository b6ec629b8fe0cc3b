"""Wrong answers to the exercises of 06_alexnet."""

WRONG = {
    "sees": {
        "begins with the first layer": ("in reversed(layers)", "in layers"),
        "one pixel too many": ("+ window - 1", "+ window"),
        "no padding for the first pixel": ("first = first * stride - padding", "first = first * stride"),
        "strides forgotten": ("last = last * stride", "last = last"),
    },
    "grouped": {
        "only one group": (
            "conv2d(*part, stride, padding) for part in parts]",
            "conv2d(*part, stride, padding) for part in list(parts)[:1]]",
        ),
        "joined as images": ("for part in parts], 1)", "for part in parts], 0)"),
        "no padding": ("*part, stride, padding)", "*part, stride)"),
        "uses the operator's groups": (
            "return torch.cat([kernels.conv2d(*part, stride, padding) for part in parts], 1)",
            "return kernels.conv2d(x, weight, bias, stride, padding, groups=groups)",
        ),
        "uses PyTorch's groups": (
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
