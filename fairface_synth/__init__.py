"""fairface_synth: demographically balanced faces from a biased generator, with the proof beside them.

`import fairface_synth as ffs` is all a notebook needs; the figures are in `ffs.plotting`.
"""

from . import plotting
from .annotating import annotate
from .annotation import Annotations
from .annotation_folders import AnnotationFolder
from .annotation_sources import as_annotations
from .attribute_classifier import MAC, MACReport, train_mac
from .attribute_consistency import Consistency, consistency
from .attribute_counts import AttributeCounts, AttributeRates, attribute_rates, count_attributes
from .attribute_schema import MAAD_FACE, AttributeSchema
from .audits import (
    AuditReport,
    anova,
    audit,
    bayes_linreg,
    correlations,
    group_table,
    multinomial_logit,
    ols,
    top_bottom,
    tree_report,
)
from .covariates import covariates, face_regions
from .datasets import read_faces
from .discriminators import score
from .divergence import Cells, KLMatrix, KLTable, fit_cells, kl_matrix, kl_table, product_cells
from .embeddings import embed
from .errors import BudgetError, CheckpointError, DataError, FairFaceError, GroupError, ShapeError
from .evolution import Archive, Fitness, Scores, evolve
from .export import (
    DatasetCheck,
    DatasetPlan,
    ExportEstimate,
    ExportReport,
    FaceDataset,
    FaceStream,
    export,
    open_dataset,
    plan_dataset,
    regenerate,
    verify_dataset,
)
from .face_sets import FaceSet
from .fairness import Fairness, fairness
from .fingerprints import fingerprint, fingerprint_generator, fingerprint_model
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
from .gaussian_fitting import fit_gaussians
from .gaussians import GroupGaussians, compose, log_prob, sample_gaussians
from .groups import Groups, balanced_quota, parse
from .identities import Nearest, components, novelty, unique
from .images import from_uint8, ita, ita_band, rgb_to_lab, save_images, to_uint8
from .label_files import read_maad_labels
from .label_noise import Confusion, CorrectedQuota, TrueShares, corrected_quota, fit_confusion, true_shares
from .latents import LatentBank, draw_latents, label_latents, normals, to_layers, truncate
from .leakage import LeakageReport, leakage_report
from .models.checkpoints import load_discriminator, load_generator, read_state_dict, save_generator
from .models.demo import demo_axes, load_demo
from .models.facenet import Detections, align_faces, load_detector, load_embedder
from .models.fairface import load_labeller
from .models.protocols import Embedder, Generator, Labeller, wrap_embedder, wrap_generator, wrap_labeller
from .moments import GroupMoments
from .pairs import PairSet, read_pairs
from .pipeline import Pipeline, PipelineReport, Sample
from .quality import KID, PRDC, Estimate, expected_coverage, kid, prdc
from .recognition import RunComparison, compare_runs
from .regularization import (
    GroupDRO,
    consistency_loss,
    group_dro,
    group_gap_loss,
    score_alignment_loss,
    worst_group_loss,
)
from .reports import GroupShares, group_shares, markdown_table, wilson_interval
from .score_histograms import ScoreHistogram, cross_scores
from .score_tables import score_table, shuffle_pixels
from .screening import Accepted, Screen, fit_screen, reject, screen
from .strategies import (
    Evaluation,
    Explored,
    Proposal,
    Strategy,
    branching_walk,
    cem,
    cvt_centroids,
    explore,
    genetic,
    map_elites,
    snes,
)
from .streaming import SyntheticBatch, SyntheticStream, augment, stream, to_recognition_format
from .subspaces import Subspace, fit_subspace, lift, project
from .sweeps import Sweep, sweep
from .tables import read_table, to_frame, write_table
from .thresholds import ImpostorScores, Threshold, impostor_scores, threshold_among, threshold_at_fmr
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
from .verification import Verification, verify

__version__ = "0.1.0"

