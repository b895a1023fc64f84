"""The kernels compiled for another processor and run by an emulator, with the methods of `native.Kernels`.

The program is kernel_calls.cpp; what was sent once (weights, networks, pages) stays there and is named by a number.
"""

import shutil
import struct
import subprocess
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from puna.model.kernels.build import FLAGS, SOURCES
from puna.model.kernels.native import INTEGERS, MATRICES, Network, Packed, Pages, Span, packed_group

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
CALLS = Path(__file__).with_name("kernel_calls.cpp")

Part = torch.Tensor | bytes | Iterable[int]


def missing_tool() -> str | None:
    """Name what is not on the PATH."""
    return next((name for name in (COMPILER, EMULATOR) if shutil.which(name) is None), None)


def compile_program(flags: Sequence[str], folder: Path) -> Path:
    """Compile the program with the flags that the library has."""
    program = folder / "kernel_calls"
    own = [flag for flag in FLAGS if flag != "-shared"]
    command = [COMPILER, *own, *flags, "-static", f"-I{SOURCES}", str(CALLS), "-o", str(program)]
    subprocess.run(command, check=True)
    return program


class EmulatedKernels:
    """Speaks to the program, which runs for as long as this object is open."""

    def __init__(self, program: Path, processor: str, num_threads: int = 2):
        command = [EMULATOR, "-cpu", processor, str(program), str(num_threads)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.instructions = self._take().decode()
        # What was sent stays alive, so that no other object gets its address.
        self._sent: dict[str, dict[int, tuple[int, object]]] = {"m": {}, "n": {}, "p": {}}

    def close(self) -> None:
        """End the program."""
        assert self._process.stdin
        self._process.stdin.close()
        assert self._process.wait(60) == 0

    def pack(self, words: torch.Tensor, scales: torch.Tensor, *, bits: int, cols: int) -> Packed:
        """Send a weight; the bytes that it is known by here mean nothing."""
        rows, num_scales = scales.shape
        group = packed_group(cols, cols // num_scales)
        assert group is not None
        packed = Packed(torch.empty(1), bits, rows, cols, group, scales.element_size())
        sizes = (bits, rows, cols, group, scales.element_size(), words.shape[1] * 4, num_scales)
        self._keep("m", packed.memory, sizes, words, scales)
        return packed

    def linear(self, weight: Packed, x_TD: torch.Tensor) -> torch.Tensor:
        """Return float32 x W^T."""
        out = self._call("l", [self._matrix(weight)], x_TD.float())
        return out.view(len(x_TD), weight.rows)

    def attend(self, network: Network, pages: Pages, spans: Sequence[Span], *qkv: torch.Tensor) -> torch.Tensor:
        """Return float32 attention [T, H, E]."""
        return self._call("a", self._network_and_pages(network, pages), *_parts(spans), *qkv).view_as(qkv[0])

    def forward(
        self, network: Network, pages: Pages, tokens: Sequence[int], spans: Sequence[Span], rows: Sequence[int]
    ) -> torch.Tensor:
        """Return float32 hidden_ND."""
        hidden = self._call("f", self._network_and_pages(network, pages), *_parts(spans), tokens, rows)
        return hidden.view(len(rows), network.sizes.dim)

    def logits(self, network: Network, hidden_ND: torch.Tensor) -> torch.Tensor:
        """Return float32 logits_NV."""
        return self.linear(network.head, hidden_ND)

    def _matrix(self, weight: Packed) -> int:
        if id(weight.memory) not in self._sent["m"]:
            assert weight.kind == 0, "packed elsewhere"
            self._keep("m", weight.memory, (0, weight.rows, weight.cols, 0, 0), weight.memory.view(torch.int16), b"")
        return self._sent["m"][id(weight.memory)][0]

    def _network_and_pages(self, network: Network, pages: Pages) -> list[int]:
        if id(network) not in self._sent["n"]:
            layers, embedding, norm, frequencies = network._held
            inside = [getattr(layer, name) for layer in layers for name in MATRICES]
            norms = [norm for layer in layers for norm in (layer.attention_norm, layer.mlp_norm)]
            self._keep(
                "n",
                network,
                [getattr(network.sizes, name) for name in INTEGERS],
                [self._matrix(matrix) for matrix in (embedding, network.head, *inside)],
                *(norm, frequencies, torch.tensor([network.sizes.norm_eps]), *norms),
            )
        if id(pages) not in self._sent["p"]:
            known = pages.struct
            sizes = (known.layer_bytes, known.page_bytes, known.head_bytes, known.head_dim, known.is_int8)
            self._keep("p", pages, array("q", (pages.memory.numel(), *sizes)).tobytes())
        return [self._sent["n"][id(network)][0], self._sent["p"][id(pages)][0]]

    def _keep(self, kind: str, known: object, *parts: Part) -> None:
        self._give(kind.encode(), *parts)
        self._sent[kind][id(known)] = (len(self._sent[kind]), known)

    def _call(self, kind: str, *parts: Part) -> torch.Tensor:
        self._give(kind.encode(), *parts)
        return torch.frombuffer(bytearray(self._take()), dtype=torch.float32)

    def _give(self, *parts: Part) -> None:
        assert self._process.stdin
        for part in parts:
            data = _bytes(part)
            self._process.stdin.write(struct.pack("q", len(data)) + data)
        self._process.stdin.flush()

    def _take(self) -> bytes:
        assert self._process.stdout
        (size,) = struct.unpack("q", self._process.stdout.read(8))
        return self._process.stdout.read(size)


def _parts(spans: Sequence[Span]) -> list[Part]:
    return [
        [number for span in spans for number in (span.start, span.num_tokens)],
        *(span.block_table for span in spans),
    ]


def _bytes(part: Part) -> bytes:
    if isinstance(part, torch.Tensor):
        return part.detach().contiguous().view(torch.uint8).numpy().tobytes()
    return part if isinstance(part, bytes) else array("i", part).tobytes()
