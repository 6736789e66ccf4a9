"""DenseNet-121 on the whole image: a rival in the paper's Tables 1 and 2 and Fig. 2.

The same as `resnet50.py` with another network.
"""

import pathlib
import runpy

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = runpy.run_path(str(pathlib.Path(__file__).with_name("resnet50.py")))["get_config"]()
    config.model.name = "densenet121"
    return config
