"""Tiles far smaller than the interpreter's, so that small shapes have several in every direction."""

TILES = {
    "conv2d": {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16, "GROUP_M": 2, "SPLIT_K": 2},
    "conv2d_input_gradient": {"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 16, "GROUP_M": 2},
    "conv2d_weight_gradient": {"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 16, "GROUP_M": 2, "SPLIT_K": 2},
    "depth_to_space": {"BLOCK_M": 64},
    "linear": {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16, "GROUP_M": 2},
    "linear_input_gradient": {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16, "GROUP_M": 2},
    "linear_weight_gradient": {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16, "GROUP_M": 2},
    "linear_row": {"BLOCK_N": 4, "BLOCK_K": 16},
    "add_partials": {"BLOCK_M": 64},
    "bias_relu": {"BLOCK_M": 64},
    "bias_relu_gradient": {"BLOCK_M": 4, "BLOCK_N": 16, "STEPS": 2},
    "column_sums": {"BLOCK_M": 4, "BLOCK_N": 16, "STEPS": 2},
    "dropout": {"BLOCK_M": 64},
    "reduce_losses": {"BLOCK_M": 4},
    "local_response_norm": {"BLOCK_M": 4},
    "local_response_norm_gradient": {"BLOCK_M": 4},
    "max_pool2d": {"BLOCK_M": 4},
    "max_pool2d_gradient": {"BLOCK_M": 4},
    "lrn_max_pool2d": {"BLOCK_M": 4, "BLOCK_P": 2, "BLOCK_Q": 2},
    "lrn_max_pool2d_gradient": {"BLOCK_M": 4, "BLOCK_C": 2},
}
OTHERS = {"BLOCK_M": 4, "BLOCK_N": 16}


def small_tile(operator: str, *_) -> dict[str, int]:
    """Instead of :func:`kernels.tiles.lookup`."""
    return TILES.get(operator, OTHERS)
