"""What requests may cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from drenet_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Limits:
    """The limits of the server; `configs/serve.py` has the values and their reasons."""

    places: int  # in-flight requests: uploading, waiting, or in work
    upload_mib: int
    files: int  # in one upload, or in one zip
    unpacked_mib: int  # all members of a zip
    upload_seconds: float
    least_kib_a_second: float  # upload rate, once patience_seconds have passed
    patience_seconds: float  # silence before a request
    work_seconds: float  # per patient
    reader_mib: int  # memory of the process that decodes files
    answers: int  # kept at once
    answers_mib: int  # all kept answers
    answer_minutes: float  # how long an answer is kept
    connections: int
    send_seconds: float  # in which a client must take an answer
    linger_seconds: float  # for which the rest of a refused upload is read and dropped
    shutdown_seconds: float  # for the running job when the server stops

    @classmethod
    def from_dict(cls, values: Mapping) -> Limits:
        """The limits from a mapping with exactly these fields, all above 0.

        Raises:
          InputError: a field is missing or unknown, or a value is not above 0.
        """
        fields = {field.name for field in dataclasses.fields(cls)}
        if set(values) != fields:
            raise InputError(
                "the config of the server has missing or unknown fields: "
                f"{', '.join(sorted(fields ^ set(values)))}; see configs/serve.py."
            )
        for name, value in values.items():
            if not value > 0:  # also refuses NaN
                raise InputError(f"--config.{name}={value} must be above 0.")
        return cls(**values)
