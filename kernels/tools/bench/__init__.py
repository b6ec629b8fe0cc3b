"""Times the kernels beside PyTorch's operators: ``alexnet bench``.

- Correct first. The output that is checked comes from the same graph that is timed. It is filled with NaN before the
  replay, then every element is compared with float64 on the same device, 64 images at a time. The bounds are the same
  for all providers. A result outside them is reported as WRONG and has no time. Inputs are random.
- The backward pass of a layer computes the gradients of its parameters and of its input (except conv1's, which is not
  needed) from a random gradient of its output. The forward pass before it is not timed. A training step of the network
  is forward, cross entropy, backward, and PyTorch's own fused SGD with momentum and weight decay, the same for all. The
  learning rate is 0, so that each replay does the same work. There is no dropout, because its masks would differ.
- The others at their best: PyTorch eager with ``cudnn.benchmark``, in NCHW and in channels_last memory; the faster one
  counts. And ``torch.compile`` with max-autotune in that memory order. All use the same dtype, and multiply float32 in
  the same way: as TF32 if the dtype is called tf32, else as IEEE.
- All providers are timed as replays of a CUDA graph. This leaves out the time that Python takes to launch.
  ``max-autotune-no-cudagraphs`` is max-autotune without Inductor's own graphs, which copy their inputs at each replay.
- ``triton.testing.do_bench`` times: events around each replay, the L2 cache flushed before it, and the 20th, 50th and
  80th percentiles. A replay itself takes a few microseconds, which all providers pay.
- The roofs, a large copy and a large matrix product, are measured in the same run.
"""
