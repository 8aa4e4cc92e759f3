"""Designed against explicit biases: exact paths, the data of the tasks, and what is claimed of them on fewer seeds."""

from __future__ import annotations

import re
from pathlib import Path as File

import numpy as np
import pytest
from conftest import ROOT, regression

import sdebias as sb
from experiments import design_tasks
from experiments.design_completion import IMAGES, PIXELS, digits, nuclear_path, observed, product_path
from experiments.design_paths import Median, Path, flow_path, gradient_flow, judged, l1_path, sgd_path, table, tv_path
from experiments.design_regression import Splits
from experiments.design_tasks import TASKS, draw, insert, nile, piecewise_constant, signal, spectrum
from sdebias.design import Sparse

PENALTIES = np.geomspace(1, 1e-3, 13)


def slopes(data: Splits, weights: np.ndarray) -> np.ndarray:
    """Return Xᵀ(y − Xw)/n, shape (path, feature), of the first seed."""
    X, y = data.inputs["train"][0], data.targets["train"][0]
    return (y - weights @ X.T) @ X / len(y)


# -- explicit penalties: optimality conditions -------------------------------------------------------------------------


def test_the_lasso_is_optimal_at_every_penalty() -> None:
    """|x_j·r|/n ≤ λ, and λ sign(w_j) where w_j ≠ 0."""
    data = spectrum(1)
    weights = l1_path(data, PENALTIES).weights[0]
    gradient = slopes(data, weights)
    level = PENALTIES[:, None] * np.abs(slopes(data, np.zeros((1, 64)))).max()
    assert (np.abs(gradient) <= level * (1 + 1e-6)).all()
    active = np.abs(weights) > 1e-9
    assert active[1:].any(1).all()
    np.testing.assert_allclose(gradient[active], (level * np.sign(weights))[active], rtol=1e-6)


@pytest.mark.parametrize("task", [signal, nile])
def test_total_variation_is_optimal_at_every_penalty(task: object) -> None:
    """The gradient sums to 0 over all entries, and its sums from any entry on are at most λ, λ sign of a jump there."""
    data = task(1)  # type: ignore[operator]
    weights = tv_path(data, PENALTIES).weights[0]
    sums = slopes(data, weights)[:, ::-1].cumsum(1)[:, ::-1]
    largest = np.abs(sums[0]).max()
    level = PENALTIES[:, None] * largest
    np.testing.assert_allclose(sums[:, 0], 0, atol=1e-8 * largest)
    assert (np.abs(sums[:, 1:]) <= level * (1 + 1e-6)).all()
    jumps = np.diff(weights, axis=1)
    active = np.abs(jumps) > 1e-9
    assert not active[0].any()
    assert active[1:].any(1).all()
    np.testing.assert_allclose(sums[:, 1:][active], (level * np.sign(jumps))[active], rtol=1e-5)


def test_the_nuclear_norm_is_optimal_at_every_penalty() -> None:
    """The gradient G has singular values of at most λ, and ⟨G, M⟩ = λ‖M‖_*."""
    data = digits(1)
    matrices = nuclear_path(data, PENALTIES[::3], sweeps=300).weights[0].reshape(-1, IMAGES, PIXELS)
    target, mask = observed(data)
    gradient = np.where(mask, target - matrices, 0)
    level = PENALTIES[::3] * np.linalg.norm(target[0], 2)
    assert (np.linalg.norm(gradient, 2, axis=(1, 2)) <= level * (1 + 1e-3)).all()
    nuclear = np.linalg.norm(matrices, "nuc", axis=(1, 2))
    assert (nuclear[1:] > 0.1 * nuclear[-1]).all()
    np.testing.assert_allclose((gradient * matrices).sum((1, 2)), level * nuclear, rtol=1e-3, atol=1e-6)


# -- designed paths ----------------------------------------------------------------------------------------------------


def test_gradient_flow_is_what_full_batches_do_at_a_small_rate() -> None:
    X, y = regression()
    design = Sparse(3, operator="differences", scale=0.3)
    problem = design.problem(X, y)
    start = problem.layout.flatten(dict(design.start(problem.layout.shapes))).numpy()
    descent = sb.SGD(learning_rate=1e-3, batch_size=len(y), replacement=False)
    run = sb.simulate(problem, descent, trajectories=1, steps=2000, save_every=500, save=["predictor_value"])
    descended = run["predictor_value"].isel(trajectory=0).transpose("step", "predictor").values[1:]
    flow = gradient_flow(problem, np.array([0.5, 1.0, 1.5, 2.0]), start)
    np.testing.assert_allclose(flow, descended, rtol=5e-3)
    # The twin: time is ηk, and a clock that is 10 % off is seen.
    wrong = gradient_flow(problem, 1.1 * np.array([0.5, 1.0, 1.5, 2.0]), start)
    assert (np.abs(wrong / descended - 1) > 5e-2).all()


