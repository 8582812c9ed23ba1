"""The blocks of the U-Net.

Feature maps are (B, C, H, W), conditioning vectors (B, E). Constants (epsilons, tanh GELU) are
those of the published Flax code.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qhdm.reproduction.network.chunks import chunked

GROUP_NORM_EPS = 1e-6
STANDARDIZE_EPS = 1e-5
CHANNEL_NORM_EPS = 1e-5


class WeightStandardizedConv2d(nn.Conv2d):
    """3x3 convolution whose kernels have zero mean and unit variance (Qiao et al. 2019)."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__(dim_in, dim_out, kernel_size=3, padding=1)
        self._frozen: Tensor | None = None

    def freeze(self) -> None:
        """Standardise the kernels once: they must not change until `thaw`."""
        self._frozen = self._kernel().detach()

    def thaw(self) -> None:
        """Undo `freeze`."""
        self._frozen = None

    def forward(self, x: Tensor) -> Tensor:
        kernel = self._kernel() if self._frozen is None else self._frozen
        return F.conv2d(x, kernel, self.bias, padding=1)

    def _kernel(self) -> Tensor:
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), correction=0, keepdim=True)
        return (self.weight - mean) * (variance + STANDARDIZE_EPS).rsqrt()


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of every pixel, with a scale and no bias."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W); without a copy where the channels are contiguous in memory."""
        return self.of_pixels(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def of_pixels(self, x: Tensor) -> Tensor:
        """(..., C)."""
        return F.layer_norm(x, self.scale.shape, self.scale, None, CHANNEL_NORM_EPS)


class ResnetBlock(nn.Module):
    """Two convolutions with GroupNorm and SiLU; the condition scales and shifts (FiLM) the first.

    With hybrid convolutions it is a quantum block: QResNet with two of them (arXiv 2402.16147),
    QuanResNet with only the first (arXiv 2512.20448; its released code replaces both).

    Args:
        dim_in, dim_out: channels.
        emb_dim: E, size of the conditioning vector.
        groups: of GroupNorm.
        conv1, conv2: maps dim_in -> dim_out and dim_out -> dim_out; None is the
            weight-standardised 3x3 convolution.
    """

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        *,
        emb_dim: int,
        groups: int,
        conv1: nn.Module | None = None,
        conv2: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.conv1 = conv1 or WeightStandardizedConv2d(dim_in, dim_out)
        self.norm1 = nn.GroupNorm(groups, dim_out, eps=GROUP_NORM_EPS)
        self.film = nn.Linear(emb_dim, 2 * dim_out)
        self.conv2 = conv2 or WeightStandardizedConv2d(dim_out, dim_out)
        self.norm2 = nn.GroupNorm(groups, dim_out, eps=GROUP_NORM_EPS)
        self.skip = nn.Conv2d(dim_in, dim_out, 1) if dim_in != dim_out else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        scale, shift = self.film(F.silu(emb))[:, :, None, None].chunk(2, dim=1)
        first = self.conv1(x)
        h = F.silu(self.norm1(first) * (1 + scale) + shift)
        h = F.silu(self.norm2(self.second_pass(h, first, x)))
        return h + self.skip(x)

    def second_pass(self, h: Tensor, first: Tensor, x: Tensor) -> Tensor:
        """The second convolution, of h.

        The published code deviates here (`released.py`), by looking at the output of the `first`
        convolution or at the block's input x.
        """
        return self.conv2(h)


class HybridConv2d(nn.Module):
    """Quantum filters on the first channels of a map, a convolution on the others.

    (B, C, H, W) to the same shape: the first 3F channels pass F filters, the others the
    weight-standardised 3x3 convolution; the outputs are concatenated in that order.

    Args:
        dim: C.
        quantum: `qhdm.quantum.layer.QuantumConv2d`, or a baseline in its place.
        quantum_channels: 3F.
    """

    def __init__(self, dim: int, quantum: nn.Module, quantum_channels: int) -> None:
        super().__init__()
        self.quantum_channels = quantum_channels
        classical = dim - quantum_channels
        self.quantum = quantum
        self.conv = WeightStandardizedConv2d(classical, classical) if classical else None

    def forward(self, x: Tensor) -> Tensor:
        return self.with_values(self.filtered(x), x)

    def filtered(self, x: Tensor) -> Tensor:
        """The filters' values on their channels of x, (B, 3F, H, W)."""
        return self.quantum(x[:, : self.quantum_channels])

    def with_values(self, values: Tensor, x: Tensor) -> Tensor:
        """The output for x if the filters gave `values` (B, 3F, H, W)."""
        if self.conv is None:
            return values
        return torch.cat([values, self.conv(x[:, self.quantum_channels :])], dim=1)


class LinearAttention(nn.Module):
    """Pre-normed residual attention of linear cost in the pixels (Shen et al. 2021).

    Softmax of q over features and of k over pixels, so that k^T v is formed first. W_v and W_o are
    multiplied into that small product: neither v nor the result before W_o, which have
    `heads * dim_head` channels, is ever formed.
    """

    def __init__(self, dim: int, *, heads: int, dim_head: int) -> None:
        super().__init__()
        self.heads, self.dim_head = heads, dim_head
        self.norm = ChannelNorm(dim)
        self.to_qkv = nn.Conv2d(dim, 3 * heads * dim_head, 1, bias=False)
        self.to_out = nn.Sequential(nn.Conv2d(heads * dim_head, dim, 1), ChannelNorm(dim))

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        pixels = self.norm.of_pixels(x.permute(0, 2, 3, 1).reshape(B, H * W, C))
        to_qk, to_v = self.to_qkv.weight.flatten(1).split(
            [2 * self.heads * self.dim_head, self.heads * self.dim_head]
        )
        out_conv, out_norm = self.to_out
        assert isinstance(out_conv, nn.Conv2d)
        assert isinstance(out_norm, ChannelNorm)
        assert out_conv.bias is not None
        to_out = out_conv.weight.flatten(1).unflatten(1, (self.heads, self.dim_head))
        mixing = torch.einsum("ohe,hec->hoc", to_out, to_v.unflatten(0, (self.heads, -1)))
        row_bytes = 4 * H * W * self.heads * self.dim_head
        out = chunked(self._attend, row_bytes, pixels, to_qk, mixing)
        out = out_norm.of_pixels(out + out_conv.bias)
        return out.view(B, H, W, C).permute(0, 3, 1, 2) + x

    def _attend(self, pixels: Tensor, to_qk: Tensor, mixing: Tensor) -> Tensor:
        """Attention without the last bias and norm, (B, H W, C).

        Args:
            pixels: (B, H W, C), normed.
            to_qk: (2 heads dim_head, C).
            mixing: W_o W_v of each head, (heads, C, C).
        """
        q, k = (pixels @ to_qk.T).unflatten(2, (2, self.heads, self.dim_head)).unbind(2)
        q, k = q.softmax(dim=-1), k.softmax(dim=1)
        context = (k.flatten(2).mT @ pixels).unflatten(1, (self.heads, self.dim_head))
        context = torch.einsum("hoc,bhdc->bohd", mixing, context).flatten(2)
        return q.flatten(2) @ context.mT * (self.dim_head**-0.5 / pixels.shape[1])


class Attention(nn.Module):
    """Pre-normed residual full attention with cosine similarity (q and k of unit length)."""

    SCALE = 10.0
    #: Of q and k (B, heads, pixels, features): what has unit length.
    UNIT_DIM = -1

    def __init__(self, dim: int, *, heads: int, dim_head: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = ChannelNorm(dim)
        self.to_qkv = nn.Conv2d(dim, 3 * heads * dim_head, 1, bias=False)
        self.to_out = nn.Conv2d(heads * dim_head, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        B, _, H, W = x.shape
        qkv = self.to_qkv(self.norm(x)).reshape(B, 3, self.heads, -1, H * W)
        q, k, v = qkv.mT.unbind(1)  # (B, heads, pixels, features)
        q, k = F.normalize(q, dim=self.UNIT_DIM), F.normalize(k, dim=self.UNIT_DIM)
        out = F.scaled_dot_product_attention(q, k, v, scale=self.SCALE)
        return self.to_out(out.mT.reshape(B, -1, H, W)) + x


class Downsample(nn.Conv2d):
    """Half the resolution, by a strided 4x4 convolution."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__(dim_in, dim_out, kernel_size=4, stride=2, padding=1)


class Upsample(nn.Sequential):
    """Twice the resolution: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__(
            nn.Upsample(scale_factor=2, mode="nearest"),
            nn.Conv2d(dim_in, dim_out, 3, padding=1),
        )


class Condition(nn.Module):
    """Embeds timestep and label as one conditioning vector.

    The sinusoidal embedding of t (Vaswani et al. 2017) and the embedding of the label pass two
    dense layers together. The null label, -1, is the zero vector and needs no parameters.

    Args:
        time_dim: size of the time embedding, even; 0 leaves the timestep out.
        label_dim: size of the label embedding.
        num_classes: labels are 0..num_classes-1, or -1 for none.
        emb_dim: E, size of the result.
    """

    def __init__(self, *, time_dim: int, label_dim: int, num_classes: int, emb_dim: int) -> None:
        super().__init__()
        half = time_dim // 2
        self.frequencies: Tensor
        frequencies = torch.exp(torch.arange(half) * (-math.log(10_000) / max(half - 1, 1)))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.label = nn.Embedding(num_classes, label_dim)
        self.dense1 = nn.Linear(2 * half + label_dim, emb_dim)
        self.dense2 = nn.Linear(emb_dim, emb_dim)

    def forward(self, t: Tensor, label: Tensor) -> Tensor:
        """t (B,) and label (B,), integers, to (B, E)."""
        phase = t[:, None].float() * self.frequencies
        known = (label >= 0)[:, None]
        label_emb = self.label(label.clamp(min=0)) * known
        emb = torch.cat([phase.sin(), phase.cos(), label_emb], dim=1)
        return self.dense2(F.gelu(self.dense1(emb), approximate="tanh"))


def init_like_flax(module: nn.Module) -> None:
    """LeCun-normal kernels, zero biases: Flax's defaults, which the published code uses."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        fan_in = module.weight[0].numel()
        # The variance of a normal cut at two standard deviations is 0.8796^2 of its parameter's.
        std = fan_in**-0.5 / 0.87962566103423978
        nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)
