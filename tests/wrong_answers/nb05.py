"""Wrong answers to the exercises of 05_fully_connected."""

WRONG = {
    "meeting_batch": {
        "one FLOP per multiply-accumulate": ("gained = 2 * N * K", "gained = N * K"),
        "rounded down": ("math.ceil(itemsize", "int(itemsize"),
        "inputs and outputs cost nothing": (" - itemsize * (K + N) / bandwidth", ""),
        "without the bias": ("(N * K + N)", "(N * K)"),
        "a number where there is no such batch": ("        return None\n", "        return 10**9\n"),
    },
    "linear_kn": {
        "w as (N, K)": ("offs_k[:, None] * N + offs_n[None, :], mask", "offs_n[None, :] * K + offs_k[:, None], mask"),
        "no mask for k in x": ("mask=mask_m & inside[None, :]", "mask=mask_m"),
        "no mask for k in w": ("mask=inside[:, None] & mask_n", "mask=mask_n"),
        "no ReLU": ("tl.maximum(y, 0.0)", "y"),
        "no bias": ("y = acc + tl.load(b_ptr + offs_n, mask=offs_n < N, other=0.0)[None, :]", "y = acc"),
        "stores without a mask for columns": ("mask=mask_m & mask_n)", "mask=mask_m)"),
    },
    "row_int8": {
        "no scale": ("tl.sum(total, 1) * scale", "tl.sum(total, 1)"),
        "only the last block": ("total += w.to", "total = w.to"),
        "no mask for rows": ("tl.sum(total, 1) * scale, mask=there)", "tl.sum(total, 1) * scale)"),
        "w without a mask for rows": ("mask=there[:, None] & (columns < K)[None, :]", "mask=(columns < K)[None, :]"),
        "x without a mask": ("x_ptr + columns, mask=columns < K, other=0.0", "x_ptr + columns"),
    },
}
