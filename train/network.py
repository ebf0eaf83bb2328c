"""The network that a configuration describes."""

from __future__ import annotations

from compressai.layers import GDN

from codec.layout import Sizes
from train.config import Config
from train.hyper import HyperModel
from train.objective import RateDistortion, Rectifier
from train.vae import GaussianVAE

FINE = 2
"""Slices of a model with seven turns whose networks are frozen in more than eight bits."""


def sizes_for(config: Config) -> Sizes:
    """Widths of the hyperprior's networks, in proportion to those of the transforms."""
    n = config.filters
    widths = {"side": max(1, n // 2), "analysis": n, "synthesis": max(1, 3 * n // 4), "features": n, "width": n}
    return Sizes(**widths, slices=config.slices, turns=config.turns, fine=min(FINE, len(config.slices)) if 7 in config.turns else 0)


def network(config: Config) -> RateDistortion | GaussianVAE:
    """What the configuration describes, untrained; a `GaussianVAE` is called and returns as a `RateDistortion`."""
    gdn = GDN if config.normalisation == "gdn" else Rectifier
    if config.objective == "vae":
        return GaussianVAE(config.filters, config.latents, config.prior, gdn)
    if config.entropy == "hyperprior":
        return HyperModel(config.lambdas, config.filters, config.latents, sizes_for(config), config.thrift, config.tilted)
    mixed = config.quantiser == "mixed"
    return RateDistortion(config.lambdas, config.filters, config.latents, mixed, gdn, config.thrift if mixed else 0.0, config.tilted)
