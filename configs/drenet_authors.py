"""DRENet as the paper's authors published its code (SY575/COVID19-CT).

Beside `drenet.py`: a third level of 192-pixel boxes in a group of its own, three crops of each
group, suppression at 0.1, the best large box zoomed to full size instead of the weighted image, and
a linear classifier.
"""

import ml_collections

from drenet_jax.configs import drenet


def get_config(preset: str = "paper") -> ml_collections.ConfigDict:
    config = drenet.get_config(preset)

    config.model.anchor_strides_px = (32, 64, 128)
    config.model.anchor_sizes_px = (48, 96, 192)
    config.model.anchor_scales = ((1.0,), (1.0,), (1.0,))
    config.model.anchor_aspect_ratios = ((1.0,), (1.0,), (1.0,))
    # The large boxes do not compete with the small ones.
    config.model.anchor_groups = (0, 0, 1)
    # The authors keep boxes with an overlap of 0.1 and less; none overlap by just 0.1.
    config.model.nms_iou = 0.1
    config.model.train_proposals = (3, 3)
    config.model.top_k = (3, 3)
    config.model.context = "zoom"
    # One set for all passes, as in the published weights.
    config.model.batch_statistics = "shared"
    config.model.hidden = ()

    return config
