"""NTS-Net (Yang et al., ECCV 2018), from which DRENet descends: a rival in the same harness.

Three levels with 6, 6 and 9 anchors a cell (1614 in all), 4 of 6 crops into the prediction, no
context image, a linear classifier.
"""

import ml_collections

from drenet_jax.configs import drenet


def get_config(preset: str = "paper") -> ml_collections.ConfigDict:
    config = drenet.get_config(preset)

    config.model.anchor_strides_px = (32, 64, 128)
    config.model.anchor_sizes_px = (48, 96, 192)
    two, three = (2 ** (1 / 3), 2 ** (2 / 3)), (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
    config.model.anchor_scales = (two, two, three)
    config.model.anchor_aspect_ratios = ((0.667, 1.0, 1.5),) * 3
    config.model.anchor_groups = (0, 0, 0)
    config.model.nms_iou = 0.25
    config.model.train_proposals = (6,)
    config.model.top_k = (4,)
    config.model.context = "none"
    # One set for all passes, as in the published weights; a rival that is trained anew deserves
    # "per_pass", as DRENet has it.
    config.model.batch_statistics = "shared"
    config.model.hidden = ()

    return config