def test_the_solver_of_gradient_flow_is_tight_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    data, times = spectrum(1), np.geomspace(1, 300, 9)
    loose = flow_path(data, Sparse(64), times)
    monkeypatch.setattr("experiments.design_paths.TOLERANCES", {"rtol": 1e-7, "atol": 1e-10})
    tight = flow_path(data, Sparse(64), times)
    np.testing.assert_allclose(
        data.errors("test", loose.weights), data.errors("test", tight.weights), rtol=1e-2, atol=1e-5
    )


def test_a_spread_start_is_drawn_and_sgd_keeps_time() -> None:
    data = spectrum(2)
    start = flow_path(data, Sparse(64), np.array([1e-9]), spread=0.3)
    assert 0.5 * 0.09 < start.weights.std() < 1.5 * 0.09  # p q of two normal factors
    path = sgd_path(data, Sparse(64), learning_rate=1e-3, steps=200, saves=4)
    np.testing.assert_allclose(path.values, [0.05, 0.1, 0.15, 0.2])
    assert path.weights.shape == (2, 4, 64)


def test_a_product_of_matrices_learns_large_singular_values_first() -> None:
    data = digits(1)
    path = product_path(data, data.inputs["train"].shape[1], learning_rate=5.0, steps=300, saves=10)
    sigma = np.linalg.svd(path.weights[0].reshape(-1, IMAGES, PIXELS), compute_uv=False)
    half = (sigma > 0.1 * sigma[-1, 0]).sum(1)
    assert half[-1] > half[4] > 0
    assert data.errors("test", path.weights)[0].min() < 0.6  # of a variance of 1


# -- data --------------------------------------------------------------------------------------------------------------


def test_the_paper_tasks_are_what_the_page_says() -> None:
    data = spectrum(3)
    assert data.inputs["train"].shape == data.inputs["validation"].shape == (3, 32, 64)
    truth = np.stack([np.linalg.lstsq(X, y)[0] for X, y in zip(data.inputs["test"], data.targets["test"], strict=True)])
    support = np.abs(truth) > 1e-9
    assert (support.sum(1) == 3).all()
    assert not support[:, 0].any()
    assert ((np.abs(truth[support]) >= 1) & (np.abs(truth[support]) <= 2)).all()
    # The test is the mean over all t: Σ_k (1 + [k = 0]) w_k²/2.
    weights = np.random.default_rng(0).standard_normal((3, 1, 64))
    error = (weights[:, 0] - truth) ** 2
    np.testing.assert_allclose(data.errors("test", weights)[:, 0], error[:, 0] + error[:, 1:].sum(1) / 2)

    x = piecewise_constant()
    assert (len(x), np.abs(np.diff(x)).sum()) == (200, 6.0)
    data = signal(3)
    assert data.inputs["train"].shape == (3, 60, 200)
    residual = data.targets["train"] - data.inputs["train"] @ x
    assert 0.08 < residual.std() < 0.12
    np.testing.assert_allclose(data.errors("test", np.zeros((3, 1, 200))), np.square(x).mean())


def test_years_of_the_nile_are_split_and_interpolated() -> None:
    data = nile(4)
    flows = np.concatenate([data.targets[part] for part in data.targets], axis=1)
    assert flows.shape == (4, 100)
    np.testing.assert_allclose(data.targets["train"].mean(1), 0, atol=1e-12)
    np.testing.assert_allclose(data.targets["train"].std(1), 1)
    spread = np.sort(flows, axis=1) - flows.mean(1, keepdims=True)
    np.testing.assert_allclose(
        spread / spread.std(1, keepdims=True), np.broadcast_to(spread[0] / spread[0].std(), (4, 100))
    )
    for part in ("validation", "test"):
        np.testing.assert_allclose(data.inputs[part].sum(2), 1)
        assert ((data.inputs[part] > 0).sum(2) <= 2).all()


