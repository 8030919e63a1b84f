"""Fits the model of scaling/model.py to the rows of a study. Torch-free; scipy is imported when something is fitted.

All that was measured is fitted at once, in logarithms, so that every figure counts by its relative error: compute
(steps without adding up, on resident images), all-reduces by themselves, loading where it is what limits, and steps
with all of it. Beside them stands what is believed beforehand (scaling/belief.py): each parameter's logarithm is
normal around its centre. Where rows say something of a parameter they overrule it; where they say nothing the
parameter stays where it is believed, is told as not identified, and its uncertainty goes into every prediction. The
errors of each kind of figure are estimated along with the fit (a variance with two pseudo-observations, then the fit
anew, three times). What is believed after the rows is drawn by a sampler; ranges are over its draws, the spread of
measured runs around the model, and 1 % for each doubling beyond the most ranks measured.

A measured compute time goes before the model's in the row that it belongs to, so that communication is fitted to what
is left. With nodes that are one machine, where compute depends on how many ranks share its cores, it also does so in
the prediction of a size that was measured.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from hrdc_hpc.config.cluster import Network
from hrdc_hpc.scaling import belief as believed
from hrdc_hpc.scaling.belief import WORDS, Beliefs, parameters_of
from hrdc_hpc.scaling.model import (
    Algorithm,
    Array,
    Load,
    Parameters,
    step_parts,
    with_rate,
)
from hrdc_hpc.scaling.observation import Observation, observations
from hrdc_hpc.scaling.prediction import Prediction, predict
from hrdc_hpc.scaling.problem import PSEUDO, START, Problem
from hrdc_hpc.scaling.sampler import draw

__all__ = ["Estimate", "Fitted", "Observation", "Residual", "fit", "observations"]

FAR = 4
"""Predictions beyond so many times the most ranks measured are marked."""
_TOLD_LITTLE = 0.7
"""A parameter is not identified if the rows leave more than this share of the spread that it was believed to have."""
_PER_DOUBLING = 0.01
"""Added to the spread for each doubling beyond the most ranks measured: the model's form is not exact."""
_ROUNDS = 3
STARTS = (0.1, 0.5, 0.9)
"""Of `overlap`: its effect has a kink, and one start may end on the wrong side."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A parameter after the fit."""

    key: str
    name: str
    """In words."""
    value: float
    unit: str
    error: float | None
    """Standard error, in the unit; None for one that was held."""
    held: str = ""
    """Why the rows do not tell it, and where the value comes from; '': they do."""


