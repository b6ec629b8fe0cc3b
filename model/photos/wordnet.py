"""ImageNet's folders: what a WordNet ID such as n01440764 is among the 1000 classes.

The 1000 classes of ILSVRC 2012, in the order in which weights have them, are those IDs in ascending order. So a data
set with all the folders says itself which is which; for a part of it somebody must know the others' IDs.
"""

import re
from collections.abc import Sequence

from kernels.errors import AlexNetError


def indices(folders: Sequence[str]) -> list[int] | None:
    """The class of each folder; None where they are not named by WordNet IDs.

    Raises:
        AlexNetError: some of the 1000 only, and timm, which has the list of all, is not installed, or has no such ID.
    """
    if not all(re.fullmatch(r"n\d{8}", folder) for folder in folders):
        return None
    known = sorted(folders)
    if len(known) != 1000:
        try:
            from timm.data import ImageNetInfo
        except ImportError:
            raise AlexNetError(
                f"{len(known)} of ImageNet's 1000 folders: which classes they are takes timm, pip install timm; "
                "or give the folders the classes' names"
            ) from None
        known = ImageNetInfo("imagenet-1k").label_names()
    unknown = [folder for folder in folders if folder not in known]
    if unknown:
        raise AlexNetError(f"{unknown[0]} is not among ImageNet's 1000 classes")
    return [known.index(folder) for folder in folders]
