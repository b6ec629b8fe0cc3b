"""Solutions of the exercises in 06_alexnet."""

import lesson  # noqa: F401 - before triton: it turns on the interpreter

import torch

import kernels


def sees(layers, index):
    first = last = index
    for window, stride, padding in reversed(layers):
        first = first * stride - padding
        last = last * stride - padding + window - 1
    return first, last


def grouped(x, weight, bias, stride, padding, groups):
    parts = zip(x.chunk(groups, 1), weight.chunk(groups), bias.chunk(groups), strict=True)
    return torch.cat([kernels.conv2d(*part, stride, padding) for part in parts], 1)


def fold_mean(weight, bias, mean):
    return bias - weight.sum((2, 3)) @ mean
