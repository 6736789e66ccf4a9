"""The same pictures under two persons: found by digests of the decoded slices.

A person's series may be in a cohort twice under two names: as a copy with other file names, as a
zip, in another transfer syntax or format, or with some slices missing. Whatever the files are, the
slice that the model is shown comes from the same pixels, so these are compared: windowed, upright
and of the slice's own size, before anything is cropped or filled. Only equal pixels count; a copy
that was scaled or stored with loss is another picture.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8, UInt64

from drenet_jax.ct.prepared_series import SampledSlice
from drenet_jax.errors import InputError

DIGESTS_FILE = "digests.npy"

_DIGEST_BYTES = 8
# The same on every machine: the bytes are part of the data set.
_DIGEST = np.dtype("<u8")
_ROW = np.dtype([("digest", "<u8"), ("person", "<u4")])
_MOST_NAMED = 10


def slice_digests(picked: Iterable[SampledSlice]) -> bytes:
    """The digests of the slices in which lungs were found, kept or not, one after the other.

    A slice without lungs has none: empty pictures are alike in many persons.

    Args:
      picked: of one person.

    Returns:
      8 bytes for each slice, as `SliceDigests.write` takes them.
    """
    return b"".join(_digest(slice_.source) for slice_ in picked if slice_.source_mask.any())


def _digest(image: UInt8[np.ndarray, "height width"]) -> bytes:
    # SHA-256, of which today's processors have an instruction: half the time of BLAKE2.
    digest = hashlib.sha256(np.array(image.shape, "<u4").tobytes())
    digest.update(np.ascontiguousarray(image).data)
    return digest.digest()[:_DIGEST_BYTES]


@dataclasses.dataclass(frozen=True)
class SharedSlices:
    """Two persons with the same pictures.

    Attributes:
      first, second: patient_ids, in the order of the persons.
      n_slices: how many of the second person's slices are the first person's too.
    """

    first: str
    second: str
    n_slices: int


class SliceDigests:
    """The digests of the slices of many persons.

    Attributes:
      persons: patient_ids.
    """

    def __init__(self, persons: Sequence[str], table: np.ndarray):
        """Digests as `of` or `read` make them.

        Args:
          persons: patient_ids.
          table: [N] with the fields `digest` and `person`, a place in `persons`, in this order; the
            digest of a picture that a person has twice is there twice.
        """
        self.persons = tuple(persons)
        self._table = table

    @classmethod
    def of(cls, digests: Mapping[str, bytes]) -> SliceDigests:
        """From patient_id -> what `slice_digests` gives, of each person."""
        counts = [len(digest) // _DIGEST_BYTES for digest in digests.values()]
        table = np.empty(sum(counts), _ROW)
        table["digest"] = np.frombuffer(b"".join(digests.values()), _DIGEST)
        table["person"] = np.repeat(np.arange(len(counts), dtype=np.uint32), counts)
        return cls(list(digests), table[np.lexsort((table["person"], table["digest"]))])

    def write(self, folder: Path) -> str:
        """Writes `DIGESTS_FILE` into `folder` and returns its checksum."""
        path = folder / DIGESTS_FILE
        np.save(path, self._table, allow_pickle=False)
        return _checksum(path)

    @classmethod
    def read(cls, folder: Path, persons: Sequence[str], checksum: str) -> SliceDigests:
        """Reads what `write` wrote.

        Args:
          folder: that was given to `write`.
          persons: patient_ids, in the order of the digests that were written.
          checksum: that `write` returned.

        Raises:
          InputError: the file is missing or is another one.
        """
        path = folder / DIGESTS_FILE
        try:
            if _checksum(path) != checksum:
                raise ValueError("it is not the file that was written with the data set")
            return cls(persons, np.load(path, allow_pickle=False))
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise InputError(f"{path} cannot be read ({why}); run prepare again.") from error

    def of_persons(self, patient_ids: Collection[str]) -> UInt64[np.ndarray, " slices"]:
        """The digests of some persons' slices, each once, ascending."""
        wanted = set(patient_ids)
        is_wanted = np.fromiter(
            (person in wanted for person in self.persons), bool, len(self.persons)
        )
        rows = is_wanted[self._table["person"]]
        return np.unique(self._table["digest"][rows]).astype(np.uint64)

    def known(
        self, digests: UInt64[np.ndarray, " slices"], patient_ids: Collection[str]
    ) -> dict[str, int]:
        """patient_id -> how many of the slices are among `digests`, of each person with any.

        Args:
          digests: of other slices.
          patient_ids: who is asked about.
        """
        rows = np.isin(self._table["digest"], digests)
        counts = np.bincount(self._table["person"][rows], minlength=len(self.persons))
        wanted = set(patient_ids)
        return {
            person: int(count)
            for person, count in zip(self.persons, counts, strict=True)
            if count and person in wanted
        }

    def repeated(self) -> dict[str, int]:
        """patient_id -> how many slices are copies of other slices of the same person."""
        again = self._table["person"][self._is_repeated()]
        counts = np.bincount(again, minlength=len(self.persons))
        return {self.persons[i]: int(counts[i]) for i in np.flatnonzero(counts)}

    def _is_repeated(self) -> np.ndarray:
        """[N] bool: the row is the same as the one before."""
        is_repeated = np.zeros(len(self._table), bool)
        is_repeated[1:] = self._table[1:] == self._table[:-1]
        return is_repeated

    def shared(self) -> list[SharedSlices]:
        """The pairs of persons with the same pictures, in the order of the persons.

        Of several persons with a picture each is paired with the first of them.
        """
        table = self._table[~self._is_repeated()]
        is_first = np.ones(len(table), bool)
        is_first[1:] = table["digest"][1:] != table["digest"][:-1]
        # Of each row, the row with which its digest begins.
        beginning = np.maximum.accumulate(np.where(is_first, np.arange(len(table)), 0))
        firsts = table["person"][beginning]
        pairs, counts = np.unique(
            np.stack([firsts[~is_first], table["person"][~is_first]]), axis=1, return_counts=True
        )
        return [
            SharedSlices(self.persons[a], self.persons[b], n)
            for (a, b), n in zip(pairs.T.tolist(), counts.tolist(), strict=True)
        ]


