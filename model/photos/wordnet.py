"""Which of a network's classes the folders of a data set are.

ImageNet's folders are named by WordNet IDs, such as n01440764. The 1000 classes of ILSVRC 2012, in the order in which
weights have them, are these IDs in ascending order. So the folders of a whole data set tell their order. For a part of
them, timm's list of all IDs is needed.
"""

import re
from collections.abc import Sequence

from kernels.errors import AlexNetError


def match(folders: Sequence[str], classes: Sequence[str], name: str) -> list[int]:
    """Returns the class of each folder by its name, or, if there are 1000 classes, by its WordNet ID.

    Args:
        folders: their names.
        classes: the names of the network's classes.
        name: of the weights, for the message.

    Raises:
        AlexNetError: a folder whose name is not a class.
    """
    unknown = [folder for folder in folders if folder not in classes]
    found = indices(folders) if unknown and len(classes) == 1000 else None
    if found is not None:
        return found
    if unknown:
        shown = ", ".join(map(repr, unknown[:3])) + ", ..." * (len(unknown) > 3)
        known = ", ".join(map(repr, classes[:5])) + ", ..." * (len(classes) > 5)
        raise AlexNetError(f"{name} has no class {shown}: a folder must have a class's name, such as {known}")
    return [classes.index(folder) for folder in folders]


def indices(folders: Sequence[str]) -> list[int] | None:
    """Returns the class of each folder, or None unless all are named by WordNet IDs.

    Raises:
        AlexNetError: there are fewer than 1000 folders, and timm is not installed or does not have an ID.
    """
    if not all(re.fullmatch(r"n\d{8}", folder) for folder in folders):
        return None
    known = sorted(folders)
    if len(known) != 1000:
        try:
            from timm.data import ImageNetInfo
        except ImportError:
            raise AlexNetError(
                f"{len(known)} of ImageNet's 1000 folders: to tell which classes they are takes timm, pip install "
                "timm; or give the folders the classes' names"
            ) from None
        known = ImageNetInfo("imagenet-1k").label_names()
    unknown = [folder for folder in folders if folder not in known]
    if unknown:
        raise AlexNetError(f"{unknown[0]} is not among ImageNet's 1000 classes")
    return [known.index(folder) for folder in folders]
