"""The shape of the data: one table of variables, from which datasets are made, checked and documented.

The attribute ``kind`` of a dataset says which rows of the table it holds: an ensemble (what was simulated), a
prediction, a comparison of the two, a law, an equilibrium, a split of the dynamics, the moments of increments, a
comparison of laws, statistics (of an ensemble whose trajectories were not stored), a landscape, or a spectrum.
"""

from __future__ import annotations

from dataclasses import dataclass

SCHEMA_VERSION = 1
KINDS = (
    "ensemble",
    "prediction",
    "comparison",
    "law",
    "equilibrium",
    "split",
    "moments",
    "law_comparison",
    "statistics",
    "landscape",
    "spectrum",
)
OK = 0
STATUS = {"ok": OK, "diverged": 1, "non_finite": 2}
# A parameter beyond this size makes a trajectory `diverged`: finite, but lost, and it would dominate every mean.
DIVERGENCE_THRESHOLD = 1e6


@dataclass(frozen=True)
class Variable:
    """One row of the table.

    Dims are listed without the leading `replicate`, which every variable may carry. `varying` names dims that a
    variable has besides where it changes along them.
    """

    kinds: tuple[str, ...]
    dims: tuple[str, ...]
    long_name: str
    units: str
    equation: str = ""
    required: bool = False
    varying: tuple[str, ...] = ()

    @property
    def attributes(self) -> dict[str, str]:
        """Attributes that the variable has in a file."""
        equation = {"equation": self.equation} if self.equation else {}
        return {"long_name": self.long_name, "units": self.units, **equation}