@dataclass(frozen=True, kw_only=True)
class Residual:
    """A measured run beside the fit."""

    run: str
    measured_s: float
    fitted_s: float

    @property
    def error(self) -> float:
        """Fitted over measured, less 1: 0.1 is 10 % too slow."""
        return self.fitted_s / self.measured_s - 1


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """The model with the parameters that the rows tell, and how far they can be trusted."""

    rows: Sequence[Observation]
    beliefs: Beliefs
    algorithm: Algorithm
    logs: Array
    """Logarithms of the used parameters [k]."""
    drawn: Array
    """Draws of them from what is believed after the rows, [draws, k]."""
    spread: float
    """Standard deviation of the logarithm of a measured step around the model's."""
    step_spread: float
    """The same where the run's own compute is known."""
    freedom: float
    """Observations that the spread rests on, pseudo ones among them."""
    residuals: Sequence[Residual]
    """Of the rows, in their order."""
    notes: Sequence[str] = field(default=())

    @property
    def typical(self) -> Parameters:
        """The most likely parameters."""
        return parameters_of(self.beliefs, self.logs)

    @property
    def estimates(self) -> list[Estimate]:
        """All parameters, those that play no part left out."""
        names, typical = believed.used(self.beliefs), self.typical
        spreads = self.drawn.std(axis=0)
        found = []
        for number, name in enumerate(names):
            said, unit = WORDS[name]
            value, error = float(getattr(typical, name)), float(spreads[number])
            little = error > _TOLD_LITTLE * self.beliefs[name].spread
            held = f"the rows do not tell it; {self.beliefs[name].source}" if little else ""
            found.append(
                Estimate(
                    key=name, name=said, value=value, unit=unit, error=None if little else value * error, held=held
                )
            )
        return found

    @property
    def not_identified(self) -> dict[str, float]:
        """Parameters that the rows say nothing of, by name, and what they were held at."""
        return {one.key: one.value for one in self.estimates if one.held}

    @property
    def median_error(self) -> float:
        """Median of the residuals' sizes, as a share."""
        return statistics.median(abs(one.error) for one in self.residuals)

    @property
    def worst_error(self) -> float:
        """Largest of them."""
        return max(abs(one.error) for one in self.residuals)

    @property
    def words(self) -> str:
        """Return the model in one line."""
        return (
            "step = max(data, compute + waiting for the slowest rank + exposed communication);"
            f" {self.algorithm} all-reduce"
        )

    def predict(
        self,
        nodes: int,
        ranks_per_node: int,
        batch_per_rank: float,
        network: Network | None = None,
    ) -> Prediction:
        """Return the step of a size, measured or not. `network`: another one than that of the rows, by its rate.

        Raises ValueError for a network where the rows do not tell theirs, or for none where they do.
        """
        load = self._load(nodes, ranks_per_node, batch_per_rank, network)
        rng = np.random.default_rng(7)
        # Student's t: the spread itself is known from few rows
        count = len(self.drawn)
        same = [row for row in self.rows if row.size == (nodes, ranks_per_node, batch_per_rank)]
        known = same if any(row.one_machine for row in self.rows) else []
        most = max(row.ranks for row in self.rows)
        beyond = max(0.0, math.log2(nodes * ranks_per_node / most))
        around = (
            math.hypot(self.step_spread, _apart(self.rows) * math.sqrt(1 + 1 / len(known))) if known else self.spread
        )
        spread = math.hypot(around, _PER_DOUBLING * beyond)
        noise = spread * rng.standard_normal(count) * np.sqrt(self.freedom / rng.chisquare(self.freedom, count))
        return predict(
            self.typical,
            parameters_of(self.beliefs, self.drawn),
            load,
            self.algorithm,
            noise,
            compute_s=_median(row.compute_s for row in known),
            data_s=_median(row.data_s for row in known),
            extrapolated=nodes * ranks_per_node > FAR * most or nodes > 1 >= max(row.nodes for row in self.rows),
        )

    def _load(self, nodes: int, ranks_per_node: int, batch_per_rank: float, network: Network | None) -> Load:
        rates = {row.gbit_per_node for row in self.rows if row.nodes > 1} or {row.gbit_per_node for row in self.rows}
        rate = network.gbit_per_node if network else next(iter(rates)) if len(rates) == 1 else None
        if nodes > 1 and (rate is None) != (None in rates):
            said = "tell their networks' rates: say which one this is over" if network is None else "do not tell theirs"
            raise ValueError(f"predict: the rate of the network is {rate} Gbit/s, but the rows {said} (network=...)")
        widest = max(self.rows, key=lambda row: row.gradient_bytes)
        load = Load(
            nodes=nodes,
            ranks_per_node=ranks_per_node,
            batch_per_rank=batch_per_rank,
            gradient_bytes=widest.gradient_bytes,
            last_bytes=widest.last_bucket_bytes,
            messages=widest.buckets,
        )
        return with_rate(load, rate)


def _apart(rows: Sequence[Observation]) -> float:
    """Standard deviation of the logarithm of the compute of repeats, of all sizes together."""
    by_size: dict[tuple[int, int, float], list[float]] = {}
    for row in rows:
        if row.compute_s:
            by_size.setdefault(row.size, []).append(math.log(row.compute_s))
    away = [value - statistics.fmean(same) for same in by_size.values() for value in same]
    square = PSEUDO * START["compute"] ** 2 + sum(one**2 for one in away)
    return math.sqrt(square / (PSEUDO + len(away) - len(by_size)))


