"""The pure parts of a run."""

import pytest

from create_jax import experiment
from create_jax.steps import Phase

WARMUP = Phase("warmup", 50, 0.0, 1.0, 0.0)
JOINT = Phase("joint", 300, 1.0, 0.1, 0.2)


@pytest.mark.parametrize(
    "phases, best, share, expected",
    [
        ([WARMUP, JOINT], 55, 1.0, [50, 5]),
        ([WARMUP, JOINT], 55, 0.9, [45, 4]),  # and not 50 of the 50 epochs of warm-up
        ([WARMUP, JOINT], 51, 0.4, [20, 1]),
        ([WARMUP._replace(epochs=1), JOINT], 2, 0.4, [1, 1]),
        ([JOINT], 10, 0.75, [8]),
        ([JOINT], 300, 1.0, [300]),
    ],
)
def test_a_refit_has_a_share_of_every_phase(phases, best, share, expected):
    short = experiment.shorten(phases, best, share)
    assert [phase.epochs for phase in short] == expected
    assert [phase.name for phase in short] == [phase.name for phase in phases]