PATH = ("trajectory", "step")
ENSEMBLE, PREDICTION, COMPARISON, LAW, EQUILIBRIUM, SPLIT, MOMENTS, LAW_COMPARISON, STATISTICS, LANDSCAPE, SPECTRUM = (
    (kind,) for kind in KINDS
)
SIMULATED = (*ENSEMBLE, *STATISTICS)
PLANE = ("ordinate", "abscissa")
SCHEMA: dict[str, Variable] = {
    "theta": Variable(ENSEMBLE, (*PATH, "parameter"), "parameters", "1"),
    "loss": Variable(ENSEMBLE, PATH, "loss over all data", "loss", "L = mean_i l_i(theta)"),
    "charge_value": Variable(
        ENSEMBLE, (*PATH, "charge"), "charge (moment map)", "parameter^2", "C_a = 1/2 theta^T A_a theta"
    ),
    "log_orbit_volume": Variable(ENSEMBLE, PATH, "log orbit volume density", "1", "1/2 log pdet G, G_ab = <X_a, X_b>"),
    "predictor_value": Variable(ENSEMBLE, (*PATH, "predictor"), "predictor coordinates", "1", "q = F(theta)"),
    "status": Variable(SIMULATED, ("trajectory",), "status of the trajectory", "1", required=True),
    "learning_rate": Variable(SIMULATED, (), "learning rate eta", "1", required=True, varying=("step",)),
    "temperature": Variable(SIMULATED, (), "temperature T of isotropic noise", "loss"),
    "predicted_drift": Variable(
        PREDICTION, (*PATH, "charge"), "predicted change of the charge since step 0", "parameter^2", required=True
    ),
    "finite_step_drift": Variable(
        PREDICTION,
        (*PATH, "charge"),
        "change of the charge that the solver's finite step adds",
        "parameter^2",
        "sum of dt/2 b^T A_a b per update, b the drift of theta",
    ),
    "integration_error": Variable(
        (*PREDICTION, *COMPARISON),
        ("step", "charge"),
        "error of integrating the prediction on the save grid",
        "parameter^2",
        "|correction from comparing with a grid twice as coarse|, of the mean",
        required=True,
    ),
    "empirical": Variable(
        COMPARISON,
        ("step", "charge"),
        "measured mean change of the charge since step 0",
        "parameter^2",
        required=True,
    ),
    "empirical_error": Variable(COMPARISON, ("step", "charge"), "standard error of `empirical`", "parameter^2"),
    "interval": Variable(COMPARISON, ("step", "charge", "bound"), "t interval of `empirical`", "parameter^2"),
    "predicted": Variable(
        COMPARISON,
        ("step", "charge"),
        "predicted mean change of the charge since step 0",
        "parameter^2",
        required=True,
    ),
    "finite_step": Variable(
        COMPARISON, ("step", "charge"), "mean change that the solver's finite step adds", "parameter^2"
    ),
    "deviation": Variable(
        COMPARISON, ("step", "charge"), "mean over trajectories of measured - predicted", "parameter^2", required=True
    ),
    "deviation_error": Variable(
        COMPARISON,
        ("step", "charge"),
        "error of `deviation`",
        "parameter^2",
        "sqrt(standard error^2 + integration_error^2 + rounding^2)",
    ),
    "z": Variable(
        COMPARISON, ("step", "charge"), "deviation in units of its error", "1", "deviation / deviation_error"
    ),
    "z_scheme": Variable(
        COMPARISON,
        ("step", "charge"),
        "z after the finite step is accounted for",
        "1",
        "(deviation - finite_step) / its error",
    ),
    "statistic": Variable(
        COMPARISON,
        (),
        "verdict statistic",
        "1",
        "max_a |z_a| at the last step, the finite step accounted for",
    ),
    "p_value": Variable(
        (*COMPARISON, *MOMENTS, *LAW_COMPARISON), (), "Bonferroni p-value of the verdict statistic", "1", required=True
    ),
    "p_value_scaled": Variable(
        (*COMPARISON, *MOMENTS),
        (),
        "p-value of the same test for a prediction 10 % larger: its power",
        "1",
        required=True,
    ),
    "trajectories_used": Variable(
        (*COMPARISON, *MOMENTS, *LAW_COMPARISON, *STATISTICS),
        (),
        "trajectories with status ok",
        "1",
        required=True,
        varying=("step",),
    ),
    "drift_component": Variable(
        SPLIT,
        (*PATH, "component", "parameter"),
        "drift of the parameters per update, split",
        "1",
        "P_V b, P_H b, and the lifts of the second-order terms of orbit and predictor",
        required=True,
    ),
    "charge_rate": Variable(
        SPLIT,
        (*PATH, "component", "charge"),
        "drift of the charge per update, split",
        "parameter^2",
        "grad C . b, 1/2 tr(D A_a)",
    ),
    "charge_diffusion": Variable(
        SPLIT, (*PATH, "charge"), "variance of the charge per update", "parameter^4", "|g^T grad C|^2"
    ),
    "quotient_drift": Variable(
        SPLIT,
        (*PATH, "component", "predictor"),
        "drift of the predictor per update, split",
        "1",
        "J b, 1/2 tr(D Hess F)",
        required=True,
    ),
    "charge_finite_step": Variable(
        SPLIT,
        (*PATH, "charge"),
        "what the solver's finite step adds to `charge_rate`",
        "parameter^2",
        "dt/2 b^T A_a b",
    ),
    "quotient_finite_step": Variable(
        SPLIT,
        (*PATH, "predictor"),
        "what the solver's finite step adds to `quotient_drift`",
        "1",
        "dt/2 b^T Hess F b",
    ),
    "quotient_diffusion": Variable(
        SPLIT,
        (*PATH, "predictor", "other_predictor"),
        "covariance of the predictors per update",
        "1",
        "J g g^T J^T",
        required=True,
    ),
    "moment_measured": Variable(
        MOMENTS,
        ("step", "moment"),
        "measured moment of what a save interval adds",
        "1",
        "mean of dF, or of (dF_i - E dF_i)(dF_j - E dF_j) given the state",
        required=True,
    ),
    "moment_interval": Variable(MOMENTS, ("step", "moment", "bound"), "t interval of `moment_measured`", "1"),
    "moment_predicted": Variable(
        MOMENTS, ("step", "moment"), "moment by the split of the dynamics", "1", required=True
    ),
    "moment_z": Variable(MOMENTS, ("step", "moment"), "deviation in units of its error", "1"),
    "bin_probability": Variable(LAW_COMPARISON, ("bin",), "measured probability of a bin, given the interval", "1"),
    "bin_interval": Variable(
        LAW_COMPARISON, ("bin", "bound"), "bootstrap interval of `bin_probability` over trajectories", "1"
    ),
    "bin_predicted": Variable(LAW_COMPARISON, ("bin",), "predicted probability of a bin, given the interval", "1"),
    "bin_lower": Variable(LAW_COMPARISON, ("bin",), "lower edge of a bin", "1"),
    "bin_upper": Variable(LAW_COMPARISON, ("bin",), "upper edge of a bin", "1"),
    "kl": Variable(
        LAW_COMPARISON,
        (),
        "KL(measured || predicted) over the bins, less its bias",
        "nat",
        "sum p' log(p'/p) - (K-1)/2n",
    ),
    "kl_interval": Variable(LAW_COMPARISON, ("bound",), "basic bootstrap interval of the KL over trajectories", "nat"),
    "kl_bias": Variable(LAW_COMPARISON, (), "bias of the plug-in KL, subtracted in `kl`", "nat", "(K-1)/2n"),
    "total_variation": Variable(LAW_COMPARISON, (), "total variation over the bins", "1", "1/2 sum |p' - p|"),
    "total_variation_interval": Variable(
        LAW_COMPARISON, ("bound",), "basic bootstrap interval of the total variation over trajectories", "1"
    ),
    "total_variation_noise": Variable(
        LAW_COMPARISON,
        (),
        "total variation that sampling adds to a true prediction",
        "1",
        "1/2 sum sqrt(2p(1-p)/(pi n))",
    ),
    "g_p_value": Variable(LAW_COMPARISON, (), "p-value of the G-test", "1", "2n sum p' log(p'/p) ~ chi2(K-1)"),
    "ks_statistic": Variable(LAW_COMPARISON, (), "Kolmogorov-Smirnov distance", "1", "sup |F' - F|"),
    "ks_p_value": Variable(LAW_COMPARISON, (), "p-value of the Kolmogorov-Smirnov test", "1"),
    "effective_samples": Variable(LAW_COMPARISON, ("sample",), "effective number of samples n", "1", "samples / tau"),
    "inside": Variable(LAW_COMPARISON, (), "share of the samples inside the interval", "1"),
    "coordinate_value": Variable(LAW, ("point", "coordinate"), "coordinates of the predictor", "1", required=True),
    "log_density": Variable(LAW, ("point",), "log density with respect to the reference measure, not normalised", "1"),
    "probability_density": Variable(LAW, ("point",), "normalised density in the coordinates", "1"),
    "probability": Variable(LAW, ("point",), "probability of the node; expectations are sums over nodes", "1"),
    "normalisation_error": Variable(LAW, (), "relative error of the normalisation", "1"),
    "predictor_loss": Variable(LAW, ("point",), "loss of the predictor", "loss", "L(theta)"),
    "effective_loss": Variable(LAW, ("point",), "effective loss", "loss", "L_eff = -T log density"),
    "effective_gradient": Variable(
        LAW, ("point", "coordinate"), "derivative of the effective loss", "loss", "d L_eff / d coordinate"
    ),
    "bias_force": Variable(
        LAW, ("point", "coordinate"), "force of the implicit bias", "loss", "-d (L_eff - L) / d coordinate"
    ),
    "equilibrium_theta": Variable(EQUILIBRIUM, ("parameter",), "parameters at the noise equilibrium", "1"),
    "equilibrium_charge": Variable(
        EQUILIBRIUM, ("charge",), "charge at the noise equilibrium", "parameter^2", "tr(Sigma A_a) = 0"
    ),
    "relaxation_rate": Variable(
        EQUILIBRIUM,
        ("mode",),
        "rate at which charges relax to the equilibrium, per update",
        "1",
        "eigenvalues of -d(dC/dk)/dC; exp(-rate k)",
    ),
    "predicted_charge": Variable(EQUILIBRIUM, ("step", "charge"), "charge along its relaxation", "parameter^2"),
    "predicted_theta": Variable(EQUILIBRIUM, ("step", "parameter"), "parameters along the relaxation", "1"),
    "landscape_loss": Variable(LANDSCAPE, PLANE, "loss over the plane", "loss", "L(theta)", required=True),
    "landscape_effective_loss": Variable(
        LANDSCAPE,
        PLANE,
        "effective loss of the orbit through the point",
        "loss",
        "L_eff = -T log density at the balanced point of the orbit",
        required=True,
    ),
    "landscape_predictor": Variable(
        LANDSCAPE, (*PLANE, "predictor"), "predictor coordinates over the plane", "1", "q = F(theta)", required=True
    ),
    "landscape_charge": Variable(LANDSCAPE, (*PLANE, "charge"), "charge over the plane", "parameter^2"),
    "gram_eigenvalue": Variable(
        SPECTRUM,
        (*PATH, "direction"),
        "eigenvalues of the Gram matrix, the largest first",
        "parameter^2",
        "of G_ab = <X_a, X_b>",
        required=True,
    ),
    "gram_rank": Variable(SPECTRUM, PATH, "rank of the Gram matrix: dimension of the orbit", "1", required=True),
}

