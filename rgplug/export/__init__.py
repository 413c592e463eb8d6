"""Generators to take away: baked (the host's own network with zeros in place), compact (channels taken out), as files.

A pruned weight in a dense tensor makes nothing smaller and nothing faster. A sparse file is smaller on disk, and gives
the dense tensors back when it is read; a compact network is smaller and faster, where whole channels are pruned.
"""

from rgplug.export.bake import bake
from rgplug.export.card import cost_card
from rgplug.export.checkpoint import export_checkpoint
from rgplug.export.compact import Compact, compact
from rgplug.export.compact_file import load_compact, save_compact
from rgplug.export.forms import CostCard, Form
from rgplug.export.onnx_file import OnnxCheck, save_onnx
from rgplug.export.semi_structured import accelerate, compress, expand, is_two_to_four
from rgplug.export.sparse_file import load_sparse, read_sparse, save_sparse

__all__ = [
    "Compact",
    "CostCard",
    "Form",
    "OnnxCheck",
    "accelerate",
    "bake",
    "compact",
    "compress",
    "cost_card",
    "expand",
    "export_checkpoint",
    "is_two_to_four",
    "load_compact",
    "load_sparse",
    "read_sparse",
    "save_compact",
    "save_onnx",
    "save_sparse",
]