def require_together(
    shared: Iterable[SharedSlices],
    groups: Mapping[str, tuple[str, ...]],
    where: str | os.PathLike[str],
    remedy: str,
) -> None:
    """Refuses persons with the same pictures who are not treated alike.

    Args:
      shared: from `SliceDigests.shared`.
      groups: patient_id -> what must be equal for both, in words: the split, perhaps the label. A
        person who is not there does not count.
      where: the cohort or the data set, for the message.
      remedy: a sentence on what to do, for the message.

    Raises:
      InputError: there are such persons; the first of them are named.
    """
    apart = []
    for pair in shared:
        first, second = groups.get(pair.first), groups.get(pair.second)
        if first and second and first != second:
            n_slices = "1 slice" if pair.n_slices == 1 else f"{pair.n_slices} slices"
            apart.append(
                f"{pair.first!r} ({', '.join(first)}) and {pair.second!r} ({', '.join(second)}) "
                f"share {n_slices}"
            )
    if apart:
        raise InputError(
            f"{where} has the same pictures under two persons: {listed(apart)}. {remedy}"
        )


def listed(texts: Sequence[str]) -> str:
    """The first of `texts`, and how many more there are."""
    more = f"; and {len(texts) - _MOST_NAMED} more" if len(texts) > _MOST_NAMED else ""
    return "; ".join(texts[:_MOST_NAMED]) + more


def named_persons(counts: Mapping[str, int]) -> str:
    """The persons of `SliceDigests.known` with their numbers of slices, for a message."""
    return listed([f"{person!r} ({n} slice{'s'[: n > 1]})" for person, n in counts.items()])


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