__all__ = [
    "KID",
    "MAAD_FACE",
    "MAC",
    "PRDC",
    "Accepted",
    "AnnotationFolder",
    "Annotations",
    "Archive",
    "AttributeCounts",
    "AttributeRates",
    "AttributeSchema",
    "AuditReport",
    "Axis",
    "BudgetError",
    "Cells",
    "CheckpointError",
    "Confusion",
    "Consistency",
    "CorrectedQuota",
    "DataError",
    "DatasetCheck",
    "DatasetPlan",
    "Detections",
    "Direction",
    "Embedder",
    "Estimate",
    "Evaluation",
    "Explored",
    "ExportEstimate",
    "ExportReport",
    "FaceDataset",
    "FaceFitness",
    "FaceSet",
    "FaceStream",
    "Faces",
    "FairFaceError",
    "Fairness",
    "Fitness",
    "Generator",
    "GroupDRO",
    "GroupError",
    "GroupGaussians",
    "GroupMoments",
    "GroupShares",
    "Groups",
    "ImpostorScores",
    "KLMatrix",
    "KLTable",
    "Labeller",
    "LatentBank",
    "LeakageReport",
    "MACReport",
    "Nearest",
    "PairSet",
    "Pipeline",
    "PipelineReport",
    "Proposal",
    "RunComparison",
    "Sample",
    "ScoreHistogram",
    "Scores",
    "Screen",
    "ShapeError",
    "Strategy",
    "Subspace",
    "Sweep",
    "SyntheticBatch",
    "SyntheticStream",
    "Threshold",
    "TrueShares",
    "Variations",
    "Verification",
    "align_faces",
    "annotate",
    "anova",
    "as_annotations",
    "attribute_rates",
    "audit",
    "augment",
    "balanced_quota",
    "bayes_linreg",
    "branching_walk",
    "cem",
    "compare_runs",
    "components",
    "compose",
    "consistency",
    "consistency_loss",
    "corrected_quota",
    "correlations",
    "count_attributes",
    "covariates",
    "cross_scores",
    "cvt_centroids",
    "demo_axes",
    "draw_latents",
    "edit",
    "embed",
    "evolve",
    "expected_coverage",
    "expected_value",
    "explore",
    "export",
    "face_fitness",
    "face_quality",
    "face_regions",
    "fairness",
    "fingerprint",
    "fingerprint_generator",
    "fingerprint_model",
    "fit_cells",
    "fit_confusion",
    "fit_direction",
    "fit_gaussians",
    "fit_screen",
    "fit_subspace",
    "from_uint8",
    "genetic",
    "group_dro",
    "group_gap_loss",
    "group_shares",
    "group_table",
    "identity_novelty",
    "impostor_scores",
    "ita",
    "ita_band",
    "kid",
    "kl_matrix",
    "kl_table",
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
    "multinomial_logit",
    "neutralise",
    "normals",
    "novelty",
    "ols",
    "open_dataset",
    "parse",
    "plan_dataset",
    "plotting",
    "prdc",
    "product_cells",
    "project",
    "published_axes",
    "read_faces",
    "read_maad_labels",
    "read_pairs",
    "read_state_dict",
    "read_table",
    "regenerate",
    "reject",
    "rgb_to_lab",
    "sample_gaussians",
    "save_generator",
    "save_images",
    "score",
    "score_alignment_loss",
    "score_table",
    "screen",
    "shuffle_pixels",
    "signed_distance",
    "snes",
    "stream",
    "sweep",
    "threshold_among",
    "threshold_at_fmr",
    "to_frame",
    "to_layers",
    "to_recognition_format",
    "to_uint8",
    "top_bottom",
    "train_mac",
    "tree_report",
    "true_shares",
    "truncate",
    "typicality",
    "unique",
    "vary",
    "verify",
    "verify_dataset",
    "wilson_interval",
    "worst_group_loss",
    "wrap_embedder",
    "wrap_generator",
    "wrap_labeller",
    "write_table",
    "yaw",
]
