"""Turns a cohort of CT series into sharded records that `train` reads.

For each person 15 slices are picked, lungs are found and cropped, and the blank around them is
filled. Persons are split into training, validation and test. The folder --out gets the records
(`ct_slices/`), `split.json`, `excluded.csv` (all that was left out, and why), `dataset.json` (the
settings) and `qc.html` (every picked slice with its lung outline).

Examples:

  python -m drenet_jax.prepare --cohort=phantoms/cohort.csv --out=data/phantoms
  python -m drenet_jax.prepare --cohort=mine.csv --out=data/mine --fractions=70,15,15 --seed=1
  python -m drenet_jax.prepare --cohort=mine.csv --out=data/small --config.image_size_px=224
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags
from tqdm import tqdm

from drenet_jax import cli
from drenet_jax.ct.settings import CtSettings
from drenet_jax.data.cohort import SPLITS, read_cohort
from drenet_jax.data.preparation import Account, prepare_cohort
from drenet_jax.errors import InputError
from drenet_jax.outputs import new_folder


def define_flags() -> None:
    flags.DEFINE_string("cohort", None, "The persons: patient_id,path,label[,split][,site].")
    flags.DEFINE_string("out", None, "The folder to make. It must not exist yet.")
    cli.define_workers()
    flags.DEFINE_integer("seed", 0, "Of the split and of the fill.", lower_bound=0)
    flags.DEFINE_list(
        "fractions",
        ["60", "10", "30"],
        "Parts for training, validation and test; a split column in the cohort goes before it.",
    )
    flags.DEFINE_list(
        "labels", [], "Names of the classes, in order; if not given, as they first appear."
    )
    config_flags.DEFINE_config_file(
        "config",
        str(Path(__file__).resolve().parents[1] / "configs" / "prepare.py"),
        "Settings of the image side.",
    )


def main() -> None:
    values = flags.FLAGS
    fractions = _fractions(values.fractions)
    settings = CtSettings.from_dict(values.config.to_dict())
    cohort = read_cohort(values.cohort, values.labels)
    with new_folder(values.out) as folder:
        account = prepare_cohort(
            cohort,
            folder,
            settings=settings,
            seed=values.seed,
            fractions=fractions,
            workers=values.workers,
            progress=lambda summaries, n: tqdm(summaries, total=n, unit="person", desc="prepare"),
        )
    _tell(account, Path(values.out))


def _fractions(texts: list[str]) -> list[float]:
    try:
        fractions = [float(text) for text in texts]
    except ValueError:
        fractions = []
    usable = len(fractions) == len(SPLITS) and all(map(math.isfinite, fractions))
    if not usable or min(fractions) < 0 or fractions[0] == 0:
        raise InputError(
            f"--fractions={','.join(texts)} must be three numbers for training (above 0), "
            "validation and test, as in 60,10,30."
        )
    return fractions


def _tell(account: Account, out: Path) -> None:
    for split in SPLITS:
        print(f"{split}: {len(account.persons[split])} persons, {account.n_slices[split]} slices")
    print(f"left out: {account.n_excluded} files and persons, see {out / 'excluded.csv'}")
    for patient_id, why in account.persons_left_out.items():
        print(f"  person {patient_id} is in no split: {why}", file=sys.stderr)
    print(f"look at the lungs: {out / 'qc.html'}")


if __name__ == "__main__":
    cli.run(main, define_flags, __doc__, required=("cohort", "out"))
