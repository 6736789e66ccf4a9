"""Whether a report keeps every row of TID 1500 and of the templates that it includes.

The rows are those of DICOM PS3.16 2026a, read in a public transcription of it (DICOMKit, generated
from the standard's DocBook) and compared with those in PixelMed's validator, of 2022. A star behind
a template's title is "Order: Significant".

It is stricter than the standard, since it is for our reports alone. An item that no row allows is a
violation, although of these templates only 1001, 1002, 1204 and 4019 are non-extensible. So is one
of a template that our reports have no use for: 1003, 1005 to 1010, 1015 (observers, procedure and
subject other than the header's), 1411, 1420, 1600 and what hangs below a measurement (301). There
is one observer, where TID 1001 row 1 allows several.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence

from pydicom import Dataset
from pydicom.sr.codedict import codes

# Columns: row, nesting level, relationship with parent, value type, concept name, VM, requirement,
# condition, value set. A concept name may be a code, a context group (DCID: defined, BCID:
# baseline), "other" (the parameter $QualType, which TID 1500 leaves open: any concept that no row
# beside it names) or empty (any). Parameters have the values that TID 1500 gives them. The value
# set of a NUM is of its unit; a REGION is any graphic but MULTIPOINT.
_TABLES = """
TID 1500 Measurement Report
1  |    |                 | CONTAINER | DCID 7021       | 1   | M  |                     |
2  | >  | HAS CONCEPT MOD | INCLUDE   | 1204            | 1   | U  |                     |
3  | >  | HAS OBS CONTEXT | INCLUDE   | 1001            | 1   | M  |                     |
4  | >  | HAS CONCEPT MOD | CODE      | 121058 DCM      | 1-n | U  |                     | BCID 100
5  | >  | CONTAINS        | INCLUDE   | 1600            | 1   | U  |                     |
6  | >  | CONTAINS        | CONTAINER | 126010 DCM      | 1   | MC | IF NOT 10, 12       |
6b | >> | HAS CONCEPT MOD | INCLUDE   | 4019            | 1   | U  |                     |
7  | >> | CONTAINS        | INCLUDE   | 1410            | 1-n | U  |                     |
8  | >> | CONTAINS        | INCLUDE   | 1411            | 1-n | U  |                     |
9  | >> | CONTAINS        | INCLUDE   | 1501            | 1-n | U  |                     |
10 | >  | CONTAINS        | CONTAINER | 126011 DCM      | 1   | MC | IF NOT 6, 12        |
12 | >  | CONTAINS        | CONTAINER | C0034375 UMLS   | 1   | MC | IF NOT 6, 10        |

TID 1204 Language of Content Item and Descendants *
1  |    | HAS CONCEPT MOD | CODE      | 121049 DCM      | 1   | M  |                     | DCID 5000
2  | >  | HAS CONCEPT MOD | CODE      | 121046 DCM      | 1   | U  |                     | DCID 5001

TID 1001 Observation Context *
1  |    | HAS OBS CONTEXT | INCLUDE   | 1002            | 1   | M  |                     |

TID 1002 Observer Context *
1  |    | HAS OBS CONTEXT | CODE      | 121005 DCM      | 1   | MC | IF 3                | DCID 270
2  |    | HAS OBS CONTEXT | INCLUDE   | 1003            | 1   | MC | IFF 1 != 121007 DCM |
3  |    | HAS OBS CONTEXT | INCLUDE   | 1004            | 1   | MC | IFF 1 = 121007 DCM  |

TID 1004 Device Observer Identifying Attributes *
1  |    |                 | UIDREF    | 121012 DCM      | 1   | M  |                     |
2  |    |                 | TEXT      | 121013 DCM      | 1   | U  |                     |
3  |    |                 | TEXT      | 121014 DCM      | 1   | U  |                     |
4  |    |                 | TEXT      | 121015 DCM      | 1   | U  |                     |
5  |    |                 | TEXT      | 121016 DCM      | 1   | U  |                     |
6  |    |                 | TEXT      | 121017 DCM      | 1   | U  |                     |
7  |    |                 | CODE      | 113876 DCM      | 1-n | U  |                     | DCID 7445
8  |    |                 | TEXT      | 110119 DCM      | 1   | U  |                     |
9  |    |                 | UIDREF    | 121061 DCM      | 1-n | U  |                     |

