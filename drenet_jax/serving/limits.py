"""What visitors may cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from drenet_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Limits:
    """The bounds of the server. The values, and their reasons, live in `configs/serve.py`.

    Attributes:
      places: persons at once: being sent, waiting, or in work.
      upload_mib: of one person, in MiB.
      files: in one upload, or in one zip.
      unpacked_mib: what the members of a zip may unpack to in all, in MiB.
      upload_seconds: in which an upload must be here.
      least_kib_a_second: the rate that an upload must keep, after the patience.
      patience_seconds: for silence before a request, and before an upload's rate counts.
      work_seconds: for the work on one person.
      reader_mib: memory of the process that reads files, in MiB.
      answers: how many are kept.
      answers_mib: what those may take in all, in MiB.
      answer_minutes: how long one is kept.
      connections: open at once.
      send_seconds: in which a visitor must take an answer.
      linger_seconds: for which the rest of a refused upload is taken and dropped.
      shutdown_seconds: that the request in work gets when the server receives a stop signal.
    """

    places: int
    upload_mib: int
    files: int
    unpacked_mib: int
    upload_seconds: float
    least_kib_a_second: float
    patience_seconds: float
    work_seconds: float
    reader_mib: int
    answers: int
    answers_mib: int
    answer_minutes: float
    connections: int
    send_seconds: float
    linger_seconds: float
    shutdown_seconds: float

    @classmethod
    def from_dict(cls, values: Mapping) -> Limits:
        """The limits from a mapping with exactly these fields.

        Raises:
          InputError: it has others, or a value cannot be used.
        """
        fields = {field.name for field in dataclasses.fields(cls)}
        if set(values) != fields:
            differing = ", ".join(sorted(fields ^ set(values)))
            raise InputError(
                f"the limits of the server are other fields; missing or unknown: {differing}; "
                "give a config like configs/serve.py."
            )
        for name, value in values.items():
            # NaN is not above 0.
            if not value > 0:
                raise InputError(f"--config.{name}={value} must be above 0.")
        return cls(**values)

    @property
    def upload_bytes(self) -> int:
        return self.upload_mib << 20

    @property
    def unpacked_bytes(self) -> int:
        return self.unpacked_mib << 20

    @property
    def answers_bytes(self) -> int:
        return self.answers_mib << 20
