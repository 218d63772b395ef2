"""What earlier trials and sweeps teach: priors, and learners that look at results."""
