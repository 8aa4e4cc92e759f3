"""Ensembles: many trajectories of a problem under given dynamics, as one dataset."""

from .simulate import simulate as simulate
