"""rgplug: pruning and regeneration for GAN training code that already exists.

rg = rgplug.attach(G, D, policy="rg-gan.yaml")     # once G and D exist
...
rg.end_epoch(fid)                                  # once per evaluation
"""

from rgplug.attach import attach
from rgplug.check import check
from rgplug.controller import Controller
from rgplug.errors import RgplugError
from rgplug.history import Record
from rgplug.masking import MaskedWeight
from rgplug.policy import Policy
from rgplug.version import __version__

__all__ = ["Controller", "MaskedWeight", "Policy", "Record", "RgplugError", "__version__", "attach", "check"]
