"""Speed and memory of the runner and of the embedded engine, measured side by side in one run."""
