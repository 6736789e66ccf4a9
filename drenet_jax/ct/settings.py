"""The settings of preprocessing, stored with every data set and every checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from drenet_jax.ct.fill import MOST_COPIES
from drenet_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class CtSettings:
    """How a person's series becomes lung crops. The values live in `configs/prepare.py`.

    Attributes:
      slices_per_person: how many slices are picked from a series, evenly (paper 2.2.1: 15).
      window_level_hu: the centre of the lung window, in HU.
      window_width_hu: the width of the lung window, in HU.
      min_area_share: a picked slice is kept if its lung area is at least this share of the largest
        lung area among that person's picked slices.
      image_size_px: the height and width of the square lung crop.
      fill_copies: how many shifted copies of the lung may fill the blank (paper 2.2.1, Fig. 1).
    """

    slices_per_person: int
    window_level_hu: float
    window_width_hu: float
    min_area_share: float
    image_size_px: int
    fill_copies: int

    def __post_init__(self):
        for name, good, rule in (
            ("slices_per_person", self.slices_per_person >= 1, "at least 1"),
            ("window_width_hu", self.window_width_hu > 0, "above 0 HU"),
            ("min_area_share", 0 <= self.min_area_share <= 1, "from 0 to 1"),
            ("image_size_px", self.image_size_px >= 32, "at least 32 pixels"),
            ("fill_copies", 0 <= self.fill_copies <= MOST_COPIES, f"from 0 to {MOST_COPIES}"),
        ):
            if not good:
                raise InputError(f"--config.{name}={getattr(self, name)} must be {rule}.")

    @classmethod
    def from_dict(cls, values: Mapping) -> CtSettings:
        """The settings from a mapping with exactly these fields.

        Raises:
          InputError: it has others.
        """
        fields = {field.name for field in dataclasses.fields(cls)}
        if set(values) != fields:
            differing = ", ".join(sorted(fields ^ set(values)))
            raise InputError(
                f"the settings of preprocessing must be {', '.join(sorted(fields))}; "
                f"missing or unknown: {differing}; give a config like configs/prepare.py."
            )
        return cls(**values)

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)
