"""The quanvolution: filters that tile a feature map."""

from __future__ import annotations

from torch import Tensor, nn

from qhdm.errors import CircuitError
from qhdm.quantum.connector import FilterConnector
from qhdm.quantum.engines import Engine, make_engine
from qhdm.quantum.files.load import find_filter
from qhdm.quantum.filter import Filter
from qhdm.quantum.options import PATCH_CHANNELS, PATCH_SIZE, EngineOptions

#: Values of a patch, one per qubit.
PATCH_VALUES = PATCH_SIZE**2 * PATCH_CHANNELS


def patch_means(x: Tensor) -> Tensor:
    """Means over the patches of a map, of each pixel of a patch: (B, C, H, W) to (B, C, 2, 2)."""
    B, C, H, W = x.shape
    k = PATCH_SIZE
    return x.reshape(B, C, H // k, k, W // k, k).mean(dim=(2, 4))


def over_patches(values: Tensor, like: Tensor) -> Tensor:
    """Values (C, 2, 2) of the pixels of a patch over a map (B, C, H, W): (C, H, W)."""
    return values.tile(like.shape[2] // PATCH_SIZE, like.shape[3] // PATCH_SIZE)


class PatchTiling(nn.Module):
    """F maps of small patches, side by side on a feature map (B, 3F, H, W) to the same shape.

    Map f reads channels 3f..3f+2. Patches of 2x2 pixels tile the map with stride 2; value (h, w, c)
    of a patch is number 3(2h + w) + c of the twelve, and the same number of the result takes its
    place (quanvolution: Henderson et al. 2020).

    Args:
        connector: (F, patches, 12) to the same shape.
        count: F.
    """

    def __init__(self, connector: nn.Module, *, count: int) -> None:
        super().__init__()
        self.count = count
        self.connector = connector

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3F, H, W) with even H and W to the same shape.

        Raises:
            CircuitError: another shape.
        """
        F, k, c = self.count, PATCH_SIZE, PATCH_CHANNELS
        if x.dim() != 4 or x.shape[1] != F * c or x.shape[2] % k or x.shape[3] % k:
            raise CircuitError(
                f"a layer of {F} filters takes (B, {F * c}, H, W) with even H and W; got "
                f"{tuple(x.shape)}"
            )
        B, _, H, W = x.shape
        h, w = H // k, W // k
        # Pixels of a patch are contiguous, channels last: row-major (h, w, c) within the patch.
        patches = x.reshape(B, F, c, h, k, w, k).permute(1, 0, 3, 5, 4, 6, 2)
        values = self.connector(patches.reshape(F, B * h * w, PATCH_VALUES))
        values = values.reshape(F, B, h, w, k, k, c).permute(1, 0, 6, 2, 4, 3, 5)
        return values.reshape(B, F * c, H, W)


class QuantumConv2d(PatchTiling):
    """A quanvolution: quantum filters side by side on a feature map (B, C, H, W), H and W even.

    Each filter reads three channels in patches of 2x2 pixels. Value (h, w, c) of a patch is the
    angle (radians) of the RX on qubit 3(2h + w) + c, and <Z> of that qubit, in [-1, 1], takes its
    place (arXiv 2512.20448). The weights are trained like those of any module.

    Args:
        channels: C, a multiple of 3; C / 3 filters of one circuit, each with its own weights.
        ansatz: a built-in family, the path of a circuit file, the name of a shipped one, or a
            `Filter` of 12 inputs and 12 observables.
        layers: ansatz layers of a family; 3 by default.
        engine: evaluates the circuits.

    Raises:
        CircuitError: the channels, or the filter's inputs or outputs, do not fit the patch.

    Example:
        >>> layer = qhdm.QuantumConv2d(channels=12, ansatz="fqconv")
        >>> layer(torch.rand(2, 12, 8, 8)).shape
        torch.Size([2, 12, 8, 8])
    """

    connector: FilterConnector

    def __init__(
        self,
        channels: int,
        ansatz: str | Filter = "hqconv",
        *,
        layers: int | None = None,
        engine: Engine | EngineOptions | str = "exact",
    ) -> None:
        if channels < 1 or channels % PATCH_CHANNELS:
            raise CircuitError(
                f"channels: {channels} is no multiple of {PATCH_CHANNELS}, the channels of a patch"
            )
        if isinstance(ansatz, str):
            ansatz = find_filter(ansatz, layers=layers)
        check_patch(ansatz)
        count = channels // PATCH_CHANNELS
        connector = FilterConnector(ansatz, count=count, engine=make_engine(engine))
        super().__init__(connector, count=count)

    def circuits(self, height: int, width: int) -> int:
        """Circuits evaluated per image on a map of that size."""
        return self.count * (height // PATCH_SIZE) * (width // PATCH_SIZE)


def check_patch(circuit_filter: Filter) -> None:
    """Raise `CircuitError` unless the filter's inputs and outputs fit a patch."""
    inputs, outputs = len(circuit_filter.inputs), len(circuit_filter.observables)
    if (inputs, outputs) != (PATCH_VALUES, PATCH_VALUES):
        raise CircuitError(
            f"{circuit_filter.name}: a 2x2x3 patch needs {PATCH_VALUES} inputs and {PATCH_VALUES} "
            f"observables, the filter has {inputs} and {outputs}"
        )
