"""Settings of the paper's runs, as YAML files that `--config NAME` finds."""
