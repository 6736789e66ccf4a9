"""One person's diagnosis by a trained model, with the slices and boxes that speak for it.

--input is a DICOM folder, a folder of PNG/JPEG slices (lung window), or a single slice. The folder
--out gets `result.json` and `report.html`. For research only, not for clinical use.

Examples:

  python -m drenet_jax.predict --workdir=runs/mine --input=exports/person7 --out=person7
"""

from __future__ import annotations

import json
from pathlib import Path

from absl import flags

from drenet_jax import cli


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "The folder of the run.")
    flags.DEFINE_string("input", None, "The person's CT.")
    flags.DEFINE_string("out", None, "The folder to make. It must not exist yet.")


def main() -> None:
    # Imported here: --help and mistyped flags need not wait for JAX.
    import drenet_jax
    from drenet_jax.evaluation.report import person_report
    from drenet_jax.outputs import new_folder

    cli.use_compilation_cache()
    values = flags.FLAGS
    with new_folder(values.out) as folder:
        found = drenet_jax.load(values.workdir).explain(values.input)
        text = json.dumps(found.result, indent=2, allow_nan=False)
        (folder / "result.json").write_text(text + "\n", encoding="utf-8")
        report = person_report(found.result, found.pictures)
        (folder / "report.html").write_text(report, encoding="utf-8")
    person = found.result["person"]
    answer = ", ".join(f"{label} {p:.2f}" for label, p in person["probabilities"].items())
    print(f"{person['label']} ({answer}), from {person['n_slices']} slices")
    print(f"report: {Path(values.out) / 'report.html'}")


if __name__ == "__main__":
    cli.run(main, define_flags, __doc__, required=("workdir", "input", "out"))
