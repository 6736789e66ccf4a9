"""Public data sets in their documented layouts, and how a tree that is none of them is refused."""

from __future__ import annotations

import collections
import csv
import inspect
import os
import re
import tempfile
from pathlib import Path

import openpyxl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drenet_jax.data.cohort_table import read_cohort
from drenet_jax.data.identities import clean, control_character, person_key
from drenet_jax.data.public import DATASETS
from drenet_jax.data.public.cohort_file import write_cohort
from drenet_jax.data.public.scan import ScanResult
from drenet_jax.data.public.tables import read_table
from drenet_jax.errors import InputError


def _tree(root: Path, *files: str) -> None:
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def _write(root: Path, name: str, *lines: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _rows(scan: ScanResult) -> list[tuple[str, ...]]:
    return [(row.patient_id, row.path, row.label) for row in scan.rows]


def _labels(scan: ScanResult) -> dict[str, str]:
    return {row.patient_id: row.label for row in scan.rows}


# The smallest trees that have all that the data sets' pages describe.


def covid_ct_md(root: Path) -> None:
    _tree(root, "COVID-19 subjects/P001/a_1.dcm", "COVID-19 subjects/P002/more/a_1.dcm")
    _tree(root, "Cap Cases/cap001/a_1.dcm", "Normal Cases/normal001/a_1.dcm", "Index.csv")


def covid_ct(root: Path) -> None:
    for name in ("b%0.png", "b%1.png", "c.png"):
        _tree(root, f"Images-processed/CT_COVID/{name}")
    for name in ("59.png", "59%0.jpg"):
        _tree(root, f"Images-processed/CT_NonCOVID/{name}")
    _write(root, "Data-split/COVID/trainCT_COVID.txt", "b%0.png", "b%1.png")
    _write(root, "Data-split/COVID/valCT_COVID.txt", "c.png")
    _write(root, "Data-split/COVID/testCT_COVID.txt")
    _write(root, "Data-split/NonCOVID/trainCT_NonCOVID.txt", "59.png")
    _write(root, "Data-split/NonCOVID/valCT_NonCOVID.txt")
    _write(root, "Data-split/NonCOVID/testCT_NonCOVID.txt", "59%0.jpg")


def covidx_ct(root: Path) -> None:
    slices = {
        "train": ["NCP_96_1328_0035.png 2", "NCP_96_1328_0036.png 2", "CP_1_1_0001.png 1"],
        "val": ["Normal_9_2_0010.png 0", "Normal_9_2_0009.png 0"],
        "test": ["137covid_patient1_SR_3_IM00001.png 2"],
    }
    for name, lines in slices.items():
        _write(root, f"{name}_COVIDx_CT-3A.txt", *(f"{line} 0 9 512 429" for line in lines))
        _tree(root, *(f"3A_images/{line.split()[0]}" for line in lines))
    _write(
        root,
        "metadata.csv",
        "patient id,source,country",
        "NCP_96,CNCB,China",
        "CP_1,CNCB,China",
        "Normal_9,CNCB,China",
        "patient1,COVID-CTSet,Iran",
    )


def cc_ccii(root: Path) -> None:
    _tree(root, "NCP/96/1328/0000.png", "NCP/96/1329/0000.png", "CP/96/3/0.jpg", "Normal/7/1/0.jpg")


def mosmed(root: Path) -> None:
    _tree(root, *(f"studies/CT-{n}/study_{n:04d}.nii.gz" for n in range(5)))


def stoic2021(root: Path) -> None:
    _tree(root, "data/mha/3.mha", "data/mha/20.mha")
    _write(root, "metadata/reference.csv", "PatientID,probCOVID,probSevere", "3,0,0", "20,1.0,1")


def cov19_ct_db(root: Path) -> None:
    for split in ("train", "val"):
        _tree(root, f"{split}/covid/ct_scan_0/0.jpg", f"{split}/non-covid/ct_scan_0/0.jpg")
        _write(root, f"{split}/annotations/labels.csv", "x")


def sars_cov_2_ct_scan(root: Path) -> None:
    _tree(root, "COVID/Covid (1).png", "COVID/Covid (10).png", "COVID/Covid (2).png")
    _tree(root, "non-COVID/Non-Covid (1).png")


def folders(root: Path) -> None:
    _tree(root, "ill/p1/deep/1.dcm", "ill/p2.zip", "well/p3.nii.gz", "well/p4.JPG")


LAYOUTS = (
    *(covid_ct_md, covid_ct, covidx_ct, cc_ccii, mosmed, stoic2021),
    *(cov19_ct_db, sars_cov_2_ct_scan, folders),
)


@pytest.fixture
def find(tmp_path):
    """Lays out a data set and returns its folder and what its reader finds there."""

    def find(layout, change=lambda root: None) -> tuple[Path, ScanResult]:
        root = tmp_path / "root"
        root.mkdir()
        layout(root)
        change(root)
        return root, DATASETS[layout.__name__](root)

    return find


def test_no_data_set_goes_untested():
    assert [layout.__name__ for layout in LAYOUTS] == list(DATASETS)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_cohort_of_each_data_set_can_be_read(layout, find, tmp_path):
    _, scan = find(layout)
    write_cohort(scan, tmp_path / "new" / "cohort.csv")
    cohort = read_cohort(tmp_path / "new" / "cohort.csv")

    assert {person.patient_id: person.label for person in cohort.persons} == _labels(scan)
    assert sum(len(person.paths) for person in cohort.persons) == len(scan.rows)
    assert cohort.has_split == (layout in (covid_ct, covidx_ct, cov19_ct_db))
    assert not scan.left_out()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_tree_is_refused_with_what_was_looked_for_and_found(layout, tmp_path):
    for n in range(12):
        _tree(tmp_path, f"hospital {n}.txt")
    with pytest.raises(
        InputError, match=r"looked for .*, found hospital 0.* and 4 more; "
    ) as error:
        DATASETS[layout.__name__](tmp_path)
    assert "\n" not in str(error.value)


def test_covid_ct_md_accepts_the_names_of_its_paper_its_archive_and_its_sample(find, shared_data):
    _, scan = find(covid_ct_md)
    assert _rows(scan) == [
        ("P001", "COVID-19 subjects/P001", "COVID-19"),
        ("P002", "COVID-19 subjects/P002", "COVID-19"),
        ("cap001", "Cap Cases/cap001", "CAP"),
        ("normal001", "Normal Cases/normal001", "healthy"),
    ]
    scan = DATASETS["covid_ct_md"](shared_data / "covid_ct_md")
    assert _labels(scan) == {"P001": "COVID-19", "cap001": "CAP", "normal001": "healthy"}
    assert not scan.left_out()


def test_folders_without_files_and_files_beside_folders_are_left_out_and_reported(find):
    def change(root):
        _tree(root, "Cap Cases/notes.txt", "Cap Cases/cap002/.DS_Store", "Cap Cases/._cap003")
        (root / "Normal Cases" / "normal002" / "empty").mkdir(parents=True)

    _, scan = find(covid_ct_md, change)
    assert len(scan.rows) == 4
    assert scan.left_out() == [
        "folders without a file that may be read: 2 (the first: Cap Cases/cap002)",
        "files beside the folders of the persons or scans: 1 (the first: Cap Cases/notes.txt)",
    ]


def test_a_missing_folder_is_reported_and_a_single_label_is_refused(find, tmp_path):
    def change(root):
        (root / "Cap Cases").rename(tmp_path / "elsewhere")

    root, scan = find(covid_ct_md, change)
    assert scan.notes == [f"there is no folder 'Cap Cases' in {root}."]
    (root / "Normal Cases").rename(tmp_path / "elsewhere too")
    scan = DATASETS["covid_ct_md"](root)
    with pytest.raises(InputError, match="the label COVID-19 only; a diagnosis needs two"):
        write_cohort(scan, tmp_path / "cohort.csv")
    assert not (tmp_path / "cohort.csv").exists()


def test_cc_ccii_has_a_row_a_scan_and_ids_with_the_class(find):
    _, scan = find(cc_ccii, lambda root: (root / "CP" / "5" / "8").mkdir(parents=True))
    assert _rows(scan) == [
        ("NCP_96", "NCP/96/1328", "COVID-19"),
        ("NCP_96", "NCP/96/1329", "COVID-19"),
        ("CP_96", "CP/96/3", "CP"),
        ("Normal_7", "Normal/7/1", "healthy"),
    ]
    assert scan.left_out() == ["folders without a file that may be read: 1 (the first: CP/5)"]


@pytest.mark.parametrize("inside", ["", "COVID19_1110"])
def test_mosmed_goes_by_severity_and_is_found_below_its_archives_folder(inside, tmp_path):
    mosmed(tmp_path / inside)
    scan = DATASETS["mosmed"](tmp_path)
    names = [row.patient_id for row in scan.rows]
    assert names == ["study_0001", "study_0002", "study_0003", "study_0004", "study_0000"]
    assert [row.label for row in scan.rows] == ["COVID-19"] * 4 + ["healthy"]


def test_stoic_takes_persons_who_are_in_the_table_and_have_a_series(find):
    def change(root):
        _tree(root, "data/mha/5.mha")
        with (root / "metadata" / "reference.csv").open("a") as file:
            file.write("7,1,0\n")

    root, scan = find(stoic2021, change)
    assert _rows(scan) == [
        ("20", "data/mha/20.mha", "COVID-19"),
        ("3", "data/mha/3.mha", "not COVID-19"),
    ]
    assert scan.left_out() == [
        "series that reference.csv does not name: 1 (the first: data/mha/5.mha)",
        "persons of reference.csv whose series are not there: 1 (the first: 7)",
    ]
    _write(root, "metadata/reference.csv", "PatientID,probCOVID", "3,yes")
    with pytest.raises(InputError, match=r"reference\.csv has probCOVID 'yes' for PatientID '3'"):
        DATASETS["stoic2021"](root)


def test_cov19_ct_db_keeps_the_split_and_says_that_scans_are_no_persons(find):
    _, scan = find(cov19_ct_db, lambda root: _tree(root, "test/ct_scan_0/0.jpg"))
    assert [(row.patient_id, row.split) for row in scan.rows] == [
        ("train_covid_ct_scan_0", "train"),
        ("val_covid_ct_scan_0", "validation"),
        ("train_non-covid_ct_scan_0", "train"),
        ("val_non-covid_ct_scan_0", "validation"),
    ]
    assert "each scan is taken for a person" in scan.notes[0]
    assert scan.left_out() == [
        "folders that are neither training nor validation: 1 (the first: test)"
    ]


def test_sars_cov_2_ct_scan_goes_in_natural_order_and_warns_of_its_persons(find):
    _, scan = find(sars_cov_2_ct_scan)
    assert _rows(scan)[:3] == [
        (f"COVID_Covid ({n})", f"COVID/Covid ({n}).png", "COVID-19") for n in (1, 2, 10)
    ]
    assert "each slice is taken for a person" in scan.notes[0]


def test_own_folders_hold_persons_of_every_kind(find):
    def change(root):
        _tree(root, "ill/p5.mhd", "ill/p5.raw", "ill/p6.raw", "read me.txt", ".git/config")

    _, scan = find(folders, change)
    assert _rows(scan) == [
        ("p1", "ill/p1", "ill"),
        ("p2", "ill/p2.zip", "ill"),
        ("p5", "ill/p5.mhd", "ill"),
        ("p3", "well/p3.nii.gz", "well"),
        ("p4", "well/p4.JPG", "well"),
    ]
    assert scan.left_out() == [
        "files beside the labels' folders: 1 (the first: read me.txt)",
        "files of a kind that holds no CT: 1 (the first: ill/p6.raw)",
    ]


def test_one_name_under_two_labels_is_two_persons_and_twice_under_one_is_refused(find):
    root, scan = find(folders, lambda root: _tree(root, "well/p1/1.dcm"))
    assert [row.patient_id for row in scan.rows] == [
        *("ill_p1", "ill_p2", "well_p1", "well_p3", "well_p4")
    ]
    assert "1 names (the first: p1) are under two labels" in scan.notes[0]
    _tree(root, "ill/p1.zip")
    with pytest.raises(InputError, match=r"p1 and .*p1\.zip would be one person, 'p1'; remove"):
        DATASETS["folders"](root)


# COVID-CT


@pytest.fixture
def covid_ct_of_manifest(tmp_path, shared_data):
    """The real slices in the published layout, and the rows of their manifest by file name."""
    root = tmp_path / "COVID-CT"
    with (shared_data / "covid_ct" / "manifest.csv").open(encoding="utf-8") as file:
        manifest = {Path(row["path"]).name: row for row in csv.DictReader(file)}
    lists = collections.defaultdict(list)
    for name, row in manifest.items():
        half = "COVID" if row["label"] == "covid" else "NonCOVID"
        lists[half, row["split"]].append(name)
        picture = root / "Images-processed" / f"CT_{half}" / name
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.symlink_to(shared_data / "covid_ct" / row["path"])
    for half in ("COVID", "NonCOVID"):
        for split in ("train", "val"):
            _write(root, f"Data-split/{half}/{split}CT_{half}.txt", *lists[half, split])
        _write(root, f"Data-split/{half}/testCT_{half}.txt", "gone.png")
    return root, manifest


def test_covid_ct_has_the_persons_and_the_split_of_its_tables(covid_ct_of_manifest):
    root, manifest = covid_ct_of_manifest
    persons = {name: row["patient_id"] for name, row in manifest.items()}
    _write_xlsx(
        root / "COVID-CT-MetaInfo.xlsx",
        ["File name", "Age", "Patient ID"],
        *(
            # As published: some names lack their suffix, some ids end in a blank.
            [name.removesuffix(".png"), "", f"Patient {patient.rsplit('_', 1)[1]} "]
            for name, patient in persons.items()
            if patient.startswith("covid")
        ),
    )
    _write(
        root,
        "NonCOVID-CT-MetaInfo.csv",
        ",image name,patient id",
        *(
            f"0,{name},{patient.removeprefix('other_')}"
            for name, patient in persons.items()
            if patient.startswith("other")
        ),
    )
    scan = DATASETS["covid_ct"](root)

    assert {Path(row.path).name: row.patient_id for row in scan.rows} == persons
    splits = {"train": "train", "val": "validation"}
    assert all(row.split == splits[manifest[Path(row.path).name]["split"]] for row in scan.rows)
    assert scan.persons("split") == {
        "COVID-19": {"train": 128, "validation": 32},
        "not COVID-19": {"train": 105, "validation": 24},
    }
    assert scan.notes == []
    assert scan.left_out() == [
        "slices of Data-split that are not there: 2 (the first: CT_COVID/gone.png)"
    ]


def test_covid_ct_without_tables_guesses_by_figure_as_well_as_its_docstring_says(
    covid_ct_of_manifest,
):
    root, manifest = covid_ct_of_manifest
    scan = DATASETS["covid_ct"](root)

    guesses = collections.defaultdict(set)
    persons = collections.defaultdict(set)
    for row in scan.rows:
        person = manifest[Path(row.path).name]["patient_id"]
        guesses[person].add(row.patient_id)
        persons[row.patient_id].add(person)
    right = [p for p, ids in guesses.items() if len(ids) == 1 and persons[min(ids)] == {p}]
    torn = [p for p, ids in guesses.items() if len(ids) > 1]
    numbers = (len(guesses), len(right), len(torn))
    sentence = "289 persons .* gets {1} right and tears {2} apart".format(*numbers)
    assert numbers[0] == 289
    assert re.search(sentence, " ".join(inspect.getdoc(DATASETS["covid_ct"]).split()))
    # Whatever a guess joins or tears apart, it keeps within the published split.
    assert len(scan.rows) == len(manifest)
    assert ["COVID-CT-MetaInfo" in note for note in scan.notes] == [True, True]


def test_covid_ct_tells_png_and_jpeg_of_one_number_apart_and_what_no_list_names(find):
    _, scan = find(covid_ct, lambda root: _tree(root, "Images-processed/CT_NonCOVID/7.png"))
    assert [row.patient_id for row in scan.rows] == [
        *("covid_b.png", "covid_b.png", "covid_c.png", "other_59.jpg", "other_59.png")
    ]
    assert scan.left_out() == [
        "slices in no list of Data-split: 1 (the first: Images-processed/CT_NonCOVID/7.png)"
    ]


def test_covid_ct_without_lists_has_no_split_and_bad_lists_are_refused(find, tmp_path):
    root, _ = find(covid_ct)
    _write(root, "Data-split/COVID/testCT_COVID.txt", "c.png")
    with pytest.raises(InputError, match=r"testCT_COVID\.txt names c\.png, .* for validation"):
        DATASETS["covid_ct"](root)
    (root / "Data-split/COVID/testCT_COVID.txt").unlink()
    with pytest.raises(InputError, match=r"testCT_COVID\.txt cannot be read .* copy Data-split"):
        DATASETS["covid_ct"](root)
    (root / "Data-split").rename(tmp_path / "elsewhere")
    scan = DATASETS["covid_ct"](root)
    assert {row.split for row in scan.rows} == {""}
    assert "the published split cannot be kept" in scan.notes[0]


def test_a_person_in_two_splits_is_left_out_and_reported(find):
    def change(root):
        _write(root, "COVID-CT-MetaInfo.csv", "File name,Patient ID", "b%1.png,P 1", "c.png,P 1")

    _, scan = find(covid_ct, change)
    assert "covid_p_1" not in {row.patient_id for row in scan.rows}
    assert scan.left_out() == ["persons with more than one split: 1 (the first: covid_p_1)"]


def test_a_folder_that_has_a_cohort_file_already_is_refused_with_its_name(shared_data):
    with pytest.raises(InputError, match=r"--cohort=.*covid_ct/manifest\.csv"):
        DATASETS["covid_ct"](shared_data / "covid_ct")


# COVIDx-CT

# Names of slices as in the published lists, and the "patient id" of each in metadata.csv.
COVIDX_NAMES = {
    "NCP_96_1328_0035.png": "NCP_96",
    "NCP_9_1_0001.png": "NCP_9",
    "CP_1070_3112_0032.png": "CP_1070",
    "Normal_1751_1079_0004.png": "Normal_1751",
    "137covid_patient1_SR_3_IM00001.png": "patient1",
    "normal3_patient10_SR_2_IM00004.png": "patient10",
    "volume-covid19-A-0237_ct-0123.png": "volume-covid19-A-0237",
    "radiopaedia_10_85902_1-0031.png": "radiopaedia_10_85902",
    "radiopaedia_10_85902_3-0031.png": "radiopaedia_10_85902",
    "radiopaedia-11516-74391-0-0012.png": "radiopaedia-11516",
    "coronacases_001-0100.png": "coronacases_001",
    "LIDC-IDRI-0068-1.3.6.1.4.1.14519.5-0012.png": "LIDC-IDRI-0068",
    "HUST-Patient457-0012.png": "HUST-Patient457",
    "COVIDCTMD-normal022-IM0127.png": "COVIDCTMD-normal022",
    "COVIDCTMD-P001-98C14734-ASSH_10.png": "COVIDCTMD-P001",
    "STOIC-1012-0100.png": "STOIC-1012",
    "A000801-CT-CHEST-2-0012.png": "A000801",
    "study_0255-0012.png": "study_0255",
}


@pytest.mark.parametrize("has_metadata", [True, False])
def test_covidx_ct_knows_the_persons_of_all_its_sources(has_metadata, tmp_path):
    for split in ("train", "val", "test"):
        _write(tmp_path, f"{split}_COVIDx-CT_v2A.txt")
    _write(tmp_path, "train_COVIDx-CT_v2A.txt", *(f"{name} 2 0 0 9 9" for name in COVIDX_NAMES))
    _tree(tmp_path, *(f"2A_images/{name}" for name in COVIDX_NAMES))
    if has_metadata:
        persons = dict.fromkeys(COVIDX_NAMES.values())
        # Numbers that are a part of the names, too.
        _write(tmp_path, "metadata.csv", "Patient ID,finding", *(f"{p}," for p in persons), "1328,")
    scan = DATASETS["covidx_ct"](tmp_path)

    assert {Path(row.path).name: row.patient_id for row in scan.rows} == COVIDX_NAMES
    assert ["no metadata.csv" in note for note in scan.notes] == [True] * (not has_metadata)


def test_covidx_ct_has_a_row_a_slice_with_split_and_source(find):
    _, scan = find(covidx_ct)
    rows = [(row.patient_id, Path(row.path).stem[-4:], row.split, row.site) for row in scan.rows]
    assert rows == [
        ("patient1", "0001", "test", "COVID-CTSet"),
        ("NCP_96", "0035", "train", "CNCB"),
        ("NCP_96", "0036", "train", "CNCB"),
        ("CP_1", "0001", "train", "CNCB"),
        ("Normal_9", "0009", "validation", "CNCB"),
        ("Normal_9", "0010", "validation", "CNCB"),
    ]
    assert list(dict.fromkeys(row.label for row in scan.rows)) == [
        *("COVID-19", "pneumonia", "healthy")
    ]
    assert scan.persons("site")["COVID-19"] == {"COVID-CTSet": 1, "CNCB": 1}


def test_covidx_ct_leaves_out_what_is_not_there_or_in_no_list_or_has_no_known_person(find):
    def change(root):
        (root / "3A_images" / "CP_1_1_0001.png").unlink()
        _tree(root, "3A_images/extra-1.png", "3A_images/nobody.png")
        with (root / "test_COVIDx_CT-3A.txt").open("a") as file:
            # The person is in training, too.
            file.write("nobody.png 0 0 0 9 9\nNCP_96_1328_0036.png 2 0 0 9 9\n\n")

    _, scan = find(covidx_ct, change)
    assert {row.patient_id for row in scan.rows} == {"patient1", "Normal_9"}
    assert scan.left_out() == [
        "slices of the lists that are not there: 1 (the first: CP_1_1_0001.png)",
        "slices whose names tell no person: 1 (the first: nobody.png)",
        "slices in no list: 1 (the first: extra-1.png)",
        "persons with more than one split: 1 (the first: NCP_96)",
    ]
    assert "persons of 1 slices (the first: nobody.png)" in scan.notes[0]


def test_covidx_ct_refuses_two_versions_and_damaged_lists(find):
    root, _ = find(covidx_ct)
    _write(root, "train_COVIDx_CT-2A.txt", "x.png 3")
    with pytest.raises(InputError, match=r"lists train_COVIDx_CT-2A\.txt and train_COVIDx_CT-3A"):
        DATASETS["covidx_ct"](root)
    (root / "train_COVIDx_CT-3A.txt").unlink()
    with pytest.raises(InputError, match=r"train_COVIDx_CT-2A\.txt, line 1: a file and its class"):
        DATASETS["covidx_ct"](root)
    _write(root, "train_COVIDx_CT-2A.txt", "x.png 2")
    for picture in (root / "3A_images").iterdir():
        picture.unlink()
    with pytest.raises(InputError, match=r"looked for slices that train_.* in 2A_images/ or"):
        DATASETS["covidx_ct"](root)


# Tables


def _write_xlsx(path: Path, *lines: list[str]) -> None:
    book = openpyxl.Workbook()
    for line in lines:
        book.active.append([int(text) if text.isdecimal() else text or None for text in line])
    book.save(path)


def test_a_spreadsheet_reads_like_the_same_csv(tmp_path):
    lines = [["File name", "Age", "Patient ID"], ["a.png", "", "Patient 1 "], ["b.png", "7", "P2"]]
    _write_xlsx(tmp_path / "t.xlsx", *lines, [], ["c.png"])
    (tmp_path / "t.csv").write_text(
        "\ufeff" + "\n".join(map(",".join, lines)) + "\n\nc.png\n", encoding="utf-8"
    )
    columns = [("patient id",), ("image name", "file name")]
    expected = [("Patient 1", "a.png"), ("P2", "b.png"), ("", ""), ("", "c.png")]
    assert read_table(tmp_path / "t.xlsx", columns) == expected
    assert read_table(tmp_path / "t.csv", columns) == expected
    assert read_table(tmp_path / "t.csv", columns[:1], [("site",)])[0] == ("Patient 1", "")


def test_a_table_that_is_damaged_or_lacks_a_column_is_reported(tmp_path):
    _write_xlsx(tmp_path / "t.xlsx", ["name"])
    with pytest.raises(InputError, match=r"t\.xlsx has no column 'patient id'"):
        read_table(tmp_path / "t.xlsx", [("patient id",)])
    data = (tmp_path / "t.xlsx").read_bytes()
    for damaged in (b"", data[:-30], b"no zip"):
        (tmp_path / "t.xlsx").write_bytes(damaged)
        with pytest.raises(InputError, match=r"t\.xlsx is no table that can be read"):
            read_table(tmp_path / "t.xlsx", [("name",)])
    (tmp_path / "empty.csv").touch()
    with pytest.raises(InputError, match=r"empty\.csv has no column 'name'"):
        read_table(tmp_path / "empty.csv", [("name",)])
    with pytest.raises(InputError, match=r"gone\.csv cannot be read"):
        read_table(tmp_path / "gone.csv", [("name",)])


# Writing


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.text(
            # All that may stand in a Unix file name, but for numbers like ² and ½.
            st.characters(blacklist_categories=("Cs",), blacklist_characters="/\0"),
            min_size=1,
            max_size=12,
        ),
        min_size=2,
        max_size=5,
        unique=True,
    )
)
def test_any_names_come_back_clean_from_the_cohort_or_are_refused(names):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "root")
        for n, name in enumerate(names):
            _tree(root, f"{'ab'[n % 2]}/p{name}/1.dcm")
        scan = DATASETS["folders"](root)
        out = Path(folder, "cohort.csv")
        if any(name != name.rstrip() or name.splitlines() != [name] for name in names):
            with pytest.raises(
                InputError, match=r"ends in a blank, has a line|control char|differ only"
            ):
                write_cohort(scan, out)
            return
        try:
            write_cohort(scan, out)
        except InputError:
            ids = [clean(f"p{name}") for name in names]
            assert any(map(control_character, ids)) or len({*map(person_key, ids)}) < len(ids)
            assert not out.exists()
            return
        persons = read_cohort(out).persons
        for person in persons:
            for path in person.paths:
                assert (path / "1.dcm").is_file()
                assert clean(path.name) == person.patient_id.removeprefix(f"{person.label}_")
        assert sum(len(person.paths) for person in persons) == len(names)


