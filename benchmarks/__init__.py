"""Speed and memory: each module prints ratios of things measured side by side in one run."""
