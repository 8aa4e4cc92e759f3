"""Inverse design: from a wanted bias to the parameterisation that has it."""

from .base import Design as Design
from .base import Parametrization as Parametrization
from .graph import GraphDifferences as GraphDifferences
from .joined import Joined as Joined
from .joined import grouped as grouped
from .lowrank import LowRank as LowRank
from .operators import Cosine as Cosine
from .operators import Differences as Differences
from .operators import Fourier as Fourier
from .operators import FunctionOperator as FunctionOperator
from .operators import Haar as Haar
from .operators import Kronecker as Kronecker
from .operators import MatrixOperator as MatrixOperator
from .operators import Operator as Operator
from .penalties import PENALTIES as PENALTIES
from .penalty import PenaltyDesign as PenaltyDesign
from .penalty import penalty as penalty
from .regression import DesignedRegression as DesignedRegression
from .structure import GroupSparse as GroupSparse
from .structure import Sparse as Sparse
from .structure import Structure as Structure
from .verification import Certificate as Certificate
