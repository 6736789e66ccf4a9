"""The backbones by the names that `config.model` gives them."""

from __future__ import annotations

from drenet_jax.models.backbones import densenet, efficientnet_lite, resnet, vgg
from drenet_jax.models.backbones.backbone import Backbone

BACKBONES: dict[str, type[Backbone]] = {
    **dict.fromkeys(resnet.ARCHITECTURES, resnet.ResNet),
    **dict.fromkeys(densenet.ARCHITECTURES, densenet.DenseNet),
    **dict.fromkeys(vgg.ARCHITECTURES, vgg.VGG),
    **dict.fromkeys(efficientnet_lite.ARCHITECTURES, efficientnet_lite.EfficientNetLite),
}
