"""Regression with squared loss, on fixed data or on the fresh samples of a teacher."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ..errors import DataError, InputError, check_count, check_memory, check_number, message, shown
from ..layout import ParameterLayout
from .arrays import as_data, as_numbers
from .base import Problem
from .stream import Stream


class Regression(Problem):
    """Squared loss ℓ_i = ½ mean_o (f_o(θ, x_i) − y_io)² over the entries o of the output.

    A subclass states the layout and the output. The factor ½ halves gradients against a loss without it: a learning
    rate η for the latter is 2η here.

    Parameters
    ----------
    X : array, shape=([replicate,] sample, *input_dims)
    y : array, shape=([replicate,] sample, *output_dims)
    initial, initial_std : mapping, optional
        Initial law, see `Problem`. Where `initial` is not given, that of the model; its deviations only where neither
        is given.
    **sizes
        What `layout_for` needs besides the shape of an input.

    Raises
    ------
    DataError
        If shapes do not match, or entries are not finite.
    """

    input_dims: ClassVar[tuple[str, ...]] = ("feature",)
    output_dims: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        X: Any,
        y: Any,
        *,
        initial: Mapping[str, Any] | None = None,
        initial_std: Mapping[str, Any] | None = None,
        **sizes: Any,
    ) -> None:
        inputs = as_data("X", X, 1 + len(self.input_dims))
        targets = as_data("y", y, 1 + len(self.output_dims), like=inputs)
        lead = ("replicate",) if inputs.ndim == 2 + len(self.input_dims) else ()
        dims = {"X": (*lead, "sample", *self.input_dims), "y": (*lead, "sample", *self.output_dims)}
        axes = len(lead) + 1
        if targets.ndim != len(dims["y"]) or inputs.shape[:axes] != targets.shape[:axes]:
            want = f"X ({', '.join(dims['X'])}) and y ({', '.join(dims['y'])})"
            got = f"X {tuple(inputs.shape)} and y {tuple(targets.shape)}"
            raise DataError(message("data", want, got, "match the sample axes"))
        self.sizes = sizes
        layout = self.layout_for(tuple(inputs.shape[axes:]), **sizes)
        mean, std = self.default_law(layout)
        if initial_std is None and initial is None:
            initial_std = std
        data = {"X": (dims["X"], inputs), "y": (dims["y"], targets)}
        super().__init__(layout, data, mean if initial is None else initial, initial_std)

    @classmethod
    @abstractmethod
    def layout_for(cls, *args: Any, **kwargs: Any) -> ParameterLayout:
        """Return the parameters of the model for the shape of an input and the sizes of the model."""

    @classmethod
    @abstractmethod
    def output(cls, named: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Return f(θ, x), shape (..., sample, *output_dims), from named parameters (..., *shape) and inputs.

        The leading dims of the inputs, shape (..., sample, *input_dims), broadcast against those of the parameters.
        """

    @classmethod
    @abstractmethod
    def default_law(cls, layout: ParameterLayout) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return mean and standard deviation of the model's initial law."""

    def spec(self) -> dict[str, Any]:
        """Return the declaration, without the data, as plain data."""
        return {**super().spec(), **{name: size for name, size in self.sizes.items() if size is not None}}

    def _named(self, theta: Tensor) -> dict[str, Tensor]:
        return self.layout.unflatten(self.check_theta(theta))

    def per_sample_loss(self, theta: Tensor) -> Tensor:
        """Return ½ mean_o (f_o(θ, x_i) − y_io)², shape (..., sample)."""
        squares = (self.output(self._named(theta), self.samples["X"]) - self.samples["y"]).square()
        return 0.5 * (squares.flatten(-len(self.output_dims)).mean(-1) if self.output_dims else squares)

    @classmethod
    def teacher_student(
        cls,
        input_shape: int | Sequence[int],
        *,
        teacher: float | Mapping[str, Any] = 1.0,
        label_noise: float = 0.0,
        pool: int = 1024,
        replicates: int | None = None,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        **options: Any,
    ) -> Self:
        """Return a student whose dynamics see fresh x ~ N(0, I), y = f(θ*, x) + s N(0, I) of a teacher θ*.

        Parameters
        ----------
        input_shape : int or sequence of int
            Shape of one input.
        teacher : float or mapping
            Standard deviation of the teacher's parameters, drawn from N(0, std²) for each replicate, or the parameters
            by name, each a value that broadcasts to ([replicate,] *shape).
        label_noise : float
            s.
        pool : int
            Number of samples in the fixed data, and in the fresh pools of the SDE.
        replicates : int, optional
            Number of teachers, each with its pool.
        seed : int
            Of teacher and pool.
        dtype, device
            Of the problem.
        **options
            Of the model: sizes and initial law.

        Raises
        ------
        InputError
            If a size is out of range or the teacher does not fit the model.
        """
        check_count("pool", pool)
        check_count("seed", seed, minimum=0)
        given: Any = [input_shape] if isinstance(input_shape, int) else input_shape
        shape = tuple(check_count("input_shape", n) for n in given) if isinstance(given, Sequence) else ()
        if len(shape) != len(cls.input_dims):
            got = shown(input_shape)
            raise InputError(message("input_shape", f"the lengths of {cls.input_dims}", got, "give one each"))
        label_noise = check_number("label_noise", label_noise, 0)
        law = ("initial", "initial_std")
        layout = cls.layout_for(shape, **{name: value for name, value in options.items() if name not in law})
        lead = () if replicates is None else (check_count("replicates", replicates), 1)
        numbers_kept = math.prod((*lead, pool, *shape)) + math.prod((*lead, layout.size))
        check_memory("pool", numbers_kept * dtype.itemsize, "lower pool, input_shape or replicates")
        generator = torch.Generator(device).manual_seed(seed)

        def sampler(sizes: tuple[int, ...], generator: torch.Generator, *, teacher: Tensor) -> dict[str, Tensor]:
            inputs = torch.empty(*sizes, *shape, dtype=teacher.dtype, device=teacher.device).normal_(
                generator=generator
            )
            targets = cls.output(layout.unflatten(teacher), inputs)
            if label_noise:
                targets = targets + label_noise * torch.empty_like(targets).normal_(generator=generator)
            return {"X": inputs, "y": targets}

        theta = _teacher(teacher, layout, lead, dtype, generator)
        plain = (
            {key: torch.as_tensor(v).tolist() for key, v in teacher.items()}
            if isinstance(teacher, Mapping)
            else teacher
        )
        declaration = {"law": "teacher-student", "input_shape": list(shape), "teacher": plain}
        declaration |= {"label_noise": label_noise, "pool": pool, "seed": seed, "dtype": str(dtype)[6:]}
        declaration |= {} if replicates is None else {"replicates": replicates}
        stream = Stream(sampler, {"teacher": theta}, declaration)
        fixed = {name: t.squeeze(1) if lead else t for name, t in stream.draw((*lead, pool), generator).items()}
        return cls(fixed["X"], fixed["y"], **options).with_stream(stream)


def _teacher(
    teacher: float | Mapping[str, Any],
    layout: ParameterLayout,
    lead: tuple[int, ...],
    dtype: torch.dtype,
    generator: torch.Generator,
) -> Tensor:
    """Return the teacher's parameters, shape ([replicate, 1,] parameter)."""
    if not isinstance(teacher, Mapping):
        std = check_number("teacher", teacher, 0)
        return std * torch.randn(*lead, layout.size, dtype=dtype, device=generator.device, generator=generator)
    if set(teacher) != set(layout.shapes):
        raise InputError(message("teacher", f"parameters {list(layout.shapes)}", list(teacher), "name each of them"))
    parts = {}
    for name, shape in layout.shapes.items():
        value = as_numbers(f"teacher {name!r}", teacher[name], dtype, generator.device)
        if lead and value.ndim == len(shape) + 1:
            value = value.unsqueeze(1)
        try:
            parts[name] = value.expand(*lead, *shape)
        except RuntimeError:
            got = tuple(value.shape)
            raise InputError(
                message(f"teacher {name!r}", f"a value that broadcasts to {shape}", got, "reshape it")
            ) from None
    return layout.flatten(parts)
