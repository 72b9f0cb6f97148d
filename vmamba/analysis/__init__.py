"""What a trained model looks at, what it keeps in its states, and how to mend states that look at the wrong things."""
from .attention import ScanMaps, implicit_attention, scan_maps, state_size
from .class_activation import ClassActivation, class_activation
from .correlation import (
    Correlation,
    ExternalScore,
    InternalScore,
    Tap,
    external_scores,
    internal_score,
    state_correlations,
)
from .decay import DecayStatistics, decay_statistics
from .receptive_field import ReceptiveField, effective_receptive_field
from .recorder import ScanRecorder, record_scans, scan_layers
from .repair import ClassTemplates, RepairTask
from .scans import Scan, Walk

__all__ = [
    "ClassActivation", "ClassTemplates", "Correlation", "DecayStatistics", "ExternalScore", "InternalScore",
    "ReceptiveField", "RepairTask", "Scan", "ScanMaps", "ScanRecorder", "Tap", "Walk", "class_activation",
    "decay_statistics", "effective_receptive_field", "external_scores", "implicit_attention", "internal_score",
    "record_scans", "scan_layers", "scan_maps", "state_correlations", "state_size",
]
