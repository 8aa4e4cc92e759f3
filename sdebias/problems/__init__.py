"""Models: their losses, their data, their predictor coordinates."""

from .attention import SingleHeadAttention as SingleHeadAttention
from .base import Problem as Problem
from .cumsum import CumulativeSumRegression as CumulativeSumRegression
from .decay import WeightDecay as WeightDecay
from .diagonal import DeepDiagonalRegression as DeepDiagonalRegression
from .factorization import MatrixFactorization as MatrixFactorization
from .hadamard import HadamardRegression as HadamardRegression
from .linear import LinearRegression as LinearRegression
from .module import ModuleProblem as ModuleProblem
from .normalized import NormalizedRegression as NormalizedRegression
from .regression import Regression as Regression
from .relu import ShallowReLU as ShallowReLU
from .softmax import SoftmaxRegression as SoftmaxRegression
from .stream import Stream as Stream

MODELS: dict[str, type[Problem]] = {
    cls.model: cls
    for cls in (
        HadamardRegression,
        DeepDiagonalRegression,
        CumulativeSumRegression,
        NormalizedRegression,
        ShallowReLU,
        MatrixFactorization,
        SingleHeadAttention,
        SoftmaxRegression,
    )
}
"""The models that a configuration can name."""
