"""What a slice's file is like, whatever it shows: format, bytes, spacing, kernel, JPEG quality.

Where such facts differ between the labels of a cohort, a model can tell the source of a picture
instead of the disease (docs/audit.md).
"""

from __future__ import annotations

import contextlib
import dataclasses
import io

import numpy as np

# IJG's luminance table at quality 50, in natural order (ITU-T T.81, table K.1): its sum.
_SUM_AT_QUALITY_50 = 3688
# Channels of a PNG's colour types; a palette is of three.
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileFacts:
    """Facts of the file of a slice; None or "" where it does not say.

    Attributes:
      format: PNG, JPEG, volume, or DICOM with the name of the transfer syntax.
      n_bytes: of the file.
      bits: of a value as stored.
      channels: of a picture.
      jpeg_quality: 1 to 100 on the scale of the Independent JPEG Group.
      spacing_mm: between the centres of two columns.
      row_spacing_mm: between the centres of two rows.
      thickness_mm: of the slice.
      kernel: of the reconstruction, as the scanner names it.
    """

    format: str = ""
    n_bytes: int | None = None
    bits: int | None = None
    channels: int | None = None
    jpeg_quality: float | None = None
    spacing_mm: float | None = None
    row_spacing_mm: float | None = None
    thickness_mm: float | None = None
    kernel: str = ""


def picture_facts(data: bytes) -> FileFacts:
    """Facts of a PNG or a JPEG from its bytes; nothing is decoded."""
    if data.startswith(b"\x89PNG"):
        channels = _PNG_CHANNELS.get(data[25])
        return FileFacts(format="PNG", n_bytes=len(data), bits=data[24], channels=channels)
    facts = FileFacts(format="JPEG", n_bytes=len(data), bits=8)
    from PIL import Image  # as in image_files

    with contextlib.suppress(Exception), Image.open(io.BytesIO(data)) as picture:
        tables = picture.quantization  # type: ignore[attr-defined]  # of JPEG files
        return dataclasses.replace(
            facts, channels=len(picture.getbands()), jpeg_quality=jpeg_quality(tables[0])
        )
    return facts


def jpeg_quality(luminance: list[int]) -> float:
    """The quality at which IJG's table, scaled, has the sum of this one.

    Tables of other programs are no multiples of IJG's; of these it says how coarse they are.
    Below 25 it is too high, since divisors end at 255.

    Args:
      luminance: the 64 divisors.
    """
    percent = 100 * float(np.sum(luminance)) / _SUM_AT_QUALITY_50
    quality = 5000 / percent if percent > 100 else (200 - percent) / 2
    return round(min(max(quality, 1.0), 100.0), 1)
