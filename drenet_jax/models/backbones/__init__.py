"""Backbones: ResNet, DenseNet and VGG."""
