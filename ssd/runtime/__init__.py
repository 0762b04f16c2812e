"""Code that is not about detection and is used by all of `ssd`: files, texts, processes, threads, devices, rows."""
