"""From a data file to an experiment: what is chosen where there is no experiment file."""
