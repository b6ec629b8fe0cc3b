"""Wrong answers to the exercises of 09_training."""

WRONG = {
    "loss_gradient": {
        "the sum, not the mean": (" - onehot) / M", " - onehot)"),
        "the wrong sign": ("(e / tl.sum(e, 1)[:, None] - onehot)", "(onehot - e / tl.sum(e, 1)[:, None])"),
        "targets without a mask": ("target_ptr + offs_m, mask=offs_m < M, other=0", "target_ptr + offs_m"),
        "overflows": ("tl.exp(x - tl.max(x, 1)[:, None])", "tl.exp(x)"),
        "masked lanes count": ('mask=mask, other=float("-inf")', "mask=mask, other=0.0"),
        "only softmax": (" - onehot) / M", ") / M"),
    },
    "relu_dropout_gradient": {
        "no ReLU": ("(y > 0.0) & kept", "kept"),
        "no dropout": ("(y > 0.0) & kept", "(y > 0.0)"),
        "not scaled": ("dout / (1.0 - p)", "dout"),
        "keeps what was dropped": ("tl.rand(seed, offs) >= p", "tl.rand(seed, offs) < p"),
        "the same numbers in every tile": ("tl.rand(seed, offs)", "tl.rand(seed, tl.arange(0, BLOCK_M))"),
    },
    "weight_gradient": {
        "the mean over images": ("dz.flatten(2), columns)", "dz.flatten(2), columns) / len(x)"),
        "no padding": ("F.unfold(x, size, padding=padding, stride=stride)", "F.unfold(x, size, stride=stride)"),
        "filters turned": ("x.shape[1], size, size)", "x.shape[1], size, size).flip(2, 3)"),
    },
}
