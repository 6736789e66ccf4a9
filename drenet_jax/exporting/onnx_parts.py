"""Cuts an ONNX graph into parts that a runtime can compute in precisions of their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import onnx


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a graph, which is a model by itself.

    Attributes:
      content: the model, serialized.
      inputs, outputs: names of values of the whole graph, in the order of the model's.
    """

    content: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def sources(graph: onnx.GraphProto, output: str) -> set[str]:
    """The names of all nodes that a result comes from."""
    makers = {name: node for node in graph.node for name in node.output}
    found: set[str] = set()
    left = [output]
    while left:
        node = makers.get(left.pop())
        if node is not None and node.name not in found:
            found.add(node.name)
            left += node.input
    return found


def whole(file: Path) -> Part:
    """A model as one part."""
    model = onnx.load(file)
    names = [[value.name for value in values] for values in (model.graph.input, model.graph.output)]
    return Part(model.SerializeToString(), tuple(names[0]), tuple(names[1]))


def split(file: Path) -> tuple[Part, Part, Part]:
    """The parts of a model with boxes, in the order in which they are run.

    Args:
      file: an ONNX file that has the output `boxes`.

    Returns:
      what the boxes come from (the first pass and its proposals); the passes over crops and context
      image; and what follows all convolutions.
    """
    model = onnx.shape_inference.infer_shapes(onnx.load(file))
    graph = model.graph
    of_boxes = sources(graph, "boxes")
    before_convolutions = _before_convolutions(graph)
    nodes: tuple[list[onnx.NodeProto], ...] = ([], [], [])
    for node in graph.node:
        passes = 1 if node.op_type == "Conv" or node.name in before_convolutions else 2
        nodes[0 if node.name in of_boxes else passes].append(node)
    first, passes_, last = (_part(model, own, nodes) for own in nodes)
    return first, passes_, last


def _before_convolutions(graph: onnx.GraphProto) -> set[str]:
    """The names of the nodes whose results reach a convolution."""
    reaching: set[str] = set()  # values
    found = set()
    for node in reversed(graph.node):
        if reaching.intersection(node.output):
            found.add(node.name)
        if node.op_type == "Conv" or node.name in found:
            reaching.update(node.input)
    return found


def _part(
    model: onnx.ModelProto,
    own: Sequence[onnx.NodeProto],
    all_parts: Sequence[Sequence[onnx.NodeProto]],
) -> Part:
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    made = {name for node in own for name in node.output}
    used = {name for node in own for name in node.input}
    used_by_others = {
        name for part in all_parts if part is not own for node in part for name in node.input
    }
    wanted = used_by_others | {value.name for value in graph.output}
    inputs = tuple(
        dict.fromkeys(
            name
            for node in own
            for name in node.input
            if name and name not in made and name not in constants
        )
    )
    outputs = tuple(name for node in own for name in node.output if name in wanted)
    values = {value.name: value for value in (*graph.input, *graph.value_info, *graph.output)}
    part = onnx.helper.make_model(
        onnx.helper.make_graph(
            own,
            graph.name,
            [values[name] for name in inputs],
            [values[name] for name in outputs],
            [tensor for tensor in graph.initializer if tensor.name in used],
        ),
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )
    return Part(part.SerializeToString(), inputs, outputs)
