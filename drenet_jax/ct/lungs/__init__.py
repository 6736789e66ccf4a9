"""Lung segmentation with OpenCV (paper 2.2.1)."""
