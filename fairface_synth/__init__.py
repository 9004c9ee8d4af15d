"""fairface_synth: demographically balanced faces from a biased generator, with the proof beside them.

`import fairface_synth as ffs` is all a notebook needs; the figures are in `ffs.plotting`.
"""

from . import plotting
from .errors import CheckpointError, DataError, FairFaceError, GroupError, ShapeError
from .evolution import Archive, Fitness, Scores, evolve
from .fitness import (
    FaceFitness,
    Faces,
    expected_value,
    face_fitness,
    face_quality,
    identity_novelty,
    log_target,
    typicality,
    yaw,
)
from .gaussians import GroupGaussians, GroupMoments, compose, fit_gaussians, log_prob, sample_gaussians
from .groups import Groups, balanced_quota, parse
from .identities import (
    ImpostorScores,
    LeakageReport,
    Nearest,
    Threshold,
    components,
    embed,
    impostor_scores,
    leakage_report,
    novelty,
    threshold_at_fmr,
    unique,
)
from .images import from_uint8, ita, ita_band, rgb_to_lab, save_images, to_uint8
from .label_noise import Confusion, CorrectedQuota, TrueShares, corrected_quota, fit_confusion, true_shares
from .latents import LatentBank, draw_latents, label_latents, normals, to_layers, truncate
from .models.checkpoints import load_discriminator, load_generator, read_state_dict, save_generator
from .models.demo import load_demo
from .models.facenet import Detections, align_faces, load_detector, load_embedder
from .models.fairface import load_labeller
from .models.protocols import Embedder, Generator, Labeller, wrap_generator, wrap_labeller
from .pipeline import Pipeline, PipelineReport, Sample
from .qd import Explored, cvt_centroids, explore, map_elites
from .quality import KID, PRDC, Estimate, expected_coverage, kid, prdc
from .reports import GroupShares, group_shares, markdown_table, wilson_interval
from .screening import Accepted, Screen, fit_screen, reject, screen
from .strategies import Evaluation, Proposal, Strategy, branching_walk, cem, genetic, snes
from .subspaces import Subspace, fit_subspace, lift, project
from .variations import (
    Axis,
    Direction,
    Variations,
    edit,
    fit_direction,
    neutralise,
    published_axes,
    signed_distance,
    vary,
)

__version__ = "0.1.0"

__all__ = [
    "KID",
    "PRDC",
    "Accepted",
    "Archive",
    "Axis",
    "CheckpointError",
    "Confusion",
    "CorrectedQuota",
    "DataError",
    "Detections",
    "Direction",
    "Embedder",
    "Estimate",
    "Evaluation",
    "Explored",
    "FaceFitness",
    "Faces",
    "FairFaceError",
    "Fitness",
    "Generator",
    "GroupError",
    "GroupGaussians",
    "GroupMoments",
    "GroupShares",
    "Groups",
    "ImpostorScores",
    "Labeller",
    "LatentBank",
    "LeakageReport",
    "Nearest",
    "Pipeline",
    "PipelineReport",
    "Proposal",
    "Sample",
    "Scores",
    "Screen",
    "ShapeError",
    "Strategy",
    "Subspace",
    "Threshold",
    "TrueShares",
    "Variations",
    "align_faces",
    "balanced_quota",
    "branching_walk",
    "cem",
    "components",
    "compose",
    "corrected_quota",
    "cvt_centroids",
    "draw_latents",
    "edit",
    "embed",
    "evolve",
    "expected_coverage",
    "expected_value",
    "explore",
    "face_fitness",
    "face_quality",
    "fit_confusion",
    "fit_direction",
    "fit_gaussians",
    "fit_screen",
    "fit_subspace",
    "from_uint8",
    "genetic",
    "group_shares",
    "identity_novelty",
    "impostor_scores",
    "ita",
    "ita_band",
    "kid",
    "label_latents",
    "leakage_report",
    "lift",
    "load_demo",
    "load_detector",
    "load_discriminator",
    "load_embedder",
    "load_generator",
    "load_labeller",
    "log_prob",
    "log_target",
    "map_elites",
    "markdown_table",
    "neutralise",
    "normals",
    "novelty",
    "parse",
    "plotting",
    "prdc",
    "project",
    "published_axes",
    "read_state_dict",
    "reject",
    "rgb_to_lab",
    "sample_gaussians",
    "save_generator",
    "save_images",
    "screen",
    "signed_distance",
    "snes",
    "threshold_at_fmr",
    "to_layers",
    "to_uint8",
    "true_shares",
    "truncate",
    "typicality",
    "unique",
    "vary",
    "wilson_interval",
    "wrap_generator",
    "wrap_labeller",
    "yaw",
]
