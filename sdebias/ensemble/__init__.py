"""Ensembles: many trajectories of a problem under given dynamics, as one dataset."""
