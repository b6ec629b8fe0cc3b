"""Code that the notebooks share. Jupyter runs them in ``notebooks/``, so ``from lesson import style`` finds it.

A notebook imports it first. Only Triton's interpreter can step through a program, so this package turns the interpreter
on, also on a machine with a GPU. Only :func:`lesson.machine.measure` uses the GPU.

style     colours, fonts and sizes of every figure
machine   what the kernels run on here, and what has been measured
photo     the photo that all notebooks use
features  conv1's input, weight and bias for this photo, with the bundled weights
source    the source of a kernel in ``kernels/``
stepping  one program of a kernel, step by step: strip of figures, slider
instructions  the same program as compiled code: registers, shared memory, fragments of tensor cores
maps      which elements a tile touches, which lanes a mask switches off
compiler  registers, spills and copies of a kernel compiled for a GPU
passes    what each kernel of a plan reads and writes
halves    AlexNet in two halves, which exchange data as its two GPUs did
roof      operators under the roofline, and the least time that each needs
product   a product of matrices: one tile, and the parts that it is computed from
chain     filters, feature maps, and the patch of the photo that an output sees
rivals    our kernels beside others'
check     checkers of the exercises, one module per notebook

Functions that draw use the ``axes`` argument, or a new figure without it, and return nothing.
"""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")

import model as model  # first, so that `kernels` is ours and not Hugging Face's package of the same name
from kernels import runtime as runtime  # before any import of triton