# Statistics of an observable are variables named `{observable}_{suffix}`, by suffix; `...` stands for the dims, and {}
# for the units, of the observable.
SUMMARIES: dict[str, Variable] = {
    "count": Variable(STATISTICS, ("step",), "number of finite values of trajectories with status ok", "1"),
    "mean": Variable(STATISTICS, ("step", "..."), "mean over trajectories", "{}"),
    "mean_error": Variable(STATISTICS, ("step", "..."), "standard error of the mean", "{}", "sqrt(variance / count)"),
    "variance": Variable(
        STATISTICS, ("step", "..."), "variance over trajectories", "({})^2", "sum (x - m)^2 / (n - 1)"
    ),
    "covariance": Variable(
        STATISTICS, ("step", "...", "other_..."), "covariance over trajectories", "({})^2", "sum d d^T / (n - 1)"
    ),
    "quantile": Variable(STATISTICS, ("quantile", "step", "..."), "quantile over trajectories", "{}"),
    "sketch": Variable(
        STATISTICS,
        ("step", "...", "{observable}_key"),
        "counts in logarithmic bins, for quantiles",
        "1",
        "sgn(x) ceil(log_g |x|/s)",
    ),
    "histogram": Variable(
        STATISTICS, ("group", "...", "{observable}_bin"), "counts, pooled over steps, by group of trajectories", "1"
    ),
}


