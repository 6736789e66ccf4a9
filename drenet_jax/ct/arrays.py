"""The arrays that stand for an axial slice."""

from __future__ import annotations

import numpy as np

from drenet_jax.array_types import Bool, Float32, UInt8

# In Hounsfield units.
HuSlice = Float32[np.ndarray, "height width"]
# In the lung window, or in a picture's unknown one.
GreySlice = UInt8[np.ndarray, "height width"]
LungMask = Bool[np.ndarray, "height width"]

# The HU of air outside the scanned field. Some scanners write -2000 or -3024 there.
PADDING_HU = -1024.0
