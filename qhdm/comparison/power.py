"""What a comparison can find: effects of known size, planted in its trained networks.

A planted network is a copy of a trained one, damaged until the held-out loss has risen by a known
share. It shares its weights with the original, so the two differ by the effect alone, which two
seeds would show. Variants at equal seeds share batches, noise and classical weights at the start,
but not what training makes of them: the spread of their differences over seeds limits a comparison.
So effects are added to such differences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import brentq

from qhdm import console, data
from qhdm.comparison.cells import Cell
from qhdm.comparison.results import PRIMARY
from qhdm.comparison.statistics import ALPHA, Losses, Spread, t_power, t_test
from qhdm.device import resolve_device
from qhdm.errors import ComparisonError
from qhdm.metrics.denoising import denoising_losses, held_out, loss_name
from qhdm.models import DiffusionNetwork
from qhdm.models.hybrid import HybridActivation
from qhdm.run import Run
from qhdm.seeds import Stream, derive_seed
from qhdm.tables import Table, interval, number, signed

#: Rises of the loss to plant, as shares of it.
EFFECTS = (0.005, 0.01, 0.02, 0.05)
#: Comparisons are to find this rise in so many of their repetitions, and to flag so few nulls.
WANTED, FOUND, FLAGGED = 0.02, 0.9, 0.1
#: Strengths of which the one for a rise is interpolated, from losses of so many images.
_STRENGTHS = np.geomspace(1 / 256, 1, 9)
_CALIBRATION = 200
#: Numbers of seeds for the normal model.
_MORE = (5, 8, 10, 15, 20)


@torch.no_grad()
def damp_filters(network: DiffusionNetwork, strength: float, seed: int) -> None:
    """Scale the values of filters, or of baselines in their place, by 1 - strength."""
    for module in network.modules():
        if isinstance(module, HybridActivation):
            module.quantum_scale *= 1 - strength


@torch.no_grad()
def add_weight_noise(network: DiffusionNetwork, strength: float, seed: int) -> None:
    """Add normal noise to every weight, in units of the root mean square of its tensor."""
    random = torch.Generator().manual_seed(derive_seed(seed, Stream.MEASURE))
    for weight in network.parameters():
        noise = torch.randn(weight.shape, generator=random).to(weight)
        weight.add_(noise * weight.square().mean().sqrt(), alpha=strength)


PLANTS: Mapping[str, Callable[[DiffusionNetwork, float, int], None]] = {
    "filters damped": damp_filters,
    "noise on weights": add_weight_noise,
}


@dataclass(frozen=True)
class Planted:
    """An effect planted in the network of every seed.

    Attributes:
        asked: the rise of the loss that was aimed at; None for the most that could be had.
        rises: those of each seed, as shares of the mean loss.
    """

    name: str
    asked: float | None
    rises: Losses


def measure_power(cells: Sequence[Cell], only: Sequence[str], *, progress: bool = True) -> str:
    """Plant effects in the trained cells of a variant; returns what is found, in Markdown.

    The variant is the one of `only`, or else the first that has filters.

    Raises:
        ComparisonError: `only` names several, or fewer than two of its cells have a loss.
    """
    if len(only) > 1:
        raise ComparisonError(f"--power: takes one variant, not {', '.join(only)}")
    hybrid = [cell.variant for cell in cells if cell.config.model.kind != "unet"]
    variant = [*only, *hybrid, cells[0].variant][0]
    label, losses = _evaluated(cells, variant)
    spread = Spread.of(variant, losses)
    own = [cell for cell in cells if cell.variant == variant and cell.seed in spread.losses]
    planted = list(_planted(own, progress=progress))
    title = f"# Power: effects planted in {variant}, {len(own)} seeds\n\n{label}. "
    # Variants with another loss are not tested.
    name = loss_name(own[0].config)
    tests = len({cell.variant for cell in cells if loss_name(cell.config) == name}) - 1
    return title + describe_power(spread, planted, tests=tests)


def _evaluated(cells: Sequence[Cell], variant: str) -> tuple[str, dict[str, dict[int, float]]]:
    """The label of the primary endpoint, and its values by variant and seed."""
    losses: dict[str, dict[str, dict[int, float]]] = {}
    for cell in cells:
        judged = cell.evaluation(cell.main)
        for metric in judged.evaluation.metrics if judged else ():
            if metric.name == PRIMARY:
                by_variant = losses.setdefault(metric.label, {})
                by_variant.setdefault(cell.variant, {})[cell.seed] = metric.value
    for label, by_variant in losses.items():
        if len(by_variant.get(variant, ())) > 1:
            return label, by_variant
    raise ComparisonError(
        f"--power: takes cells of two seeds of {variant}, trained and evaluated with the metric "
        "`loss`; compare first"
    )


def _planted(cells: Sequence[Cell], *, progress: bool) -> Iterator[Planted]:
    """Every rise by every plant, as far as it reaches."""
    main, config = cells[0].main, cells[0].config
    device = resolve_device(main.device, key="evaluate.device")
    test = held_out(data.load(config.data, progress=progress).split("test"), main.num)
    few = held_out(test, _CALIBRATION)
    runs = {cell.seed: Run.open(cell.path, device=str(device)) for cell in cells}

    def losses(images: data.Dataset, plant: str | None = None, strength: float = 0) -> np.ndarray:
        means = []
        for seed, run in runs.items():
            network = run.with_engine(main.engine_of(config.quantum), weights=main.weights)
            if plant is not None:
                PLANTS[plant](network, strength, seed)
            args = network, run.preconditioning, images.images, images.labels
            means.append(denoising_losses(*args).mean())
        return np.array(means)

    before, before_few = losses(test), losses(few).mean()

    def rises(plant: str, strength: float) -> np.ndarray:
        return (losses(test, plant, strength) - before) / before.mean()

    for plant in PLANTS:
        if progress:
            console.message(f"planting: {plant}")
        curve = [losses(few, plant, s).mean() / before_few - 1 for s in _STRENGTHS]
        if max(curve) <= 0:  # the network has no filters
            continue
        # Near a minimum of the loss, its rise is quadratic in the strength.
        roots = np.sqrt(np.maximum.accumulate(np.maximum(curve, 0)))
        for effect in EFFECTS:
            strength = float(np.interp(math.sqrt(effect), [0, *roots], [0, *_STRENGTHS]))
            reached = effect <= max(curve)
            if reached:  # corrected by all images
                missed = effect / max(float(rises(plant, strength).mean()), effect / 4)
                strength = min(1.0, strength * math.sqrt(missed))
            by_seed = dict(zip(runs, rises(plant, strength).tolist(), strict=True))
            name = f"{plant} by {number(100 * strength)} %"
            yield Planted(name, effect if reached else None, by_seed)
            if not reached:
                break


def describe_power(spread: Spread, planted: Sequence[Planted], *, tests: int) -> str:
    """The report in Markdown; `tests` variants are compared with the baseline."""
    other = f"{number(100 * spread.other_seeds)} % between seeds of the variant"
    equal = spread.equal_seeds
    if equal is not None:
        other = f"{number(100 * equal)} % between variants at equal seeds, {other}"
    text = [f"Standard deviation of the difference of two trainings: {other}."]
    sigma = spread.other_seeds if equal is None else equal
    for count in dict.fromkeys((1, max(1, tests))):
        alpha = ALPHA / count
        step = f" (the first step of Holm's method for {count} variants)" if count > 1 else ""
        least = [f"{number(100 * sigma * _detectable(n, alpha))} % with n = {n}" for n in (5, 10)]
        text += [
            f"## Share of comparisons that find p < {alpha:.2g}{step}",
            _table(spread, planted, sigma, alpha).markdown(),
            f"Found in {FOUND:.0%} of comparisons, by the normal model: {', '.join(least)}.",
        ]
    text.append(
        "n is the number of seeds. Shares are of all choices of n trained seeds and two variants: "
        "differences at equal seeds, less their mean and with both signs, plus the rises. Those "
        "with * are of normally distributed differences of the same spread."
    )
    return "\n\n".join([*text, _verdict(spread, planted)]) + "\n"


def _detectable(n: int, alpha: float) -> float:
    """The effect found in `FOUND` of comparisons, in standard deviations."""
    return float(brentq(lambda effect: t_power(effect, n, alpha) - FOUND, 0, 1000))


def _table(spread: Spread, planted: Sequence[Planted], sigma: float, alpha: float) -> Table:
    paired, repaired = list(spread.paired()), list(spread.repaired())
    designs = paired or repaired
    more = [n for n in _MORE if n > len(designs) + 1]
    rows = []
    for name, nulls in (("variants at equal seeds", paired), ("seeds of the variant", repaired)):
        shares = [f"{one.flagged(alpha):.2f}" for one in nulls[: len(designs)]]
        blank = [""] * (len(designs) - len(shares))
        if nulls:
            rows.append([f"nothing, {name}", "", *shares, *blank, *[f"{alpha:.2f}"] * len(more)])
    for item in planted:
        values = np.array(list(item.rises.values()))
        rise = t_test((100 * values).tolist())
        effect = float(values.mean()) / math.hypot(sigma, values.std(ddof=1))
        shares = [f"{one.found(item.rises, alpha):.2f}" for one in designs]
        shares += [f"{t_power(effect, n, alpha):.2f}" for n in more]
        size = f"{signed(rise.mean)} {interval(rise.low, rise.high)}"
        rows.append([item.name, size, *shares])
    numbers = [*(f"n = {n + 2}" for n in range(len(designs))), *(f"n = {n} *" for n in more)]
    return Table(["planted", "rise of the loss, %", *numbers], rows)


def _verdict(spread: Spread, planted: Sequence[Planted]) -> str:
    """Whether the largest design of trained seeds does what is wanted."""
    designs = list(spread.paired()) or list(spread.repaired())
    if not designs:
        return "No check: too few cells are trained."
    found = {p.name: designs[-1].found(p.rises, ALPHA) for p in planted if p.asked == WANTED}
    flagged = designs[-1].flagged(ALPHA)
    passes = bool(found) and min(found.values()) >= FOUND and flagged <= FLAGGED
    shares = ", ".join(f"{share:.2f} ({name})" for name, share in found.items())
    return (
        f"Check, n = {len(designs) + 1}, p < {ALPHA}: a rise of {WANTED:.0%} is found in "
        f"{shares or 'no plant'} (at least {FOUND} wanted), nothing in {flagged:.2f} (at most "
        f"{FLAGGED}): {'passed' if passes else 'failed'}."
    )
