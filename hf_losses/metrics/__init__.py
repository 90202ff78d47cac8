"""Metrics of tasks, which of them are better when lower, calibration, and predictions by class."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_losses.lazy import attributes

if TYPE_CHECKING:
    from hf_losses.metrics.calibration import calibration_bins, expected_calibration_error
    from hf_losses.metrics.classes import class_counts
    from hf_losses.metrics.direction import lower_is_better
    from hf_losses.metrics.tasks import ENTITY_METRICS, METRICS, EntityMetric, GlueMetric

# The module of each public name, imported with the first use of the name.
_MODULES = {
    "ENTITY_METRICS": "metrics.tasks",
    "EntityMetric": "metrics.tasks",
    "GlueMetric": "metrics.tasks",
    "METRICS": "metrics.tasks",
    "calibration_bins": "metrics.calibration",
    "class_counts": "metrics.classes",
    "expected_calibration_error": "metrics.calibration",
    "lower_is_better": "metrics.direction",
}

__all__ = [
    "ENTITY_METRICS",
    "METRICS",
    "EntityMetric",
    "GlueMetric",
    "calibration_bins",
    "class_counts",
    "expected_calibration_error",
    "lower_is_better",
]

__getattr__ = attributes(__name__, _MODULES)
