"""Wrong answers to the exercises of 08_against_cublas."""

WRONG = {
    "right": {
        "a NaN passes": (
            "return bool((difference <= bound * ref.double().abs().max()).all())",
            "return not bool((difference > bound * ref.double().abs().max()).any())",
        ),
        "shapes that broadcast": ("if out.shape != ref.shape:", "if out.dim() != ref.dim():"),
        "in the result's own precision": (
            "(out.double() - ref.double()).abs()",
            "(out - ref.to(out.dtype)).abs()",
        ),
        "the mean instead of the largest": ("(difference <= bound", "(difference.mean() <= bound"),
        "a bound that is not relative": ("bound * ref.double().abs().max()", "bound"),
    },
    "verdict": {
        "only medians": ("if our_high < their_low:", "if np.median(ours) < np.median(theirs):"),
        "the best run": (
            "our_low, our_high = np.quantile(ours[warmup:], [0.2, 0.8])",
            "our_low = our_high = min(ours)",
        ),
        "warm-up counted": ("np.quantile(ours[warmup:]", "np.quantile(ours"),
        "their warm-up counted": ("np.quantile(theirs[warmup:]", "np.quantile(theirs"),
        "the other way round": ('return "faster"', 'return "slower" '),
    },
    "linear_softmax": {
        "masked columns hold zero": ('y = tl.where(mask_n, y, float("-inf"))', "y = tl.where(mask_n, y, 0.0)"),
        "largest not subtracted": ("tl.exp(y - tl.max(y, 1)[:, None])", "tl.exp(y)"),
        "sum of the columns": ("tl.sum(y, 1)[:, None]", "tl.sum(y, 0)[None, :]"),
        "no bias": ("y = acc + tl.load(b_ptr + offs_n, mask=offs_n < N, other=0.0)[None, :]", "y = acc"),
        "stores without a mask for columns": ("y, mask=mask_m & mask_n)", "y, mask=mask_m)"),
    },
}
