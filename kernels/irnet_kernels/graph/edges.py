"""EdgeSet: the edges of a typed graph in compressed rows, checked and sorted once. No propagation happens here."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class EdgeSet:
    """T adjacency matrices A_t [N, N] with A_t[dst, src] = weight, all in one CSR matrix, and their transposes.

    `from_edges` makes sound ones. What is put together by hand is trusted: that indices are in range and that both
    halves hold the same edges.

    Attributes:
        num_nodes: N.
        num_types: T.
        indptr: int64 [T N + 1]; row t N + dst holds the edges of type t into dst.
        indices: int32 [E], their src, rising within a row.
        values: float32 or float64 [E], their weights.
        transpose_indptr: int64 [T N + 1]; row t N + src holds the edges of type t out of src.
        transpose_indices: int32 [E], their dst, rising within a row.
        transpose_values: [E], their weights, of the dtype of `values`.

    Raises:
        ValueError: indptr or transpose_indptr has another length.
    """

    num_nodes: int
    num_types: int
    indptr: Tensor
    indices: Tensor
    values: Tensor
    transpose_indptr: Tensor
    transpose_indices: Tensor
    transpose_values: Tensor

    def __post_init__(self) -> None:
        height = self.num_types * self.num_nodes
        for name in ("indptr", "transpose_indptr"):
            shape = list(getattr(self, name).shape)
            if shape != [height + 1]:
                size = f"{self.num_types} types of {self.num_nodes} nodes"
                raise ValueError(f"{name} must be [{height + 1}] for {size}, got {shape}")

    @staticmethod
    def from_edges(
        edges: Sequence[tuple[Tensor, Tensor, Tensor]], num_nodes: int, normalize: bool = False
    ) -> "EdgeSet":
        """Build from one (src, dst, weight) triple of 1-D tensors per type; dst receives from src.

        Args:
            edges: Per type src and dst, integer [E_t], and weight, floating [E_t], in any order; duplicates add up;
                E_t may be 0.
            num_nodes: N.
            normalize: Divide every row of every A_t by its sum (rows that sum to zero stay zero).

        Returns:
            The edge set, on the device of the first triple.

        Raises:
            ValueError: No edge type, a negative N, T N beyond 2^31, or a malformed edge, of which the first is named: a
                node out of range, a negative, infinite or NaN weight.
        """
        if not edges:
            raise ValueError("an EdgeSet needs at least one edge type")
        if num_nodes < 0:
            raise ValueError(f"num_nodes must not be negative, got {num_nodes}")
        if len(edges) * num_nodes >= 2**31:
            raise ValueError(
                f"{len(edges)} types of {num_nodes} nodes are too many: their product must stay below 2^31"
            )
        rows, columns, weights = [], [], []
        for edge_type, (src, dst, weight) in enumerate(edges):
            src, dst, weight = torch.as_tensor(src), torch.as_tensor(dst), torch.as_tensor(weight)
            _check(edge_type, src, dst, weight, num_nodes)
            rows.append(edge_type * num_nodes + dst.long())
            columns.append(src.long())
            weights.append(weight if weight.dtype == torch.float64 else weight.float())
        height = len(edges) * num_nodes
        # One key per cell; `unique` sorts them and says which edges fall on the same one.
        keys, cell = torch.unique(torch.cat(rows) * num_nodes + torch.cat(columns), return_inverse=True)
        weight = torch.cat(weights)
        values = torch.zeros(len(keys), dtype=weight.dtype, device=weight.device).index_put_(
            (cell,), weight, accumulate=True
        )
        row, column = keys // num_nodes, keys % num_nodes
        if normalize:
            total = torch.zeros(height, dtype=values.dtype, device=values.device).index_put_(
                (row,), values, accumulate=True
            )
            values = values / torch.where(total > 0, total, 1)[row]
        dst = row % num_nodes
        source_row = row - dst + column
        order = torch.argsort(source_row * num_nodes + dst)
        return EdgeSet(
            num_nodes,
            len(edges),
            _row_starts(row, height),
            column.int(),
            values,
            _row_starts(source_row, height),
            dst[order].int(),
            values[order],
        )

    def to(self, device: torch.device | str) -> "EdgeSet":
        """Copy the edges to `device`, unless they are there."""
        return EdgeSet(self.num_nodes, self.num_types, *(t.to(device) for t in self.tensors()))

    def tensors(self) -> list[Tensor]:
        """The six tensors, in the order in which the operator takes them."""
        forward = [self.indptr, self.indices, self.values]
        return [*forward, self.transpose_indptr, self.transpose_indices, self.transpose_values]


def _row_starts(rows: Tensor, height: int) -> Tensor:
    counts = torch.bincount(rows, minlength=height)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _check(edge_type: int, src: Tensor, dst: Tensor, weight: Tensor, num_nodes: int) -> None:
    if not (src.dim() == dst.dim() == weight.dim() == 1 and len(src) == len(dst) == len(weight)):
        shapes = f"{list(src.shape)}, {list(dst.shape)}, {list(weight.shape)}"
        raise ValueError(f"edge type {edge_type}: src, dst and weight must be 1-D and of one length, got {shapes}")
    if src.is_floating_point() or dst.is_floating_point() or not weight.is_floating_point():
        dtypes = f"{src.dtype}, {dst.dtype}, {weight.dtype}"
        raise ValueError(f"edge type {edge_type}: src and dst must be integers and weight floating, got {dtypes}")
    wrong = {
        "its source is out of range": (src < 0) | (src >= num_nodes),
        "its target is out of range": (dst < 0) | (dst >= num_nodes),
        "its weight is negative, infinite or NaN": ~((weight >= 0) & weight.isfinite()),
    }
    for trouble, where in wrong.items():
        if where.any():
            at = int(where.nonzero()[0])
            edge = f"{int(src[at])} -> {int(dst[at])}, weight {float(weight[at])}"
            raise ValueError(f"edge type {edge_type}, edge {at} ({edge}): {trouble} for {num_nodes} nodes")
