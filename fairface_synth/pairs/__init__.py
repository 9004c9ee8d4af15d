"""Verification protocols on disk: lists of pairs of faces, and which of them show one person.

`read_pairs` reads LFW's lists, RFW's, BFW's table, InsightFace's packed sets (lfw.bin, cfp_fp.bin, …) and any list of
one's own into a `PairSet`, in which each image is listed once, so that it is embedded once. Nothing is downloaded, no
image is opened, and nothing in a pickled set is executed.

- reading.py: `read_pairs`: from what a layout's reader found to a checked set.
- sets.py: `PairSet`.
- lfw.py (LFW and RFW), bfw.py, lists.py, packed.py (with `PackedFaces`): one reader for each layout.
- base.py: what readers get and give, and what they share.
"""

from .packed import PackedFaces
from .reading import LAYOUTS, read_pairs
from .sets import PairSet

__all__ = ["LAYOUTS", "PackedFaces", "PairSet", "read_pairs"]
