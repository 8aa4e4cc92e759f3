"""The figures of docs/concepts show what their pages say."""

from __future__ import annotations

import pytest

from experiments import concepts


@pytest.mark.parametrize(
    ("draw", "options"),
    [
        (concepts.orbit, {}),
        (concepts.gauge, {"trajectories": 8, "steps": 80}),
        (concepts.split, {"trajectories": 16, "steps": 8}),
        (concepts.equilibrium, {"trajectories": 2, "steps": 80}),
    ],
)
def test_figures_are_drawn_at_a_small_size(draw: object, options: dict[str, int]) -> None:
    figure = draw(**options)  # type: ignore[operator]
    assert all(axes.get_title() and axes.get_ylabel() and axes.has_data() for axes in figure.axes)


def test_euler_at_one_step_is_on_the_row_of_sgd_and_off_that_of_the_sde() -> None:
    """|z| < 4.5, false alarms 1.4e-5 together; the twin is the other row, which is rejected."""
    found = concepts.euler_drifts(
        concepts.regression(), learning_rate=5e-3, trajectories=512, steps=40, substeps=(1, 16)
    )
    one, fine = found.sel(run="1"), found.sel(run="1/16")
    sgd_row = float(found["sgd_row"])
    # A solution in 16 steps an update still has a sixteenth of the difference between the rows.
    expected = 1 + (sgd_row - 1) / 16
    assert abs(float(one["drift"]) - sgd_row) < 4.5 * float(one["error"])
    assert abs(float(fine["drift"]) - expected) < 4.5 * float(fine["error"])
    assert abs(float(one["drift"]) - 1) > 4.5 * float(one["error"])
    assert concepts.draw_euler(found).axes[0].get_ylabel()


def test_a_balanced_unit_leaves_balance_for_the_noise_equilibrium() -> None:
    """Medians of 64 trajectories, seed fixed; the fluctuation of the predictor shifts them by a few per cent."""
    measured, predicted, rest = concepts.equilibrium_runs(concepts.unit(), (1.0,), std=1.5, trajectories=64, steps=2000)
    end = float(measured[1.0].isel(step=-1).median())
    assert end == pytest.approx(float(predicted[1.0].isel(step=-1)), rel=0.03)
    assert abs(end - 1) > 0.1
    assert rest == pytest.approx(3**-0.5, rel=0.1)
