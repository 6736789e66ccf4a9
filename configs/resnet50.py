"""ResNet50 on the whole image: a rival in the paper's Tables 1 and 2 and Fig. 2.

The same data, training, evaluation and prediction as `drenet.py`, without proposals.
"""

import ml_collections

from drenet_jax.configs import drenet


def get_config(preset: str = "paper") -> ml_collections.ConfigDict:
    config = drenet.get_config(preset)

    config.model = model = ml_collections.ConfigDict()
    model.name = "resnet50"
    # Channels of the first stage (torchvision: 64).
    model.width = 64
    # Height and width of the input, in pixels; must be what `prepare` wrote.
    model.image_size_px = 448
    # Share of features dropped while training (torchvision: none).
    model.dropout = 0.0
    # Type of the convolutions: float32 or bfloat16. Parameters and losses are float32 always.
    model.dtype = "float32"
    # While training: compute each block of the backbone anew in the backward pass rather than keep
    # what is inside. Less memory for more time (docs/performance.md); not for a VGG.
    model.remat = False

    return config
