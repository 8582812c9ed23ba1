"""Maps each array of the published Flax tree to a parameter of the network.

The paths follow the network that a configuration builds, at any depth and with filters anywhere.
Flax keeps kernels as (height, width, in, out) and (in, out), torch as (out, in, height, width) and
(out, in).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qhdm.quantum.layer import QuantumConv2d
from qhdm.reproduction.network.blocks import Attention, HybridConv2d
from qhdm.reproduction.network.unet import UNet

#: Names of encoder, vertex and decoder in the published tree, by `model.kind`.
_PARTS = {
    "unet": ("DownUnet", "Vertexclassica", "UpUnet"),
    "qvunet": ("DownUnet1", "Vertexquantum", "UpUnet1"),
    "fullqvunet": ("DownUnet1", "FullQVertexquantum", "UpUnet1"),
    "qcunet": ("QuanDownUnet", "Vertexquantum", "UpUnet1"),
}


@dataclass(frozen=True)
class Slot:
    """The place of one published array.

    Attributes:
        path: its path in the Flax tree.
        tensor: the parameter of the network, or the row of it, that the array fills.
    """

    path: str
    tensor: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape in Flax's layout."""
        return tuple(self._in_flax_layout().shape)

    @torch.no_grad()
    def fill(self, array: np.ndarray) -> None:
        """Copy an array of `shape` into the network."""
        self._in_flax_layout().copy_(torch.from_numpy(np.array(array, dtype=np.float32)))

    def _in_flax_layout(self) -> Tensor:
        if not self.path.endswith("/kernel"):
            return self.tensor
        return self.tensor.permute(2, 3, 1, 0) if self.tensor.ndim == 4 else self.tensor.mT


def slots_of(model: UNet, kind: str) -> list[Slot]:
    """A slot for every parameter of a network of the `model.kind` `kind`."""
    encoder, vertex, decoder = _PARTS[kind]
    return [*_encoder(encoder, model), *_vertex(vertex, model), *_decoder(decoder, model)]


def _encoder(part: str, model: UNet) -> Iterator[Slot]:
    yield Slot(f"{part}/Embed_0/embedding", model.condition.label.weight)
    yield from _affine(f"{part}/time_mlp.dense_0", model.condition.dense1)
    yield from _affine(f"{part}/time_mlp.dense_1", model.condition.dense2)
    yield from _affine(f"{part}/init.conv_0", model.init_conv)
    last = len(model.encoder) - 1
    level: Any
    for i, level in enumerate(model.encoder):
        quantum = isinstance(level.block1.conv1, HybridConv2d)
        name = f"{part}/down_{i}.{'qresblock' if quantum else 'resblock'}"
        yield from _block(f"{name}_0", level.block1)
        yield from _block(f"{name}_1", level.block2)
        yield from _attention(f"{part}/down_{i}.attnblock_0", level.attention)
        yield from _affine(
            f"{part}/down_{i}.{'downsample_0/Conv_0' if i < last else 'conv_0'}", level.down
        )


def _vertex(part: str, model: UNet) -> Iterator[Slot]:
    yield from _block(f"{part}/mid.resblock_0", model.vertex["block1"])
    yield from _attention(f"{part}/mid.attenblock_0", model.vertex["attention"])
    yield from _block(f"{part}/mid.resblock_1", model.vertex["block2"])


def _decoder(part: str, model: UNet) -> Iterator[Slot]:
    level: Any
    # The published tree numbers the decoder by the encoder's level, the coarsest last.
    for i, level in enumerate(reversed(model.decoder)):
        yield from _block(f"{part}/up_{i}.resblock_0", level.block1)
        yield from _block(f"{part}/up_{i}.resblock_1", level.block2)
        yield from _attention(f"{part}/up_{i}.attnblock_0", level.attention)
        if i:
            yield from _affine(f"{part}/up_{i}.upsample_0/Conv_0", level.up[1])
        else:
            yield from _affine(f"{part}/up_0.conv_0", level.up)
    yield from _block(f"{part}/final.resblock_0", model.final_block)
    yield from _affine(f"{part}/final.conv_0", model.final_conv)


def _block(path: str, block: Any) -> Iterator[Slot]:
    for i, conv in enumerate((block.conv1, block.conv2)):
        if isinstance(conv, HybridConv2d):
            assert isinstance(conv.quantum, QuantumConv2d)
            theta = conv.quantum.connector.theta
            # The filters of both convolutions are numbered through.
            for f, weights in enumerate(theta.detach()):
                yield Slot(f"{path}/param{i * len(theta) + f}", weights)
        classical = conv.conv if isinstance(conv, HybridConv2d) else conv
        if classical is not None:
            yield from _affine(f"{path}/conv_{i}", classical)
    for i, norm in enumerate((block.norm1, block.norm2)):
        yield Slot(f"{path}/norm_{i}/scale", norm.weight)
        yield Slot(f"{path}/norm_{i}/bias", norm.bias)
    yield from _affine(f"{path}/time_mlp.dense_0", block.film)
    if not isinstance(block.skip, nn.Identity):
        yield from _affine(f"{path}/res_conv_0", block.skip)


def _attention(path: str, attention: Any) -> Iterator[Slot]:
    yield Slot(f"{path}/LayerNorm_0/scale", attention.norm.scale)
    full = isinstance(attention, Attention)
    inner = f"{path}/{'Attention_0' if full else 'LinearAttention_0'}"
    yield from _affine(f"{inner}/to_qkv.conv_0", attention.to_qkv)
    if full:
        yield from _affine(f"{inner}/to_out.conv_0", attention.to_out)
    else:
        conv, norm = attention.to_out
        yield from _affine(f"{inner}/to_out.conv_0", conv)
        yield Slot(f"{inner}/to_out.norm_0/scale", norm.scale)


def _affine(path: str, layer: Any) -> Iterator[Slot]:
    """A convolution or a dense layer."""
    yield Slot(f"{path}/kernel", layer.weight)
    if layer.bias is not None:
        yield Slot(f"{path}/bias", layer.bias)
