"""Wrong answers to the exercises of 04_overlapping_pooling."""

WRONG = {
    "windows": {
        "one too few": ("return reach // stride + 1", "return reach // stride"),
        "padding at one end": ("reach = size + 2 * padding - kernel", "reach = size + padding - kernel"),
        "never rounds up": ("n = -(-reach // stride) + 1", "n = reach // stride + 1"),
        "a window only in the padding": ("return n - 1 if (n - 1) * stride >= size + padding else n", "return n"),
    },
    "padded": {
        "padding counts as zero": ('mask=inside, other=float("-inf")', "mask=inside, other=0.0"),
        "loads the padding but does not use it": (
            'mask=inside, other=float("-inf"))',
            'mask=mask)\n            x = tl.where(inside, x, float("-inf"))',
        ),
        "handles only rows of padding": (" & (w >= 0) & (w < W)", ""),
        "no padding": (
            "h = p * STRIDE - PAD + r\n            w = q * STRIDE - PAD + s",
            "h = p * STRIDE + r\n            w = q * STRIDE + s",
        ),
        "starts at zero": (
            'best = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)',
            "best = tl.zeros((BLOCK_M,), dtype=tl.float32)",
        ),
    },
    "winner": {
        "the last of equals": ("tl.where(x > highest", "tl.where(x >= highest"),
        "compares after the maximum": (
            "tap = tl.where(x > highest, r * SIZE + s, tap)\n            highest = tl.maximum(highest, x)\n",
            "highest = tl.maximum(highest, x)\n            tap = tl.where(x > highest, r * SIZE + s, tap)\n",
        ),
        "starts at zero": (
            'highest = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)',
            "highest = tl.zeros((BLOCK_M,), dtype=tl.float32)",
        ),
        "columns first": ("r * SIZE + s, tap)", "s * SIZE + r, tap)"),
    },
}
