"""Wrong answers to the exercises of 00_start_here."""

WRONG = {
    "saxpy": {
        "stores without a mask": (
            "tl.store(out_ptr + offs, a * x + y, mask=mask)",
            "tl.store(out_ptr + offs, a * x + y)",
        ),
        "loads without a mask": (
            "y = tl.load(y_ptr + offs, mask=mask, other=0.0)",
            "y = tl.load(y_ptr + offs)",
        ),
        "no mask anywhere": (  # outside it stores NaN, the value that is there already
            """    x = tl.load(x_ptr + offs, mask=mask, other=0.0)
    y = tl.load(y_ptr + offs, mask=mask, other=0.0)
    tl.store(out_ptr + offs, a * x + y, mask=mask)
""",
            """    x = tl.load(x_ptr + offs)
    y = tl.load(y_ptr + offs)
    tl.store(out_ptr + offs, a * x + y)
""",
        ),
        "multiplies y, not x": ("a * x + y", "x + a * y"),
        "the same tile in every program": ("offs = tl.program_id(0) * BLOCK + ", "offs = "),
    },
    "mirror": {
        "one column too far": ("(W - 1 - offs_w)", "(W - offs_w)"),
        "top to bottom": (
            "tl.store(y_ptr + row + (W - 1 - offs_w)[None, :], x, mask=mask)",
            "tl.store(y_ptr + (H - 1 - offs_h)[:, None] * W + offs_w[None, :], x, mask=mask)",
        ),
        "does not mirror": ("(W - 1 - offs_w)", "offs_w"),
        "loads without a mask": ("offs_w[None, :], mask=mask, other=0.0", "offs_w[None, :]"),
        "no mask for columns": ("mask = (offs_h < H)[:, None] & (offs_w < W)[None, :]", "mask = (offs_h < H)[:, None]"),
    },
    "row_max": {
        "starts at zero": (
            'largest = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)',
            "largest = tl.zeros((BLOCK_M,), dtype=tl.float32)",
        ),
        "masked lanes hold zero": ('mask=mask, other=float("-inf")', "mask=mask, other=0.0"),
        "only the last block": ("tl.maximum(largest, tl.max(x, 1))", "tl.max(x, 1)"),
        "only the first block": ("range(0, N, BLOCK_N)", "range(0, BLOCK_N, BLOCK_N)"),
    },
}