TID 1410 Planar ROI Measurements and Qualitative Evaluations
1  |    |                 | CONTAINER | 125007 DCM      | 1   | M  |                     |
1b | >  | HAS OBS CONTEXT | TEXT      | C67447 NCIt     | 1   | U  |                     |
2  | >  | HAS OBS CONTEXT | TEXT      | 112039 DCM      | 1   | U  |                     |
3  | >  | HAS OBS CONTEXT | UIDREF    | 112040 DCM      | 1   | U  |                     |
3a | >  | CONTAINS        | CODE      | 276214006 SCT   | 1   | U  |                     |
3b | >  | CONTAINS        | CODE      | 121071 DCM      | 1   | U  |                     |
3c | >  | CONTAINS        | CODE      | 130400 DCM      | 1   | U  |                     | BCID 219
4  | >  | HAS OBS CONTEXT | INCLUDE   | 1502            | 1   | U  |                     |
5  | >  | CONTAINS        | SCOORD    | 111030 DCM      | 1   | MC | XOR 7, 7b, 8b       | REGION
6  | >> | SELECTED FROM   | IMAGE     |                 | 1   | M  |                     |
7  | >  | CONTAINS        | IMAGE     | 121214 DCM      | 1   | MC | XOR 5, 7b, 8b       |
7b | >  | CONTAINS        | SCOORD3D  | 111030 DCM      | 1   | MC | XOR 5, 7, 8b        |
8  | >  | CONTAINS        | IMAGE     | 121233 DCM      | 1   | MC | IFF 7               |
8b | >  | CONTAINS        | COMPOSITE | 130488 DCM      | 1   | MC | XOR 5, 7, 7b        |
8c | >> | HAS PROPERTIES  | TEXT      | 130489 DCM      | 1   | M  |                     |
9  | >  | CONTAINS        | IMAGE     | 121200 DCM      | 1   | U  |                     |
9b | >  | CONTAINS        | IMAGE     | 130401 DCM      | 1-n | U  |                     |
10 | >  | CONTAINS        | COMPOSITE | 126100 DCM      | 1   | U  |                     |
11 | >  | CONTAINS        | INCLUDE   | 1419            | 1   | U  |                     |
12 | >  | CONTAINS        | CODE      | other           | 1-n | U  |                     |
13 | >  | CONTAINS        | TEXT      | other           | 1-n | U  |                     |

TID 1419 ROI Measurements
1  |    | HAS CONCEPT MOD | CODE      | 370129005 SCT   | 1   | U  |                     |
2  |    | HAS CONCEPT MOD | CODE      | 363698007 SCT   | 1-n | U  |                     |
3  | >  | HAS CONCEPT MOD | CODE      | 272741003 SCT   | 1   | U  |                     | DCID 244
4  | >  | HAS CONCEPT MOD | CODE      | 106233006 SCT   | 1   | U  |                     |
4b |    | HAS CONCEPT MOD | INCLUDE   | 4019            | 1   | U  |                     |
5  |    |                 | NUM       | BCID 218        | 1-n | M  |                     | BCID 7181