def test_paths_lead_to_the_data_from_behind_a_link(find, tmp_path):
    _, scan = find(folders)
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "away")
    out = tmp_path / "link" / "cohort.csv"
    write_cohort(scan, out)
    assert "../../root/ill/p1" in out.read_text(encoding="utf-8")
    assert read_cohort(out).persons[0].paths[0].is_dir()


def test_the_same_tree_gives_the_same_bytes(find, tmp_path):
    root, scan = find(covidx_ct)
    write_cohort(scan, tmp_path / "1.csv")
    write_cohort(DATASETS["covidx_ct"](root), tmp_path / "2.csv")
    assert (tmp_path / "1.csv").read_bytes() == (tmp_path / "2.csv").read_bytes()


def test_what_is_there_is_never_overwritten_and_failures_leave_nothing(find, tmp_path):
    _, scan = find(folders)
    (tmp_path / "mine.csv").write_text("mine")
    with pytest.raises(InputError, match=r"mine\.csv exists already"):
        write_cohort(scan, tmp_path / "mine.csv")
    with pytest.raises(InputError, match="cannot be written"):
        write_cohort(scan, tmp_path / "mine.csv" / "cohort.csv")
    with pytest.raises(InputError, match="cannot be written"):
        write_cohort(scan, tmp_path / "new" / ("x" * 300))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.csv", "root"]
    assert (tmp_path / "mine.csv").read_text() == "mine"


