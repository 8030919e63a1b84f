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
    all_reduce_s,
    compute_s,
    data_s,
    step_parts,
    with_rate,
)
from hrdc_hpc.scaling.observation import Observation, loads, observations
from hrdc_hpc.scaling.prediction import Prediction, predict

__all__ = ["Estimate", "Fitted", "Observation", "Residual", "fit", "observations"]

FAR = 4
"""Predictions beyond so many times the most ranks measured are marked."""
_WALKERS, _STEPS = 60, 120
"""Of the sampler; the first half of the steps does not count."""
_START = {"compute": 0.01, "sweep": 0.1, "data": 0.03, "busy": 0.01, "step": 0.01}
"""Standard deviation of the logarithm of each kind of figure, before any is seen."""
_PSEUDO = 2.0
"""Observations that it counts for."""
_TOLD_LITTLE = 0.7
"""A parameter is not identified if the rows leave more than this share of the spread that it was believed to have."""
_PER_DOUBLING = 0.01
"""Added to the spread for each doubling beyond the most ranks measured: the model's form is not exact."""
_ROUNDS = 3
_STEP = 1e-6
"""Of a logarithm, for a difference."""
_STARTS = (0.1, 0.5, 0.9)
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
        most = max(row.ranks for row in self.rows)
        beyond = max(0.0, math.log2(nodes * ranks_per_node / most))
        spread = math.hypot(self.spread, _PER_DOUBLING * beyond)
        noise = spread * rng.standard_normal(count) * np.sqrt(self.freedom / rng.chisquare(self.freedom, count))
        same = [row for row in self.rows if row.size == (nodes, ranks_per_node, batch_per_rank)]
        known = same if any(row.one_machine for row in self.rows) else []
        return predict(
            self.typical,
            parameters_of(self.beliefs, self.drawn),
            load,
            self.algorithm,
            noise,
            compute_s=_median(row.compute_s for row in known),
            data_s=_median(row.data_s for row in known),
            extrapolated=nodes * ranks_per_node > FAR * most,
        )

    def _load(self, nodes: int, ranks_per_node: int, batch_per_rank: float, network: Network | None) -> Load:
        rates = {row.gbit_per_node for row in self.rows if row.nodes > 1}
        rate = network.gbit_per_node if network else next(iter(rates)) if len(rates) == 1 else None
        if nodes > 1 and rates and (rate is None) != (None in rates):
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
    fitted = [_solve(_Problem(rows, priors, choice)) for choice in choices]
    return min(fitted, key=lambda pair: pair[0])[1]


class _Problem:
    """The logarithms of all figures of the rows, by kind, beside the model's."""

    def __init__(self, rows: Sequence[Observation], beliefs: Beliefs, algorithm: Algorithm) -> None:
        self.rows, self.beliefs, self.algorithm = rows, beliefs, algorithm
        self.names = believed.used(beliefs)
        self.centres = np.log([beliefs[name].centre for name in self.names])
        self.spreads = np.array([beliefs[name].spread for name in self.names])
        self.load = loads(rows)
        self.batch = float(np.median(self.load.batch_per_rank))
        self.folded = [self.names.index(name) for name in ("fixed_s", "image_s")]
        self.compute = _column([row.compute_s for row in rows])
        self.data = _column([row.data_s for row in rows])
        self.busy = _column([row.busy_s for row in rows])
        self.step = _column([row.step_s for row in rows])
        alone = [(row, sent, seconds) for row in rows for sent, seconds in row.all_reduces if row.ranks > 1]
        self.alone_load = loads([row for row, _, _ in alone])
        self.sent = np.array([sent for _, sent, _ in alone], float)
        self.alone = np.array([seconds for _, _, seconds in alone], float)

    def unfold(self, places: Array) -> Array:
        """Return the logarithms of the parameters, [m, k], from where the fit and the sampler move.

        These have compute at the usual batch, and the odds of its fixed part, in the place of fixed and per image: of
        rows of one batch only the first is known. The densities are the same, for the map keeps volumes.
        """
        fixed, image = self.folded
        logs = places.copy()
        both = np.logaddexp(0, places[:, image])  # 1 + odds
        logs[:, fixed] = places[:, fixed] + places[:, image] - both
        logs[:, image] = places[:, fixed] - both - math.log(self.batch)
        return logs

    def fold(self, logs: Array) -> Array:
        """Return the place of these logarithms; both [k]."""
        fixed, image = self.folded
        places, part = logs.copy(), logs[image] + math.log(self.batch)
        places[fixed], places[image] = np.logaddexp(logs[fixed], part), logs[fixed] - part
        return places

    def errors(self, places: Array) -> dict[str, Array]:
        """Return the logarithm of the model's figures over the measured ones by kind, [m, figures]; places [m, k]."""
        logs = self.unfold(places)
        parameters = parameters_of(self.beliefs, logs[:, None, :])
        parts = step_parts(
            parameters, self.load, self.algorithm, measured_compute=self.compute, measured_data=self.data
        )
        law = {
            "compute": (compute_s(parameters, self.load), self.compute),
            "data": (data_s(parameters, self.load), self.data),
            "busy": (parts.compute + parts.straggler + parts.exposed, self.busy),
            "step": (parts.step, self.step),
        }
        found = {kind: _log_ratio(model, measured, len(logs)) for kind, (model, measured) in law.items()}
        alone = all_reduce_s(parameters, self.alone_load, self.sent, self.algorithm)
        found["sweep"] = _log_ratio(alone, self.alone, len(logs))
        found["belief"] = (logs - self.centres) / self.spreads
        return found

    def weighed(self, place: Array, sigmas: dict[str, float]) -> Array:
        """Return all errors in units of their standard deviations, the beliefs' at the end; place [k]."""
        return np.asarray(self.weighed_all(place[None], sigmas)[0])

    def jacobian(self, place: Array, sigmas: dict[str, float]) -> Array:
        """Return their derivatives [figures, k], by differences of all parameters at once."""
        moved = self.weighed_all(np.concatenate([place[None], place - _STEP * np.eye(len(place))]), sigmas)
        return np.asarray((moved[0] - moved[1:]).T / _STEP)

    def weighed_all(self, places: Array, sigmas: dict[str, float]) -> Array:
        """Return the same of many at once, [m, figures]; places [m, k]."""
        errors = self.errors(places)
        kinds = [errors[kind] / sigmas[kind] for kind in _START]
        return np.concatenate([*kinds, errors["belief"]], axis=1)


