"""Networks, one file each, and the priors that they predict from."""
