"""Channels: which filters, gains and input columns of a network belong together, found by running it once.

A channel can be removed only if all that makes it and all that reads it agree on it: the filters that a residual sum
adds up, the halves of a gate, the gains of a norm, the columns of every layer that reads it. `trace` finds them on the
operations of a forward pass (views, concatenations, pixel shuffles and modulated weights included), of whatever class
the host's layers are. torch-pruning's dependency graph is the reference where it can be one (tests/test_channels.py):
it knows nn.Conv2d and nn.Linear alone, and takes gated linear units and pixel shuffles for elementwise operations.
"""

from rgplug.channels.labels import Axis
from rgplug.channels.trace import Channels, Coupled, FilterChannels, filter_channels, plain_copy, trace

__all__ = ["Axis", "Channels", "Coupled", "FilterChannels", "filter_channels", "plain_copy", "trace"]
