"""DenseNet-121 on the whole image: a rival in the paper's Tables 1 and 2 and Fig. 2.

The same as `resnet50.py` with another network.
"""

import ml_collections

from drenet_jax.configs import resnet50


def get_config(preset: str = "paper") -> ml_collections.ConfigDict:
    config = resnet50.get_config(preset)
    config.model.name = "densenet121"
    return config
