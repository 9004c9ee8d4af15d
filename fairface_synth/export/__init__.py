"""Sets of millions of images on disk: plan, export, read, verify, make again.

`plan.py` says what a set holds; `run.py` (`export`) fills it with `engines.py`; `gate.py` finds the identities and
`making.py` the images; `storage.py`, `encoding.py` and `records.py` write and check them, `readers.py` reads them;
`checking.py` verifies and repairs; `datasheet.py` and `croissant.py` describe.
"""

from .checking import DatasetCheck, regenerate, verify_dataset
from .estimate import ExportEstimate
from .plan import DatasetPlan, Shard, plan_dataset
from .readers import FaceDataset, FaceStream, open_dataset
from .run import ExportReport, export

__all__ = [
    "DatasetCheck",
    "DatasetPlan",
    "ExportEstimate",
    "ExportReport",
    "FaceDataset",
    "FaceStream",
    "Shard",
    "export",
    "open_dataset",
    "plan_dataset",
    "regenerate",
    "verify_dataset",
]
