"""Whether the values of slices are what they are taken for: HU, or a window that shows the lungs.

Files often say wrongly what their values mean, or do not say it at all. A chest shows it: its lungs
and the air around it, its fat and its muscle have known HU. What can be put right without doubt is
put right; the rest is refused.

The limits were chosen on three real series, the authors' demo, the 543 pictures of COVID-CT and
phantoms.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from drenet_jax.array_types import Real
from drenet_jax.ct.arrays import GreySlice, HuSlice, LungMask
from drenet_jax.ct.lungs import segmentation

# Values of 16 bits without a sign that were signed: -1024 is 64512, padding of -3024 is 62512.
_WRAPPED_FROM = 58_000
_WRAP_16 = 65_536
_LARGEST_HU = 9_000
_LEAST_WRAPPED_SHARE = 0.003

# Values of 12 bits with a sign that had none: with the usual intercept, what lies above 1023 HU
# comes out 4096 lower.
_WRAP_12 = 4096
_LARGEST_12_BITS_HU = 1100
_DEEPER_THAN_AIR_HU = -1100
_BRIGHT_HU = 300

# Bins of the histogram, one HU wide.
_LOWEST_HU, _HIGHEST_HU = -1024, 3072
_SMOOTH_HU = 15


def unwrapped(hu: HuSlice) -> HuSlice:
    """Undoes a confusion of signed and unsigned integers.

    Args:
      hu: one slice, before values below air are cut off.

    Returns:
      The slice as it was, or with 65536 taken from values of air that had lost their sign, or with
      4096 added to bone and metal that had been given one.
    """
    if hu.max() > _WRAPPED_FROM:
        wrapped = hu > _WRAPPED_FROM
        if np.mean(wrapped) > _LEAST_WRAPPED_SHARE and hu[~wrapped].max(initial=0) < _LARGEST_HU:
            hu = np.where(wrapped, hu - _WRAP_16, hu)
    elif hu.min() < _DEEPER_THAN_AIR_HU and _BRIGHT_HU < hu.max() < _LARGEST_12_BITS_HU:
        hu = _bone_put_back(hu)
    return hu


def volume_hu(values: Real[np.ndarray, "height width"]) -> HuSlice:
    """A slice of a volume, of which nothing says what padding is or whether values have a sign.

    Args:
      values: in HU, as far as the file says; NaN is air.
    """
    hu = values.astype(np.float32)
    return unwrapped(np.nan_to_num(hu, nan=-np.inf, neginf=-1e6, posinf=1e6))


def _bone_put_back(hu: np.ndarray) -> np.ndarray:
    """Adds 4096 to pieces below air that bone surrounds; padding lies at the slice's edges."""
    height, width = hu.shape
    below = (hu < _DEEPER_THAN_AIR_HU).view(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(below)
    put_back = hu.copy()
    for i in range(1, count):
        x, y, w, h, _ = stats[i]
        if x == 0 or y == 0 or x + w == width or y + h == height:
            continue
        box = slice(y - 1, y + h + 1), slice(x - 1, x + w + 1)
        piece = (labels[box] == i).view(np.uint8)
        around = (cv2.dilate(piece, np.ones((3, 3), np.uint8)) > piece) & (below[box] == 0)
        if around.any() and np.median(hu[box][around]) > _BRIGHT_HU:
            put_back[box][piece.view(bool)] += _WRAP_12
    return put_back


def _thinned(image: np.ndarray) -> np.ndarray:
    """Every fourth row and column of a large slice, which is enough to count."""
    return image[::4, ::4] if min(image.shape) > 400 else image


class Histogram:
    """How often which HU occur in slices.

    Attributes:
      counts: [4096], of the values from -1024 HU up, the first with all below, the last with all
        above.
    """

    def __init__(self, images: Sequence[HuSlice]):
        """Counts the values of slices in HU."""
        self.counts = np.zeros(_HIGHEST_HU - _LOWEST_HU, np.int64)
        for image in images:
            part = _thinned(image)
            bins = np.clip(np.rint(part) - _LOWEST_HU, 0, len(self.counts) - 1).astype(np.int64)
            self.counts += np.bincount(bins.ravel(), minlength=len(self.counts))
        kernel = np.hanning(2 * _SMOOTH_HU + 1)
        # Without the first bin, into which padding and noise fall.
        smooth = self.counts.astype(np.float64)
        smooth[0] = 0.0
        self._smooth = np.convolve(smooth, kernel / kernel.sum(), "same")

    def share(self, low: float, high: float) -> float:
        """Of all values, those from `low` to below `high` HU."""
        first, end = round(low - _LOWEST_HU), round(high - _LOWEST_HU)
        return float(self.counts[max(first, 0) : end].sum() / max(1, self.counts.sum()))

    def peak(self, low: int, high: int) -> tuple[int, bool]:
        """The commonest value in HU in a range, and whether it is a peak rather than a slope."""
        part = self._smooth[low - _LOWEST_HU : high - _LOWEST_HU]
        at = int(np.argmax(part))
        sides = [part[max(0, at - 60) : at + 1].min(), part[at : at + 61].min()]
        return low + at, bool(part[at] > 0 and max(sides) < 0.8 * part[at])


# Shares over the picked slices. Of the real series and phantoms at least 0.36 of all values are air
# or lung; values that are twice, half or ten times HU, or higher by 1000, have less than 0.12.
_AIR_HU = (-1020, -550)
_LEAST_AIR = 0.005
# In series without padding it is six times what is emptier and more, in doubled HU less than 0.08.
_LEAST_OF_EMPTY = 0.1
# Of tissue (above -200 HU) at most 0.05 is bone or metal; 0.35 and more where 1000 was added.
_BRIGHT_FROM_HU = 500
_TISSUE_FROM_HU = -200
_MOST_BRIGHT = 0.25
# Of what is neither air nor lung at least 0.87 is fat, muscle or blood.
_SOFT_HU = (-200, 300)
_LEAST_SOFT = 0.4
# The commonest value is fat at -115 HU in the stout and muscle at 40 to 70 HU in all others.
_COMMONEST_HU = (-135, 180)
_LEAST_FAT_HU = -150
# The darkest tenth of the lungs reaches -934 HU.
_LEAST_LUNG_HU = -1005
_MANY_SLICES = 12
_LEAST_LUNG_SHARE = 0.04


def reason_not_hu(images: Sequence[HuSlice]) -> str:
    """Why values cannot be HU of a chest; '' if they can.

    Air and lung, fat, muscle and bone must occur where HU have them and in such shares as a chest
    has them, with white lungs, contrast medium, metal and padding, too.

    Args:
      images: the slices that were picked.
    """
    if not images:
        return ""
    if not all(np.isfinite(image).all() for image in images):
        return "values that are no numbers, and no HU of a chest"
    histogram = Histogram(images)
    share = histogram.share
    commonest, _ = histogram.peak(-400, 700)
    fat, has_fat = histogram.peak(-300, -50)
    tissue = max(share(_TISSUE_FROM_HU, _HIGHEST_HU), 1e-9)
    rest = max(share(-500, _HIGHEST_HU), 1e-9)
    empty = share(_LOWEST_HU, _AIR_HU[0])
    what = ""
    if share(*_AIR_HU) < _LEAST_AIR:
        what = "no air or lung at -1000 to -550"
    elif share(*_AIR_HU) < _LEAST_OF_EMPTY * empty and empty > 0.3:
        what = f"{empty:.0%} of all below -1020"
    elif tissue < 0.01:
        what = "no tissue above -200"
    elif share(_BRIGHT_FROM_HU, _HIGHEST_HU) > _MOST_BRIGHT * tissue:
        what = f"{share(_BRIGHT_FROM_HU, _HIGHEST_HU) / tissue:.0%} of the tissue above 500"
    elif share(*_SOFT_HU) < _LEAST_SOFT * rest:
        what = f"only {share(*_SOFT_HU) / rest:.0%} of the tissue at -200 to 300"
    elif not _COMMONEST_HU[0] <= commonest <= _COMMONEST_HU[1]:
        what = f"most tissue at {commonest}"
    elif has_fat and fat < _LEAST_FAT_HU:
        what = f"fat at {fat}"
    if not what:
        return ""
    lowest, highest = min(map(np.min, images)), max(map(np.max, images))
    return f"values from {lowest:.0f} to {highest:.0f}, which are no HU of a chest ({what})"


def reason_not_lung_hu(images: Sequence[HuSlice], masks: Sequence[LungMask]) -> str:
    """Why the values in the lungs cannot be HU; '' if they can.

    Args:
      images: in HU, at least -1024.
      masks: the lungs in each.
    """
    inside = []
    # Some slices of many have lung enough.
    step = 3 if len(images) >= _MANY_SLICES else 1
    for image, mask in zip(images[::step], masks[::step], strict=True):
        if _thinned(mask).mean() > _LEAST_LUNG_SHARE:
            # Averaged, so that the noise of thin slices and sharp kernels does not count.
            size = (max(1, image.shape[1] // 4), max(1, image.shape[0] // 4))
            small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            whole = cv2.resize(
                mask.view(np.uint8) * np.uint8(255), size, interpolation=cv2.INTER_AREA
            )
            inside.append(small[whole == 255])
    values = np.concatenate(inside) if inside else np.empty(0)
    if values.size and np.percentile(values, 10) < _LEAST_LUNG_HU:
        return "values that are no HU of a chest (the lungs are as empty as air)"
    return ""


def restored_hu(images: Sequence[HuSlice]) -> tuple[list[HuSlice], str]:
    """Finds out whether pictures of 16 bits hold HU + 1000 rather than HU + 1024.

    The air around the body has -1000 HU; read with the wrong offset it has -1024. Real series and
    phantoms have their peak of air at -1000 to -981, and at -1016 to -1005 with the wrong offset.
    Where in between, the offset is left as it is.

    Args:
      images: in HU if 1024 was added.

    Returns:
      The images in HU, and a note or ''.
    """
    histogram = Histogram(images)
    air, has_air = histogram.peak(_LOWEST_HU + 1, -900)
    if has_air:
        is_lower = air < -1007
    else:
        # All air has one value; muscle has 40 to 60 HU.
        muscle, _ = histogram.peak(-40, 200)
        is_lower = histogram.share(_LOWEST_HU, _LOWEST_HU + 1) > 0.05 and muscle < 28
    if not is_lower:
        return list(images), ""
    return [image + np.float32(24) for image in images], "the pictures hold HU + 1000"


# Of pictures: nearly black, on the scale to 255; JPEG blurs.
_BLACK = 4
_MOST_BLACK = 0.5
_HOW_TO_EXPORT = "export the slices in a lung window (level -600 HU, width 1500 HU)"

# Pictures whose lungs are light: what was found is large, with lighter corners around and nothing
# darker.
_INVERTED_CORNER = 0.3 * 255
_INVERTED_AREA = 0.3
_INVERTED_DARKER = 0.03
_LEAST_INVERTED_SLICES = 1 / 3

# Pictures each stretched from its own darkest to its own brightest value. In a fixed window the
# greys of tissue agree to 2% in all slices of a series; stretched real series differ by 6% to 17%.
_GREY_STEP = 0.01
_MOST_STEPS = 40
_DIFFERS_STEPS = 4
_DIFFERS_MUCH_STEPS = 6
_LEAST_CORRELATION = 0.8
# From here on a window may have cut the values off.
_SATURATED = 250


def reason_not_windowed(images: Sequence[GreySlice], masks: Sequence[LungMask]) -> str:
    """Why pictures are in no window that shows the lungs dark and their texture; '' if they are.

    Args:
      images: the pictures.
      masks: what was found as lungs in each.
    """
    if _are_inverted(images, masks):
        return f"pictures whose greys are inverted, with light lungs ({_HOW_TO_EXPORT}, air black)"
    inside = [_thinned(image)[_thinned(mask)] for image, mask in zip(images, masks, strict=True)]
    values = np.concatenate(inside) if inside else np.empty(0, np.uint8)
    if values.size and (black := np.mean(values <= _BLACK)) > _MOST_BLACK:
        what = f"{black:.0%} of the lungs black"
        return f"pictures in a soft-tissue window ({what}; {_HOW_TO_EXPORT})"
    steps = np.abs(_grey_steps(images))
    if (steps >= _DIFFERS_STEPS).sum() >= 2 or (steps >= _DIFFERS_MUCH_STEPS).any():
        return f"pictures whose tissue is brighter in some than in others ({_HOW_TO_EXPORT})"
    return ""


def _grey_steps(images: Sequence[np.ndarray]) -> np.ndarray:
    """By how many percent the greys of tissue in each slice lie off those of the series.

    Slices too unlike the middle one, and those that a window cut off, are left out.
    """
    edges = np.exp(np.arange(np.log(16), np.log(_SATURATED), _GREY_STEP))
    kernel = np.hanning(9)
    histograms = []
    for whole in images:
        image = np.ascontiguousarray(_thinned(whole))
        counts = np.bincount(image.ravel(), minlength=256).astype(np.float64)
        counts[: int(cv2.threshold(image.reshape(1, -1), 0, 255, cv2.THRESH_OTSU)[0]) + 1] = 0
        below = np.interp(edges, np.arange(257) - 0.5, np.concatenate([[0], counts.cumsum()]))
        histogram = np.convolve(np.diff(below), kernel, "same")
        norm = np.linalg.norm(histogram)
        if norm > 0:
            histograms.append(histogram / norm)
    if len(histograms) < 2:
        return np.zeros(0)
    middle = np.pad(histograms[len(histograms) // 2], _MOST_STEPS)
    shifted = np.lib.stride_tricks.sliding_window_view(middle, len(histograms[0]))
    correlations = np.array(histograms) @ shifted.T
    steps = np.argmax(correlations, axis=1)[correlations.max(axis=1) > _LEAST_CORRELATION]
    return steps - np.median(steps) if len(steps) else np.zeros(0)


def _are_inverted(images: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> bool:
    needed = max(1, round(_LEAST_INVERTED_SLICES * len(images)))
    doubtful = [
        image
        for image, mask in zip(images, masks, strict=True)
        if not mask.any() or _is_light_outside(image, mask)
    ]
    if len(doubtful) < needed:
        return False
    n_inverted = 0
    for image in doubtful:
        negative = 255 - image
        mask = segmentation.find_lungs(negative)
        if not 0.12 < mask.mean() < 0.5 or _is_light_outside(negative, mask):
            continue
        if not _lies_on_both_sides(mask):
            continue
        n_inverted += _corner_level(negative) - float(np.median(negative[mask])) < 0.2 * 255
    return n_inverted >= needed


def _lies_on_both_sides(mask: np.ndarray) -> bool:
    """Whether there is less of a mask in its middle than beside, as of lungs, unlike of a heart."""
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    columns = mask[y : y + height, x : x + width].mean(axis=0)
    return bool(columns[round(0.4 * width) : round(0.6 * width)].mean() < 0.7 * columns.mean())


def _is_light_outside(image: np.ndarray, mask: np.ndarray) -> bool:
    level = float(np.median(image[mask]))
    return bool(
        mask.mean() > _INVERTED_AREA
        and _corner_level(image) - level > _INVERTED_CORNER
        and np.mean((image <= level) & ~mask) < _INVERTED_DARKER
    )


def _corner_level(image: np.ndarray) -> float:
    """The grey of the picture's corners."""
    c = max(2, round(0.04 * min(image.shape)))
    ends = (slice(0, c), slice(-c, None))
    return float(np.median([np.median(image[rows, columns]) for rows in ends for columns in ends]))
