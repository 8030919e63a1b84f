"""Draws from a density that is no normal one: an ensemble sampler. Torch-free."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hrdc_hpc.scaling.model import Array

_WALKERS, _STEPS = 60, 120
"""Of the sampler; the first half of the steps does not count."""


def draw(likely: Callable[[Array], Array], place: Array, covariance: Array) -> Array:
    """Return draws [draws, k] from the density whose logarithm is `likely` of places [m, k], around its top `place`.

    Parameters that only their sum is known of, and the kink where communication begins to show, make the normal
    approximation (J'J)^-1 a bad one: it is where a sampler begins that minds neither, Goodman and Weare's stretch move
    ('Ensemble samplers with affine invariance', 2010).
    """

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
