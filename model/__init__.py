"""AlexNet on the kernels: the network, its weights, and the commands."""

import sys
from importlib.util import find_spec
from pathlib import Path

# Hugging Face has a package ``kernels``, too. If both are installed, Python finds that one first, except in this
# project's folder. But ``import model`` means the one beside it.
_OURS = Path(__file__).parent.parent / "kernels"
_found = find_spec("kernels")
if _found is None or _found.origin is None or Path(_found.origin).parent != _OURS:
    if "kernels" in sys.modules:
        raise ImportError(f"model needs the kernels in {_OURS}; import it before {_found and _found.origin}")
    sys.path.insert(0, str(_OURS.parent))
