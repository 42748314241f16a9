"""What a method is, the full Spectrum that it returns, and the one decomposition that they all are.

Every method takes the SVD of W·M = U·Σ·Zᵀ for an invertible M of its own and keeps Ŵ = U_k·Σ_k·Z_kᵀ·M⁻¹, the best
rank-k approximation in the norm ‖(W - Ŵ)·M‖. That is U_k·U_kᵀ·W, too: what M decides is the basis U of the outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from flashsvd.models.shape import ModelShape
    from flashsvd.stats.base import InputStats, Need


@dataclass(frozen=True)
class Spectrum:
    """A full decomposition of the units of one slot: W ≈ U[:, :k]·diag(scale[:k])·V[:k] at every rank k at once.

    u [units, m, p] orthonormal columns, v [units, p, n], with p = min(m, n). sigma [units, p], largest first: what
    cutting a component costs in the method's norm, ‖(W - Ŵ)·M‖² = Σ tail σ². scale [units, p]: how large a component
    is; None where that is sigma. mean [n]: of the inputs, where the bias is to take up (W - Ŵ)·mean.
    """

    u: torch.Tensor
    sigma: torch.Tensor
    v: torch.Tensor
    scale: torch.Tensor | None = None
    mean: torch.Tensor | None = None

    def factors(self, unit: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Left [m, rank] and right [rank, n] factors of one unit, √scale on each side.

        The even split keeps both factors' entries in the same range, which fp16 needs.
        """
        scale = self.sigma if self.scale is None else self.scale
        root = scale[unit, :rank].sqrt()
        return self.u[unit, :, :rank] * root, root[:, None] * self.v[unit, :rank]


Decompose = Callable[["torch.Tensor", "InputStats | None"], Spectrum]
"""A weight [units, m, n], float32 or float64, and what the method needs of its inputs -> its Spectrum.

Raises CheckpointError where the statistics do not allow it."""


@dataclass(frozen=True)
class Method:
    """A named way to decompose.

    options: what differs from the defaults, as `method_named` reads it ("alpha=0.3"). group: layers that share the
    right factor of a projection (1: none do), in `shared_slots`.
    """

    name: str
    title: str
    source: str
    decompose: Decompose
    needs: frozenset[Need] = frozenset()
    options: str = ""
    group: int = 1
    shared_slots: frozenset[str] = frozenset()

    @property
    def spec(self) -> str:
        """The name with its options: what `method_named` makes this method of."""
        return f"{self.name}:{self.options}" if self.options else self.name

    def shape(self, shape: ModelShape) -> ModelShape:
        """The shape that this method's plans and spectra have: that of the model, with the layers it makes share."""
        return shape if self.group == 1 else shape.with_sharing(self.group, self.shared_slots)


def decompose_plain(weight: torch.Tensor) -> Spectrum:
    """M = I. weight [units, m, n]."""
    # Loaded only where work is done: the app lists methods in a process that never loads torch.
    import torch

    if weight.device.type == "cpu":
        return Spectrum(*torch.linalg.svd(weight, full_matrices=False))
    # cuSOLVER's SVD of [4096, 4096] takes many times as long as its eigh in float64, whose squared condition number
    # still resolves σ down to 1e-8 of the largest: the rounding of a float32 weight.
    wide = weight.double()
    return _by_inputs(weight, wide) if _is_tall(weight) else _by_outputs(weight, wide @ wide.mT)


def decompose_diagonal(weight: torch.Tensor, scale: torch.Tensor) -> Spectrum:
    """M = diag(scale). weight [units, m, n]; scale [units or 1, n] float64, positive."""
    scaled = weight.double() * scale[:, None].to(weight.device)
    return _by_inputs(weight, scaled) if _is_tall(weight) else _by_outputs(weight, scaled @ scaled.mT)


def decompose_gram(weight: torch.Tensor, gram: torch.Tensor, damping: float = 1e-10) -> Spectrum:
    """M·Mᵀ = gram [n, n] float64, by symmetric eigenproblems of the smaller side in float64.

    Where m <= n that is W·G·Wᵀ, whose eigenvectors are U: no root is taken. Else of G, for its root Q·√Λ. `damping`
    of the mean diagonal is added: inputs that were never seen weigh next to nothing, and still decide what ranks
    beyond the rank of G go to.
    """
    import torch

    wide = weight.double()
    damp = float(gram.diagonal().mean()) * damping or 1.0
    damped = gram + damp * torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
    if not _is_tall(weight):
        return _by_outputs(weight, wide @ damped @ wide.mT)
    values, vectors = _eigh(damped)
    return _by_inputs(weight, wide @ (vectors * values.clamp_min(damp).sqrt()))


def decompose_root(weight: torch.Tensor, root: torch.Tensor) -> Spectrum:
    """M = root [n, n] float64, any root of the Gram: the SVD of W·M itself, as the papers write it."""
    import torch

    u, sigma, _ = torch.linalg.svd(weight.double() @ root, full_matrices=False)
    return _with_right(weight, u, sigma)


def positive(weights: torch.Tensor) -> torch.Tensor:
    """Weights of input channels with those at zero raised to 1e-12 of the mean, so that M can be inverted; all ones
    where every weight is zero."""
    mean = weights.mean(-1, keepdim=True)
    return weights.clamp_min(1e-12 * mean).where(mean > 0, weights.new_ones(()))


def _by_outputs(weight: torch.Tensor, outer: torch.Tensor) -> Spectrum:
    """U from eigh of outer = W·M·Mᵀ·Wᵀ [units, m, m]."""
    values, u = _eigh(outer)
    return _with_right(weight, u.flip(-1), values.flip(-1).clamp_min(0).sqrt())


def _by_inputs(weight: torch.Tensor, scaled: torch.Tensor) -> Spectrum:
    """U from eigh of (W·M)ᵀ·(W·M) [units, n, n], where scaled = W·M [units, m, n] is tall."""
    import torch

    values, z = _eigh(scaled.mT @ scaled)
    # The columns of scaled·z are orthogonal up to rounding; QR makes them a basis also where they are next to nothing.
    u, _ = torch.linalg.qr(scaled @ z.flip(-1))
    return _with_right(weight, u, values.flip(-1).clamp_min(0).sqrt())


def _eigh(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    return torch.linalg.eigh((matrix + matrix.mT) / 2)


def _with_right(weight: torch.Tensor, u: torch.Tensor, sigma: torch.Tensor) -> Spectrum:
    """The Spectrum of basis u [units, m, p] float64: its right factor is Uᵀ·W, and M need not be inverted."""
    right = u.mT @ weight.double()
    scale = right.norm(dim=-1)
    v = right / scale.clamp_min(1e-300)[..., None]
    return Spectrum(u.to(weight), sigma.to(weight), v.to(weight), scale=scale.to(weight))


def _is_tall(weight: torch.Tensor) -> bool:
    return weight.shape[-2] > weight.shape[-1]
