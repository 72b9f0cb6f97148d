"""What a trained model looks at, what it keeps in its states, and how to mend states that look at the wrong things."""
from .attention import ScanMaps, implicit_attention, scan_maps, state_size
from .class_activation import ClassActivation, class_activation
from .decay import DecayStatistics, decay_statistics
from .receptive_field import ReceptiveField, effective_receptive_field
from .recorder import ScanRecorder, record_scans, scan_layers
from .scans import Scan, Walk

__all__ = [
    "ClassActivation", "DecayStatistics", "ReceptiveField", "Scan", "ScanMaps", "ScanRecorder", "Walk",
    "class_activation", "decay_statistics", "effective_receptive_field", "implicit_attention", "record_scans",
    "scan_layers", "scan_maps", "state_size",
]
