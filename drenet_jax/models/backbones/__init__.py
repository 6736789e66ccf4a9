"""Backbones: ResNet, DenseNet, VGG and EfficientNet-Lite."""
