"""Every command works when installed from a wheel, without a checkout."""

from __future__ import annotations

import importlib
import json
import subprocess
import sysconfig
from pathlib import Path

import pytest
from wheels import PIP, REPOSITORY, build_wheel, environment_variables, make_environment, run

TINY = (
    "--config.model.backbone=resnet18",
    "--config.model.width=4",
    "--config.model.image_size_px=96",
    "--config.model.crop_size_px=32",
    "--config.model.anchor_sizes_px=(24, 40)",
    "--config.model.train_proposals=(2,)",
    "--config.model.top_k=(2,)",
    "--config.model.nms_iou=0.5",
    "--config.model.hidden=(8,)",
    "--config.data.batch_size=8",
    "--config.train.accumulate=1",
    "--config.train.steps=2",
    "--config.evaluation.bootstrap_draws=20",
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Runs `python -m drenet_jax.<name>` of the wheel, in an empty folder; gives both."""
    folder = tmp_path_factory.mktemp("wheel")
    wheel = build_wheel(folder)
    python = make_environment(folder / "venv")
    run([*PIP, f"--python={python}", "install", "--no-deps", "--no-index", wheel])
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    # The dependencies of this environment, without its own `.pth` files, which would bring in the
    # checkout.
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    away = folder / "away"
    away.mkdir()

    def command(name, *flags):
        return subprocess.run(
            [python, "-m", name, *flags],
            cwd=away,
            env=environment_variables(),
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    command.python, command.folder, command.site = python, away, site
    return command


def test_the_wheel_s_configs_are_those_of_the_checkout(installed):
    code = (
        "import importlib, json, pkgutil, drenet_jax.configs as configs\n"
        "names = [module.name for module in pkgutil.iter_modules(configs.__path__)\n"
        "         if module.name != 'augmentation']\n"
        "print(json.dumps([configs.__file__, {name: json.loads(\n"
        "    importlib.import_module('drenet_jax.configs.' + name).get_config().to_json())\n"
        "    for name in names}]))\n"
    )
    done = subprocess.run(
        [installed.python, "-c", code],
        cwd=installed.folder,
        env=environment_variables(),
        capture_output=True,
        text=True,
        check=True,
    )
    place, names = json.loads(done.stdout)
    assert Path(place).is_relative_to(installed.site)
    wanted = {
        path.stem: json.loads(
            importlib.import_module(f"drenet_jax.configs.{path.stem}").get_config().to_json()
        )
        for path in (REPOSITORY / "configs").glob("[a-z]*.py")
        if path.stem != "augmentation"  # presets
    }
    assert names == wanted
    assert len(names) > 9


@pytest.mark.parametrize(
    "flags",
    [
        [],
        pytest.param(["--config=configs/demo.py"], marks=pytest.mark.slow),
        pytest.param(["--config", "configs/demo.py"], marks=pytest.mark.slow),
    ],
)
def test_training_finds_its_config(flags, installed, tmp_path, prepared):
    data = tmp_path / "none"
    message = f"error: {data} is not a folder that prepare wrote"
    done = installed("drenet_jax.train", *flags, f"--config.data.dir={data}", "--workdir=run")
    assert done.returncode == 2
    assert done.stderr.startswith(message), done.stderr
    # The config that was meant: they differ in the size of the input.
    done = installed("drenet_jax.train", *flags, f"--config.data.dir={prepared}", "--workdir=run")
    assert done.returncode == 2
    size = 160 if flags else 448
    assert f"--config.model.image_size_px={size}, but {prepared}" in done.stderr
    assert not list(installed.folder.iterdir())


def test_a_config_of_one_s_own_goes_before(installed):
    folder = installed.folder / "configs"
    folder.mkdir()
    try:
        (folder / "demo.py").write_text("raise ValueError('it is mine')\n")
        done = installed("drenet_jax.train", "--config=configs/demo.py", "--workdir=run")
        assert done.returncode == 2
        assert "it is mine" in done.stderr
        done = installed("drenet_jax.train", "--config=configs/nothing.py", "--workdir=run")
        assert done.returncode == 2
        assert "configs/nothing.py" in done.stderr
    finally:
        (folder / "demo.py").unlink()
        folder.rmdir()


@pytest.mark.slow
def test_the_whole_way_from_a_wheel(installed):
    def succeed(name, *flags):
        done = installed(f"drenet_jax.{name}", *flags)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        return done

    succeed("synthesize", "--out=phantoms", "--persons=12", "--seed=3", "--size=96")
    cohort = "--cohort=phantoms/cohort.csv"
    succeed("prepare", cohort, "--out=data", "--config.image_size_px=96", "--fractions=50,25,25")
    succeed("train", "--config.data.dir=data", "--workdir=run", *TINY)
    succeed("evaluate", "--workdir=run", "--out=test")
    succeed("predict", "--workdir=run", "--input=phantoms/dicom/phantom-0001", "--out=person")
    result = json.loads((installed.folder / "person" / "result.json").read_text())
    assert result["model"]["step"] == 2
    assert result["model"]["name"] == "drenet"
    metrics = json.loads((installed.folder / "test" / "metrics.json").read_text())
    assert metrics["decision"] == result["decision"]
    assert (installed.folder / "person" / "report.html").stat().st_size > 10_000
    for name in ("serve", "crossvalidate", "compare", "convert_weights", "audit", "cohort"):
        assert installed(f"drenet_jax.{name}", "--help").returncode == 0
    # They are in the repository only.
    done = installed("drenet_jax.benchmark", "--help")
    assert done.returncode == 2
    assert "in a checkout of the repository" in done.stderr
