"""The model of scaling/fit.py and scaling/predict.py in the plain values of a report. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.scaling.fit import Fitted
from hrdc_hpc.scaling.predict import OnPaper, fit_rows
from hrdc_hpc.scaling.prediction import Prediction, efficiency
from hrdc_hpc.scaling.rows import Mode, Row, Size, of_size
from hrdc_hpc.scaling.view import Fit, Parameter, Predicted, Residual, order

_FURTHER = (2, 4)
"""Times the most nodes that were measured, which are predicted where nobody says which."""


def model(
    config: RunConfig, rows: Sequence[Row], nodes: Sequence[int] | None
) -> tuple[Fit | None, list[Predicted], list[str]]:
    """Fit the model to a study; the fit, what it expects of all sizes and of `nodes`, and why it could not be fitted.

    `nodes`: as for `further`.
    """
    if not any(row.found for row in rows):
        return None, [], []  # the report says by itself that there are no figures
    try:
        fitted = fit_rows(config, rows)
        sizes = [*dict.fromkeys(row.size for row in rows), *further(rows, nodes)]
        return _fit(fitted, rows), _all({size: _of(fitted, size) for size in sizes}, rows), []
    except ImportError as error:
        return None, [], [f"No model was fitted: {error} (pip install 'hrdc-hpc[report]')."]
    except ValueError as error:
        return None, [], [f"No model was fitted: {error}"]


def further(rows: Sequence[Row], nodes: Sequence[int] | None) -> list[Size]:
    """Return sizes that were not measured, of each mode.

    Args:
        rows: of the study; ranks per node, and images per rank or step, are those of its largest sizes with figures.
        nodes: numbers of nodes; None: twice and four times the most that were measured, within a node none.
    """
    found = []
    modes: list[Mode] = ["weak", "strong"]
    for mode in modes:
        there = [row.size for row in rows if row.size.mode == mode and row.found]
        if not there:
            continue
        last = max(there, key=lambda size: (size.nodes, size.ranks))
        wanted = nodes if nodes is not None else [n * last.nodes for n in _FURTHER if last.nodes > 1]
        for number in wanted:
            ranks = number * last.ranks_per_node
            batch = last.global_batch if mode == "strong" else ranks * last.global_batch // last.ranks
            if batch >= ranks:
                found.append(Size(nodes=number, ranks_per_node=last.ranks_per_node, mode=mode, global_batch=batch))
    return found


def _of(fitted: Fitted, size: Size) -> Prediction:
    return fitted.predict(size.nodes, size.ranks_per_node, size.global_batch / size.ranks)


def _all(found: Mapping[Size, Prediction], rows: Sequence[Row] = ()) -> list[Predicted]:
    """The sizes with their efficiency against the base of their mode: the smallest measured, or else predicted."""
    done = [size for size in found if of_size(rows, size)]
    bases: dict[Mode, Size] = {}
    for size in sorted(found, key=order):
        bases.setdefault(size.mode, min((one for one in done if one.mode == size.mode), key=order, default=size))
    rates = {
        mode: [rate for row in of_size(rows, base) if (rate := row.images_per_s) is not None]
        for mode, base in bases.items()
    }
    return [_predicted(size, one, found[bases[size.mode]], rates[size.mode]) for size, one in found.items()]


def _predicted(size: Size, one: Prediction, base: Prediction, rates: Sequence[float]) -> Predicted:
    _, low, high = efficiency(one, base, rates)
    return Predicted(
        size=size, step_s=one.step_s, images_per_s=one.images_per_s, low=one.low, high=one.high,
        extrapolated=one.extrapolated, efficiency_low=low, efficiency_high=high, parts=one.parts,
    )  # fmt: skip


def _fit(fitted: Fitted, rows: Sequence[Row]) -> Fit:
    runs = {one.run: one for one in fitted.residuals}
    return Fit(
        model=fitted.words,
        parameters=[
            Parameter(name=one.name, value=one.value, unit=one.unit, error=one.error, held=one.held)
            for one in fitted.estimates
        ],
        residuals=[
            Residual(size=row.size, run=row.run, measured_s=one.measured_s, fitted_s=one.fitted_s)
            for row in rows
            if (one := runs.get(row.run)) is not None
        ],
        assumptions=list(fitted.notes),
    )


def paper(sizes: Sequence[Size], found: OnPaper) -> tuple[Fit, list[Predicted]]:
    """Return a prediction on paper: what it rests on, and what is expected of each size."""
    predicted = _all(dict(zip(sizes, found.predictions, strict=True)))
    fit = Fit(model="On paper: nothing was measured.", assumptions=list(found.assumptions))
    return fit, [replace(one, extrapolated=False) for one in predicted]