def test_digits_are_split_entry_by_entry() -> None:
    data = digits(2)
    for seed in range(2):
        places = np.concatenate([data.inputs[part][seed] for part in data.inputs])
        np.testing.assert_array_equal(np.sort(places), np.arange(IMAGES * PIXELS))
    target, mask = observed(data)
    assert mask.sum((1, 2)).tolist() == [IMAGES * PIXELS // 2] * 2
    np.testing.assert_allclose([one[where].std() for one, where in zip(target, mask, strict=True)], 1)
    full = np.zeros((2, 1, IMAGES * PIXELS))
    np.put_along_axis(full[:, 0], data.inputs["test"], data.targets["test"] + 0.5, axis=1)
    np.testing.assert_allclose(data.errors("test", full), 0.25)


# -- verdicts ----------------------------------------------------------------------------------------------------------


def test_medians_have_exact_intervals() -> None:
    """The interval of 32 values is from the 10th to the 23rd: P(Bin(32, ½) ≤ 9) = 1.0 %."""
    found = Median.of(np.arange(1.0, 33.0)[::-1])
    assert (found.value, found.lower, found.upper) == (16.5, 10.0, 23.0)
    assert found.text("+") == "+16.5 [+10, +23]"


def test_a_path_is_judged_by_validation_at_its_best_and_at_its_end() -> None:
    eye = np.eye(1)[None].repeat(8, 0)
    targets = {"train": np.zeros((8, 1)), "validation": np.ones((8, 1)), "test": 2 * np.ones((8, 1))}
    data = Splits(dict.fromkeys(targets, eye), targets)
    path = Path("knob", np.arange(4.0), np.array([0.0, 1.0, 2.0, 4.0])[None, :, None].repeat(8, 0))
    found = judged(data, path)
    assert {knob: errors[0] for knob, errors in found.items()} == {"validation": 1.0, "best": 0.0, "end": 4.0}
    better = Path("knob", np.arange(1.0), np.full((8, 1, 1), 1.5))
    text = table(data, {"a": better, "b": path}, "b").splitlines()
    assert (
        "| a | 0.25 [0.25, 0.25] | -0.75 [-0.75, -0.75] | 8/8 | 0.25 [0.25, 0.25] | +0.25 [+0.25, +0.25] |" in text[2]
    )


def test_the_page_has_the_tables_of_all_tasks() -> None:
    page = (ROOT / "docs" / "design" / "practice.md").read_text(encoding="utf-8")
    for name, task in TASKS.items():
        found = re.search(rf"<!-- {name} -->\n(.*?)<!-- end -->", page, re.DOTALL)
        assert found is not None
        assert f"| {task.explicit} |" in found[1]
        assert (ROOT / "docs" / "figures" / f"design_{name}.png").exists()
    renewed = insert(page, "nile", "| new |")
    assert insert(renewed, "nile", "| newer |").count("| new |") == 0
    assert "| new |" in renewed
    with pytest.raises(ValueError, match="0 places"):
        insert(page, "absent", "")


@pytest.mark.slow
def test_total_variation_wins_on_the_signal_and_the_small_start_on_the_large() -> None:
    """Paired on four seeds, of which each has the order; by chance that happens once in 2⁴ for each comparison.

    The plain model is the twin without the bias.
    """
    data, task = signal(4), TASKS["signal"]
    paths = task.paths(data, "smoke")
    errors = [judged(data, paths[name])["validation"] for name in reversed(paths)]
    explicit, plain, large, small = errors
    assert (explicit < small).mean() >= 0.75
    assert (5 * small < large).all()
    assert (10 * large < plain).all()
    assert len(draw(task, data, paths).axes) == 3


def test_the_tuned_lasso_and_the_design_tie_where_the_lasso_of_one_penalty_loses() -> None:
    """On 16 seeds; a sign test rejects a tie at 5 % with 3 or fewer, or 13 or more."""
    data = spectrum(16)
    times = np.geomspace(1, 300, 41)
    designed = judged(data, flow_path(data, Sparse(64), times))["validation"]
    tuned = judged(data, l1_path(data, np.geomspace(1, 1e-4, 81)))["validation"]
    assert 3 < (designed < tuned).sum() < 13
    from experiments.design_regression import lasso_path

    fixed = judged(data, Path("", np.array([0.05]), lasso_path(data, np.array([0.05]))))["validation"]
    assert (fixed > designed).sum() >= 13


def test_the_command_line_at_its_small_scale(
    tmp_path: File, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").symlink_to(ROOT / "data")
    monkeypatch.setattr(design_tasks, "ROOT", tmp_path)
    monkeypatch.setattr(design_tasks, "TASKS", {"nile": TASKS["nile"]})
    design_tasks.main("smoke")
    printed = capsys.readouterr().out
    assert printed.startswith("Flow of the Nile\n| path |")
    assert "w = cumsum(p∘q), SGD, less w = cumsum(p∘q), gradient flow: " in printed
    assert (tmp_path / "results" / "design_tasks" / "design_nile.png").stat().st_size > 10_000
    assert not (tmp_path / "docs").exists()
