"""How far samples are from data, and posterior samples from the truth.

    energy_distance(samples, data)                  # 0 where the laws agree, up to the sizes of the sets
    sliced_wasserstein(samples, data, noise=0)
    frechet_distance(features(samples), features(data))     # of pixels, or of any feature space
    precision_recall(features(samples), features(data))
    memorised_share(samples, train, held_out)       # how many lie nearer to the training set than new data do
    recall_at(similarity, right, k=5)               # of retrieval, such as pictures by their captions
    calibration_error(samples, truth)               # of posterior samples (n, S, *event) for truths (n, *event)
    dice(mask, truth), roc_auc(map, truth)          # of masks, and of maps that rank their pixels

Sets are (n, *event) of any sizes; all is computed in float64. A feature space is a :class:`Features`: pixels, a network
that :func:`train_features` makes in minutes, or any module (:class:`ModuleFeatures`).
"""

from scoresde.metrics.classifier_test import Classifier, ClassifierTest, classifier_two_sample_test
from scoresde.metrics.energy import energy_distance
from scoresde.metrics.feature_net import FeatureNet, NetFeatures
from scoresde.metrics.feature_training import train_features
from scoresde.metrics.features import Features, ModuleFeatures, PixelFeatures
from scoresde.metrics.frechet import frechet_bias, frechet_distance, frechet_extrapolated, frechet_of_moments
from scoresde.metrics.kernels import (
    CosineKernel,
    DistanceKernel,
    GaussianKernel,
    Kernel,
    PolynomialKernel,
    median_distance,
)
from scoresde.metrics.masks import Reliability, dice, reliability, roc_auc
from scoresde.metrics.max_sliced import max_sliced_wasserstein
from scoresde.metrics.memorisation import authenticity, expected_authenticity, memorised_share, nearest_distance
from scoresde.metrics.mmd import kernel_distance, mmd, mmd_test
from scoresde.metrics.moments import RunningMoments
from scoresde.metrics.neighbours import (
    DensityCoverage,
    PrecisionRecall,
    density_coverage,
    expected_manifold_coverage,
    precision_recall,
)
from scoresde.metrics.permutations import permutation_test
from scoresde.metrics.posterior import calibration_error, coverage, rank
from scoresde.metrics.power import detectable_shift, power_of_test
from scoresde.metrics.retrieval import recall_at
from scoresde.metrics.saved_features import load_features, save_features
from scoresde.metrics.sets import Estimate, SampleSizeWarning, TwoSampleTest
from scoresde.metrics.sliced import sliced_wasserstein
from scoresde.metrics.vendi import vendi_of_similarity, vendi_score

__all__ = [
    "Classifier",
    "ClassifierTest",
    "CosineKernel",
    "DensityCoverage",
    "DistanceKernel",
    "Estimate",
    "FeatureNet",
    "Features",
    "GaussianKernel",
    "Kernel",
    "ModuleFeatures",
    "NetFeatures",
    "PixelFeatures",
    "PolynomialKernel",
    "PrecisionRecall",
    "Reliability",
    "RunningMoments",
    "SampleSizeWarning",
    "TwoSampleTest",
    "authenticity",
    "calibration_error",
    "classifier_two_sample_test",
    "coverage",
    "density_coverage",
    "detectable_shift",
    "dice",
    "energy_distance",
    "expected_authenticity",
    "expected_manifold_coverage",
    "frechet_bias",
    "frechet_distance",
    "frechet_extrapolated",
    "frechet_of_moments",
    "kernel_distance",
    "load_features",
    "max_sliced_wasserstein",
    "median_distance",
    "memorised_share",
    "mmd",
    "mmd_test",
    "nearest_distance",
    "permutation_test",
    "power_of_test",
    "precision_recall",
    "rank",
    "recall_at",
    "reliability",
    "roc_auc",
    "save_features",
    "sliced_wasserstein",
    "train_features",
    "vendi_of_similarity",
    "vendi_score",
]
