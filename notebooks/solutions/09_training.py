"""Solutions of the exercises in 09_training."""

import lesson  # noqa: F401 - before triton: it turns on the interpreter

import torch
import torch.nn.functional as F
import triton
import triton.language as tl


@triton.jit
def loss_gradient(x_ptr, target_ptr, dx_ptr, M, C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr):
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_c = tl.arange(0, BLOCK_C)
    mask = (offs_m < M)[:, None] & (offs_c < C)[None, :]
    offs = offs_m[:, None] * C + offs_c[None, :]
    x = tl.load(x_ptr + offs, mask=mask, other=float("-inf"))
    target = tl.load(target_ptr + offs_m, mask=offs_m < M, other=0)
    e = tl.exp(x - tl.max(x, 1)[:, None])
    onehot = (offs_c[None, :] == target[:, None]).to(tl.float32)
    dx = (e / tl.sum(e, 1)[:, None] - onehot) / M
    tl.store(dx_ptr + offs, dx, mask=mask)


@triton.jit
def relu_dropout_gradient(dout_ptr, y_ptr, dz_ptr, elements, p, seed, BLOCK_M: tl.constexpr):
    offs = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask = offs < elements
    dout = tl.load(dout_ptr + offs, mask=mask, other=0.0)
    y = tl.load(y_ptr + offs, mask=mask, other=0.0)
    kept = tl.rand(seed, offs) >= p
    tl.store(dz_ptr + offs, tl.where((y > 0.0) & kept, dout / (1.0 - p), 0.0), mask=mask)


def weight_gradient(x, dz, size, stride, padding):
    columns = F.unfold(x, size, padding=padding, stride=stride)  # (N, taps, pixels)
    product = torch.einsum("nkm,ntm->kt", dz.flatten(2), columns)
    return product.view(dz.shape[1], x.shape[1], size, size)
