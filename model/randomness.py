"""Random numbers in training, as a function of the seed and of the place in the run.

The order of the images comes from (seed, epoch), an image's crop from (seed, epoch, image), a step's dropout from
(seed, step, rank). No generator continues from one draw to the next. So nothing depends on the number of processes that
decode images, and a resumed run needs no stored state.
"""

import numpy as np

PURPOSES = ("order", "augmentation", "dropout", "sample")


def generator(purpose: str, *place: int) -> np.random.Generator:
    """Returns the generator for a purpose and a place (non-negative integers)."""
    return np.random.default_rng([PURPOSES.index(purpose), *place])
