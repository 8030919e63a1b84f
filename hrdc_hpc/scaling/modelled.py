"""The model of scaling/fit.py and scaling/predict.py in the plain values of a report. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence

from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.scaling.fit import Fitted
from hrdc_hpc.scaling.predict import OnPaper, fit_rows
from hrdc_hpc.scaling.prediction import Prediction
from hrdc_hpc.scaling.rows import Mode, Row, Size
from hrdc_hpc.scaling.view import Fit, Parameter, Predicted, Residual

_FURTHER = (2, 4)
"""Times the most nodes that were measured, which are predicted where nobody says which."""


def model(
    config: RunConfig, rows: Sequence[Row], nodes: Sequence[int] | None
) -> tuple[Fit | None, list[Predicted], list[str]]:
    """Fit the model to a study; the fit, what it expects of all sizes and of `nodes`, and why it could not be fitted.

    `nodes`: as for `further`.
    """
    if not any(row.found for row in rows):
        return None, [], ["Nothing was measured yet: there is no model of it."]
    try:
        fitted = fit_rows(config, rows)
        sizes = [*dict.fromkeys(row.size for row in rows), *further(rows, nodes)]
        return _fit(fitted, rows), [_predicted(size, _of(fitted, size)) for size in dict.fromkeys(sizes)], []
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


def _predicted(size: Size, one: Prediction) -> Predicted:
    return Predicted(
        size=size, step_s=one.step_s, images_per_s=one.images_per_s, low=one.low, high=one.high,
        extrapolated=one.extrapolated, parts=one.parts,
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
    predicted = [_predicted(size, one) for size, one in zip(sizes, found.predictions, strict=True)]
    return Fit(model="On paper: nothing was measured.", assumptions=list(found.assumptions)), predicted
