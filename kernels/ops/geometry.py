"""Sizes that convolutions and poolings share."""


def output_size(
    size: int, kernel: int, stride: int, padding: int = 0, dilation: int = 1, ceil_mode: bool = False
) -> int:
    """Output pixels along one axis. ``padding`` counts both ends together.

    With ``ceil_mode`` the last window may end outside the padded input, if it starts inside the input or its padding
    before it, as in :func:`torch.nn.functional.max_pool2d`.
    """
    reach = size + padding - dilation * (kernel - 1) - 1
    if not ceil_mode:
        return reach // stride + 1
    count = -(-reach // stride) + 1
    return count - 1 if (count - 1) * stride >= size + padding // 2 else count
