"""Exercises of 01_convolution_as_gemm."""

from lesson.check import Checker, Wrong, given, output, same

import torch
import torch.nn.functional as F
import triton


@Checker
def output_size(answer) -> str:
    cases = [
        (227, 11, 4, 0, 1),
        (27, 5, 1, 2, 1),
        (13, 3, 1, 1, 1),
        (31, 3, 2, 0, 2),
        (32, 7, 3, 3, 1),
        (10, 3, 2, 1, 3),
        (5, 5, 7, 0, 1),
    ]
    for size, kernel, stride, padding, dilation in cases:
        got = answer(size, kernel, stride, padding, dilation)
        weight = torch.ones(1, 1, 1, kernel)
        image = torch.ones(1, 1, 1, size)
        right = F.conv2d(image, weight, stride=(1, stride), padding=(0, padding), dilation=(1, dilation)).shape[-1]
        if not isinstance(got, int) or got != right:
            case = f"size {size}, kernel {kernel}, stride {stride}, padding {padding}, dilation {dilation}"
            raise Wrong(f"{case}: should be {right}, got {got!r}")
    return f"right for {len(cases)} geometries, with and without padding and dilation"


@Checker
def im2col(kernel) -> str:
    cases = [  # N, C, H, W, R, S, stride, padding
        (1, 3, 11, 11, 11, 11, 4, 0),
        (1, 4, 5, 5, 3, 3, 1, 1),
        (2, 3, 9, 7, 3, 2, 2, 1),
        (1, 1, 6, 8, 5, 5, 1, 2),
    ]
    for N, C, H, W, R, S, stride, padding in cases:
        x = torch.randn(N, C, H, W).contiguous(memory_format=torch.channels_last)
        P, Q = (H + 2 * padding - R) // stride + 1, (W + 2 * padding - S) // stride + 1
        windows = F.unfold(x, (R, S), padding=padding, stride=stride)  # (N, C * R * S, P * Q), taps counted (c, r, s)
        right = windows.reshape(N, C, R, S, P * Q).permute(0, 4, 2, 3, 1).reshape(N * P * Q, R * S * C)
        a = output(torch.empty(right.shape))
        M, K = right.shape
        grid = (triton.cdiv(M, 16), triton.cdiv(K, 32))
        kernel[grid](given(x), a, M, C, H, W, P, Q, R, S, stride, padding, BLOCK_M=16, BLOCK_K=32)
        same(a, right, f"{N} x {C} x {H} x {W}, filter {R} x {S}, stride {stride}, padding {padding}", bound=0.0)
    return f"right for {len(cases)} geometries, with and without padding"


@Checker
def fold_filter(answer) -> str:
    cases = [(96, 3, 11, 11, 4), (2, 3, 4, 6, 2), (5, 1, 5, 3, 2), (3, 4, 7, 7, 3)]
    for K, C, R, S, block in cases:
        weight = torch.randn(K, C, R, S)
        rows, columns = -(-R // block), -(-S // block)
        x = torch.randn(1, C, (rows + 2) * block, (columns + 1) * block)
        blocks = x.reshape(1, C, rows + 2, block, columns + 1, block).permute(0, 3, 5, 1, 2, 4)
        folded = blocks.reshape(1, block * block * C, rows + 2, columns + 1)
        case = f"{K} filters of {C} x {R} x {S}, block {block}"
        got = answer(weight, block)
        shape = (K, block * block * C, rows, columns)
        if not isinstance(got, torch.Tensor) or got.shape != shape:
            raise Wrong(f"{case}: expected shape {shape}, got {tuple(getattr(got, 'shape', ())) or got!r}")
        right = F.conv2d(x.double(), weight.double(), stride=block)
        # At the lower and right end the folded filter may cover more pixels than the filter.
        made = F.conv2d(folded.double(), got.double())[..., : right.shape[2], : right.shape[3]]
        same(made, right[..., : made.shape[2], : made.shape[3]], f"{case}: the folded convolution", bound=1e-12)
    return f"right for {len(cases)} filters, conv1's among them"
