"""Which of a network's classes the folders of a data set are.

ImageNet's folders are named by WordNet IDs, such as n01440764. The 1000 classes, in the order in which weights have
them, are these IDs in ascending order. So all folders tell their order. A part of them needs timm's list of all IDs.
"""

import re
from collections.abc import Sequence

from kernels.errors import AlexNetError


def match(folders: Sequence[str], classes: Sequence[str], name: str) -> list[int]:
    """Returns the class of each folder by its name, or, if there are 1000 classes, by its WordNet ID.

    Args:
        folders, classes: the names of the folders, and of the network's classes.
        name: of the weights, for the message.

    Raises:
        AlexNetError: a folder whose name is not a class, or a part of ImageNet's folders without timm.
    """
    unknown = [folder for folder in folders if folder not in classes]
    if unknown and len(classes) == 1000 and all(re.fullmatch(r"n\d{8}", folder) for folder in folders):
        classes = sorted(folders) if len(folders) == 1000 else _wordnet_ids(len(folders))
        for folder in folders:
            if folder not in classes:
                raise AlexNetError(f"{folder} is not among ImageNet's 1000 classes")
    elif unknown:
        shown = ", ".join(map(repr, unknown[:3])) + ", ..." * (len(unknown) > 3)
        known = ", ".join(map(repr, classes[:5])) + ", ..." * (len(classes) > 5)
        raise AlexNetError(f"{name} has no class {shown}: a folder must have a class's name, such as {known}")
    return [classes.index(folder) for folder in folders]


def _wordnet_ids(folders: int) -> list[str]:
    try:
        from timm.data import ImageNetInfo
    except ImportError:
        raise AlexNetError(
            f"{folders} of ImageNet's 1000 folders: to tell which classes they are takes timm, pip install timm; "
            "or give the folders the classes' names"
        ) from None
    return ImageNetInfo("imagenet-1k").label_names()
