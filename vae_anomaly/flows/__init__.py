"""Flows: invertible transforms of z, one after the other, that posteriors and priors are made of.

A posterior draws by them and a prior measures by them; both go `forward`, in one pass. To add one: subclass
`Transform`, give it a ``name``, and write ``weights``, ``forward`` and ``inverse``.
"""

from vae_anomaly.core.weights import Weight
from vae_anomaly.flows.autoregressive import Autoregressive
from vae_anomaly.flows.base import TRANSFORMS, Transform
from vae_anomaly.flows.chain import Chain, Transforms
from vae_anomaly.flows.coupling import Coupling
from vae_anomaly.flows.planar import Planar
from vae_anomaly.flows.spline import Spline

__all__ = [
    "NAMED",
    "TRANSFORMS",
    "Autoregressive",
    "Chain",
    "Coupling",
    "Planar",
    "Spline",
    "Transform",
    "Transforms",
    "Weight",
    "resolve",
]

#: Sequences of transforms that have a name.
NAMED: dict[str, tuple[Transform, ...]] = {
    "planar": (Planar(),) * 8,
    "realnvp": (Coupling(),) * 4,
    "autoregressive": (Autoregressive(),) * 2,
    "spline": (Spline(),) * 2,
}


def resolve(transforms: str | Transforms) -> Chain:
    """The flow of transforms with this name, or of these.

    Raises
    ------
    TypeError, ValueError
    """
    if isinstance(transforms, str):
        if transforms not in NAMED:
            raise ValueError(
                f"transforms must be one of {[*NAMED]} or a list of them; received {transforms!r}."
            )
        return Chain(NAMED[transforms])
    for transform in transforms:
        if not isinstance(transform, Transform):
            raise TypeError(f"transforms must be a list of Transform objects; received {transform!r}.")
        transform._validate_params()
    if not transforms:
        raise ValueError("transforms must hold at least one Transform; received none.")
    return Chain(tuple(transforms))
