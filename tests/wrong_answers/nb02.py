"""Wrong answers to the exercises of 02_bias_relu_fusion."""

WRONG = {
    "leaky": {
        "no slope": ("slope * v)", "0.0)"),
        "right only for channels_last": (
            "v = x + tl.load(bias_ptr + offs // STEP % LENGTH",
            "v = x + tl.load(bias_ptr + offs % LENGTH",
        ),
        "compares x, not the sum": ("tl.where(v > 0.0", "tl.where(x > 0.0"),
        "stores without a mask": ("tl.where(v > 0.0, v, slope * v), mask=mask)", "tl.where(v > 0.0, v, slope * v))"),
    },
    "residual": {
        "ReLU too early": ("tl.maximum(x + bias + before, 0.0)", "tl.maximum(x + bias, 0.0) + before"),
        "no bias": ("tl.maximum(x + bias + before, 0.0)", "tl.maximum(x + before, 0.0)"),
        "one pass too many": (
            "    y = tl.maximum(x + bias + before, 0.0)\n",
            "    tl.store(y_ptr + offs, x + bias, mask=mask)\n"
            "    y = tl.maximum(tl.load(y_ptr + offs, mask=mask, other=0.0) + before, 0.0)\n",
        ),
    },
    "epilogue": {
        "no ReLU": ("acc = tl.maximum(acc + bias[None, :], 0.0)", "acc = acc + bias[None, :]"),
        "one bias per row": (
            "bias = tl.load(bias_ptr + offs_n, mask=mask_n, other=0.0)\n    acc = tl.maximum(acc + bias[None, :], 0.0)",
            "bias = tl.load(bias_ptr + offs_m, mask=offs_m < N, other=0.0)\n"
            "    acc = tl.maximum(acc + bias[:, None], 0.0)",
        ),
        "bias after ReLU": ("tl.maximum(acc + bias[None, :], 0.0)", "tl.maximum(acc, 0.0) + bias[None, :]"),
        "the first biases for every tile": (
            "tl.load(bias_ptr + offs_n, mask=mask_n",
            "tl.load(bias_ptr + tl.arange(0, BLOCK_N), mask=mask_n",
        ),
    },
}
