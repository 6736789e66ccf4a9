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

_WORKDIR = flags.DEFINE_string("workdir", None, "the folder of the run")
_INPUT = flags.DEFINE_string("input", None, "the person's CT")
_OUT = flags.DEFINE_string("out", None, "the folder to make")


def main() -> None:
    # Imported here: --help and mistyped flags need not wait for JAX.
    import drenet_jax
    from drenet_jax.evaluation.report import person_report
    from drenet_jax.outputs import new_folder

    cli.use_compilation_cache()
    with new_folder(_OUT.value) as folder:
        found = drenet_jax.load(_WORKDIR.value).explain(_INPUT.value)
        text = json.dumps(found.result, indent=2, allow_nan=False)
        (folder / "result.json").write_text(text + "\n", encoding="utf-8")
        report = person_report(found.result, found.pictures)
        (folder / "report.html").write_text(report, encoding="utf-8")
    person = found.result["person"]
    answer = ", ".join(f"{label} {p:.2f}" for label, p in person["probabilities"].items())
    print(f"{person['label']} ({answer}), from {person['n_slices']} slices")
    print(f"report: {Path(_OUT.value) / 'report.html'}")


if __name__ == "__main__":
    cli.require("workdir", "input", "out")
    cli.run(main, __doc__)
