"""Inverse design: from a wanted bias to a parameterisation, and from a module to the bias it has."""
