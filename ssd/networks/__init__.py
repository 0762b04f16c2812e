"""Networks, one file each, and the prior boxes that their predictions are relative to."""
