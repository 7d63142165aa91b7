"""How far samples are from data, and posterior samples from the truth.

    energy_distance(samples, data)                  # 0 where the laws agree, up to the sizes of the sets
    sliced_wasserstein(samples, data, noise=0)
    frechet_distance(features(samples), features(data))     # of pixels, or of any feature space
    precision_recall(features(samples), features(data))
    memorised_share(samples, train, held_out)       # how many lie nearer to the training set than new data do
    calibration_error(samples, truth)               # of posterior samples (n, S, *event) for truths (n, *event)

Sets are (n, *event) of any sizes; all is computed in float64. A feature space is a :class:`Features`: pixels, a network
that :func:`train_features` makes in minutes, or any module (:class:`ModuleFeatures`).
"""

from scoresde.metrics.energy import energy_distance
from scoresde.metrics.feature_net import FeatureNet, NetFeatures
from scoresde.metrics.feature_training import train_features
from scoresde.metrics.features import Features, ModuleFeatures, PixelFeatures
from scoresde.metrics.frechet import frechet_bias, frechet_distance, frechet_extrapolated, frechet_of_moments
from scoresde.metrics.memorisation import memorised_share, nearest_distance
from scoresde.metrics.moments import RunningMoments
from scoresde.metrics.neighbours import (
    DensityCoverage,
    PrecisionRecall,
    density_coverage,
    expected_manifold_coverage,
    precision_recall,
)
from scoresde.metrics.posterior import calibration_error, coverage, rank
from scoresde.metrics.saved_features import load_features, save_features
from scoresde.metrics.sets import Estimate, SampleSizeWarning, TwoSampleTest
from scoresde.metrics.sliced import sliced_wasserstein

__all__ = [
    "DensityCoverage",
    "Estimate",
    "FeatureNet",
    "Features",
    "ModuleFeatures",
    "NetFeatures",
    "PixelFeatures",
    "PrecisionRecall",
    "RunningMoments",
    "SampleSizeWarning",
    "TwoSampleTest",
    "calibration_error",
    "coverage",
    "density_coverage",
    "energy_distance",
    "expected_manifold_coverage",
    "frechet_bias",
    "frechet_distance",
    "frechet_extrapolated",
    "frechet_of_moments",
    "load_features",
    "memorised_share",
    "nearest_distance",
    "precision_recall",
    "rank",
    "save_features",
    "sliced_wasserstein",
    "train_features",
]
