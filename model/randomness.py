"""What is random in training, as a function of the seed and of where in the run it is drawn.

The order of the images comes from (seed, epoch), an image's crop from (seed, epoch, image), a step's dropout from
(seed, step, rank). No generator goes on from one draw to the next, so nothing depends on how many processes decode the
images, and a run that is resumed needs no stored state to draw what it would have drawn.
"""

import numpy as np

PURPOSES = ("order", "augmentation", "dropout", "sample")


def generator(purpose: str, *place: int) -> np.random.Generator:
    """A generator of its own for each purpose and place (non-negative integers)."""
    return np.random.default_rng([PURPOSES.index(purpose), *place])
