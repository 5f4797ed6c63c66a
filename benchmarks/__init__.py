"""Speed and memory: each module prints ratios of things measured side by side in one run."""

import stages  # noqa: F401  # its settings of OpenMP, which torch reads when it is imported
