"""What `predict` refuses of --dicomweb, --study and --stow, before it starts."""

from __future__ import annotations

import subprocess
import sys
import types

import pytest
from pacs.nodes import REPOSITORY

from drenet_jax import predict
from drenet_jax.errors import InputError

# Runs `predict` where a package is not installed.
_WITHOUT = """
import runpy, sys
sys.modules[sys.argv.pop(1)] = None
runpy.run_module("drenet_jax.predict", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "give one of --input and --dicomweb"),
        ({"input": "a", "dicomweb": "http://localhost/"}, "give one of --input and --dicomweb"),
        ({"dicomweb": "http://localhost/"}, "--dicomweb and --study go together"),
        ({"input": "a", "study": "1.2"}, "--dicomweb and --study go together"),
        ({"input": "a", "stow": True}, "--stow needs --dicomweb"),
    ],
)
def test_flags_that_do_not_go_together(given, sentence):
    nothing = {"input": "", "dicomweb": "", "study": "", "stow": False}
    with pytest.raises(InputError, match=sentence):
        predict._check_source(types.SimpleNamespace(**nothing | given))


def test_the_extra_is_named_where_it_is_missing(tmp_path):
    flags = ["--workdir=run", f"--out={tmp_path}/out", "--dicomweb=http://localhost/", "--study=1"]
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT, "dicomweb_client", *flags],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (
        2,
        "error: --dicomweb needs dicomweb_client, which is not installed; install the extra: pip "
        "install 'drenet_jax[node]'.\n",
    )
    assert not (tmp_path / "out").exists()
