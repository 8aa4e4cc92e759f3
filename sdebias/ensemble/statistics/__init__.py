"""Online statistics: what is kept of an ensemble in place of its trajectories.

A run of a million trajectories then takes megabytes. Results do not depend on threads: parts of seed blocks are added
in the order of the blocks. All are built as ``sdebias.statistics.Quantiles((0.1, 0.9))`` and the like, by name, or from
the plain data of `spec`.
"""

from ...schema import SUMMARIES as SUMMARIES
from .kinds import STATISTICS as STATISTICS
from .kinds import Covariance as Covariance
from .kinds import Histogram as Histogram
from .kinds import Mean as Mean
from .kinds import Quantiles as Quantiles
from .kinds import Statistic as Statistic
from .kinds import Variance as Variance
from .kinds import as_statistic as as_statistic
from .kinds import choose_statistics as choose_statistics