TID 1501 Measurement and Qualitative Evaluation Group
1  |    | CONTAINS        | CONTAINER | 125007 DCM      | 1   | M  |                     |
1b | >  | HAS OBS CONTEXT | TEXT      | C67447 NCIt     | 1   | U  |                     |
2  | >  | HAS OBS CONTEXT | TEXT      | 112039 DCM      | 1   | U  |                     |
3  | >  | HAS OBS CONTEXT | UIDREF    | 112040 DCM      | 1   | U  |                     |
3a | >  | CONTAINS        | CODE      | 276214006 SCT   | 1   | U  |                     |
3b | >  | CONTAINS        | CODE      | 121071 DCM      | 1   | U  |                     |
4  | >  | HAS OBS CONTEXT | INCLUDE   | 1502            | 1   | U  |                     |
5  | >  | HAS CONCEPT MOD | CODE      | 370129005 SCT   | 1   | U  |                     | BCID 6147
6  | >  | HAS CONCEPT MOD | CODE      | 363698007 SCT   | 1-n | U  |                     |
7  | >> | HAS CONCEPT MOD | CODE      | 272741003 SCT   | 1   | U  |                     | DCID 244
8  | >> | HAS CONCEPT MOD | CODE      | 106233006 SCT   | 1   | U  |                     |
9  | >  | CONTAINS        | COMPOSITE | 126100 DCM      | 1   | U  |                     |
9b | >  | HAS CONCEPT MOD | INCLUDE   | 4019            | 1   | U  |                     |
9c | >  | CONTAINS        | IMAGE     | 121200 DCM      | 1   | U  |                     |
9d | >  | CONTAINS        | IMAGE     | 130401 DCM      | 1-n | U  |                     |
10 | >  | CONTAINS        | INCLUDE   | 300             | 1-n | U  |                     |
10b| >  | CONTAINS        | IMAGE     | BCID 7551       | 1-n | U  |                     |
10c| >  | CONTAINS        | SCOORD    | BCID 7551       | 1-n | U  |                     |
10d| >> | SELECTED FROM   | IMAGE     |                 | 1   | M  |                     |
10e| >  | CONTAINS        | SCOORD3D  | BCID 7551       | 1-n | U  |                     |
11 | >  | CONTAINS        | CODE      | other           | 1-n | U  |                     |
12 | >  | CONTAINS        | TEXT      | other           | 1-n | U  |                     |

TID 300 Measurement *
1  |    |                 | NUM       | BCID 218        | 1   | M  |                     | BCID 7181

TID 1502 Time Point Context *
1  |    | HAS OBS CONTEXT | TEXT      | 126070 DCM      | 1   | U  |                     |
2  |    | HAS OBS CONTEXT | TEXT      | 126071 DCM      | 1   | U  |                     |
3  |    | HAS OBS CONTEXT | TEXT      | C2348792 UMLS   | 1   | U  |                     |
4  |    | HAS OBS CONTEXT | CODE      | 126072 DCM      | 1-n | U  |                     |
5  |    | HAS OBS CONTEXT | NUM       | 126073 DCM      | 1   | U  |                     |

