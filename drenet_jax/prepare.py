"""Turns a cohort of CT series into sharded records that `train` reads.

For each person 15 slices are picked, lungs are found and cropped, and the blank around them is
filled. Persons are split into training, validation and test. The folder --out gets the records
(`ct_slices/`), `split.json`, `dataset.json` (the settings), `excluded.csv` (all that was left out,
and why), `notes.csv` (what is odd about a person's files), `facts.csv` (what the kept slices' files
are like: format, size, spacing, and grey values and texture outside the lungs) and `qc.html`: every
picked slice with its lung outline, flagged persons first (100 persons a page; more are in `qc/`).

Examples:

  python -m drenet_jax.prepare --cohort=phantoms/cohort.csv --out=data/phantoms
  python -m drenet_jax.prepare --cohort=mine.csv --out=data/mine --fractions=70,15,15 --seed=1
  python -m drenet_jax.prepare --cohort=mine.csv --out=data/small --config.image_size_px=224

More than one machine: with --runner the same work is done by Apache Beam (pip install
'drenet_jax[beam]'). The cohort's files and --out must then lie on a file system that all workers
see under the same path; see docs/scaling.md.

  python -m drenet_jax.prepare --cohort=/shared/all.csv --out=/shared/data/all \\
      --runner=FlinkRunner --pipeline_options="--flink_master=host:8081 --parallelism=1000"
"""

from __future__ import annotations

import functools
import itertools
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from absl import flags
from tqdm import tqdm

from drenet_jax import cli
from drenet_jax.configs import audit
from drenet_jax.ct.settings import CtSettings
from drenet_jax.data.cohort_table import SPLITS, read_cohort
from drenet_jax.data.preparation import PreparationSummary, prepare_cohort
from drenet_jax.errors import InputError
from drenet_jax.output_files import new_folder
from drenet_jax.storage import objects, stand_ins

if TYPE_CHECKING:
    from drenet_jax.data.beam import Beam

# Of reasons and of persons; all are in `excluded.csv`.
_MOST_LINES = 20


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
    flags.DEFINE_string(
        "runner",
        "",
        "Apache Beam's runner (DirectRunner, FlinkRunner, SparkRunner, DataflowRunner); if not "
        "given, --workers processes of this machine do the work.",
    )
    flags.DEFINE_string(
        "pipeline_options", "", "With --runner: Beam's own flags, in one pair of quotes."
    )
    cli.define_config("prepare", "the preprocessing")


def main() -> None:
    values = flags.FLAGS
    fractions = _fractions(values.fractions)
    settings = CtSettings.from_dict(values.config.to_dict())
    beam = _beam(values.runner, values.pipeline_options)
    cohort_csv, out = objects.as_path(values.cohort), Path(values.out)
    if beam is not None:
        # Workers elsewhere have another working folder.
        out = out.absolute()
        if not objects.is_remote(cohort_csv):
            cohort_csv = cohort_csv.absolute()
    cohort = read_cohort(cohort_csv, values.labels)
    with new_folder(out) as folder:
        summary = prepare_cohort(
            cohort,
            folder,
            settings=settings,
            seed=values.seed,
            fractions=fractions,
            workers=values.workers,
            progress=_with_bar if beam is None else functools.partial(_without_bar, values.runner),
            beam=beam,
        )
    _print_summary(summary, out)
    _warn_of_facts(summary, {person.patient_id: person.label for person in cohort.persons}, out)


def _beam(runner: str, options: str) -> Beam | None:
    if not runner:
        if options:
            raise InputError(
                f"--pipeline_options={options} are for Beam; name its --runner too, or leave out "
                "the options."
            )
        return None
    try:
        from drenet_jax.data.beam import Beam
    except ModuleNotFoundError as error:
        if error.name != "apache_beam":
            raise
        raise InputError(
            f"--runner={runner} needs Apache Beam; install it with pip install 'drenet_jax[beam]'."
        ) from error
    return Beam(runner, options)


class _Bar(tqdm):
    """A progress bar that counts persons by the minute: one takes about a second."""

    @property
    def format_dict(self) -> dict[str, Any]:
        values = super().format_dict
        a_second = values["rate"] or self.n / max(values["elapsed"], 1e-9)
        return {**values, "speed": f"{60 * a_second:.1f} persons/min"}


def _with_bar(iterable: Iterable[Any], n_persons: int) -> Iterator[Any]:
    yield from _Bar(
        iterable,
        total=n_persons,
        desc="prepare",
        bar_format="{desc} {percentage:3.0f}%|{bar}| {n}/{total} persons, {speed}, "
        "{remaining} left",
    )
    print("writing the records and the QC pages", file=sys.stderr)


def _without_bar(runner: str, iterable: Iterable[Any], n_persons: int) -> Iterator[Any]:
    print(f"{n_persons} persons are prepared on the {runner}", file=sys.stderr)
    yield from iterable
    print(f"the records are written on the {runner}", file=sys.stderr)


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


def _print_summary(summary: PreparationSummary, out: Path) -> None:
    for split in SPLITS:
        print(f"{split}: {len(summary.persons[split])} persons, {summary.n_slices[split]} slices")
    shown = stand_ins.shown(out)
    print(f"left out: {summary.excluded.total()} files and persons, see {shown}/excluded.csv")
    for why, count in summary.excluded.most_common(_MOST_LINES):
        print(f"  {count} × {why}")
    _print_rest(len(summary.excluded), "reasons")
    print(f"notes: {summary.n_notes}, see {shown}/notes.csv")
    if summary.n_pairs_sharing:
        print(
            f"the same pictures under two persons of one split: {summary.n_pairs_sharing} pairs, "
            f"see {shown}/notes.csv"
        )
    if summary.unused_columns:
        print(f"columns of the cohort that are not used: {', '.join(summary.unused_columns)}")
    for patient_id, why in itertools.islice(summary.persons_left_out.items(), _MOST_LINES):
        print(f"  person {patient_id} is in no split: {why}", file=sys.stderr)
    _print_rest(len(summary.persons_left_out), "persons in no split", file=sys.stderr)
    print(f"look at the lungs: {shown}/qc.html")


def _warn_of_facts(summary: PreparationSummary, labels: Mapping[str, str], out: Path) -> None:
    """Warns where files of one label differ from the others, whatever they show."""
    config = audit.get_config()
    members = {person for split in SPLITS for person in summary.persons[split]}
    facts = summary.facts.separating(
        {person: label for person, label in labels.items() if person in members},
        least_auc=config.fact_auc,
        most_p_value=config.fact_p_value,
    )
    if facts:
        listed = ", ".join(f"{fact.fact} ({fact.label}: AUC {fact.auc:.2f})" for fact in facts[:4])
        print(
            f"warning: facts of the files separate the labels without a look at the lungs: {listed}"
            "; a model may learn where the files come from instead of the disease; see "
            f"python -m drenet_jax.audit --data={out}",
            file=sys.stderr,
        )


def _print_rest(count: int, what: str, file: TextIO | None = None) -> None:
    if count > _MOST_LINES:
        print(f"  and {count - _MOST_LINES} more {what}", file=file)


if __name__ == "__main__":
    cli.run(
        main,
        define_flags,
        __doc__,
        required=("cohort", "out"),
        places={"cohort": None, "out": stand_ins.output},
    )
