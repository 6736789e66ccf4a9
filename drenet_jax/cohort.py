"""Lists the persons of a public data set, or of your own folders, in a `cohort.csv` for `prepare`.

The data set must be on your disk, unpacked. Nothing in it is changed, and no image is opened.
Columns: patient_id, path (relative to the file), label, and split and site where it has them.

Examples:

  python -m drenet_jax.cohort --dataset=covid_ct_md --root=/data/COVID-CT-MD --out=covid_ct_md.csv
  python -m drenet_jax.cohort --dataset=folders --root=export --out=cohort.csv
"""

from __future__ import annotations

import inspect
import os
import shlex
from pathlib import Path

from absl import flags

from drenet_jax import cli
from drenet_jax.data.public import DATASETS
from drenet_jax.data.public.cohort_file import require_new, write_cohort
from drenet_jax.data.public.scan import ScanResult
from drenet_jax.errors import InputError
from drenet_jax.storage import stand_ins


def define_flags() -> None:
    flags.DEFINE_enum("dataset", None, list(DATASETS), "The data set; see above.")
    flags.DEFINE_string("root", None, "Its folder.")
    flags.DEFINE_string("out", None, "The cohort file to make. It must not exist yet.")


def main() -> None:
    values = flags.FLAGS
    root, out = Path(values.root), Path(values.out)
    if not os.path.isdir(root):
        raise InputError(f"--root={root} is no folder that can be read; check the path.")
    # Before minutes are spent on looking through a large data set.
    require_new(out)
    scan = DATASETS[values.dataset](root)
    write_cohort(scan, out)
    _print_summary(scan, out)


def _print_summary(scan: ScanResult, out: Path) -> None:
    n_persons = len({row.patient_id for row in scan.rows})
    print(f"{out} has {n_persons} persons in {len(scan.rows)} rows:")
    for label, splits in scan.persons("split").items():
        shares = ", ".join(f"{n} {split}" for split, n in splits.items() if split)
        print(f"  {label}: {sum(splits.values())}" + (f" ({shares})" if shares else ""))
    for label, sites in scan.persons("site").items():
        shares = ", ".join(f"{n} {site or 'of an unknown site'}" for site, n in sites.items())
        if any(sites):
            print(f"  {label} by site: {shares}")
    for line in scan.left_out():
        print(f"left out: {line}")
    for note in scan.notes:
        print(f"note: {note}")
    print(f"next: python -m drenet_jax.prepare --cohort={shlex.quote(str(out))} --out=NEW_FOLDER")


def _help() -> str:
    about = (f"{name}\n\n{inspect.getdoc(find)}\n" for name, find in DATASETS.items())
    return "\n\n".join((__doc__, "Data sets:", *about))


if __name__ == "__main__":
    cli.run(
        main,
        define_flags,
        _help(),
        required=("dataset", "root", "out"),
        places={"out": stand_ins.output},
    )
