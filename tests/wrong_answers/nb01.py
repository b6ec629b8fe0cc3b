"""Wrong answers to the exercises of 01_convolution_as_gemm."""

WRONG = {
    "output_size": {
        "no dilation": ("span = dilation * (kernel - 1) + 1", "span = kernel"),
        "padding at one end": ("(size + 2 * padding - span)", "(size + padding - span)"),
        "a float": ("(size + 2 * padding - span) // stride + 1", "(size + 2 * padding - span) / stride + 1"),
        "one too few": ("- span) // stride + 1", "- span) // stride"),
    },
    "im2col": {
        "loads the padding": ("mask=inside, other=0.0", "mask=mask, other=0.0"),
        "loads the padding but does not use it": (
            "mask=inside, other=0.0)",
            "mask=mask, other=0.0)\n    x = tl.where(inside, x, 0.0)",
        ),
        "forgets the padding": ("h = (p * stride - padding)[:, None]", "h = (p * stride)[:, None]"),
        "taps in another order": (
            "r, s, c = offs_k // (S * C), offs_k // C % S, offs_k % C",
            "c, r, s = offs_k // (R * S), offs_k // S % R, offs_k % S",
        ),
        "only the first image": ("((n[:, None] * H + h)", "((0 * n[:, None] * H + h)"),
        "stores only elements inside the image": ("offs_k[None, :], x, mask=mask)", "offs_k[None, :], x, mask=inside)"),
        "height instead of width": ("(w >= 0) & (w < W)", "(w >= 0) & (w < H)"),
    },
    "fold_filter": {
        "channels first": (
            ".permute(0, 3, 5, 1, 2, 4)\n    return blocks.reshape(K,",
            ".permute(0, 1, 3, 5, 2, 4)\n    return blocks.reshape(K,",
        ),
        "columns before rows": (".permute(0, 3, 5, 1, 2, 4)", ".permute(0, 5, 3, 1, 2, 4)"),
        "padded at the top": (
            "(0, columns * block - S, 0, rows * block - R)",
            "(0, columns * block - S, rows * block - R, 0)",
        ),
    },
}
