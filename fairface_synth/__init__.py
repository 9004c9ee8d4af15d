"""fairface_synth: demographically balanced faces from a biased generator, with the proof beside them.

`import fairface_synth as ffs` is all a notebook needs; the figures are in `ffs.plotting`.
"""

from . import plotting
from .errors import CheckpointError, DataError, FairFaceError, GroupError, ShapeError
from .gaussians import GroupGaussians, GroupMoments, compose, fit_gaussians, log_prob, sample_gaussians
from .groups import Groups, balanced_quota, parse
from .images import from_uint8, ita, ita_band, rgb_to_lab, save_images, to_uint8
from .latents import LatentBank, draw_latents, label_latents, normals, to_layers, truncate
from .models.checkpoints import load_discriminator, load_generator, read_state_dict, save_generator
from .models.demo import load_demo
from .models.facenet import Detections, align_faces, load_detector, load_embedder
from .models.fairface import load_labeller
from .models.protocols import Embedder, Generator, Labeller, wrap_generator, wrap_labeller
from .pipeline import Pipeline, PipelineReport, Sample
from .reports import GroupShares, group_shares, markdown_table, wilson_interval
from .screening import Accepted, reject
from .subspaces import Subspace, fit_subspace, lift, project

__version__ = "0.1.0"

__all__ = [
    "Accepted",
    "CheckpointError",
    "DataError",
    "Detections",
    "Embedder",
    "FairFaceError",
    "Generator",
    "GroupError",
    "GroupGaussians",
    "GroupMoments",
    "GroupShares",
    "Groups",
    "Labeller",
    "LatentBank",
    "Pipeline",
    "PipelineReport",
    "Sample",
    "ShapeError",
    "Subspace",
    "align_faces",
    "balanced_quota",
    "compose",
    "draw_latents",
    "fit_gaussians",
    "fit_subspace",
    "from_uint8",
    "group_shares",
    "ita",
    "ita_band",
    "label_latents",
    "lift",
    "load_demo",
    "load_detector",
    "load_discriminator",
    "load_embedder",
    "load_generator",
    "load_labeller",
    "log_prob",
    "markdown_table",
    "normals",
    "parse",
    "plotting",
    "project",
    "read_state_dict",
    "reject",
    "rgb_to_lab",
    "sample_gaussians",
    "save_generator",
    "save_images",
    "to_layers",
    "to_uint8",
    "truncate",
    "wilson_interval",
    "wrap_generator",
    "wrap_labeller",
]