def _column(values: Sequence[float | None]) -> Array:
    return np.array([np.nan if value is None else value for value in values], float)


def _log_ratio(model: Array, measured: Array, many: int) -> Array:
    known = ~np.isnan(measured)
    model = np.broadcast_to(model, (many, len(measured)))[:, known]
    return np.asarray(np.log(np.maximum(model, 1e-12) / measured[known]))


def _solve(problem: _Problem) -> tuple[float, Fitted]:
    """Return how unlikely the figures are under the fit (the negative logarithm), and the fit."""
    from scipy.optimize import least_squares

    tops = np.array([math.log(believed.TOPS.get(name, 1e12)) for name in problem.names])
    sigmas = dict(_START)
    start = problem.fold(np.minimum(problem.centres, tops - 1e-6))

    def best(begin: Array) -> tuple[float, Array, Array]:
        found = least_squares(
            problem.weighed, begin, problem.jacobian, args=(sigmas,), bounds=(-np.inf, tops), x_scale=problem.spreads,
            max_nfev=100,
        )  # fmt: skip
        return float(found.cost), found.x, found.jac

    def beginnings() -> list[Array]:
        if "overlap" not in problem.names or not (problem.load.ranks > 1).any():
            return [start]
        at = problem.names.index("overlap")
        return [np.where(np.arange(len(start)) == at, math.log(share), start) for share in _STARTS]

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
        drawn=problem.unfold(_draw(problem, place, _inverse(jacobian), sigmas)),
        spread=math.hypot(*(sigmas[kind] for kind in kinds)),
        freedom=min(counts[kind] for kind in kinds),
        residuals=_residuals(problem, logs),
        notes=_notes(problem),
    )


def _draw(problem: _Problem, place: Array, covariance: Array, sigmas: dict[str, float]) -> Array:
    """Return draws of the place given the rows, [draws, k].

    Parameters that only their sum is known of, and the kink where communication begins to show, make the normal
    approximation (J'J)^-1 a bad one: it is where a sampler begins that minds neither, Goodman and Weare's stretch move
    ('Ensemble samplers with affine invariance', 2010).
    """

    def likely(places: Array) -> Array:
        return np.asarray(-0.5 * (problem.weighed_all(places, sigmas) ** 2).sum(axis=1))

    rng = np.random.default_rng(11)
    half = _WALKERS // 2
    groups = [rng.multivariate_normal(place, covariance, half, method="eigh") for _ in range(2)]
    density = [likely(group) for group in groups]
    kept = []
    for step in range(_STEPS):
        for mine, other in ((0, 1), (1, 0)):
            stretch = (rng.random(half) + 1) ** 2 / 2  # density 1 / sqrt(z) between 1/2 and 2
            beside = groups[other][rng.integers(half, size=half)]
            tried = beside + stretch[:, None] * (groups[mine] - beside)
            found = likely(tried)
            better = (len(place) - 1) * np.log(stretch) + found - density[mine]
            taken = np.log(rng.random(half)) < better
            groups[mine] = np.where(taken[:, None], tried, groups[mine])
            density[mine] = np.where(taken, found, density[mine])
        if step >= _STEPS // 2 and step % 10 == 9:
            kept += [group.copy() for group in groups]
    return np.concatenate(kept)


def _inverse(jacobian: Array) -> Array:
    return np.asarray(np.linalg.inv(jacobian.T @ jacobian), np.float64)


def _spreads(
    problem: _Problem, place: Array, jacobian: Array, covariance: Array
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the standard deviation of each kind of figure, and the observations that it rests on.

    Of n figures, the parameters have taken as many as the trace of their part of J C J'.
    """
    found, counts, at = {}, {}, 0
    taken = np.einsum("ij,jk,ik->i", jacobian, covariance, jacobian)
    everything = problem.errors(place[None])
    for kind in _START:
        errors = everything[kind][0]
        free = max(len(errors) - float(taken[at : at + len(errors)].sum()), 0.0)
        at += len(errors)
        square = (_PSEUDO * _START[kind] ** 2 + float(errors @ errors)) / (_PSEUDO + free)
        found[kind], counts[kind] = math.sqrt(square), _PSEUDO + free
    return found, counts


def _residuals(problem: _Problem, logs: Array) -> list[Residual]:
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


def _notes(problem: _Problem) -> list[str]:
    rows = problem.rows
    notes = []
    if any(row.one_machine for row in rows):
        notes.append(
            "nodes are one machine, whose cores they share: a measured size's compute is taken as measured, and that of"
            " other sizes from all of them together"
        )
    if len({row.batch_per_rank for row in rows}) == 1:
        notes.append("all rows have one batch per rank: what another batch costs is a guess")
    if len({row.ranks for row in rows}) < 3:
        notes.append(f"rows of {len({row.ranks for row in rows})} sizes: how the step grows with nodes is half assumed")
    if rows[0].backend != "gloo" and any(row.nodes > 1 for row in rows):
        notes.append(f"{problem.algorithm} all-reduces fit better; NCCL may change between ring and tree with the size")
    return notes
