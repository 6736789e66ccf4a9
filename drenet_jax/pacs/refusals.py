"""Why an instance is not taken, with the status of the C-STORE response (PS3.4, B.2.3)."""

from __future__ import annotations

OUT_OF_RESOURCES = 0xA700
CANNOT_UNDERSTAND = 0xC000
DUPLICATE = 0x0111


class Refused(Exception):
    """An instance that is not taken.

    Attributes:
      status: DICOM's status of the C-STORE response (PS3.4, B.2.3).
    """

    def __init__(self, status: int, why: str):
        super().__init__(why)
        self.status = status


class SpoolFull(Refused):
    """An instance that is not taken now: studies that ended make room for it."""