def statistic_attributes(statistic: str, observable: str, long_name: str, units: str) -> dict[str, str]:
    """Return the attributes of a statistic of an observable with a name and units of its own."""
    row = SUMMARIES[statistic]
    own = {"long_name": f"{row.long_name} of: {long_name}", "units": "1" if units == "1" else row.units.format(units)}
    return {**row.attributes, **own, "observable": observable, "statistic": statistic}


# Coordinates by which variables of two datasets are matched.
LABELLED = ("step", "charge", "parameter", "predictor")

COORDINATES = {
    "replicate": {"long_name": "problem instance"},
    "trajectory": {"long_name": "trajectory", "standard_name": "realization"},
    "step": {"long_name": "updates since the start", "units": "1"},
    "time": {"long_name": "learning rate x step", "units": "1", "equation": "t = eta k, or int eta dk"},
    "parameter": {"long_name": "scalar parameter"},
    "charge": {"long_name": "charge of the symmetry"},
    "predictor": {"long_name": "predictor coordinate"},
    "point": {"long_name": "point of the quotient"},
    "coordinate": {"long_name": "coordinate of the section"},
    "mode": {"long_name": "mode of relaxation"},
    "bound": {"long_name": "end of the interval"},
    "component": {"long_name": "part of the dynamics"},
    "moment": {"long_name": "moment of an increment"},
    "bin": {"long_name": "bin of a histogram"},
    "sample": {"long_name": "ensemble whose law is compared"},
    "abscissa": {"long_name": "parameter that the attribute abscissa names"},
    "ordinate": {"long_name": "parameter that the attribute ordinate names"},
    "direction": {"long_name": "direction of the orbit, by eigenvalue"},
    "other_predictor": {"long_name": "predictor coordinate, second index of a matrix"},
    "other_charge": {"long_name": "charge of the symmetry, second index of a matrix"},
    "other_parameter": {"long_name": "scalar parameter, second index of a matrix"},
    "quantile": {"long_name": "level of a quantile", "units": "1"},
}


def schema_table() -> str:
    """Return the schema as a markdown table, for the documentation."""
    head = "| variable | in | dims | meaning | units | equation |\n|---|---|---|---|---|---|"
    escapes = str.maketrans({"|": r"\|", "<": "&lt;"})
    rows = [
        f"| `{name}` | {', '.join(v.kinds)} | {', or '.join([', '.join(v.dims) or 'scalar', *v.varying])} "
        f"| {v.long_name.translate(escapes)} | {v.units} | {v.equation.translate(escapes)} |"
        for name, v in [*SCHEMA.items(), *((f"*_{suffix}", v) for suffix, v in SUMMARIES.items())]
    ]
    return "\n".join([head, *rows])
