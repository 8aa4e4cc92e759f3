"""Streams: what a teacher draws, and streams that do not fit their problem."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

import sdebias as sb
from sdebias.errors import DataError, InputError
from sdebias.problems import Problem, ShallowReLU, SingleHeadAttention, Stream, WeightDecay


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def relu(**options: Any) -> ShallowReLU:
    return ShallowReLU.teacher_student(3, **{"units": 4, "pool": 8, **options})


class TestTeacherStudent:
    @pytest.mark.parametrize("replicates", [None, 2])
    def test_samples_come_from_the_teacher(self, replicates: int | None) -> None:
        problem = relu(replicates=replicates)
        assert problem.stream is not None
        lead = () if replicates is None else (replicates, 1)
        theta = problem.stream.tensors["teacher"].expand(*lead, -1)
        torch.testing.assert_close(problem.loss(theta), torch.zeros(lead, dtype=torch.float64))
        batch = problem.stream.draw((*lead, 5), generator())
        torch.testing.assert_close(problem.at(batch).loss(theta), torch.zeros(lead, dtype=torch.float64))

    def test_input_law_and_label_noise(self) -> None:
        # 30,000 samples: means and deviations within five standard errors, false alarm 6e-7 each.
        problem = relu(label_noise=0.3)
        assert problem.stream is not None
        batch = problem.stream.draw((30_000,), generator())
        residual = batch["y"] - ShallowReLU.output(
            problem.layout.unflatten(problem.stream.tensors["teacher"]), batch["X"]
        )
        for values, deviation in ((batch["X"].flatten(), 1.0), (residual, 0.3)):
            error = deviation / len(values) ** 0.5
            assert abs(float(values.mean())) < 5 * error
            assert abs(float(values.std()) - deviation) < 5 * error

    def test_replicates_have_their_own_teachers(self) -> None:
        problem = relu(replicates=2, teacher=1.5)
        assert problem.stream is not None
        teachers = problem.stream.tensors["teacher"]
        assert teachers.shape == (2, 1, 16)
        assert not torch.equal(teachers[0], teachers[1])
        assert problem.data["X"][1].shape == (2, 8, 3)

    def test_given_teacher(self) -> None:
        W = torch.arange(24.0).reshape(2, 4, 3)
        problem = relu(replicates=2, teacher={"W": W, "v": [1.0, 0, 0, 0]})
        X, y = (problem.data[name][1] for name in ("X", "y"))
        torch.testing.assert_close(y[1], (X[1] @ W[1, 0].double()).relu())
        assert problem.spec()["stream"]["teacher"] == {"W": W.tolist(), "v": [1.0, 0, 0, 0]}

    def test_follows_the_problem(self) -> None:
        problem = relu(dtype=torch.float32)
        assert problem.dtype == torch.float32
        moved = problem.to(dtype=torch.float64)
        assert moved.stream is not None
        assert moved.stream.draw((2,), generator())["y"].dtype == torch.float64

    def test_seed(self) -> None:
        assert torch.equal(relu(seed=1).data["y"][1], relu(seed=1).data["y"][1])
        assert not torch.equal(relu(seed=1).data["y"][1], relu(seed=2).data["y"][1])

    def test_attention(self) -> None:
        problem = SingleHeadAttention.teacher_student((8, 16), head=8, pool=4)
        assert problem.data["y"][1].shape == (4, 8, 8)
        assert problem.layout.shape("W_Q") == (16, 8)

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"teacher": {"W": 1.0}}, "name each of them"),
            ({"teacher": {"W": 1.0, "v": [1.0, 2.0]}}, "broadcasts to"),
            ({"label_noise": -1.0}, "label_noise"),
            ({"pool": 0}, "pool"),
            ({"replicates": 0}, "replicates"),
            ({"seed": -1}, "seed"),
        ],
    )
    def test_refusals(self, options: dict[str, Any], words: str) -> None:
        with pytest.raises(InputError, match=words):
            relu(**options)

    def test_input_shape(self) -> None:
        with pytest.raises(InputError, match="input_shape"):
            SingleHeadAttention.teacher_student(16)


class TestWithStream:
    def test_weight_decay_keeps_it(self) -> None:
        problem = relu()
        decayed = WeightDecay(problem, 0.1)
        assert decayed.stream is problem.stream
        assert decayed.stream is not None
        batch = decayed.stream.draw((2,), generator())
        theta = decayed.draw_initial(1, generator())[0]
        torch.testing.assert_close(decayed.at(batch).gradient(theta), problem.at(batch).gradient(theta) + 0.1 * theta)

    @pytest.mark.parametrize(
        "draw",
        [
            lambda shape: {"X": torch.zeros(*shape, 3, dtype=torch.float64)},
            lambda shape: {name: torch.zeros(*shape, 3, dtype=torch.float64) for name in ("X", "y")},
            lambda shape: {"X": torch.zeros(*shape, 3), "y": torch.zeros(shape)},
        ],
        ids=["name", "shape", "dtype"],
    )
    def test_refusals(self, draw: Any, problem: Problem) -> None:
        def sampler(shape: tuple[int, ...], generator: torch.Generator) -> Mapping[str, Tensor]:
            return draw(shape)

        with pytest.raises(DataError, match="draw the same arrays"):
            problem.with_stream(Stream(sampler))

    def test_problem_itself_is_unchanged(self, problem: sb.problems.HadamardRegression) -> None:
        def sampler(shape: tuple[int, ...], generator: torch.Generator) -> Mapping[str, Tensor]:
            X = torch.randn(*shape, 3, dtype=torch.float64, generator=generator)
            return {"X": X, "y": X.sum(-1)}

        assert problem.with_stream(Stream(sampler)).stream is not None
        assert problem.stream is None