def _median(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return statistics.median(found) if found else None


def fit(rows: Sequence[Observation], beliefs: Beliefs | None = None, algorithm: Algorithm | None = None) -> Fitted:
    """Fit the model; `beliefs`: a cluster profile's (scaling/predict.py), else orders of magnitude.

    `algorithm`: that of all-reduces between nodes; unset: gloo's ring, else ring or tree, whichever leaves less. Raises
    ValueError without rows.
    """
    if not rows:
        raise ValueError("fit: no row has figures; run the study until at least one size is finished")
    priors = dict(beliefs) if beliefs is not None else believed.weak(rows)
    mixed = len({row.gbit_per_node is None for row in rows if row.nodes > 1}) == 2
    if mixed:
        raise ValueError("fit: some rows of several nodes tell their network's rate and some do not; tell it for all")
    several = any(row.nodes > 1 for row in rows)
    choices: tuple[Algorithm, ...] = ("ring", "tree") if several and rows[0].backend != "gloo" else ("ring",)
    if algorithm is not None:
        choices = (algorithm,)
    fitted = [_solve(Problem(rows, priors, choice)) for choice in choices]
    return min(fitted, key=lambda pair: pair[0])[1]


def _solve(problem: Problem) -> tuple[float, Fitted]:
    """Return how unlikely the figures are under the fit (the negative logarithm), and the fit."""
    from scipy.optimize import least_squares

    tops = np.array([math.log(believed.TOPS.get(name, 1e12)) for name in problem.names])
    sigmas = dict(START)
    start = problem.fold(np.minimum(problem.centres, tops - 1e-6))

    def best(begin: Array) -> tuple[float, Array, Array]:
        found = least_squares(
            problem.weighed, begin, problem.jacobian, args=(sigmas,), bounds=(-np.inf, tops), x_scale=problem.spreads,
            max_nfev=100,
        )  # fmt: skip
        return float(found.cost), found.x, found.jac

    def beginnings() -> list[Array]:
        found = [start]
        if "shared_image_s" in problem.names:  # also where it limits all: where it limits none no row pulls at it
            at = problem.names.index("shared_image_s")
            found.append(np.where(np.arange(len(start)) == at, start + math.log(believed.ROOM), start))
        if "overlap" not in problem.names or not (problem.load.ranks > 1).any():
            return found
        at = problem.names.index("overlap")
        return [np.where(np.arange(len(start)) == at, math.log(share), one) for one in found for share in STARTS]

    _, place, jacobian = min((best(begin) for begin in beginnings()), key=lambda found: found[0])
    counts: dict[str, float] = {}
    for _ in range(_ROUNDS):
        sigmas, counts = _spreads(problem, place, jacobian, _inverse(jacobian))
        _, place, jacobian = best(np.minimum(place, tops - 1e-9))
    errors = {kind: found[0] for kind, found in problem.errors(place[None]).items()}
    weighed = problem.weighed(place, sigmas)
    # steps are fitted around the compute of their own run: another run's differs as well
    kinds = ["step", *(["compute"] if len(errors["compute"]) else [])]
    logs = problem.unfold(place[None])[0]
    return 0.5 * float(weighed @ weighed) + sum(len(errors[kind]) * math.log(sigmas[kind]) for kind in sigmas), Fitted(
        rows=problem.rows,
        beliefs=problem.beliefs,
        algorithm=problem.algorithm,
        logs=logs,
        drawn=problem.unfold(draw(problem.likely, place, _inverse(jacobian))),
        spread=math.hypot(*(sigmas[kind] for kind in kinds)),
        step_spread=sigmas["step"],
        freedom=min(counts[kind] for kind in kinds),
        residuals=_residuals(problem, logs),
        notes=_notes(problem),
    )


def _inverse(jacobian: Array) -> Array:
    return np.asarray(np.linalg.inv(jacobian.T @ jacobian), np.float64)


def _spreads(
    problem: Problem, place: Array, jacobian: Array, covariance: Array
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the standard deviation of each kind of figure, and the observations that it rests on.

    Of n figures, the parameters have taken as many as the trace of their part of J C J'.
    """
    found, counts, at = {}, {}, 0
    taken = np.einsum("ij,jk,ik->i", jacobian, covariance, jacobian)
    everything = problem.errors(place[None])
    for kind in START:
        errors = everything[kind][0]
        free = max(len(errors) - float(taken[at : at + len(errors)].sum()), 0.0)
        at += len(errors)
        square = (PSEUDO * START[kind] ** 2 + float(errors @ errors)) / (PSEUDO + free)
        found[kind], counts[kind] = math.sqrt(square), PSEUDO + free
    return found, counts


def _residuals(problem: Problem, logs: Array) -> list[Residual]:
    shared = any(row.one_machine for row in problem.rows)
    parts = step_parts(
        parameters_of(problem.beliefs, logs),
        problem.load,
        problem.algorithm,
        measured_compute=problem.compute if shared else None,
        measured_data=problem.data if shared else None,
    )
    return [
        Residual(run=row.run, measured_s=row.step_s, fitted_s=float(fitted))
        for row, fitted in zip(problem.rows, np.broadcast_to(parts.step, problem.step.shape), strict=True)
    ]


def _notes(problem: Problem) -> list[str]:
    rows = problem.rows
    notes = []
    if any(row.one_machine for row in rows):
        notes.append(
            "nodes are one machine, whose cores they share: a measured size's compute is taken as measured, and that of"
            " other sizes from all of them together"
        )
    if len({row.batch_per_rank for row in rows}) == 1:
        notes.append("all rows have one batch per rank: what another batch costs is a guess")
    if all(row.nodes == 1 for row in rows):
        notes.append("no row has several nodes: what lies between nodes is assumed, not measured")
    if len({row.ranks for row in rows}) < 3:
        notes.append(f"rows of {len({row.ranks for row in rows})} sizes: how the step grows with nodes is half assumed")
    if rows[0].backend != "gloo" and any(row.nodes > 1 for row in rows):
        notes.append(f"{problem.algorithm} all-reduces fit better; NCCL may change between ring and tree with the size")
    return notes