TID 4019 Algorithm Identification *
1  |    |                 | TEXT      | 111001 DCM      | 1   | M  |                     |
1b |    |                 | CODE      | 111001 DCM      | 1   | U  |                     |
2  |    |                 | TEXT      | 111003 DCM      | 1   | M  |                     |
2b |    |                 | TEXT      | 122405 DCM      | 1   | U  |                     |
3  |    |                 | TEXT      | 111002 DCM      | 1-n | U  |                     |
4  |    |                 | CODE      | 111000 DCM      | 1   | U  |                     |
"""

Code = tuple[str, str]

# Codes of ours outside of a baseline context group, which only suggests codes: CT Chest in CID 100.
_BEYOND_BASELINE = {("24627-2", "LN")}
_OWN_SCHEME = "99DRENETJAX"
# Groups that pydicom lacks: those codes of them that reports may have.
_GROUPS: dict[str, set[Code]] = {"5000": {("en-US", "RFC5646")}, "5001": set()}


@dataclasses.dataclass(frozen=True)
class Row:
    template: str
    number: str
    relationship: str
    value_type: str
    concept: str
    is_many: bool
    need: str
    condition: str
    value_set: str
    below: list[Row]

    @property
    def name(self) -> str:
        return f"TID {self.template} row {self.number}"


@dataclasses.dataclass(frozen=True)
class Template:
    is_ordered: bool
    rows: list[Row]


@dataclasses.dataclass(frozen=True)
class Place:
    """A row at one level of the tree, with what the templates on the way to it add.

    Attributes:
      row: the row, which includes no template.
      relationship: its own, or that of the row that includes its template.
      is_many: whether several items are allowed.
    """

    row: Row
    relationship: str
    is_many: bool


def violations(report: Dataset) -> list[str]:
    """Sentences, each with the template and the row; none if the report keeps all rows."""
    return list(_level(_templates()["1500"].rows, [report], "the document"))


@functools.cache
def _templates() -> dict[str, Template]:
    templates = {}
    for block in _TABLES.strip().split("\n\n"):
        title, *lines = block.splitlines()
        number = title.split()[1]
        levels: list[list[Row]] = [[]]
        for line in lines:
            name, nesting, relationship, value_type, concept, vm, need, condition, values = (
                cell.strip() for cell in line.split("|")
            )
            below: list[Row] = []
            row = Row(
                *(number, name, relationship, value_type, concept, vm == "1-n", need, condition),
                value_set=values,
                below=below,
            )
            del levels[len(nesting) + 1 :]
            levels[len(nesting)].append(row)
            levels.append(below)
        templates[number] = Template(title.endswith("*"), levels[0])
    return templates


def _level(rows: Sequence[Row], items: Sequence[Dataset], where: str) -> Iterator[str]:
    """The violations of items that have one parent, and of what is below them."""
    places = list(_places(rows, "", False))
    found: dict[str, list[Dataset]] = {}
    order = []
    for item in items:
        place = _place_of(item, places)
        if place is None:
            yield f"{where}: no row allows {_described(item)}"
            continue
        found.setdefault(place.row.name, []).append(item)
        order.append(place.row)
        yield from _item(place.row, item)
    for place in places:
        count = len(found.get(place.row.name, ()))
        if count > 1 and not place.is_many:
            yield f"{place.row.name}: {count} items instead of one"
    yield from _needs(rows, found)
    for row in rows:
        if row.value_type == "INCLUDE":
            yield from _order(row, order)


def _places(rows: Sequence[Row], relationship: str, is_many: bool) -> Iterator[Place]:
    for row in rows:
        own, many = row.relationship or relationship, row.is_many or is_many
        if row.value_type == "INCLUDE":
            yield from _places(_included(row), own, many)
        else:
            yield Place(row, own, many)


def _included(row: Row) -> list[Row]:
    template = _templates().get(row.concept)
    return template.rows if template else []


def _place_of(item: Dataset, places: Sequence[Place]) -> Place | None:
    concept = _code(item, "ConceptNameCodeSequence")
    named = {place.row.concept for place in places}
    fitting = [
        place
        for place in places
        if place.relationship == item.get("RelationshipType", "")
        and place.row.value_type == item.ValueType
        and _allows(place.row.concept, concept, named)
    ]
    # TIDs 1410 and 1501 both begin with a measurement group, which says which of them it keeps.
    stated = _stated_template(item)
    return next((p for p in fitting if p.row.template == stated), next(iter(fitting), None))


def _allows(allowed: str, code: Code | None, named: set[str]) -> bool:
    if not allowed:
        return True
    if code is None:
        return False
    if allowed == "other":
        return " ".join(code) not in named
    kind, _, group = allowed.partition("CID ")
    if not group:
        return " ".join(code) == allowed
    beyond = code in _BEYOND_BASELINE or code[1] == _OWN_SCHEME
    return code in _group(group) or (kind == "B" and beyond)


@functools.cache
def _group(number: str) -> set[Code]:
    if number in _GROUPS:
        return _GROUPS[number]
    group = getattr(codes, f"cid{number}")
    concepts = (getattr(group, name) for name in group.dir())
    return {(concept.value, concept.scheme_designator) for concept in concepts}


def _code(item: Dataset, keyword: str) -> Code | None:
    if not item.get(keyword):
        return None
    code = item[keyword].value[0]
    return code.get("CodeValue") or code.get("LongCodeValue"), code.CodingSchemeDesignator


def _stated_template(item: Dataset) -> str:
    templates = item.get("ContentTemplateSequence")
    return templates[0].TemplateIdentifier if templates else ""


def _item(row: Row, item: Dataset) -> Iterator[str]:
    """The violations of an item's value and of what is below it."""
    is_root = row.value_type == "CONTAINER" and row is _templates()[row.template].rows[0]
    if _stated_template(item) != (row.template if is_root else ""):
        yield f"{row.name}: says that its template is {_stated_template(item) or 'none'}"
    if row.value_type == "CODE":
        code = _code(item, "ConceptCodeSequence")
        if code is None or not _allows(row.value_set, code, set()):
            yield f"{row.name}: value {code} is not of {row.value_set or 'any code'}"
    elif row.value_type == "NUM":
        (measured,) = item.MeasuredValueSequence
        unit = _code(measured, "MeasurementUnitsCodeSequence")
        if not _allows(row.value_set, unit, set()):
            yield f"{row.name}: unit {unit} is not of {row.value_set}"
    elif row.value_set == "REGION" and item.GraphicType == "MULTIPOINT":
        yield f"{row.name}: a MULTIPOINT is no region"
    elif row.value_type in ("TEXT", "UIDREF") and not (item.get("TextValue") or item.get("UID")):
        yield f"{row.name}: no value"
    yield from _level(row.below, item.get("ContentSequence", ()), row.name)


