"""What the text of a program that XLA has optimised says of it."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

_BYTES = {"pred": 1, "bf16": 2}
# Type, dimensions and layout; a memory space such as S(1) is named in the layout.
_ARRAY = re.compile(r"\b(pred|bf16|[sufc]\d+|f8\w+)\[([\d,]*)\](\{[^}]*\})?")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{\s*$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
# Instructions that move nothing.
_FREE = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all"}
_ASYNCHRONOUS_COPIES = {"copy-start", "slice-start"}
# Instructions that read no more of an operand than they write.
_SLICES = {"slice", "dynamic-slice", "gather"}
_CONVOLUTION_CALL = re.compile(r"cudnn\$conv")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: within its computation.
      shape: of the result, as text.
      opcode: such as "fusion".
      operands: names of the instructions that it reads.
      line: the whole of it.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    line: str


class Program:
    """A module of optimised HLO."""

    def __init__(self, text: str):
        self._computations: dict[str, list[Instruction]] = {}
        self._entry = ""
        current: list[Instruction] = []
        for line in text.splitlines():
            if line and not line[0].isspace():
                head = _COMPUTATION.match(line)
                if head:
                    current = self._computations.setdefault(head[2], [])
                    self._entry = head[2] if head[1] else self._entry
                continue
            result = _INSTRUCTION.match(line)
            if result:
                instruction = _instruction(result[1], result[2], line)
                if instruction is not None:
                    current.append(instruction)

    def traffic_bytes(self) -> int:
        """Bytes that the kernels of the entry computation read from and write to the main memory.

        Each kernel's operands and results are counted once, whatever the caches hold; what lies in
        another memory space (a TPU's on-chip memory), not at all. Of an operand from which a kernel
        only cuts slices, the slices count.
        """
        shapes = {instruction.name: instruction.shape for instruction in self.entry()}
        total = 0
        for instruction in self.entry():
            if not _runs(instruction):
                continue
            if instruction.opcode in _ASYNCHRONOUS_COPIES:
                total += _copied_bytes(instruction, shapes[instruction.operands[0]])
                continue
            read = [_memory_bytes(shapes.get(name, "")) for name in instruction.operands]
            total += sum(map(min, read, self._used_bytes(instruction))) + _memory_bytes(
                instruction.shape
            )
        return total

    def _used_bytes(self, instruction: Instruction) -> list[float]:
        """How much is used of each operand, at the most."""
        if instruction.opcode in _SLICES:
            return [_shape_bytes(instruction.shape)] * len(instruction.operands)
        called = re.search(r"calls=%?([\w.\-]+)", instruction.line)
        if instruction.opcode != "fusion" or not called:
            return [math.inf] * len(instruction.operands)
        body = self._computations[called[1]]
        users = collections.defaultdict(list)
        for inner in body:
            for name in inner.operands:
                users[name].append(inner)

        def used(name: str) -> float:
            sizes = []
            for user in users[name]:
                if user.opcode == "bitcast":
                    sizes.append(used(user.name))
                else:
                    sizes.append(_shape_bytes(user.shape) if user.opcode in _SLICES else math.inf)
            return sum(sizes)

        parameters = {}
        for inner in body:
            if inner.opcode == "parameter":
                number = re.search(r"parameter\((\d+)\)", inner.line)
                parameters[int(number[1])] = inner.name
        return [used(parameters[i]) for i in range(len(instruction.operands))]

    def kernels(self) -> int:
        """Instructions of the entry computation that run."""
        return sum(map(_runs, self.entry()))

    def custom_calls(self) -> collections.Counter[str]:
        """How often each library's function is called."""
        return collections.Counter(
            target[1]
            for instruction in self.all()
            if instruction.opcode == "custom-call"
            and (target := re.search(r'custom_call_target="([^"]*)"', instruction.line))
        )

    def estimated_cycles(self) -> int:
        """The compiler's estimate for the entry computation; a GPU's compiler gives none."""
        return sum(
            int(cycles[1])
            for instruction in self.entry()
            if (cycles := re.search(r'"estimated_cycles":"?(\d+)', instruction.line))
        )

    def all_reduces(self) -> int:
        return sum(
            instruction.opcode in ("all-reduce", "all-reduce-start") for instruction in self.all()
        )

    def convolutions(self) -> collections.Counter[str]:
        """How many convolutions read operands of each type, such as "bf16"; cuDNN's too."""
        counter: collections.Counter[str] = collections.Counter()
        for computation in self._computations.values():
            shapes = {instruction.name: instruction.shape for instruction in computation}
            for instruction in computation:
                is_call = instruction.opcode == "custom-call" and _CONVOLUTION_CALL.search(
                    instruction.line
                )
                if (instruction.opcode == "convolution" or is_call) and instruction.operands:
                    array = _ARRAY.search(shapes.get(instruction.operands[0], ""))
                    counter[array[1] if array else "unknown"] += 1
        return counter

    def entry(self) -> list[Instruction]:
        """The instructions of the entry computation, in the order in which they run."""
        return self._computations[self._entry]

    def all(self) -> Iterator[Instruction]:
        """The instructions of all computations."""
        for computation in self._computations.values():
            yield from computation


def _runs(instruction: Instruction) -> bool:
    return instruction.opcode not in _FREE and not instruction.opcode.endswith("-done")


def _instruction(name: str, rest: str, line: str) -> Instruction | None:
    # `SHAPE OPCODE(OPERANDS), ATTRIBUTES`; the shape of a tuple holds blanks.
    depth = 0
    for i, character in enumerate(rest):
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character == " " and depth == 0:
            opcode = re.match(r"([a-z][\w\-]*)\(", rest[i + 1 :])
            if not opcode:
                return None
            operands = re.findall(r"%([\w.\-]+)", _parenthesised(rest[i + 1 + opcode.end() :]))
            return Instruction(name, rest[:i], opcode[1], tuple(operands), line)
    return None


def _parenthesised(text: str) -> str:
    """`text` up to the parenthesis that closes the one before it."""
    depth = 1
    for i, character in enumerate(text):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth == 0:
            return text[:i]
    return text


def _copied_bytes(instruction: Instruction, source: str) -> int:
    """What a copy between memory spaces moves through the main memory."""
    # The result is (target, source, ...) of a copy and ((source), target, ...) of a slice.
    arrays = list(_ARRAY.finditer(instruction.shape))
    target = arrays[0 if instruction.opcode == "copy-start" else 1]
    sides = _is_in_main_memory(target) + _is_in_main_memory(_ARRAY.search(source))
    return sides * _array_bytes(target)


def _memory_bytes(shape: str) -> int:
    """Of the arrays of a shape that lie in the main memory."""
    return sum(_array_bytes(match) for match in _ARRAY.finditer(shape) if _is_in_main_memory(match))


def _shape_bytes(shape: str) -> int:
    return sum(map(_array_bytes, _ARRAY.finditer(shape)))


def _is_in_main_memory(array: re.Match) -> bool:
    return "S(" not in (array[3] or "")


def _array_bytes(array: re.Match) -> int:
    dtype, dims = array[1], array[2]
    size = _BYTES.get(dtype) or (1 if dtype.startswith("f8") else max(1, int(dtype[1:]) // 8))
    return size * math.prod(int(n) for n in dims.split(",") if n)
