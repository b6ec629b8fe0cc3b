"""Wrong answers to the exercises of 07_roofline."""

WRONG = {
    "polynomial": {
        "coefficients the other way round": ("tl.load(c_ptr + ORDER - 1 - i)", "tl.load(c_ptr + i)"),
        "without the last one": (" + tl.load(c_ptr + ORDER)\n", "\n"),
        "keeps a power of x beside the sum": (
            """    y = tl.zeros((BLOCK,), dtype=tl.float32) + tl.load(c_ptr + ORDER)
    for i in range(ORDER):
        y = y * x + tl.load(c_ptr + ORDER - 1 - i)
""",
            """    y = tl.zeros((BLOCK,), dtype=tl.float32) + tl.load(c_ptr)
    power = x
    for i in range(ORDER):
        y += power * tl.load(c_ptr + 1 + i)
        power *= x
""",
        ),
        "one step too many": (
            """ + tl.load(c_ptr + ORDER)
    for i in range(ORDER):
        y = y * x + tl.load(c_ptr + ORDER - 1 - i)
""",
            """
    for i in range(ORDER + 1):
        y = y * x + tl.load(c_ptr + ORDER - i)
""",
        ),
        "stores without a mask": ("tl.store(y_ptr + offs, y, mask=mask)", "tl.store(y_ptr + offs, y)"),
        "the same tile in every program": ("offs = tl.program_id(0) * BLOCK + ", "offs = "),
    },
    "tile_use": {
        "idle multiprocessors not counted": ("rounds * multiprocessors * each", "programs * each"),
        "K not rounded up": ("triton.cdiv(K, BLOCK_K) * BLOCK_K", "K"),
        "rounds not rounded up": ("triton.cdiv(programs, multiprocessors)", "programs / multiprocessors"),
        "tiles not rounded up": ("triton.cdiv(N, BLOCK_N)", "N / BLOCK_N"),
    },
    "photos_a_second": {
        "the floor of the sums": (
            "sum(max(cost.flops / rate, cost.bytes / bandwidth) for cost in costs)",
            "max(sum(cost.flops for cost in costs) / rate, sum(cost.bytes for cost in costs) / bandwidth)",
        ),
        "nothing overlaps": (
            "max(cost.flops / rate, cost.bytes / bandwidth)",
            "cost.flops / rate + cost.bytes / bandwidth",
        ),
        "batches per second": ("return batch / seconds", "return 1 / seconds"),
    },
}
