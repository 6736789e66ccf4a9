"""Packaging of drenet_jax."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (HERE / "drenet_jax" / "version.py").read_text("utf-8"), re.M
).group(1)

# Bounded above where a package changes its interfaces between minor versions. jax 0.11 needs
# Python 3.12. tensorflow-cpu is a quarter of tensorflow's size; it writes and reads TFRecords only.
DEPENDENCIES = [
    "absl-py>=2.1",
    "flax>=0.12,<0.14",
    "importlib_resources",  # tensorflow-datasets imports it without declaring it
    "jax>=0.10,<0.12",
    "jinja2>=3.1",
    "matplotlib>=3.9",
    "ml_collections>=1.0",
    "numpy>=2.0,<2.5",
    "opencv-python-headless>=4.10",  # opencv-python needs libGL, which servers lack
    "optax>=0.2.5",
    "orbax-checkpoint>=0.12,<0.13",
    "pillow>=10",  # which way up EXIF says that a picture is
    "pydicom>=3.0",
    "pylibjpeg>=2.0",
    "pylibjpeg-openjpeg>=2.3",  # high-throughput JPEG 2000, which gdcm lacks
    "python-gdcm>=3.0.24",
    "scikit-learn>=1.6",
    "scipy>=1.14",
    "SimpleITK>=2.4",
    "tensorflow-cpu>=2.20,<2.23; sys_platform == 'linux' and platform_machine == 'x86_64'",
    "tensorflow>=2.20,<2.23; sys_platform != 'linux' or platform_machine != 'x86_64'",
    "tensorflow-datasets>=4.9.8",
    "tqdm>=4.66",
]

EXTRAS = {
    "cuda12": ["jax[cuda12]"],
    "tpu": ["jax[tpu]"],
    "beam": ["apache-beam>=2.70,<3"],
    "serve": [
        "fastapi>=0.115",
        "prometheus-client>=0.21",
        "python-multipart>=0.0.18",
        "uvicorn>=0.32",
    ],
    "pacs": ["highdicom>=0.25,<1"],
    "convert": ["safetensors>=0.4", "torch>=2.6"],
    # torch is the independent oracle of the parity tests.
    "test": [
        "apache-beam>=2.70,<3",
        "fastapi>=0.115",
        "highdicom>=0.25,<1",
        "httpx>=0.28",
        "hypothesis>=6.100",
        "playwright>=1.50",  # drives the Chromium of the system
        "prometheus-client>=0.21",
        "pytest>=8.3",
        "pytest-xdist>=3.6",
        "python-multipart>=0.0.18",
        "safetensors>=0.4",
        "ruff==0.17.6",  # another version may format otherwise
        "scikit-image>=0.25",
        "torch==2.13.0",
        "uvicorn>=0.32",
    ],
}

setup(
    name="drenet_jax",
    version=VERSION,
    description="DRENet in JAX: a person's diagnosis from chest CT, with the slices that show why",
    long_description=(HERE / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=[*find_packages(include=["drenet_jax", "drenet_jax.*"]), "drenet_jax.configs"],
    # They lie beside the package, where users look for them, and come with it into a wheel.
    package_dir={"drenet_jax.configs": "configs"},
    package_data={
        "drenet_jax.data": ["templates/*.j2"],
        "drenet_jax.evaluation": ["templates/*.j2"],
        "drenet_jax.serving": ["static/*", "templates/*.j2"],
    },
    install_requires=DEPENDENCIES,
    extras_require=EXTRAS,
)
