"""Wrong answers to the exercises of 03_local_response_norm."""

WRONG = {
    "from_tensorflow": {
        "alpha unchanged": ('"alpha": alpha * size', '"alpha": alpha'),
        "alpha divided": ('"alpha": alpha * size', '"alpha": alpha / size'),
        "the radius as the size": ("size = 2 * depth_radius + 1", "size = max(depth_radius, 1)"),
        "k is 1": ('"k": bias', '"k": 1.0'),
        "a tuple": (
            'return {"size": size, "alpha": alpha * size, "beta": beta, "k": bias}',
            "return size, alpha * size, beta, bias",
        ),
    },
    "contiguous": {
        "neighbours in memory": ("offs + shift * PLANE, mask=exists", "offs + shift, mask=exists"),
        "the channel as in channels_last": ("c = offs // PLANE % C", "c = offs % C"),
        "no mask at the first channel": ("mask & (c + shift >= 0) & (c + shift < C)", "mask & (c + shift < C)"),
        "windows across images": (
            "mask & (c + shift >= 0) & (c + shift < C)",
            "mask & (offs + shift * PLANE >= 0) & (offs + shift * PLANE < elements)",
        ),
        "an even window reaches up, not down": ("j - SIZE // 2", "j - (SIZE - 1) // 2"),
    },
    "rms_norm": {
        "a mean over lanes": ("tl.sum(x * x, 1) / C", "tl.sum(x * x, 1) / BLOCK_C"),
        "the sum": ("tl.sum(x * x, 1) / C", "tl.sum(x * x, 1)"),
        "no eps": ("tl.rsqrt(eps + ", "tl.rsqrt("),
        "no mask for channels": (
            "(offs_m < M)[:, None] & (offs_c < C)[None, :]",
            "(offs_m < M)[:, None] & (offs_c < BLOCK_C)[None, :]",
        ),
        "over pixels": ("tl.sum(x * x, 1) / C)[:, None]", "tl.sum(x * x, 0) / C)[None, :]"),
    },
}
