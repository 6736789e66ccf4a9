"""jaxtyping's types of arrays, which say shapes, for modules that also run without jaxtyping.

The exporting reference (`exporting/reference.py`) needs NumPy, OpenCV and ONNX Runtime only. An
import under `TYPE_CHECKING` would do for it, too, but would switch off the tests' checks of shapes.
"""

from __future__ import annotations

try:
    from jaxtyping import (
        Bool,
        Float,
        Float32,
        Int,
        Int16,
        Integer,
        Real,
        Shaped,
        UInt8,
    )
except ModuleNotFoundError:
    from typing import Annotated as Bool
    from typing import Annotated as Float
    from typing import Annotated as Float32
    from typing import Annotated as Int
    from typing import Annotated as Int16
    from typing import Annotated as Integer
    from typing import Annotated as Real
    from typing import Annotated as Shaped
    from typing import Annotated as UInt8

__all__ = ["Bool", "Float", "Float32", "Int", "Int16", "Integer", "Real", "Shaped", "UInt8"]