def test_a_name_that_is_not_utf_8_and_a_person_with_two_labels_are_refused(tmp_path):
    folders(tmp_path)
    os.mkdir(os.fsencode(tmp_path) + b"/ill/p\xff")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/ill/p\xff"), "1.dcm").touch()
    scan = DATASETS["folders"](tmp_path)
    with pytest.raises(InputError, match=r"xff' ends in a blank, has a line break or is not"):
        write_cohort(scan, tmp_path / "cohort.csv")

    scan = ScanResult(tmp_path)
    scan.add("p1", tmp_path / "ill", "ill")
    scan.add("p1", tmp_path / "well", "well")
    with pytest.raises(InputError, match="a person 'p1' under two labels, ill and well"):
        write_cohort(scan, tmp_path / "cohort.csv")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("p1", "ill", "A"), ("P1", "well", "A")], "the patient_id 'P1' and 'p1'"),
        ([("p1", "ill", "A"), ("p2", "Ill", "A")], "the label 'Ill' and 'ill'"),
        ([("p1", "ill", "A"), ("p2", "well", "a")], "the site 'a' and 'A'"),
        ([("p1", "ill", "A"), ("p\0", "well", "A")], r"the patient_id 'p\\x00', .* a control char"),
        ([("p1", "ill", "A"), ("\u200b", "well", "A")], "the patient_id '', which is empty"),
    ],
)
def test_names_that_prepare_would_refuse_make_no_cohort(rows, message, tmp_path):
    scan = ScanResult(tmp_path)
    for number, (patient_id, label, site) in enumerate(rows):
        scan.add(patient_id, tmp_path / str(number), label, site=site)
    with pytest.raises(InputError, match=message):
        write_cohort(scan, tmp_path / "cohort.csv")
    assert not (tmp_path / "cohort.csv").exists()


def test_names_that_differ_in_case_under_two_labels_are_two_persons(tmp_path):
    for place in ("ill/P1/1.dcm", "well/p1/1.dcm", "well/p2/1.dcm"):
        _tree(tmp_path / "root", place)
    scan = DATASETS["folders"](tmp_path / "root")
    write_cohort(scan, tmp_path / "cohort.csv")
    assert [person.patient_id for person in read_cohort(tmp_path / "cohort.csv").persons] == [
        "ill_P1",
        "well_p1",
        "well_p2",
    ]
    assert "are under two labels" in scan.notes[0]


def test_a_table_with_a_column_twice_is_refused(tmp_path):
    (tmp_path / "table.csv").write_text("id\u00a0,value,Value\n1,2,3\n", encoding="utf-8")
    assert read_table(tmp_path / "table.csv", [("id",)]) == [("1",)]
    with pytest.raises(InputError, match="has the column 'value' twice"):
        read_table(tmp_path / "table.csv", [("id",), ("value",)])