def _needs(rows: Sequence[Row], found: dict[str, list[Dataset]]) -> Iterator[str]:
    """The violations of requirement types and conditions."""
    by_number = {row.number: row for row in rows}
    for row in rows:
        is_there = _is_there(row, found)
        condition = re.fullmatch(r"(XOR|IFF?)( NOT)? ([\w, ]+?)(?: (!?=) (.+))?", row.condition)
        needed, forbidden = row.need == "M", False
        if condition:
            kind, negated, numbers, relation, code = condition.groups()
            # Rows that are in no table of ours are never there.
            others = [by_number[n] for n in numbers.split(", ") if n in by_number]
            holds = any(_is_there(other, found) for other in others)
            if relation:
                values = [
                    _code(item, "ConceptCodeSequence")
                    for other in others
                    for item in found.get(other.name, ())
                ]
                holds = (tuple(code.split()) in values) == (relation == "=")
            needed = holds != (kind == "XOR" or bool(negated))
            forbidden = kind in ("XOR", "IFF") and not needed
        if needed and not is_there:
            yield f"{row.name}: missing"
        if forbidden and is_there:
            yield f"{row.name}: must not be there ({row.condition})"
        if row.value_type == "INCLUDE" and (is_there or needed):
            yield from _needs(_included(row), found)


def _is_there(row: Row, found: dict[str, list[Dataset]]) -> bool:
    if row.value_type == "INCLUDE":
        return any(_is_there(included, found) for included in _included(row))
    return row.name in found


def _order(include: Row, items: Sequence[Row]) -> Iterator[str]:
    """The violations of the order of an included template, and of those that it includes."""
    rows = _included(include)
    inside = [place.row for place in _places(rows, "", False)]
    if include.concept in _templates() and _templates()[include.concept].is_ordered:
        numbers = [inside.index(row) for row in items if row in inside]
        if numbers != sorted(numbers):
            yield f"TID {include.concept}: not in the order of its rows"
    for row in rows:
        if row.value_type == "INCLUDE":
            yield from _order(row, items)


def _described(item: Dataset) -> str:
    concept = _code(item, "ConceptNameCodeSequence")
    relationship = item.get("RelationshipType", "no relationship")
    return f"{relationship} {item.ValueType} {concept}"
