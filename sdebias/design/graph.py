"""Total variation on a graph: differences along edges as an invertible analysis operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, depth_first_order

from ..errors import InputError, check_choice, check_count, message
from .operators import MatrixOperator


class GraphDifferences(MatrixOperator):
    """Differences w_j − w_i along the edges (i, j), then √(nodes) times the mean of each component.

    A graph of n nodes, m edges and k components has n − k independent differences. Without cycles m = n − k: together
    with the k means they determine w, A is square, and w = B⁺(differences) + the means' constants, B⁺ the
    pseudo-inverse of the incidence matrix B. With cycles m > n − k: the differences around a cycle sum to zero, so that
    most vectors of m differences belong to no signal and w = A⁻¹(p∘q) with free p, q does not exist. (w = B⁺(p∘q) does;
    its bias is the smallest ‖c‖₁ of all c with B⁺c = w, which is not the total variation ‖B w‖₁.) For such graphs
    ``cycles="chain"`` takes differences along a depth-first ordering of the nodes instead: their ‖·‖₁ is at most twice
    the total variation on the graph, and their number of jumps at most twice the number of edges across which w jumps
    (Padilla, Sharpnack, Scott, Tibshirani 2018, "The DFS fused lasso").

    Parameters
    ----------
    edges : sequence of pairs of int
        Each once, in either direction.
    nodes : int
        Number n of nodes, which are 0 … n − 1.
    cycles : {"refuse", "chain"}

    Attributes
    ----------
    edges : list of pairs of int
        Those along which differences are taken, in the order of the coefficients.

    Raises
    ------
    InputError
        If an edge has no such node, joins a node to itself or occurs twice, or the graph has a cycle that is refused.
    """

    def __init__(
        self, edges: Sequence[tuple[int, int]], nodes: int, cycles: Literal["refuse", "chain"] = "refuse"
    ) -> None:
        check_count("nodes", nodes)
        check_choice("cycles", cycles, ("refuse", "chain"))
        pairs = _checked_edges(edges, nodes)
        adjacency = coo_array((np.ones(len(pairs)), tuple(pairs.T)), shape=(nodes, nodes))
        components, label = connected_components(adjacency, directed=False)
        if len(pairs) > nodes - components:
            if cycles == "refuse":
                want = f"a graph without cycles, {nodes - components} edges for {components} component(s)"
                reason = (
                    "differences around a cycle sum to zero, so that not all sets of differences belong to a signal"
                )
                remedy = f'{reason}; use cycles="chain", a depth-first chain of at most twice the total variation'
                raise InputError(message("edges", want, f"{len(pairs)} edges", remedy))
            pairs = _depth_first_chain(adjacency, label)
        count = len(pairs)
        matrix = np.zeros((nodes, nodes))
        matrix[np.arange(count), pairs[:, 0]] = -1
        matrix[np.arange(count), pairs[:, 1]] = 1
        members = label == np.arange(components)[:, None]
        matrix[count:] = members / np.sqrt(members.sum(1, keepdims=True))
        super().__init__(matrix)
        self.edges = [(int(i), int(j)) for i, j in pairs]


def _checked_edges(edges: Sequence[tuple[int, int]], nodes: int) -> np.ndarray:
    """Return the edges, shape (edge, 2)."""
    try:
        pairs = np.asarray(edges).reshape(len(edges), 2)
    except (TypeError, ValueError):
        remedy = "give a list of (node, node)"
        raise InputError(message("edges", "pairs of nodes", type(edges).__name__, remedy)) from None
    if len(pairs) == 0:
        return np.zeros((0, 2), dtype=int)
    if not np.issubdtype(pairs.dtype, np.integer) or pairs.min() < 0 or pairs.max() >= nodes:
        want = f"nodes 0 to {nodes - 1}"
        raise InputError(message("edges", want, f"{pairs.min()} to {pairs.max()}", "number the nodes from 0"))
    loops = pairs[pairs[:, 0] == pairs[:, 1]]
    if len(loops):
        raise InputError(message("edges", "edges between two nodes", tuple(loops[0].tolist()), "remove loops"))
    if len(np.unique(np.sort(pairs, axis=1), axis=0)) != len(pairs):
        raise InputError(message("edges", "each edge once", "some twice", "remove the copies"))
    return pairs


def _depth_first_chain(adjacency: coo_array, label: np.ndarray) -> np.ndarray:
    """Return the pairs of nodes that follow each other in a depth-first search of each component."""
    chains = []
    for component in range(label.max() + 1):
        start = int(np.flatnonzero(label == component)[0])
        order = depth_first_order(adjacency.tocsr(), start, directed=False, return_predecessors=False)
        chains.append(np.stack([order[:-1], order[1:]], axis=1))
    return np.concatenate(chains)
