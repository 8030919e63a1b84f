"""What the fit makes small: the model beside every figure of the rows, and beside what is believed. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from hrdc_hpc.scaling import belief as believed
from hrdc_hpc.scaling.belief import Beliefs, parameters_of
from hrdc_hpc.scaling.model import Algorithm, Array, all_reduce_s, compute_s, data_s, step_parts
from hrdc_hpc.scaling.observation import Observation, loads

START = {"compute": 0.01, "sweep": 0.1, "data": 0.03, "busy": 0.01, "step": 0.01}
"""Standard deviation of the logarithm of each kind of figure, before any is seen."""
PSEUDO = 2.0
"""Observations that it counts for."""
_STEP = 1e-6
"""Of a logarithm, for a difference."""


class Problem:
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
        kinds = [errors[kind] / sigmas[kind] for kind in START]
        return np.concatenate([*kinds, errors["belief"]], axis=1)

    def likely(self, places: Array) -> Array:
        """Return the logarithm of how likely places are, but for a constant; [m].

        Whatever the standard deviation of each kind may be: a scaled inverse chi-squared of PSEUDO observations of
        START is believed of its square, and integrated over.
        """
        errors = self.errors(places)
        found = -0.5 * (errors["belief"] ** 2).sum(axis=1)
        for kind, start in START.items():
            square = PSEUDO * start**2 + (errors[kind] ** 2).sum(axis=1)
            found -= 0.5 * (PSEUDO + errors[kind].shape[1]) * np.log(square)
        return np.asarray(found)


def _column(values: Sequence[float | None]) -> Array:
    return np.array([np.nan if value is None else value for value in values], float)


def _log_ratio(model: Array, measured: Array, many: int) -> Array:
    known = ~np.isnan(measured)
    model = np.broadcast_to(model, (many, len(measured)))[:, known]
    return np.asarray(np.log(np.maximum(model, 1e-12) / measured[known]))
