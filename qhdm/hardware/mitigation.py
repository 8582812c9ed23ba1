"""Mitigation of errors: what is measured of known values corrects what is measured of others.

Gate and readout errors leave each measured qubit, to a good approximation,

    measured = slope <Z> + offset         (slope 1 and offset 0 without errors)

`affine` fits both to calibration rows, known inputs of the same circuits. `trex` measures the slope
of readout alone, on empty circuits with twirled readout (van den Berg et al. 2022, eq. 6).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats.qmc import Sobol

from qhdm.errors import HardwareError

#: Fewest calibration rows.
_FEWEST_ROWS = 4
_CONSTANT = "affine needs values that vary with the inputs of a circuit; use trex or none"
#: Smaller slopes count as this one: what such a qubit measures is mostly noise, which a correction
#: multiplies by 1 / slope.
LEAST_SLOPE = 0.1
#: Values that vary less are constant.
_LEAST_SPREAD = 1e-3


@dataclass(frozen=True, eq=False)
class Correction:
    """measured = slope <Z> + offset, for each measured qubit: arrays that broadcast to (R, qubits).

    Attributes:
        slope, offset: without errors 1 and 0.
    """

    slope: np.ndarray
    offset: np.ndarray

    def values(self, measured: np.ndarray) -> np.ndarray:
        """<Z> of measured values (R, qubits)."""
        values: np.ndarray = (measured - self.offset) / self.slope
        return values

    def variances(self, measured: np.ndarray, shots: int) -> np.ndarray:
        """Of these, by shots."""
        variances: np.ndarray = (1 - measured**2).clip(0) / shots / self.slope**2
        return variances


def trex(readout: np.ndarray) -> Correction:
    """Of values measured on empty circuits, (1, qubits).

    Raises:
        HardwareError: a qubit reads at random.
    """
    if np.any(readout <= 0):
        raise HardwareError("readout: a qubit reads at random; use another backend")
    return Correction(readout[0], np.zeros(readout.shape[1]))


def calibration_rows(rows: int) -> int:
    """The number of calibration rows for so many others.

    The mean squared error of K calibration rows beside R others at a fixed number of executions is
    (R + K) (1 + c / K), whose minimum is at K = sqrt(c R); c is between 1 and 2 (docs/hardware.md).
    """
    return max(_FEWEST_ROWS, math.ceil(math.sqrt(rows)))


def calibration_inputs(rows: int, inputs: int) -> np.ndarray:
    """Quasi-random angles (rows, inputs) in [0, 2 pi), the same each time.

    Sobol's sequence, without scrambling, each input shifted by a constant of its own. They do not
    depend on what is sampled, so that no exact value of it enters the correction.

    Raises:
        HardwareError: there are no inputs.
    """
    if not inputs:
        raise HardwareError(f"mitigation: {_CONSTANT}")
    points = Sobol(inputs, scramble=False).random_base2((rows - 1).bit_length())[:rows]
    shifts = np.arange(1, inputs + 1) * (5**0.5 - 1) / 2
    angles: np.ndarray = 2 * np.pi * ((points + shifts) % 1)
    return angles


def check_spread(name: str, exact: np.ndarray) -> None:
    """Raise `HardwareError` unless some exact values (K, n) vary, by which slopes are fitted."""
    if exact.std(axis=0).max(initial=0.0) < _LEAST_SPREAD:
        raise HardwareError(f"mitigation: {name}: {_CONSTANT}")


def affine(measured: np.ndarray, exact: np.ndarray, shots: int) -> Correction:
    """Fit slopes and offsets by least squares, and shrink them towards the mean of all qubits.

    As far as they differ by no more than shots explain (empirical Bayes): few shots, or values that
    hardly vary, give the mean slope instead of a wild one.

    Args:
        measured: at calibration inputs, (K, C, n): C copies of n qubits.
        exact: (K, n).
        shots: of each row.

    Raises:
        HardwareError: the device does not follow the exact values.
    """
    centred = exact - exact.mean(axis=0)
    spread = (centred**2).sum(axis=0)
    noise = (1 - exact**2).mean(axis=0).clip(1e-6) / shots
    with np.errstate(divide="ignore", invalid="ignore"):
        fitted = np.einsum("kn,kcn->cn", centred, measured) / spread
    slope = _shrunk(np.where(spread > 0, fitted, 0.0), spread / noise)
    if slope.mean() < LEAST_SLOPE:
        raise HardwareError("mitigation: the device reads at random; use another backend")
    slope = slope.clip(LEAST_SLOPE)
    offset = _shrunk(measured.mean(axis=0) - slope * exact.mean(axis=0), len(exact) / noise)
    return Correction(slope.ravel(), offset.ravel())


def _shrunk(values: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Estimates (C, n) of 1 / precision (n,) variance each, shrunk towards their mean.

    The variance between qubits is that of DerSimonian and Laird (1986), eq. 8.
    """
    weights = np.broadcast_to(precision, values.shape)
    mean = np.average(values, weights=weights)
    excess = (weights * (values - mean) ** 2).sum() - (values.size - 1)
    scale = weights.sum() - (weights**2).sum() / weights.sum()
    between = max(0.0, excess / scale) if scale > 0 else 0.0
    mean = np.average(values, weights=weights / (1 + between * weights))
    shrunk: np.ndarray = mean + (values - mean) * between * weights / (1 + between * weights)
    return shrunk
