"""Settings under which tests of every method take seconds."""

DUE = {
    "unimatch": {"threshold": 0.0},
    "knowsam": {"mix_confidence": 0.0},
}  # settings under which every term acts on an untrained network


# Smaller and faster than what a paper publishes, where that would take minutes here; no weights from a network.
SMALL = {
    "knowsam": {"teacher": "tiny", "labelled_batch": 4, "other_batch": 2},
    "kdas": {
        "teacher_backbone": "b0",
        "learning_rate": 1e-3,
        "labelled_batch": 4,
        "other_batch": 4,
        "control": False,
    },
    "esp_medsam": {"sam": "tiny"},
}
