"""What the notebooks share. Jupyter runs them in ``notebooks/``, where ``from lesson import style`` finds it.

A notebook imports it first: a program can be stepped through in Triton's interpreter alone, so notebooks interpret
their kernels on a machine with a GPU, too. That GPU is for :func:`lesson.machine.measure`.

style     colours, fonts and sizes of every figure
machine   what the kernels run on here, and what has been measured
photo     the photo that all notebooks use
features  what conv1 makes of it, with the bundled weights
source    a kernel's source, as it stands in ``kernels/``
stepping  one program of a kernel, step by step: listing, strip of figures, slider
maps      which elements a tile touches, which lanes a mask switches off
compiler  registers, spills and copies of a kernel compiled for a GPU
passes    what each kernel of a plan reads and writes
halves    AlexNet in two halves, which exchange what two GPUs did
roof      operators under the roofline, and the least time that each needs
product   a product of matrices: one tile, and what it is made of
chain     filters, feature maps, and the patch of the photo that an output looks at
rivals    our kernels beside others'
check     checkers of the exercises, one module a notebook

What draws, draws on the ``axes`` that it is given, or on a new figure, and returns nothing.
"""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")

import model as model  # the kernels beside it, wherever Hugging Face's package of that name is installed, too
from kernels import runtime as runtime  # before anybody imports triton
