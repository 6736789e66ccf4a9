"""Images as ONNX nodes: normalised slices, crops, and the context image of the third pass."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx

from drenet_jax.exporting.onnx_graph import Graph
from drenet_jax.models.drenet import DRENet
from drenet_jax.models.model_outputs import IMAGENET_MEAN, IMAGENET_STD

INPUT = "images"


class Images(NamedTuple):
    """[B, S, S] in 0..1, and normalised [B, 3, S, S]."""

    grey: str
    pixels: str


def normalised_images(graph: Graph) -> Images:
    grey = graph.add("Cast", INPUT, to=onnx.TensorProto.FLOAT)
    grey = graph.add("Div", grey, graph.constant(255.0))
    channel = graph.add("Unsqueeze", grey, graph.ints(1))
    return Images(grey, _normalised(graph, channel, graph.constant(_per_channel(IMAGENET_MEAN))))


def _normalised(graph: Graph, grey: str, mean: str) -> str:
    centred = graph.add("Sub", grey, mean)
    return graph.add("Div", centred, graph.constant(_per_channel(IMAGENET_STD)))


def _per_channel(values: np.ndarray) -> np.ndarray:
    return values.reshape(3, 1, 1)


def _edges(graph: Graph, boxes: str) -> list[str]:
    """y0, x0, y1, x1 of boxes [B, K, 4], each [B, K, 1]."""
    axis = graph.ints(2)
    return [graph.add("Slice", boxes, graph.ints(i), graph.ints(i + 1), axis) for i in range(4)]


def crop_boxes(graph: Graph, grey: str, boxes: str, image_size_px: int, crop_size_px: int) -> str:
    """[B K, 3, h, h]: the normalised crops of the boxes, as `crops.crop_slices`."""
    y0, x0, y1, x1 = _edges(graph, boxes)
    of_rows = _sample_weights(graph, y0, y1, crop_size_px, image_size_px)
    of_columns = _sample_weights(graph, x0, x1, crop_size_px, image_size_px)
    of_columns = graph.add("Transpose", of_columns, perm=[0, 1, 3, 2])
    image = graph.add("Unsqueeze", grey, graph.ints(1))
    crops = graph.add("MatMul", graph.add("MatMul", of_rows, image), of_columns)
    # Outside its border a normalised image goes on as zeros, without the mean taken off.
    inside = graph.add(
        "Mul",
        graph.add("ReduceSum", of_rows, graph.ints(3), keepdims=1),
        graph.add("ReduceSum", of_columns, graph.ints(2), keepdims=1),
    )
    channel = graph.ints(2)
    mean = graph.add(
        "Mul",
        graph.add("Unsqueeze", inside, channel),
        graph.constant(_per_channel(IMAGENET_MEAN)),
    )
    crops = _normalised(graph, graph.add("Unsqueeze", crops, channel), mean)
    return graph.reshape(crops, -1, 3, crop_size_px, crop_size_px)


def _sample_weights(graph: Graph, start: str, stop: str, n: int, length: int) -> str:
    """[B, K, n, length]: how much each pixel along an axis counts in each sample.

    As `crops._samples`: whole pixels apart from fractions.
    """
    one = graph.constant(1.0)
    whole = graph.add("Floor", start)
    extent = graph.add("Sub", graph.add("Sub", stop, one), start)
    scale = graph.add("Div", extent, graph.constant(float(max(n - 1, 1))))
    position = graph.add(
        "Add",
        graph.add("Sub", start, whole),
        graph.add("Mul", scale, graph.constant(np.arange(n))),
    )
    low = graph.add("Floor", position)
    share = graph.add("Unsqueeze", graph.add("Sub", position, low), graph.ints(3))
    low = graph.add("Unsqueeze", graph.add("Add", whole, low), graph.ints(3))
    pixels, zero = graph.constant(np.arange(length)), graph.constant(0.0)
    of_low = graph.add("Where", graph.add("Equal", low, pixels), graph.add("Sub", one, share), zero)
    of_high = graph.add(
        "Where", graph.add("Equal", graph.add("Add", low, one), pixels), share, zero
    )
    return graph.add("Add", of_low, of_high)


def context_image(graph: Graph, model: DRENet, images: Images, scores: str, boxes: str) -> str:
    """[B, 3, S, S]: the image of the third pass."""
    size_px, top_k = model.image_size_px, [group.top_k for group in model.groups]
    if model.context == "zoom":
        first = sum(top_k[:-1])
        box = graph.add("Slice", boxes, graph.ints(first), graph.ints(first + 1), graph.ints(1))
        box = graph.add("Clip", box, graph.constant(0.0), graph.constant(float(size_px)))
        return crop_boxes(graph, images.grey, box, size_px, size_px)
    confidences = graph.add("Sigmoid", scores)
    confidences = graph.add("Unsqueeze", confidences, graph.ints(2, 3))
    y0, x0, y1, x1 = _edges(graph, boxes)
    rows = graph.add("Unsqueeze", _between(graph, y0, y1, size_px), graph.ints(3))
    columns = graph.add("Unsqueeze", _between(graph, x0, x1, size_px), graph.ints(2))
    inside = graph.add("And", rows, columns)
    attention = graph.add("Where", inside, confidences, graph.constant(0.0))
    attention = graph.add("ReduceMax", attention, axes=[1], keepdims=1)
    return graph.add("Mul", images.pixels, attention)


def _between(graph: Graph, start: str, stop: str, length: int) -> str:
    """[B, K, length]: which pixels along an axis a box holds."""
    pixels = graph.constant(np.arange(length))
    return graph.add(
        "And",
        graph.add("LessOrEqual", start, pixels),
        graph.add("Less", pixels, stop),
    )
