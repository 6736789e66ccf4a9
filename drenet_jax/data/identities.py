"""Names of persons, classes and hospitals: one spelling of each, and names that are too alike.

Tables come from spreadsheets, hospital systems and several hands. Invisible characters, and
two Unicode spellings of one letter, would make one person or class into two; they are removed by
`clean`. Two names that still differ only in case, in the kind of a dash or in how a number is
written are refused by `SpellingVariants`, which names both: only the user knows whether they are
the same.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from decimal import Decimal

from drenet_jax.errors import InputError

# Format characters without a meaning in a name: soft hyphen, zero-width space, marks of direction,
# byte order mark, variation selectors and blanks that count as letters. The zero-width joiner and
# non-joiner are not here: within a word Persian and Indic scripts need them.
_INVISIBLE = dict.fromkeys(
    [
        *(0x00AD, 0x034F, 0x061C, 0x180E, 0x200B, 0x200E, 0x200F, 0x2800, 0x3164, 0xFEFF, 0xFFA0),
        *range(0x202A, 0x202F),
        *range(0x2060, 0x2070),
        *range(0xFE00, 0xFE10),
        *range(0xE0000, 0xE0080),
        *range(0xE0100, 0xE01F0),
    ]
)
_JOINERS = "\u200c\u200d"
# Cyrillic and Greek small letters whose capitals look like Latin ones, and the Turkish dotless i.
_LOOKALIKES = str.maketrans(
    "авекмнорстухіјѕαβεζηικμνορτυχı",
    "abekmhopctyxijsabezhikmnoptyxi",
)
_LETTERLIKE = frozenset(map(chr, _LOOKALIKES)) | frozenset(map(str.upper, map(chr, _LOOKALIKES)))
# Minus, macron and others that serve as a dash; all of the category Pd are added.
_DASHES = "\u2212\u02d7\u00af\u2043\ufe63"
_QUOTES = dict.fromkeys(map(ord, "\u2018\u2019\u201b\u02bc\u2032\u00b4`"), "'")

_WHOLE_NUMBER = re.compile(r"([+-]?)0*([0-9]+)(?:\.0*)?")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:[.,][0-9]*)?|[.,][0-9]+)")
# Between a letter and a letter or digit. Between two digits and at an end it has a meaning: "1-2"
# is not "12", "-1" not "1", "PCR-" not "PCR".
_SEPARATOR = re.compile(
    r"(?<=[^\W\d_])[\s_-]+(?=[^\W_])|(?<=[^\W_])[\s_-]+(?=[^\W\d_])",
)


def clean(text: str) -> str:
    """A name in the one spelling in which it is compared and stored.

    Unicode's composed form (NFC), without invisible characters, with plain spaces, without blanks
    at its ends. What is seen on paper stays as it is.
    """
    if not text.isascii():
        text = text.translate(_INVISIBLE)
        text = "".join(" " if unicodedata.category(char) == "Zs" else char for char in text)
        while (stripped := text.strip().strip(_JOINERS)) != text:
            text = stripped
        # Last: only now a mark may follow the letter that it belongs to.
        return unicodedata.normalize("NFC", text)
    return text.strip()


def control_character(text: str) -> str:
    """The first control character or line separator in `text`, as U+0000; "" if there is none."""
    if text.isprintable():
        return ""
    for char in text:
        if unicodedata.category(char) in ("Cc", "Zl", "Zp"):
            return f"U+{ord(char):04X}"
    return ""


def shown(text: str) -> str:
    """`text` in quotes, with the names of characters that look like others or like nothing."""
    odd = [
        char
        for char in dict.fromkeys(text)
        if not char.isascii() and (not char.isalnum() or char in _LETTERLIKE or char.isdecimal())
    ]
    if not odd:
        return repr(text)
    names = ", ".join(
        f"U+{ord(char):04X} {unicodedata.name(char, 'without a name')}" for char in odd
    )
    return f"{text!r} (with {names})"


def person_key(patient_id: str) -> str:
    """What two spellings of one patient_id have in common.

    Case, the kind of dashes, quotes, digits and blanks, and letters that look alike (Latin,
    Cyrillic, Greek) play no part. Neither do leading zeros and ".0" of an id that is a whole number
    ("7", "007" and "7.0"), which spreadsheets and pandas add and drop. All else tells persons
    apart: "P1" and "P01", "P-1" and "P1", "12.1" and "12.10" may be two persons in one cohort.
    """
    key = _folded(patient_id)
    number = _WHOLE_NUMBER.fullmatch(key)
    return f"{number[1].strip('+')}{number[2]}" if number else key


def value_key(value: str) -> str:
    """What two spellings of one label, site or column have in common.

    As `person_key`; further, dashes, underscores and blanks between a letter and a letter or digit
    play no part ("COVID-19", "Covid 19", "covid19"), and numbers are compared by value ("0" and
    "0.0"; "1", "1.00" and "1,0").
    """
    key = _folded(value)
    if _NUMBER.fullmatch(key):
        return str(Decimal(key.replace(",", ".")).normalize() + 0)
    return _SEPARATOR.sub("", key)


def _folded(text: str) -> str:
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
        text = unicodedata.normalize("NFKC", text.casefold()).translate(_LOOKALIKES)
        text = "".join(map(_plain, text.translate(_QUOTES)))
    return " ".join(text.casefold().split())


def _plain(char: str) -> str:
    if char.isascii():
        return char
    category = unicodedata.category(char)
    if category == "Pd" or char in _DASHES:
        return "-"
    if category == "Nd":
        return str(unicodedata.decimal(char))
    # U+0307: what is left of the Turkish capital I with a dot, in small letters.
    if category == "Cf" or char == "\u0307":
        return ""
    return char


class SpellingVariants:
    """Finds two different names that have the same key, wherever they stand."""

    def __init__(self, what: str, key: Callable[[str], str], remedy: str):
        """Starts with no name.

        Args:
          what: the names are, for the message: "label", "patient_id".
          key: `person_key` or `value_key`.
          remedy: what to do, if they are the same and if they are not; for the message.
        """
        self._what = what
        self._key = key
        self._remedy = remedy
        self._first: dict[str, tuple[str, str]] = {}
        self._known: set[str] = set()

    def add(self, name: str, file: object, where: str) -> None:
        """Takes note of a name.

        Args:
          name: as `clean` leaves it; the same name may come again.
          file: where it stands, for the message.
          where: the line or column there, for the message.

        Raises:
          InputError: an earlier name differs from it only in its spelling.
        """
        if name in self._known:
            return
        self._known.add(name)
        other, other_where = self._first.setdefault(self._key(name), (name, where))
        if other != name:
            raise InputError(
                f"{file}, {where}: the {self._what} {shown(name)} and {shown(other)} "
                f"({other_where}) differ only in how they are written; {self._remedy}."
            )


def person_variants() -> SpellingVariants:
    """For patient_ids."""
    return SpellingVariants(
        "patient_id",
        person_key,
        "write them alike if they are one person, or give one of them another id if they are two",
    )


def value_variants(what: str) -> SpellingVariants:
    """For labels, sites and the like.

    Args:
      what: the column, for messages.
    """
    return SpellingVariants(
        what,
        value_key,
        f"write them alike, or, if they are two {what}s, give one of them another name",
    )
